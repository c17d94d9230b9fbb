"""Data sets as ``uint8`` images and class labels: scikit-learn's digits, torchvision's sets and folders of images."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor

from common.errors import InputError

EXTENSIONS = frozenset(Image.registered_extensions())


class Images(Protocol):
    """Indexable images: a ``(N, C, H, W)`` uint8 tensor, or files that are decoded when they are asked for."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """``(N, C, H, W)``."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` uint8."""


class ImageData(NamedTuple):
    """A data set: images, the class of each, whether each is in the official test set, and the classes' names."""

    images: Images
    targets: NDArray[np.int64]
    official_test: NDArray[np.bool_]
    classes: tuple[str, ...]


class ImageFiles:
    """Image files of one size, decoded on demand in threads.

    A file of another aspect ratio is scaled and centre-cropped to ``size``.

    Args:
        paths: The ``N`` files.
        size: ``(height, width)``; that of the first file by default, and then every file must have it.
        channels: 1 (grey) or 3 (RGB); that of the first file by default.

    Raises:
        InputError: A file that cannot be read as an image, or of another size where ``size`` is not given.
    """

    def __init__(self, paths: list[Path], size: tuple[int, int] | None, channels: int | None) -> None:
        self.paths = paths
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
            out[position] = self._decode(self.paths[index])

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(indices)), indices.tolist()))
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        image = _open(path).convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        if (image.height, image.width) != self.size:
            if not self.resize:
                raise InputError(
                    f"{path} is {image.height}x{image.width} and the first image {height}x{width}: give image_size"
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, self.channels)


def load(name: str, root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """A data set by its name, kept for the rest of the process.

    Args:
        name: A key of :data:`DATASETS`.
        root: Where data sets lie, or are downloaded to; for ``folder`` the folder itself.
        size: ``(height, width)`` to which *files* are decoded; data sets of one size ignore it.
        channels: Likewise, 1 or 3.

    Raises:
        InputError: Unknown name, missing root, data that cannot be had or read, a class without images.

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


def folder(root: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageData:
    """Any ``ROOT/{train,test}/<class>/`` or ``ROOT/<class>/`` tree of images; classes in alphabetical order."""
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    parts = [root / "train", root / "test"] if has_split else [root]
    classes = tuple(sorted({path.name for part in parts for path in part.iterdir() if path.is_dir()}))
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
    loader.__name__: loader for loader in (digits, mnist, fashion_mnist, cifar10, folder)
}


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


def _image_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS) if folder.is_dir() else []
    if not files:
        raise InputError(f"no images in the class folder {folder}")
    return files


def _open(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip all above 255
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    return image
