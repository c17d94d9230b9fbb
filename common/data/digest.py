"""The identity of data: a hash of what is in it, wherever it lies."""

import hashlib
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.images import ImageData, ImageFiles, Images, Patches
from common.errors import UnreadableError

FILES_PER_TASK = 256
IMAGES_PER_PART = 1000

_DIGESTS: dict[int, tuple[weakref.ref[Images], bytes]] = {}
"""Digests that are known, by the identity of their images, which may be gone."""


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


def _parts(images: Images) -> Iterator[bytes | NDArray[np.generic]]:
    if isinstance(images, ImageFiles):
        yield from _file_digests(images.paths)
        yield repr(images.boxes).encode()
    elif isinstance(images, Patches):
        yield repr(images.shape).encode()
        yield _buffer(images.frames)
        yield _buffer(images.corners)
    else:
        yield repr((tuple(images.shape), images.dtype)).encode()
        for indices in torch.arange(images.shape[0]).split(IMAGES_PER_PART):
            yield _buffer(images[indices])


def _file_digests(paths: list[Path]) -> Iterator[bytes]:
    """The digests of all files in their order, computed in threads."""
    tasks = [paths[start : start + FILES_PER_TASK] for start in range(0, len(paths), FILES_PER_TASK)]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_digests, tasks)


def _digests(paths: list[Path]) -> bytes:
    try:
        return b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    except OSError as error:
        raise UnreadableError(f"cannot read the image {error.filename}: {error.strerror}") from error


def _buffer(values: Tensor) -> NDArray[np.generic]:
    return values.contiguous().numpy()
