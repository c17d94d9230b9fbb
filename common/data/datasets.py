"""Data sets by name: scikit-learn's digits, torchvision's sets, published archives, folders, arrays and functions."""

import hashlib
import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits

from common.data.archives import ARCHIVES, read_archive
from common.data.arrays import checked, load_arrays
from common.data.folders import class_folders, class_tree, folder
from common.data.images import ImageData, Size
from common.errors import InputError
from common.presets import make_importable


def load(name: str, root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Loads a data set by its name and caches it for the rest of the process.

    Args:
        name: A key of :data:`DATASETS`; a path that ends in ``.npz``, see :func:`common.data.arrays.load_arrays`; or
            ``module:function``, a function without arguments that returns an :class:`ImageData`.
        root: The folder that holds data sets, or receives downloads; for ``folder``, the image folder itself.
        size: ``(height, width)`` of decoded *files* or of patches; data sets of a fixed size ignore it.
        channels: 1 or 3, of decoded files.

    Raises:
        InputError: The name is unknown, or the root, the data or the images of a class are missing or unreadable.
        DataMissingError: The data set is missing and must be downloaded by hand.

    Example:
        >>> data = load("digits", Path("."))
        >>> tuple(data.images.shape), data.official_test.sum(), len(data.classes)
        ((1797, 1, 8, 8), np.int64(540), 10)
    """
    if name not in DATASETS and not name.endswith(".npz") and ":" not in name:
        raise InputError(
            f"unknown data set '{name}': choose from {', '.join(DATASETS)}, or give a file.npz or my_module:function"
        )
    return _load(name, root, size, channels, _version(name, root))


def named_function(name: str) -> Callable[..., Any]:
    """Imports a user's data set or protocol, given as ``module:function``; modules in the current folder are found.

    Raises InputError if the module cannot be imported, or has no such function.

    Example:
        >>> named_function("math:isqrt")(10)
        3
    """
    module_name, _, attribute = name.partition(":")
    make_importable(Path.cwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file may fail in any way
        reason = " ".join(str(error).split())
        raise InputError(f"'{name}' cannot be imported: {type(error).__name__}: {reason}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"there is no '{name}': the module {module_name} has no function '{attribute}'")
    return function


TORCHVISION: dict[str, Callable[..., Any]] = {
    "mnist": torchvision.datasets.MNIST,
    "fashion_mnist": torchvision.datasets.FashionMNIST,
    "cifar10": torchvision.datasets.CIFAR10,
}


def digits(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Scikit-learn's 1,797 handwritten digits, 8x8, no download; the last 540 (mostly other writers) are the test set."""
    images, targets = load_digits(return_X_y=True)
    scaled = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return ImageData(scaled, targets.astype(np.int64), np.arange(1797) >= 1257, tuple(map(str, range(10))))


def from_torchvision(name: str, root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """Loads a data set of :data:`TORCHVISION`, and downloads it if it is missing."""
    try:
        parts = [TORCHVISION[name](str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, URLError, ValueError, EOFError, AssertionError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name} is not in {root}, or damaged there, and cannot be downloaded: {reason}") from error
    arrays = [np.asarray(part.data) for part in parts]
    images = torch.from_numpy(np.concatenate(arrays))
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    targets = np.concatenate([np.asarray(part.targets) for part in parts]).astype(np.int64)
    return ImageData(images, targets, np.arange(len(targets)) >= len(arrays[0]), tuple(parts[0].classes))


def cifar10(root: Path, size: Size | None = None, channels: int | None = None) -> ImageData:
    """CIFAR-10, 60,000 RGB images of 32x32, from ``ROOT/cifar10/{train,test}/<class>/`` if it exists, else by torchvision."""
    if (root / "cifar10").is_dir():
        return class_folders(root / "cifar10", (32, 32), 3)
    return from_torchvision("cifar10", root)


DATASETS: dict[str, Callable[..., ImageData]] = {
    "digits": digits,
    "mnist": partial(from_torchvision, "mnist"),
    "fashion_mnist": partial(from_torchvision, "fashion_mnist"),
    "cifar10": cifar10,
    **{name: partial(read_archive, name) for name in ARCHIVES},
    "folder": folder,
}


@lru_cache(maxsize=4)
def _load(name: str, root: Path, size: Size | None, channels: int | None, version: str) -> ImageData:
    if name.endswith(".npz"):
        return load_arrays(Path(name).expanduser())
    if ":" in name:
        made = named_function(name)()
        try:
            return checked(made)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    if name != "digits" and not root.is_dir():
        raise InputError(f"no folder {root}: create it or correct --root")
    return DATASETS[name](root, size, channels)


def _version(name: str, root: Path) -> str:
    """A hash that changes with the user's files, so that data which change while the process runs are read again.

    It includes inode and change time: a replaced file may keep its size and modification time.
    """
    paths: list[Path] = []
    if name.endswith(".npz"):
        paths = [Path(name).expanduser()]
    elif name == "folder" and root.is_dir():
        paths = class_tree(root, train_may_lack=True).paths
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            status = path.stat()
            state = (str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            digest.update(repr(state).encode())
    return digest.hexdigest()
