"""The images of a data set, in memory or in files that are decoded on demand, and hashes of their content."""

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
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
    """Samples that can be indexed: a tensor, or an object that reads them on demand."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """``(N, C, H, W)`` of images, ``(N, F)`` of a table."""

    @property
    def dtype(self) -> torch.dtype:
        """``torch.uint8`` or a float type."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` or ``(B, F)`` samples."""


class ImageData(NamedTuple):
    """A data set: samples, their classes and the official test set.

    Attributes:
        images: ``(N, C, H, W)`` images or a table ``(N, F)``, ``uint8`` or float.
        targets: ``(N,)`` class numbers.
        official_test: ``(N,)``, whether a sample is in the official test set; all false if there is none.
        classes: The name of each class number.
        groups: ``(N,)`` group numbers, if images are parts of something larger that is split and scored as one, such as a
            video frame. All images of a group have the same class and are in the same official part.
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
    """A hash of a data set, 16 hexadecimal digits: images, classes, official test set and groups, in order.

    Image files count by content, not by name or folder. The hash of the images is computed once for each loaded data set;
    later changes of pixels in place are not noticed.

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
    """A hash of images, 32 bytes: of their pixels, or of the content of their files at any decoded size."""
    reference, known = _DIGESTS.get(id(images), (None, b""))
    if reference is not None and reference() is images:
        return known
    digest = hashlib.sha256()
    for part in _parts(images):
        digest.update(part)  # type: ignore[arg-type]
    _DIGESTS[id(images)] = (weakref.ref(images), digest.digest())
    return digest.digest()


class ImageFiles:
    """Image files that are decoded on demand in threads, all to the same size, depth and number of channels.

    What is not given is decided from all files: one file in colour makes all RGB. Files of 16 bits or floats keep their
    values as ``float32``, which :class:`common.data.Preprocessing` scales by the range of the training images. If one file
    has 8 bits, 16-bit files are reduced to their high byte.

    Args:
        paths: The ``N`` files.
        size: ``(height, width)`` to which all files are brought; by default the size of the first file, and then all files
            must have it.
        channels: 1 (grey) or 3 (RGB).
        boxes: The part of each file to use, as left, top, right, bottom, or None for the whole file. Boxes need a ``size``.
        fit: How files of another aspect ratio are brought to ``size``: ``crop`` keeps the centre, ``squeeze`` distorts,
            ``pad`` adds bars.
        depth: ``uint8``, ``integer`` or ``float``.

    Raises:
        InputError: On access, if files cannot be read (the message names them all), have different sizes although no ``size``
            is given, or only some hold floats.
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
        # values that are set here replace the cached properties below
        if size is not None:
            self.size = size
        if channels is not None:
            self.channels = channels
        if depth is not None:
            self.depth = depth

    def with_fit(self, fit: Fit) -> "ImageFiles":
        """A copy that brings files to the size in another way."""
        other = copy(self)
        other.fit = fit
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, C, H, W)``."""
        return (len(self.paths), self.channels, *self.size)

    @property
    def dtype(self) -> torch.dtype:
        """``uint8``, or ``float32`` for files of 16 bits or floats."""
        return torch.uint8 if self.depth == "uint8" else torch.float32

    @property
    def decoding(self) -> dict[str, str]:
        """Keyword arguments of this class that decode new files for the same detector."""
        return {"fit": self.fit, "depth": self.depth}

    @cached_property
    def size(self) -> Size:
        """``(height, width)`` of the decoded images."""
        with self._naming_all(open_image):
            first, _ = open_image(self.paths[0])
        return first.height, first.width

    @cached_property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return 3 if any(header.coloured for header in self._kinds) else 1

    @cached_property
    def depth(self) -> Depth:
        """``uint8`` if any file has 8 bits, else ``integer`` or ``float``."""
        depths = {header.depth: path for header, path in self._kinds.items()}
        if "float" in depths and len(depths) > 1:
            found = ", ".join(f"{shown(path)} has {DEPTHS[depth]}" for depth, path in depths.items())
            raise InputError(f"the images have different kinds of values ({found}): convert them to one depth")
        return min(depths, key=list(DEPTHS).index)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``(B,)`` indices to ``(B, C, H, W)`` of ``dtype``."""
        out = torch.empty((len(indices), *self.size, self.channels), dtype=self.dtype).numpy()
        with ThreadPoolExecutor() as pool, self._naming_all(self._converted):
            for position, image in enumerate(pool.map(self.decode, indices.tolist())):
                out[position] = image
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def decode(self, index: int) -> NDArray[np.generic]:
        """Decodes one file to ``(H, W, C)``."""
        path = self.paths[index]
        bands = self._converted(path)
        with named(path):
            if self.boxes and (box := self.boxes[index]):
                bands = [band.crop(box) for band in bands]
            height, width = self.size
            if bands[0].size != (width, height) and not self.resize:
                found = f"{shown(path)} is {bands[0].height}x{bands[0].width}"
                raise InputError(f"{found}, but the first image is {height}x{width}: give image_size")
            return np.dstack([np.asarray(fitted(band, self.size, self.fit)) for band in bands])

    @cached_property
    def _kinds(self) -> dict[Header, Path]:
        """One example file for each kind of header."""
        with ThreadPoolExecutor() as pool, self._naming_all(open_image):
            return dict(zip(pool.map(read_header, self.paths), self.paths, strict=True))

    def _converted(self, path: Path) -> list[Image.Image]:
        return converted(path, self.channels, self.depth)

    @contextmanager
    def _naming_all(self, reading: Callable[[Path], object]) -> Iterator[None]:
        """If one file cannot be read, looks for others and names them all."""

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


def places(images: Images, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, list[str] | list[int]]:
    """Columns for a table of samples: the ``path`` of each index's file, and the ``top`` and ``left`` of a patch in it.

    There are no columns if samples are not from files.
    """
    if isinstance(images, Patches) and images.paths:
        frame, top, left = images.corners[torch.as_tensor(np.asarray(indices))].unbind(1)
        paths = [shown(images.paths[number]) for number in frame.tolist()]
        return {"path": paths, "top": top.tolist(), "left": left.tolist()}
    if isinstance(images, ImageFiles):
        return {"path": [shown(images.paths[index]) for index in indices]}
    return {}


class Patches:
    """Windows of video frames, cut out on demand.

    Args:
        frames: ``(F, H, W)`` uint8; not copied.
        corners: ``(N, 3)`` frame, top and left of each window.
        size: ``(height, width)`` of the windows.
        paths: The file of each frame, if frames are from files.

    Example:
        >>> frames = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
        >>> Patches(frames, np.array([[0, 0, 0], [1, 1, 2]]), (2, 2))[torch.tensor([1])].tolist()
        [[[[18, 19], [22, 23]]]]
    """

    dtype = torch.uint8

    def __init__(self, frames: Tensor, corners: NDArray[np.int64], size: Size, paths: Sequence[Path] = ()) -> None:
        self.frames, self.corners, self.paths = frames, torch.from_numpy(corners), paths
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
    """Yields the content of images, for a hash."""
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
