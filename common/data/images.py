"""A data set's images, in memory or in files that are decoded on demand, and the identity of what they hold."""

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from common.errors import InputError, UnreadableError

IMAGES_PER_PART = 1000
Size = tuple[int, int]
Box = tuple[int, int, int, int]


class Images(Protocol):
    """Samples by their index: a tensor, or an object that reads them when they are asked for."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """``(N, C, H, W)`` of images, ``(N, F)`` of a table."""

    @property
    def dtype(self) -> torch.dtype:
        """Unsigned bytes or a float type."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` or ``(B, F)`` samples."""


class ImageData(NamedTuple):
    """A data set.

    Attributes:
        images: ``(N, C, H, W)`` images or a table ``(N, F)``, ``uint8`` or float.
        targets: ``(N,)`` class numbers.
        official_test: ``(N,)``, true in the data set's own test set; nowhere true if it has none.
        classes: The name of each class number.
        groups: ``(N,)`` group numbers where images are parts of something larger that is split and judged as one, such as a
            video frame. All images of a group share their class and their official part.
    """

    images: Images
    targets: NDArray[np.int64]
    official_test: NDArray[np.bool_]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None = None


def is_table(images: Images) -> bool:
    """Whether samples are rows ``(N, F)`` rather than images."""
    return len(images.shape) == 2


def content_digest(data: ImageData) -> str:
    """16 hexadecimal digits that identify a data set: images, classes, official test set and groups, in their order.

    Image files count by their content alone, not by their names or place. The images' part is computed once for each
    loaded data set; pixels that are changed in place afterwards are not noticed.

    Example:
        >>> data = ImageData(torch.zeros(2, 1, 8, 8), np.array([0, 1]), np.array([False, True]), ("a", "b"))
        >>> content_digest(data) == content_digest(data._replace(classes=("a", "c")))
        False
    """
    digest = hashlib.sha256(images_digest(data.images))
    digest.update(repr(data.classes).encode())
    for values in (data.targets, data.official_test, data.groups):
        digest.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


_DIGESTS: dict[int, tuple[weakref.ref[Images], bytes]] = {}
"""Digests that are known, by the identity of their images, which may be gone."""


def images_digest(images: Images) -> bytes:
    """32 bytes that identify images: pixels, or the content of files, whatever size these are decoded to."""
    reference, known = _DIGESTS.get(id(images), (None, b""))
    if reference is not None and reference() is images:
        return known
    digest = hashlib.sha256()
    for part in _parts(images):
        digest.update(part)  # type: ignore[arg-type]
    _DIGESTS[id(images)] = (weakref.ref(images), digest.digest())
    return digest.digest()


class ImageFiles:
    """Image files of one size, decoded on demand in threads.

    A file of another aspect ratio is scaled and centre-cropped to ``size``.

    Args:
        paths: The ``N`` files.
        size: ``(height, width)``; by default that of the first file, and then every file must have it.
        channels: 1 (grey) or 3 (RGB); by default that of the first file.
        boxes: For each file the part to use, as left, top, right, bottom, or None for all of it. Boxes need a ``size``.

    Raises:
        InputError: Files cannot be read (the message names them all), or have several sizes although no ``size`` is given.
    """

    dtype = torch.uint8

    def __init__(
        self,
        paths: list[Path],
        size: Size | None,
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
        with ThreadPoolExecutor() as pool:
            try:
                for position, image in enumerate(pool.map(self.decode, indices.tolist())):
                    out[position] = image
            except UnreadableError as error:
                readable = pool.map(_is_readable, self.paths)
                unreadable = [str(path) for path, good in zip(self.paths, readable, strict=True) if not good]
                if len(unreadable) < 2:
                    raise
                raise UnreadableError(f"cannot read {len(unreadable)} images: {', '.join(unreadable)}") from error
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """``(H, W, C)`` of one file."""
        path = self.paths[index]
        image = _open(path).convert("L" if self.channels == 1 else "RGB")
        if self.boxes and (box := self.boxes[index]):
            image = image.crop(box)
        height, width = self.size
        if image.size != (width, height):
            if not self.resize:
                raise InputError(
                    f"{path} is {image.height}x{image.width} and the first image {height}x{width}: give image_size"
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, self.channels)


class Patches:
    """Windows of frames, cut out on demand.

    Args:
        frames: ``(F, H, W)`` uint8; not copied.
        corners: ``(N, 3)`` frame, top and left of each window.
        size: ``(height, width)`` of the windows.

    Example:
        >>> frames = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
        >>> Patches(frames, np.array([[0, 0, 0], [1, 1, 2]]), (2, 2))[torch.tensor([1])].tolist()
        [[[[18, 19], [22, 23]]]]
    """

    dtype = torch.uint8

    def __init__(self, frames: Tensor, corners: NDArray[np.int64], size: Size) -> None:
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


def _parts(images: Images) -> Iterator[bytes | NDArray[np.generic]]:
    """What identifies images, piece by piece."""
    if isinstance(images, ImageFiles):
        with ThreadPoolExecutor() as pool:
            yield from pool.map(_file_digest, images.paths)
        yield repr(images.boxes).encode()
    elif isinstance(images, Patches):
        yield repr(images.shape).encode()
        yield images.frames.contiguous().numpy()
        yield images.corners.contiguous().numpy()
    else:
        yield repr((tuple(images.shape), images.dtype)).encode()
        for indices in torch.arange(images.shape[0]).split(IMAGES_PER_PART):
            yield images[indices].contiguous().numpy()


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise UnreadableError(f"cannot read the image {path}: {error.strerror}") from error


def _is_readable(path: Path) -> bool:
    try:
        _open(path)
    except UnreadableError:
        return False
    return True


def _open(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(f"cannot read the image {path}: {error}") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits: Pillow's own conversion would clip everything above 255
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    return image
