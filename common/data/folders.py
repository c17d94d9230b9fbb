"""Folders of images, a class each."""

from itertools import chain
from pathlib import Path

import numpy as np

from common.data.images import EXTENSIONS, ImageData, ImageFiles, Size
from common.errors import InputError


def class_folders(root: Path, size: Size | None, channels: int | None, pattern: str = "*") -> ImageData:
    """A tree of :class:`ImageFiles`, ``ROOT/{train,test}/<class>/`` or ``ROOT/<class>/``; classes in alphabetical order.

    Hidden folders and files, and files that are no images, are ignored. Without class folders, or where one is empty, an
    InputError is raised.
    """
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [root / "train", root / "test"] if has_split else [root]
    entries = chain.from_iterable(part.glob(pattern) for part in parts)
    classes = tuple(sorted({path.name for path in entries if path.is_dir() and not path.name.startswith(".")}))
    if not classes:
        raise InputError(f"{root} has no class folders: ROOT/<class>/ or ROOT/{{train,test}}/<class>/ is expected")
    paths, targets, official_test = list[Path](), list[int](), list[bool]()
    for part in parts:
        for target, name in enumerate(classes):
            files = image_files(part / name)
            paths += files
            targets += [target] * len(files)
            official_test += [has_split and part.name == "test"] * len(files)
    return ImageData(ImageFiles(paths, size, channels), np.array(targets), np.array(official_test), classes)


def image_files(folder: Path) -> list[Path]:
    """The image files of a class folder, at least one, in the order of their names, without hidden ones."""
    entries = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path for path in entries if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
    if not files:
        raise InputError(f"no images in the class folder {folder}")
    return files
