"""Finds the images in folders, and makes data sets from one folder for each class."""

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from common.data.decoding import shown
from common.data.images import ImageData, ImageFiles, Size
from common.errors import InputError

UNDECODED = frozenset({"EPS", "MPEG"})
"""Formats that Pillow identifies, but decodes only with another program or not at all."""

SYSTEMS = frozenset({
    "__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "ehthumbs.db",
    "desktop.ini",
})  # fmt: skip
"""Names that operating systems and Python add to folders; they are ignored, and so are hidden files."""

OURS = frozenset({"runs", "features", "report", "reproduced"})
"""Folders that the commands of this package make; they count as classes only if images lie directly in them."""


class Listing(NamedTuple):
    """The images in a folder and its subfolders, and what was left out.

    Attributes:
        images: Sorted by path.
        left_out: Number of other files by ending.
    """

    images: list[Path]
    left_out: Counter[str]


class Tree(NamedTuple):
    """The images of all class folders.

    Attributes:
        classes: Names in alphabetical order.
        paths: ``N`` files.
        targets: The class number of each file.
        official_test: Whether each file is in a ``test`` folder.
        left_out: Number of unread files by kind.
    """

    classes: tuple[str, ...]
    paths: list[Path]
    targets: list[int]
    official_test: list[bool]
    left_out: Counter[str]


def _extensions() -> frozenset[str]:
    """The endings of the formats that Pillow decodes by itself; it also knows formats that it only writes or identifies."""
    endings = set()
    for ending, name in Image.registered_extensions().items():
        opened_as = "JPEG" if name == "MPO" else name  # Pillow opens MPO, several photographs in one file, as JPEG
        reader = Image.OPEN.get(opened_as, (None,))[0]
        is_stub = isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
        if reader is not None and not is_stub and name not in UNDECODED:
            endings.add(ending)
    return frozenset(endings)


EXTENSIONS = _extensions()
"""Endings of image files."""


def listed(folder: Path) -> Listing:
    """Lists the images in a folder and its subfolders, and counts other files except hidden and system files.

    Links are followed. Each folder is read once, even if several links lead to it.
    """
    images: list[Path] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    waiting = deque([folder])
    while waiting:
        place = waiting.popleft()
        try:
            status, entries = place.stat(), list(os.scandir(place))
        except OSError:
            left_out["folders that cannot be read"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = Path(entry.path)
            ending = os.path.splitext(entry.name)[1].lower()
            is_folder = os.path.isdir(path)
            if _is_ignored(entry.name):
                continue
            if is_folder and entry.is_symlink():
                waiting.append(path)  # after all real folders, because it may lead to one of them
            elif is_folder:
                waiting.appendleft(path)
            elif ending in EXTENSIONS:
                images.append(path)
            else:
                left_out[ending or "without an ending"] += 1
    return Listing(sorted(images), left_out)


def left_out_line(folder: Path, left_out: Counter[str]) -> str:
    """One line that says which files of a folder are not read.

    Example:
        >>> left_out_line(Path("photos"), Counter({".heic": 12, "images in folders below good": 40}))
        'left out of photos: .heic (12), images in folders below good (40)'
    """
    return shown(f"left out of {folder}: {', '.join(f'{kind} ({n})' for kind, n in sorted(left_out.items()))}")


def folder(root: Path, size: Size | None, channels: int | None) -> ImageData:
    """Loads a user's images from ``ROOT/{train,test}/<class>/`` or ``ROOT/<class>/``, and logs what it leaves out.

    Classes may be missing in ``train``, for example defects.
    """
    tree = class_tree(root, train_may_lack=True)
    if left_out := tree.left_out + _beside(root):
        _warn_once(left_out_line(root, left_out))
    return _data(tree, size, channels)


def class_folders(root: Path, size: Size | None, channels: int | None, pattern: str = "*") -> ImageData:
    """Loads images from ``ROOT/{train,test}/<class>/`` or ``ROOT/<class>/``, with classes in alphabetical order.

    Hidden files, files that are not images and subfolders of class folders are ignored. Raises InputError if there are no
    class folders or one is empty.
    """
    return _data(class_tree(root, pattern), size, channels)


def class_tree(root: Path, pattern: str = "*", train_may_lack: bool = False) -> Tree:
    """Lists the files of :func:`class_folders`; with ``train_may_lack``, classes may be missing in ``train``."""
    parts = _parts(root)
    if len(parts) == 1:
        _refuse_parts_as_classes(root, pattern)
    folders = chain.from_iterable(_entries(part, pattern) for part in parts)
    classes = tuple(sorted({path.name for path in folders if _is_class(path)}))
    if not classes:
        raise InputError(f"{shown(root)} has no class folders: ROOT/<class>/ or ROOT/{{train,test}}/<class>/ is expected")
    tree = Tree(classes, [], [], [], Counter())
    for part in parts:
        may_lack = train_may_lack and part.name == "train" and len(parts) > 1
        for target, name in enumerate(classes):
            files = _of_class(part / name, tree.left_out, may_lack)
            tree.paths.extend(files)
            tree.targets.extend([target] * len(files))
            tree.official_test.extend([part.name == "test" and len(parts) > 1] * len(files))
    return tree


def image_files(folder: Path) -> list[Path]:
    """Lists the image files of a class folder by name, without hidden ones; raises InputError if there are none."""
    return _of_class(folder, Counter())


def _of_class(folder: Path, left_out: Counter[str], may_be_empty: bool = False) -> list[Path]:
    """The images directly in a class folder; adds the other files to ``left_out``."""
    found = listed(folder) if folder.is_dir() else Listing([], Counter())
    images = [path for path in found.images if path.parent == folder]
    below = Counter({f"images in folders below {folder.name}": len(found.images) - len(images)})
    here = +(found.left_out + below)
    if not images and not may_be_empty:
        hint = f"; {left_out_line(folder, here)}" if here else ""
        raise InputError(f"no images in the class folder {shown(folder)}{hint}")
    left_out.update(here)
    return images


def _beside(root: Path) -> Counter[str]:
    """Counts the images below the root that are in no class folder."""
    left_out: Counter[str] = Counter()
    parts = _parts(root)
    for part in parts:
        left_out["images beside class folders"] += len(_images(part))
    if len(parts) == 1:
        return left_out
    for path in _entries(root):
        if path.is_dir() and path not in parts and path.name not in OURS:
            left_out[f"images in {path.name}"] += len(listed(path).images)
    return left_out


def _data(tree: Tree, size: Size | None, channels: int | None) -> ImageData:
    images = ImageFiles(tree.paths, size, channels)
    return ImageData(images, np.array(tree.targets), np.array(tree.official_test), tree.classes)


def _parts(root: Path) -> list[Path]:
    parts = [root / "train", root / "test"]
    return parts if all(part.is_dir() for part in parts) else [root]


def _refuse_parts_as_classes(root: Path, pattern: str) -> None:
    """Raises InputError if ``train`` without ``test``, ``Train`` or the like would be taken as a class."""
    for path in sorted(_entries(root, pattern)):
        name = path.name.lower()
        if name not in {"train", "test"} or _images(path) or not listed(path).images:
            continue
        if path.name != name:
            raise InputError(f"{shown(path)} is not called {name}, in lower case: rename it")
        missing = "test" if name == "train" else "train"
        reason = f"has the folder {name}, but no {missing}"
        raise InputError(f"{shown(root)} {reason}: add {missing}, or give --data.root {shown(path)}")


def _is_class(path: Path) -> bool:
    if path.name in OURS:
        return bool(_images(path))
    return path.is_dir()


def _images(folder: Path) -> list[Path]:
    """The images directly in a folder, in any order; a folder is none, whatever its name."""
    return [path for path in _entries(folder) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]


def _entries(folder: Path, pattern: str = "*") -> Iterator[Path]:
    return (path for path in folder.glob(pattern) if not _is_ignored(path.name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in SYSTEMS


@cache
def _warn_once(line: str) -> None:
    logging.getLogger(__name__).warning(line)
