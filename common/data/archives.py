"""Published data sets that are read from their unpacked archives and never downloaded, declared in :data:`ARCHIVES`.

A reader takes the folder of the archive, the ``(height, width)`` of decoded files or patches, and their channels, 1 or 3.
It raises :class:`common.errors.InputError` if the archive is damaged or incomplete.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import chain, groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.folders import class_folders, image_files
from common.data.images import Box, ImageData, ImageFiles, Patches, Size
from common.errors import DataMissingError, InputError


class Archive(NamedTuple):
    """How a published data set is read, and where to get it if it is missing."""

    read: Callable[[Path, Size, int], ImageData]
    layout: str
    source: str
    size: Size = (224, 224)  # of decoded files, by default
    places: tuple[str, ...] = ()  # below the root; the first that exists is read; by default the data set's name


def read_archive(name: str, root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Reads a data set of :data:`ARCHIVES` below ``root``, as RGB by default; raises DataMissingError if it is missing."""
    archive = ARCHIVES[name]
    for place in archive.places or (name,):
        if (root / place).is_dir():
            return archive.read(root / place, size or archive.size, channels or 3)
    raise _missing(name, root, archive.source, archive.layout)


def coil100(folder: Path, size: Size, channels: int) -> ImageData:
    """COIL-100: RGB files of 100 objects in 72 views, 5 degrees apart; it has no test set.

    The class of an object is its number minus one. Its images are sorted by angle.
    """
    views = {path: re.fullmatch(r"obj(\d+)__(\d+)\.png", path.name) for path in folder.glob("obj*.png")}
    order = sorted((int(view[1]), int(view[2]), path) for path, view in views.items() if view)
    if not order:
        raise InputError(f"no images objN__ANGLE.png in {folder}: unpack the archive again")
    numbers = sorted({number for number, _, _ in order})
    targets = np.searchsorted(numbers, [number for number, _, _ in order])
    files = ImageFiles([path for _, _, path in order], size, channels)
    return ImageData(files, targets, np.zeros(len(order), np.bool_), tuple(f"obj{number}" for number in numbers))


def ucsd_ped2(folder: Path, size: Size, channels: int) -> ImageData:
    """UCSD Ped2: grey patches of surveillance frames; the test clips are the official test set, and a frame is a group.

    Patches lie every 25 pixels in training frames and every 10 in test frames (as in ALOCC's official code, but over the
    whole frame). The last patch of a row or column touches the border. A patch has the class of its frame. The file
    ``Test/UCSDped2.m`` lists the abnormal frames.
    """
    train, test = _clips(folder / "Train"), _clips(folder / "Test")
    abnormal = _abnormal_frames(folder / "Test" / "UCSDped2.m")
    if len(abnormal) != len(test):
        raise InputError(f"{folder / 'Test'} has {len(test)} clips, but UCSDped2.m lists {len(abnormal)}: unpack it again")
    paths = list(chain.from_iterable(train))
    n_train = len(paths)
    frame_is_abnormal: list[bool] = []
    for clip, listed in zip(test, abnormal, strict=True):
        numbers = [int(path.stem) for path in clip]
        if missing := listed - set(numbers):
            raise InputError(f"{clip[0].parent} lacks frame {min(missing)}, which UCSDped2.m lists: unpack it again")
        paths += clip
        frame_is_abnormal += [number in listed for number in numbers]
    frames = _decoded(tuple(paths))
    if size[0] > frames.shape[1] or size[1] > frames.shape[2]:
        raise InputError(f"image_size {size[0]}x{size[1]} exceeds the frames' {frames.shape[1]}x{frames.shape[2]}")
    order = np.arange(len(paths))
    corners = np.concatenate([
        _grid(order[:n_train], frames.shape, size, stride=25),
        _grid(order[n_train:], frames.shape, size, stride=10),
    ])  # fmt: skip
    groups = corners[:, 0].copy()
    targets = np.append(np.zeros(n_train, np.int64), frame_is_abnormal)
    return ImageData(Patches(frames, corners, size, paths), targets[groups], groups >= n_train, ("normal", "abnormal"), groups)


VOC_NAMES = {"aeroplane": "airplane", "boat": "boat", "car": "car", "chair": "chair", "motorbike": "motorbike", "sofa": "sofa"}
"""Abnormality-1001's classes by their names in PASCAL VOC."""


def abnormality1001(folder: Path, size: Size, channels: int) -> ImageData:
    """Abnormality-1001, with the objects of the same six classes from PASCAL VOC as normal images (OC-CNN's protocol).

    Classes 0 to 5 are VOC's objects, cropped to their boxes; 6 to 11 are the abnormal images of the same classes. The test
    set holds all abnormal images and as many normal ones of each class (at most half of them), drawn with a fixed seed.
    Test class k with ``standard,anomalous=<k + 6>``. The case of the folder names does not matter.
    """
    voc = folder.parent / "VOCdevkit"
    if not voc.is_dir():
        layout = "VOCdevkit/VOC<year>/{Annotations,JPEGImages}"
        raise _missing("PASCAL VOC, for abnormality1001,", folder.parent, "host.robots.ox.ac.uk/pascal/VOC", layout)
    folders = {path.name.lower(): path for path in folder.iterdir()}
    objects = _voc_objects(voc)
    random = np.random.default_rng(0)
    samples: list[tuple[int, Path, Box | None, bool]] = []
    for target, (voc_name, name) in enumerate(VOC_NAMES.items()):
        abnormal, normal = image_files(folders.get(name, folder / name)), objects[voc_name]
        if not normal:
            raise InputError(f"no objects of class {voc_name} in {voc}: unpack the archive again")
        tested = random.permutation(len(normal)) < min(len(abnormal), len(normal) // 2)
        for (path, box), is_tested in zip(normal, tested, strict=True):
            samples.append((target, path, box, is_tested))
        samples += [(target + len(VOC_NAMES), path, None, True) for path in abnormal]
    samples.sort(key=itemgetter(0))
    targets, paths, boxes, official_test = map(list, zip(*samples, strict=True))
    images = ImageFiles(paths, size, channels, boxes)
    classes = (*VOC_NAMES.values(), *(f"abnormal {name}" for name in VOC_NAMES.values()))
    return ImageData(images, np.array(targets), np.array(official_test), classes)


def umdaa02(folder: Path, size: Size, channels: int) -> ImageData:
    """UMDAA-02: faces, one class for each user; a fifth of each user's images, drawn with a fixed seed, is the test set."""
    data = class_folders(folder, size, channels)
    return data._replace(official_test=_share_of_each(data.targets, 0.2))


def founder200(folder: Path, size: Size, channels: int) -> ImageData:
    """FounderType-200: images of 200 fonts; the first half are one class each, the others together the class ``novel``.

    The test set is half of each font's images and the first 50 of each novel font; OC-CNN's protocol is
    ``standard,anomalous=100``. The other images of novel fonts are not used. Fonts are sorted alphabetically.
    """
    data = class_folders(folder, size, channels)
    half = len(data.classes) // 2
    if not half:
        raise InputError(f"{folder} holds only one font: unpack the archive again")
    known = data.targets < half
    rank = np.arange(len(data.targets)) - np.searchsorted(data.targets, data.targets)
    official_test = np.where(known, _share_of_each(data.targets, 0.5), rank < 50)
    classes = (*data.classes[:half], "novel")
    return data._replace(targets=data.targets.clip(max=half), official_test=official_test, classes=classes)


ARCHIVES = {
    "cats_dogs": Archive(
        class_folders,
        "cats_dogs/{train,test}/{cat,dog}/*.jpg",
        "kaggle.com/datasets/tongpython/cat-and-dog",
    ),
    "coil100": Archive(
        coil100,
        "coil-100/objN__ANGLE.png",
        "cs.columbia.edu/CAVE/software/softlib/coil-100.php",
        size=(64, 64),  # our choice: the files are 128x128
        places=("coil100/coil-100", "coil-100"),
    ),
    # 30,607 RGB files in 257 folders, the last of them clutter; no test set of its own
    "caltech256": Archive(
        partial(class_folders, pattern="[0-9][0-9][0-9].*"),
        "256_ObjectCategories/NNN.name/NNN_MMMM.jpg",
        "data.caltech.edu, doi.org/10.22002/D1.20087",
        size=(64, 64),  # our choice: the files all differ
        places=("caltech256/256_ObjectCategories", "256_ObjectCategories"),
    ),
    # 9,144 files in 102 folders, 411 of them grey, the others RGB; BACKGROUND_Google is no category; no test set of its own
    "caltech101": Archive(
        class_folders,
        "101_ObjectCategories/<category>/image_NNNN.jpg",
        "data.caltech.edu, doi.org/10.22002/D1.20086",
        size=(64, 64),  # our choice, as for Caltech-256
        places=("caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories", "101_ObjectCategories"),
    ),
    "ucsd_ped2": Archive(
        ucsd_ped2,
        "UCSDped2/{Train,Test}/{Train,Test}NNN/NNN.tif",
        "svcl.ucsd.edu/projects/anomaly",
        size=(30, 30),  # ALOCC's patches
        places=("UCSD_Anomaly_Dataset.v1p2/UCSDped2", "ucsd_ped2/UCSD_Anomaly_Dataset.v1p2/UCSDped2", "UCSDped2"),
    ),
    "abnormality1001": Archive(abnormality1001, "abnormality1001/{Airplane,…,Sofa}/*", "its authors (Saleh et al., CVPR 2013)"),
    "umdaa02": Archive(umdaa02, "umdaa02/<user>/*", "umdaa02.github.io"),
    "founder200": Archive(founder200, "founder200/<font>/*", "its authors (Liu et al., FounderType-200)"),
}


def _missing(name: str, root: Path, source: str, layout: str) -> DataMissingError:
    get = f"get it from {source} and unpack it there as {layout}"
    return DataMissingError(f"{name} is not in {root} and cannot be downloaded automatically: {get}")


def _clips(folder: Path) -> list[list[Path]]:
    """The frames of each clip; files and folders with other names are ignored."""
    named = re.compile(rf".*/{folder.name}\d+/\d+\.tif")
    frames = [path for path in sorted(folder.glob("*/*.tif")) if named.fullmatch(path.as_posix())]
    if not frames:
        raise InputError(f"no frames {folder.name}NNN/NNN.tif in {folder}: unpack the archive again")
    return [list(clip) for _, clip in groupby(frames, key=attrgetter("parent"))]


@lru_cache(maxsize=1)
def _decoded(paths: tuple[Path, ...]) -> torch.Tensor:
    """Grey frames ``(F, H, W)``, decoded once for patches of every size."""
    return ImageFiles(list(paths), None, 1)[torch.arange(len(paths))].squeeze(1)


def _abnormal_frames(path: Path) -> list[set[int]]:
    """The numbers of the abnormal frames of each test clip, from lines such as ``….gt_frame = [5:90, 140:200];``."""
    if not path.is_file():
        raise InputError(f"no {path}, the frames' ground truth: unpack the archive again")
    code = re.sub("%.*", "", path.read_text(encoding="utf-8", errors="replace"))
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


def _voc_objects(voc: Path) -> dict[str, list[tuple[Path, Box]]]:
    """The objects of each class with their boxes, except those marked as difficult or truncated."""
    objects: dict[str, list[tuple[Path, Box]]] = {name: [] for name in VOC_NAMES}
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
