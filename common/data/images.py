"""A data set's images, in memory or in files that are decoded on demand, and the identity of what they hold."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.decoding import DEPTHS, Depth, Fit, Header, converted, fitted, named, open_image, read_header, shown
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
    """Image files of one size, one depth and as many channels, decoded on demand in threads.

    What is not given is decided from all files: one in colour makes all RGB. Files of 16 bits, and of floats, keep their
    values as ``float32``, which :class:`common.data.Preprocessing` scales by the range of the training images. Beside a
    file of 8 bits the others become 8 bits: the high byte of 16.

    Args:
        paths: The ``N`` files.
        size: ``(height, width)`` to which files of another size are brought; by default that of the first file, and then
            every file must have it.
        channels: 1 (grey) or 3 (RGB).
        boxes: For each file the part to use, as left, top, right, bottom, or None for all of it. Boxes need a ``size``.
        fit: How a file of another aspect ratio is brought to ``size``: its centre is cropped (``crop``), it is distorted
            (``squeeze``), or it gets bars (``pad``).
        depth: ``uint8``, ``integer`` or ``float``.

    Raises:
        InputError: When they are asked for: files that cannot be read (the message names them all), of several sizes although
            no ``size`` is given, or some with floats and others without.
    """

    def __init__(
        self,
        paths: list[Path],
        size: Size | None,
        channels: int | None,
        boxes: Sequence[Box | None] | None = None,
        fit: Fit = "crop",
        depth: Depth | None = None,
    ) -> None:
        self.paths, self.boxes, self.fit = paths, boxes, fit
        self.resize = size is not None
        # what is given here is not computed below
        if size is not None:
            self.size = size
        if channels is not None:
            self.channels = channels
        if depth is not None:
            self.depth = depth

    def with_fit(self, fit: Fit) -> "ImageFiles":
        """The same files, brought to their size in another way."""
        other = copy(self)
        other.fit = fit
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)``."""
        return (len(self.paths), self.channels, *self.size)

    @property
    def dtype(self) -> torch.dtype:
        """``uint8``, or ``float32`` of files with 16 bits or floats."""
        return torch.uint8 if self.depth == "uint8" else torch.float32

    @property
    def decoding(self) -> dict[str, str]:
        """How files that the same detector is to score are decoded: keyword arguments of this class."""
        return {"fit": self.fit, "depth": self.depth}

    @cached_property
    def size(self) -> Size:
        """``(height, width)``."""
        with self._naming_all(open_image):
            first, _ = open_image(self.paths[0])
        return first.height, first.width

    @cached_property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return 3 if any(header.coloured for header in self._kinds) else 1

    @cached_property
    def depth(self) -> Depth:
        """``uint8`` where one file has 8 bits, else ``integer`` or ``float``."""
        depths = {header.depth: path for header, path in self._kinds.items()}
        if "float" in depths and len(depths) > 1:
            found = ", ".join(f"{shown(path)} has {DEPTHS[depth]}" for depth, path in depths.items())
            raise InputError(f"the values of the images do not compare ({found}): convert them to one depth")
        return min(depths, key=list(DEPTHS).index)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` of ``dtype``."""
        out = torch.empty((len(indices), *self.size, self.channels), dtype=self.dtype).numpy()
        with ThreadPoolExecutor() as pool, self._naming_all(self._converted):
            for position, image in enumerate(pool.map(self.decode, indices.tolist())):
                out[position] = image
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def decode(self, index: int) -> NDArray[np.generic]:
        """``(H, W, C)`` of one file."""
        path = self.paths[index]
        bands = self._converted(path)
        with named(path):
            if self.boxes and (box := self.boxes[index]):
                bands = [band.crop(box) for band in bands]
            height, width = self.size
            if bands[0].size != (width, height) and not self.resize:
                found = f"{shown(path)} is {bands[0].height}x{bands[0].width}"
                raise InputError(f"{found} and the first image {height}x{width}: give image_size")
            return np.dstack([np.asarray(fitted(band, self.size, self.fit)) for band in bands])

    @cached_property
    def _kinds(self) -> dict[Header, Path]:
        """One file for each header that there is."""
        with ThreadPoolExecutor() as pool, self._naming_all(open_image):
            return dict(zip(pool.map(read_header, self.paths), self.paths, strict=True))

    def _converted(self, path: Path) -> list[Image.Image]:
        return converted(path, self.channels, self.depth)

    @contextmanager
    def _naming_all(self, reading: Callable[[Path], object]) -> Iterator[None]:
        """Names all files that cannot be read where one cannot."""

        def reason(path: Path) -> str:
            try:
                reading(path)
            except UnreadableError as error:
                return str(error)
            return ""

        try:
            yield
        except UnreadableError as error:
            with ThreadPoolExecutor() as pool:
                reasons = list(pool.map(reason, self.paths))
            unreadable = [shown(path) for path, why in zip(self.paths, reasons, strict=True) if why]
            if len(unreadable) < 2:
                raise
            raise UnreadableError(f"cannot read {len(unreadable)} images: {', '.join(unreadable)} ({error})") from error


def path_column(images: Images, indices: Iterable[int]) -> dict[str, list[str]]:
    """The column ``path`` of a table of samples: the file of each index; no column where samples are not files."""
    if not isinstance(images, ImageFiles):
        return {}
    return {"path": [shown(images.paths[index]) for index in indices]}


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
    with named(path):
        return hashlib.sha256(path.read_bytes()).digest()
