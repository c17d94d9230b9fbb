"""Published data sets that are read from the files of their archives and never downloaded.

Every reader takes ``root``, where data sets lie, ``size``, the ``(height, width)`` of decoded files or of patches, and
``channels``, 1 or 3. It raises :class:`common.errors.DataMissingError` if the archive is not there and
:class:`common.errors.InputError` if it is damaged or incomplete. :data:`ARCHIVES` says where each archive is looked for.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.images import Box, ImageData, ImageFiles, Patches, class_folders, image_files
from common.errors import DataMissingError, InputError

Size = tuple[int, int]


class Archive(NamedTuple):
    """Where the files of a published data set are.

    Attributes:
        places: Folders below the root, of which the first that exists is read.
        layout: The files, as the message about a missing archive names them.
        source: Where the archive can be had.
        size: ``(height, width)`` of decoded files by default.
    """

    places: tuple[str, ...]
    layout: str
    source: str
    size: Size = (224, 224)


ARCHIVES = {
    "caltech256": Archive(
        places=("caltech256/256_ObjectCategories", "256_ObjectCategories"),
        layout="256_ObjectCategories/NNN.name/NNN_MMMM.jpg",
        source="data.caltech.edu, doi.org/10.22002/D1.20087",
        size=(64, 64),  # our choice: the files all differ
    ),
    "coil100": Archive(
        places=("coil100/coil-100", "coil-100"),
        layout="coil-100/objN__ANGLE.png",
        source="cs.columbia.edu/CAVE/software/softlib/coil-100.php",
        size=(64, 64),  # our choice: the files are 128x128
    ),
    "ucsd_ped2": Archive(
        places=("UCSD_Anomaly_Dataset.v1p2/UCSDped2", "ucsd_ped2/UCSD_Anomaly_Dataset.v1p2/UCSDped2", "UCSDped2"),
        layout="UCSDped2/{Train,Test}/{Train,Test}NNN/NNN.tif",
        source="svcl.ucsd.edu/projects/anomaly",
        size=(30, 30),  # ALOCC's patches
    ),
    "cats_dogs": Archive(
        places=("cats_dogs",),
        layout="cats_dogs/{train,test}/{cat,dog}/*.jpg",
        source="kaggle.com/datasets/tongpython/cat-and-dog",
    ),
    "abnormality1001": Archive(
        places=("abnormality1001",),
        layout="abnormality1001/{Airplane,…,Sofa}/*",
        source="its authors (Saleh et al., CVPR 2013)",
    ),
    "PASCAL VOC, for abnormality1001,": Archive(
        places=("VOCdevkit",),
        layout="VOCdevkit/VOC<year>/{Annotations,JPEGImages}",
        source="host.robots.ox.ac.uk/pascal/VOC",
    ),
    "umdaa02": Archive(places=("umdaa02",), layout="umdaa02/<user>/*", source="umdaa02.github.io"),
    "founder200": Archive(
        places=("founder200",),
        layout="founder200/<font>/*",
        source="its authors (Liu et al., FounderType-200)",
    ),
}


def caltech256(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Caltech-256, 30,607 RGB files in 257 folders, the last of them clutter; no test set of its own.

    A class is named as its folder, and its images are in the order of their file names.
    """
    return _class_folders("caltech256", root, size, channels, pattern="[0-9][0-9][0-9].*")


def coil100(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """COIL-100, 100 objects in 72 views each, 5 degrees apart, as RGB files; no test set of its own.

    The class of an object is its number less one, and its images are in the order of their angles.
    """
    found = _find("coil100", root)
    views = {path: re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name) for path in found.glob("obj*.png")}
    order = sorted((int(view[1]), int(view[2]), path) for path, view in views.items() if view)
    if not order:
        raise InputError(f"no images objN__ANGLE.png in {found}: unpack the archive again")
    numbers = sorted({number for number, _, _ in order})
    targets = np.searchsorted(numbers, [number for number, _, _ in order])
    files = ImageFiles([path for _, _, path in order], size or ARCHIVES["coil100"].size, channels or 3)
    return ImageData(files, targets, np.zeros(len(order), np.bool_), tuple(f"obj{number}" for number in numbers))


def ucsd_ped2(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """UCSD Ped2, grey patches of surveillance frames; the test clips are the official test set, a frame is a group.

    Patches lie every 25 pixels in training frames and every 10 in test frames (as in ALOCC's official code, here over the
    whole frame). The last patch of a row or column is flush with the border. A patch has the class of its frame, which is
    abnormal where ``Test/UCSDped2.m`` lists its number.
    """
    found = _find("ucsd_ped2", root)
    train, test = _clips(found / "Train"), _clips(found / "Test")
    abnormal = _abnormal_frames(found / "Test" / "UCSDped2.m")
    if len(abnormal) != len(test):
        raise InputError(f"{found / 'Test'} has {len(test)} clips and UCSDped2.m speaks of {len(abnormal)}: unpack it again")
    paths = list(chain.from_iterable(train))
    n_train = len(paths)
    frame_is_abnormal: list[bool] = []
    for clip, listed in zip(test, abnormal, strict=True):
        paths += clip
        frame_is_abnormal += [int(path.stem) in listed for path in clip]
    frames = ImageFiles(paths, None, 1)[torch.arange(len(paths))].squeeze(1)
    size = size or ARCHIVES["ucsd_ped2"].size
    if size[0] > frames.shape[1] or size[1] > frames.shape[2]:
        raise InputError(f"image_size {size[0]}x{size[1]} exceeds the frames' {frames.shape[1]}x{frames.shape[2]}")
    numbers = np.arange(len(paths))
    corners = np.concatenate([
        _grid(numbers[:n_train], frames.shape, size, stride=25),
        _grid(numbers[n_train:], frames.shape, size, stride=10),
    ])  # fmt: skip
    groups = corners[:, 0].copy()
    targets = np.append(np.zeros(n_train, np.int64), frame_is_abnormal)
    return ImageData(Patches(frames, corners, size), targets[groups], groups >= n_train, ("normal", "abnormal"), groups)


def cats_dogs(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Photographs of cats and of dogs of all sizes."""
    return _class_folders("cats_dogs", root, size, channels)


VOC_NAMES = {"aeroplane": "airplane", "boat": "boat", "car": "car", "chair": "chair", "motorbike": "motorbike", "sofa": "sofa"}
"""Abnormality-1001's classes by their names in PASCAL VOC."""


def abnormality1001(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Abnormality-1001 with PASCAL VOC's objects of the same six classes as normals, by OC-CNN's protocol.

    Classes 0 to 5 are VOC's objects, cut out along their boxes, 6 to 11 the abnormal images of the same classes. The test
    set holds all abnormal images, and as many normal ones of each class (at most half of them), drawn once with a fixed seed.
    Class k is tested with ``standard,anomalous=<k + 6>``. The abnormal folders' names may be in any case.
    """
    abnormal = _find("abnormality1001", root)
    voc = _find("PASCAL VOC, for abnormality1001,", root)
    folders = {path.name.lower(): path for path in abnormal.iterdir()}
    abnormal_files = [image_files(folders.get(name, abnormal / name)) for name in VOC_NAMES.values()]
    objects = _voc_objects(voc, VOC_NAMES)
    paths, boxes, targets, official_test = list[Path](), list[Box | None](), list[int](), list[bool]()
    random = np.random.default_rng(0)
    for target, name in enumerate(VOC_NAMES):
        n = len(objects[name])
        if not n:
            raise InputError(f"no objects of class {name} in {voc}: unpack the archive again")
        tested = random.permutation(n) < min(len(abnormal_files[target]), n // 2)
        paths += [path for path, _ in objects[name]]
        boxes += [box for _, box in objects[name]]
        targets += [target] * n
        official_test += tested.tolist()
    for target, files in enumerate(abnormal_files, len(VOC_NAMES)):
        paths += files
        boxes += [None] * len(files)
        targets += [target] * len(files)
        official_test += [True] * len(files)
    images = ImageFiles(paths, size or ARCHIVES["abnormality1001"].size, channels or 3, boxes)
    classes = (*VOC_NAMES.values(), *(f"abnormal {name}" for name in VOC_NAMES.values()))
    return ImageData(images, np.array(targets), np.array(official_test), classes)


def umdaa02(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """UMDAA-02's faces, a class for each user; a fifth of each user's images, drawn once with a fixed seed, is the test set."""
    data = _class_folders("umdaa02", root, size, channels)
    return data._replace(official_test=_share_of_each(data.targets, 0.2))


def founder200(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """FounderType-200: of 200 fonts the first half are classes of their own, the others together the class ``novel``.

    Half of each font's images, and the first 50 of each novel font, are the test set: OC-CNN's protocol is
    ``standard,anomalous=100``. The novel fonts' other images are not used. Fonts are in alphabetical order.
    """
    data = _class_folders("founder200", root, size, channels)
    half = len(data.classes) // 2
    if not half:
        raise InputError(f"{root / 'founder200'} holds one font: unpack the archive again")
    known = data.targets < half
    rank = np.arange(len(data.targets)) - np.searchsorted(data.targets, data.targets)
    official_test = np.where(known, _share_of_each(data.targets, 0.5), rank < 50)
    classes = (*data.classes[:half], "novel")
    return data._replace(targets=data.targets.clip(max=half), official_test=official_test, classes=classes)


def _find(name: str, root: Path) -> Path:
    archive = ARCHIVES[name]
    for place in archive.places:
        if (root / place).is_dir():
            return root / place
    get = f"get it from {archive.source} and unpack it there as {archive.layout}"
    raise DataMissingError(f"{name} is not in {root} and is not downloaded by itself: {get}")


def _class_folders(name: str, root: Path, size: Size | None, channels: int | None, pattern: str = "*") -> ImageData:
    return class_folders(_find(name, root), size or ARCHIVES[name].size, channels or 3, pattern)


def _clips(folder: Path) -> list[list[Path]]:
    """The frames of each clip; entries that are not named as a clip or a frame are ignored."""
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
    clips: list[set[int]] = []
    for ranges in re.findall(r"gt_frame\s*=\s*\[([\d\s:,]*)\]", code):
        numbers: set[int] = set()
        for first, last in re.findall(r"(\d+)(?:\s*:\s*(\d+))?", ranges):
            numbers.update(range(int(first), int(last or first) + 1))
        clips.append(numbers)
    return clips


def _grid(frames: NDArray[np.int64], shape: Sequence[int], size: Size, stride: int) -> NDArray[np.int64]:
    """``(N, 3)`` corners of the windows of ``size`` that cover each of the numbered frames."""
    starts = []
    for frame_length, window_length in zip(shape[1:], size, strict=True):
        last = frame_length - window_length
        starts.append(np.arange(0, last + stride, stride).clip(max=last))
    return np.stack(np.meshgrid(frames, *starts, indexing="ij"), axis=-1).reshape(-1, 3)


def _voc_objects(voc: Path, names: Iterable[str]) -> dict[str, list[tuple[Path, Box]]]:
    """The objects of each class with their boxes, less those marked as difficult or cut off by the image's border."""
    objects: dict[str, list[tuple[Path, Box]]] = {name: [] for name in names}
    for annotation in sorted(voc.glob("VOC*/Annotations/[!.]*.xml")):
        image = annotation.parents[1] / "JPEGImages" / f"{annotation.stem}.jpg"
        for item in ElementTree.parse(annotation).iter("object"):
            name = item.findtext("name", "")
            is_marked = any(item.findtext(mark, "0") == "1" for mark in ("difficult", "truncated"))
            if name in objects and not is_marked:
                sides = ("xmin", "ymin", "xmax", "ymax")
                left, top, right, bottom = (int(float(item.findtext(f"bndbox/{side}", "0"))) for side in sides)
                objects[name].append((image, (left - 1, top - 1, right, bottom)))
    return objects


def _share_of_each(targets: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """True for a share of each class, drawn with a fixed seed."""
    random, chosen = np.random.default_rng(0), np.zeros(len(targets), np.bool_)
    for target in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == target))
        chosen[members[: round(share * len(members))]] = True
    return chosen
