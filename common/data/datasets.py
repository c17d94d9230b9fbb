"""Data sets as ``uint8`` images and class labels: scikit-learn's digits, torchvision's sets, published archives, folders."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.error import URLError
from xml.etree import ElementTree

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor

from common.errors import DataMissingError, InputError, UnreadableError

EXTENSIONS = frozenset(Image.registered_extensions())
Box = tuple[int, int, int, int]


class Images(Protocol):
    """Indexable images: a ``(N, C, H, W)`` uint8 tensor, or files that are decoded when they are asked for."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """``(N, C, H, W)``."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` uint8."""


class ImageData(NamedTuple):
    """A data set: images, the class of each, whether each is in the official test set, and the classes' names.

    Where images are parts of something larger that is split and judged as a whole, ``groups`` ``(N,)`` holds the number
    (0, 1, …) of the whole that each belongs to, whose class and official part it shares.
    """

    images: Images
    targets: NDArray[np.int64]
    official_test: NDArray[np.bool_]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None = None


class ImageFiles:
    """Image files of one size, decoded on demand in threads.

    A file of another aspect ratio is scaled and centre-cropped to ``size``.

    Args:
        paths: The ``N`` files.
        size: ``(height, width)``; that of the first file by default, and then every file must have it.
        channels: 1 (grey) or 3 (RGB); that of the first file by default.
        boxes: Of each file the part that is the image, as left, top, right, bottom; None for the whole. Needs ``size``.

    Raises:
        InputError: Files that cannot be read as images, all of which it names, or one of another size where ``size`` is not
            given.
    """

    def __init__(
        self,
        paths: list[Path],
        size: tuple[int, int] | None,
        channels: int | None,
        boxes: Sequence[Box | None] | None = None,
    ) -> None:
        self.paths, self.boxes = paths, boxes
        self.resize = size is not None
        if size is None or channels is None:
            first = _open(paths[0])
            size = size or (first.height, first.width)
            channels = channels or (1 if first.mode in {"1", "L", "F"} else 3)
        self.size, self.channels = size, channels

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)``."""
        return (len(self.paths), self.channels, *self.size)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` uint8."""
        out = np.empty((len(indices), *self.size, self.channels), np.uint8)

        def decode(position: int, index: int) -> None:
            out[position] = self.decode(index)

        with ThreadPoolExecutor() as pool:
            try:
                list(pool.map(decode, range(len(indices)), indices.tolist()))
            except UnreadableError as error:
                raise UnreadableError(_unreadable(self.paths, pool) or str(error)) from error
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """``(H, W, C)`` of one file."""
        path = self.paths[index]
        image = _open(path).convert("L" if self.channels == 1 else "RGB")
        if self.boxes and (box := self.boxes[index]):
            image = image.crop(box)
        height, width = self.size
        if (image.height, image.width) != self.size:
            if not self.resize:
                raise InputError(
                    f"{path} is {image.height}x{image.width} and the first image {height}x{width}: give image_size"
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, self.channels)


class Patches:
    """Windows of frames, cut out when they are asked for.

    Args:
        frames: ``(F, H, W)`` uint8; kept, not copied.
        corners: ``(N, 3)`` frame, top and left of each window.
        size: ``(height, width)`` of the windows.

    Example:
        >>> frames = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
        >>> Patches(frames, np.array([[0, 0, 0], [1, 1, 2]]), (2, 2))[torch.tensor([1])].tolist()
        [[[[18, 19], [22, 23]]]]
    """

    def __init__(self, frames: Tensor, corners: NDArray[np.int64], size: tuple[int, int]) -> None:
        self.frames, self.corners = frames, torch.from_numpy(corners)
        self._windows = frames.unfold(1, size[0], 1).unfold(2, size[1], 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, 1, H, W)`` with the windows' height and width."""
        return (len(self.corners), 1, *self._windows.shape[3:])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``(B,)`` indices to ``(B, 1, H, W)`` uint8."""
        frame, top, left = self.corners[indices].unbind(1)
        return self._windows[frame, top, left].unsqueeze(1)


def load(name: str, root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """A data set by its name, kept for the rest of the process.

    Args:
        name: A key of :data:`DATASETS`.
        root: Where data sets lie, or are downloaded to; for ``folder`` the folder itself.
        size: ``(height, width)`` to which *files* are decoded, or of patches; data sets of one size ignore it.
        channels: Likewise, 1 or 3.

    Raises:
        InputError: Unknown name, missing root, data that cannot be had or read, a class without images.
        DataMissingError: The data set has to be fetched by hand and is not there.

    Example:
        >>> data = load("digits", Path("."))
        >>> tuple(data.images.shape), data.official_test.sum(), len(data.classes)
        ((1797, 1, 8, 8), np.int64(540), 10)
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set '{name}': choose from {', '.join(DATASETS)}")
    return _load(name, root, size, channels)


def fingerprint(name: str, root: Path) -> str:
    """What tells one data set from another in a record: the name, and for a folder a hash of its file list."""
    if name != "folder":
        return name
    files = sorted(f"{path.relative_to(root)}:{path.stat().st_size}" for path in root.rglob("*") if path.is_file())
    return f"folder:{hashlib.sha256(chr(10).join(files).encode()).hexdigest()[:16]}"


def digits(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Scikit-learn's 1,797 handwritten digits, 8x8, no download; the last 540 (mostly other writers) are the test set."""
    images, targets = load_digits(return_X_y=True)
    scaled = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return ImageData(scaled, targets.astype(np.int64), np.arange(1797) >= 1257, tuple(map(str, range(10))))


def mnist(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """MNIST, 60,000 + 10,000 digits of 28x28."""
    return _torchvision(torchvision.datasets.MNIST, "mnist", root)


def fashion_mnist(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Fashion-MNIST, 60,000 + 10,000 articles of 28x28."""
    return _torchvision(torchvision.datasets.FashionMNIST, "fashion_mnist", root)


def cifar10(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """CIFAR-10, 50,000 + 10,000 RGB images of 32x32: ``ROOT/cifar10/{train,test}/<class>/`` if there, else torchvision's."""
    if (root / "cifar10").is_dir():
        return folder(root / "cifar10", (32, 32), 3)
    return _torchvision(torchvision.datasets.CIFAR10, "cifar10", root)


def caltech256(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Caltech-256, 30,607 RGB files in 257 folders, the last of them clutter; no test set of its own.

    A class is named as its folder, and its images are in the order of their file names.

    Args:
        root: Holds ``256_ObjectCategories/NNN.name/NNN_MMMM.jpg``, itself or in ``caltech256``.
        size: ``(height, width)`` of the decoded files, which all differ; 64x64 by default, our choice.
        channels: 3 by default.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: A class folder without images.
    """
    places = ("caltech256/256_ObjectCategories", "256_ObjectCategories")
    source = "data.caltech.edu, doi.org/10.22002/D1.20087"
    found = _published("caltech256", root, places, "256_ObjectCategories/NNN.name/NNN_MMMM.jpg", source)
    return folder(found, size or (64, 64), channels or 3, pattern="[0-9][0-9][0-9].*")


def coil100(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """COIL-100, 100 objects in 72 views each, 5 degrees apart, as RGB files of 128x128; no test set of its own.

    The class of an object is its number less one, and its images are in the order of their angles.

    Args:
        root: Holds ``coil-100/objN__ANGLE.png``, itself or in ``coil100``.
        size: ``(height, width)`` of the decoded files; 64x64 by default, our choice.
        channels: 3 by default.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: No such files in it.
    """
    places = ("coil100/coil-100", "coil-100")
    found = _published(
        "coil100", root, places, "coil-100/objN__ANGLE.png", "cs.columbia.edu/CAVE/software/softlib/coil-100.php"
    )
    views = {path: re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name) for path in found.glob("obj*.png")}
    order = sorted((int(view[1]), int(view[2]), path) for path, view in views.items() if view)
    if not order:
        raise InputError(f"no images objN__ANGLE.png in {found}: unpack the archive again")
    numbers = sorted({number for number, _, _ in order})
    targets = np.searchsorted(numbers, [number for number, _, _ in order])
    files = ImageFiles([path for _, _, path in order], size or (64, 64), channels or 3)
    return ImageData(files, targets, np.zeros(len(order), np.bool_), tuple(f"obj{number}" for number in numbers))


def ucsd_ped2(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """UCSD Ped2, grey patches of surveillance frames; the test clips are the official test set, a frame is a group.

    Patches lie every 25 pixels in training frames and every 10 in test frames (as in ALOCC's official code, here over the
    whole frame), the last of a row or column flush with the border. A patch has the class of its frame, which is abnormal
    where ``Test/UCSDped2.m`` lists its number.

    Args:
        root: Holds ``UCSDped2/{Train,Test}/{Train,Test}NNN/NNN.tif``, itself, in ``UCSD_Anomaly_Dataset.v1p2`` or in
            ``ucsd_ped2/UCSD_Anomaly_Dataset.v1p2``.
        size: ``(height, width)`` of a patch; 30x30 by default, ALOCC's.
        channels: Ignored, the frames are grey.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: No frames, no ground truth or one of another number of clips, a patch larger than the frames.
    """
    places = ("UCSD_Anomaly_Dataset.v1p2/UCSDped2", "ucsd_ped2/UCSD_Anomaly_Dataset.v1p2/UCSDped2", "UCSDped2")
    source = "svcl.ucsd.edu/projects/anomaly"
    found = _published("ucsd_ped2", root, places, "UCSDped2/{Train,Test}/{Train,Test}NNN/NNN.tif", source)
    train, test = _clips(found / "Train"), _clips(found / "Test")
    abnormal = _abnormal_frames(found / "Test" / "UCSDped2.m")
    if len(abnormal) != len(test):
        raise InputError(f"{found / 'Test'} has {len(test)} clips and UCSDped2.m speaks of {len(abnormal)}: unpack it again")
    paths = [path for clip in (*train, *test) for path in clip]
    n_train = sum(map(len, train))
    tested = [int(path.stem) in listed for clip, listed in zip(test, abnormal, strict=True) for path in clip]
    frames = ImageFiles(paths, None, 1)[torch.arange(len(paths))].squeeze(1)
    size = size or (30, 30)
    if size[0] > frames.shape[1] or size[1] > frames.shape[2]:
        raise InputError(f"image_size {size[0]}x{size[1]} exceeds the frames' {frames.shape[1]}x{frames.shape[2]}")
    numbers = np.arange(len(paths))
    corners = np.concatenate([
        _grid(numbers[:n_train], frames.shape, size, stride=25),
        _grid(numbers[n_train:], frames.shape, size, stride=10),
    ])  # fmt: skip
    groups = corners[:, 0].copy()
    targets = np.append(np.zeros(n_train, np.int64), tested)
    return ImageData(Patches(frames, corners, size), targets[groups], groups >= n_train, ("normal", "abnormal"), groups)


def cats_dogs(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Photographs of cats and of dogs of all sizes, as ``ROOT/cats_dogs/{train,test}/{cat,dog}/``.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: A class folder without images.
    """
    layout, source = "cats_dogs/{train,test}/{cat,dog}/*.jpg", "kaggle.com/datasets/tongpython/cat-and-dog"
    return folder(_published("cats_dogs", root, ("cats_dogs",), layout, source), size or (224, 224), channels or 3)


def abnormality1001(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Abnormality-1001 with PASCAL VOC's objects of the same six classes as normals, by OC-CNN's protocol.

    Classes 0 to 5 are VOC's objects, cut out along their boxes, 6 to 11 the abnormal images of the same classes. Tested
    are all the abnormal images, and as many normal ones of each class (at most half of them), drawn once with a fixed seed.
    Class k is tested with ``standard,anomalous=<k + 6>``.

    Args:
        root: Holds ``abnormality1001/<class>/*`` with folders named Airplane, Boat, Car, Chair, Motorbike and Sofa in any
            spelling of case, and ``VOCdevkit/VOC<year>/{Annotations,JPEGImages}``.
        size: ``(height, width)``; 224x224 by default.
        channels: 3 by default.

    Raises:
        DataMissingError: One of the two is not there; neither is downloaded.
        InputError: A class without images.
    """
    name, places = "abnormality1001", ("VOCdevkit",)
    abnormal = _published(name, root, (name,), f"{name}/{{Airplane,…,Sofa}}/*", "its authors (Saleh et al., CVPR 2013)")
    layout = "VOCdevkit/VOC<year>/{Annotations,JPEGImages}"
    voc = _published(f"PASCAL VOC, for {name},", root, places, layout, "host.robots.ox.ac.uk/pascal/VOC")
    names = {"aeroplane": "airplane", "boat": "boat", "car": "car", "chair": "chair", "motorbike": "motorbike", "sofa": "sofa"}
    folders = {path.name.lower(): path for path in abnormal.iterdir()}
    strange = [_image_files(folders.get(name, abnormal / name)) for name in names.values()]
    objects = _voc_objects(voc, names)
    paths, boxes, targets, official_test = list[Path](), list[Box | None](), list[int](), list[bool]()
    random = np.random.default_rng(0)
    for target, name in enumerate(names):
        if not objects[name]:
            raise InputError(f"no objects of class {name} in {voc}: unpack the archive again")
        n = len(objects[name])
        tested = random.permutation(n) < min(len(strange[target]), n // 2)
        paths += [path for path, _ in objects[name]]
        boxes += [box for _, box in objects[name]]
        targets += [target] * n
        official_test += tested.tolist()
    for target, files in enumerate(strange, len(names)):
        paths += files
        boxes += [None] * len(files)
        targets += [target] * len(files)
        official_test += [True] * len(files)
    images = ImageFiles(paths, size or (224, 224), channels or 3, boxes)
    classes = (*names.values(), *(f"abnormal {name}" for name in names.values()))
    return ImageData(images, np.array(targets), np.array(official_test), classes)


def umdaa02(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """UMDAA-02's faces, a class for each user; a fifth of each user's images, drawn once with a fixed seed, is the test set.

    Args:
        root: Holds ``umdaa02/<user>/*``.
        size: ``(height, width)``; 224x224 by default.
        channels: 3 by default.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: A user without images.
    """
    layout, source = "umdaa02/<user>/*", "umdaa02.github.io"
    data = folder(_published("umdaa02", root, ("umdaa02",), layout, source), size or (224, 224), channels or 3)
    return data._replace(official_test=_share_of_each(data.targets, 0.2))


def founder200(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """FounderType-200: of 200 fonts the first half are classes of their own, the others together the class ``novel``.

    Half of each font's images, and the first 50 of each novel font, are the test set: OC-CNN's protocol is
    ``standard,anomalous=100``. The novel fonts' other images are not used.

    Args:
        root: Holds ``founder200/<font>/*``, fonts in alphabetical order.
        size: ``(height, width)``; 224x224 by default.
        channels: 3 by default.

    Raises:
        DataMissingError: No such folder; it is never downloaded.
        InputError: A font without images.
    """
    layout, source = "founder200/<font>/*", "its authors (Liu et al., FounderType-200)"
    data = folder(_published("founder200", root, ("founder200",), layout, source), size or (224, 224), channels or 3)
    half = len(data.classes) // 2
    if not half:
        raise InputError(f"{root / 'founder200'} holds one font: unpack the archive again")
    known = data.targets < half
    rank = np.arange(len(data.targets)) - np.searchsorted(data.targets, data.targets)
    official_test = np.where(known, _share_of_each(data.targets, 0.5), rank < 50)
    classes = (*data.classes[:half], "novel")
    return data._replace(targets=data.targets.clip(max=half), official_test=official_test, classes=classes)


def folder(root: Path, size: tuple[int, int] | None = None, channels: int | None = None, pattern: str = "*") -> ImageData:
    """Any ``ROOT/{train,test}/<class>/`` or ``ROOT/<class>/`` tree of images; classes in alphabetical order."""
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [root / "train", root / "test"] if has_split else [root]
    classes = tuple(sorted({path.name for part in parts for path in part.glob(pattern) if path.is_dir()}))
    if not classes:
        raise InputError(f"{root} has no class folders: ROOT/<class>/ or ROOT/{{train,test}}/<class>/ is expected")
    paths: list[Path] = []
    targets: list[int] = []
    official_test: list[bool] = []
    for part in parts:
        for target, name in enumerate(classes):
            files = _image_files(part / name)
            paths += files
            targets += [target] * len(files)
            official_test += [part.name == "test" and has_split] * len(files)
    return ImageData(ImageFiles(paths, size, channels), np.array(targets), np.array(official_test), classes)


DATASETS: dict[str, Callable[..., ImageData]] = {
    loader.__name__: loader for loader in (
        digits, mnist, fashion_mnist, cifar10, cats_dogs, coil100, caltech256, ucsd_ped2, abnormality1001, umdaa02, founder200,
        folder,
    )
}  # fmt: skip


@lru_cache(maxsize=4)
def _load(name: str, root: Path, size: tuple[int, int] | None, channels: int | None) -> ImageData:
    if name != "digits" and not root.is_dir():
        raise InputError(f"no folder {root}: create it or correct --root")
    return DATASETS[name](root, size, channels)


def _torchvision(dataset: Callable[..., Iterable[object]], name: str, root: Path) -> ImageData:
    try:
        parts = [dataset(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, URLError, ValueError, EOFError, AssertionError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name} is not in {root}, or damaged there, and cannot be downloaded: {reason}") from error
    arrays = [np.asarray(part.data) for part in parts]  # type: ignore[attr-defined]
    images = torch.from_numpy(np.concatenate(arrays))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    targets = np.concatenate([np.asarray(part.targets) for part in parts]).astype(np.int64)  # type: ignore[attr-defined]
    return ImageData(images, targets, np.arange(len(targets)) >= len(arrays[0]), tuple(parts[0].classes))  # type: ignore[attr-defined]


def _published(name: str, root: Path, places: Sequence[str], layout: str, source: str) -> Path:
    found = [root / place for place in places if (root / place).is_dir()]
    if not found:
        raise DataMissingError(
            f"{name} is not in {root} and is not downloaded by itself: get it from {source} and unpack it there as {layout}"
        )
    return found[0]


def _clips(folder: Path) -> list[list[Path]]:
    """The frames of each clip; what is not named as a clip or a frame is passed over."""
    by_clip: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{folder.name}*/*.tif")):
        if re.fullmatch(rf"{folder.name}\d+/\d+\.tif", path.relative_to(folder).as_posix()):
            by_clip.setdefault(path.parent.name, []).append(path)
    if not by_clip:
        raise InputError(f"no frames {folder.name}NNN/NNN.tif in {folder}: unpack the archive again")
    return list(by_clip.values())


def _abnormal_frames(path: Path) -> list[set[int]]:
    """The abnormal frames' numbers of each test clip, from lines such as ``….gt_frame = [5:90, 140:200];``."""
    if not path.is_file():
        raise InputError(f"no {path}, the frames' ground truth: unpack the archive again")
    code = re.sub("%.*", "", path.read_text(errors="replace"))
    listed = (re.findall(r"(\d+)(?:\s*:\s*(\d+))?", ranges) for ranges in re.findall(r"gt_frame\s*=\s*\[([\d\s:,]*)\]", code))
    return [{n for first, last in ranges for n in range(int(first), int(last or first) + 1)} for ranges in listed]


def _grid(frames: NDArray[np.int64], shape: Sequence[int], size: tuple[int, int], stride: int) -> NDArray[np.int64]:
    """``(N, 3)`` corners of the windows of ``size`` that cover each of the numbered frames."""
    starts = [
        np.arange(0, whole - part + stride, stride).clip(max=whole - part) for whole, part in zip(shape[1:], size, strict=True)
    ]
    return np.stack(np.meshgrid(frames, *starts, indexing="ij"), axis=-1).reshape(-1, 3)


def _voc_objects(voc: Path, names: Iterable[str]) -> dict[str, list[tuple[Path, Box]]]:
    """The objects of each class with their boxes, less those marked as difficult or cut off by the image's border."""
    objects: dict[str, list[tuple[Path, Box]]] = {name: [] for name in names}
    for annotation in sorted(voc.glob("VOC*/Annotations/*.xml")):
        for item in ElementTree.parse(annotation).iter("object"):
            name = item.findtext("name", "")
            if name in objects and not any(item.findtext(mark, "0") == "1" for mark in ("difficult", "truncated")):
                left, top, right, bottom = (
                    int(float(item.findtext(f"bndbox/{side}", "0"))) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                image = annotation.parents[1] / "JPEGImages" / f"{annotation.stem}.jpg"
                objects[name].append((image, (left - 1, top - 1, right, bottom)))
    return objects


def _share_of_each(targets: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """True for a share of each class, drawn with a fixed seed."""
    random, chosen = np.random.default_rng(0), np.zeros(len(targets), np.bool_)
    for target in np.unique(targets):
        of_class = random.permutation(np.flatnonzero(targets == target))
        chosen[of_class[: round(share * len(of_class))]] = True
    return chosen


def _image_files(folder: Path) -> list[Path]:
    entries = folder.iterdir() if folder.is_dir() else ()
    files = sorted(p for p in entries if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    if not files:
        raise InputError(f"no images in the class folder {folder}")
    return files


def _unreadable(paths: Sequence[Path], pool: ThreadPoolExecutor) -> str:
    """One line about all the files that cannot be read."""

    def reason(path: Path) -> str:
        try:
            _open(path)
        except UnreadableError as error:
            return str(error)
        return ""

    said = dict(zip(paths, pool.map(reason, paths), strict=True))
    bad = [path for path in paths if said[path]]
    return said[bad[0]] if len(bad) == 1 else f"cannot read {len(bad)} images: {', '.join(map(str, bad))}" if bad else ""


def _open(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"cannot read the image {path}: {error}") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip all above 255
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    return image
