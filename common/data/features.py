"""Features of frozen layers, computed once for a whole data set and cached in a file."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from common.data.images import ImageFiles, Images, images_digest
from common.data.transforms import Preprocessing
from common.errors import InputError
from common.files import whole

BATCH = 32
Part = TypeVar("Part")
Whole = TypeVar("Whole")


class Extractor(Protocol):
    """The interface of frozen layers, whose features can be cached."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """``(B, C, H, W)`` preprocessed images to ``(B, F)`` features, each a function of its image alone."""

    def key(self) -> str:
        """A hash of the layers and their weights."""

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Moves the layers in place, as :meth:`torch.nn.Module.to`."""


def features(
    extractor: Extractor,
    images: Images,
    preprocessing: Preprocessing,
    folder: Path,
    name: str,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Returns the features of all images ``(N, F)``, memory-mapped from their cache file, or computes them and writes the file.

    The file ``<name>-<hash>.npy`` has a hash of the images, the fitted preprocessing and the layers with their weights, so any
    change leads to another file. If several processes need the same file, the first computes it and the others wait. Raises
    InputError if an image cannot be read, or the folder cannot be written.
    """
    p = preprocessing
    fitted = [values.numpy().tobytes() for values in (p.mean, p.minimum, p.span) if values is not None]
    digest = hashlib.sha256(extractor.key().encode())
    digest.update(repr(tuple(images.shape)).encode() + images_digest(images))
    if isinstance(images, ImageFiles):
        digest.update(repr(images.decoding).encode())
    digest.update(repr((p.normalization, p.size, p.channels, p.low, p.high, fitted)).encode())
    path = folder / f"{name}-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.is_file():
                    _write(path, extractor, images, preprocessing, device)
        except OSError as error:
            raise InputError(f"cannot write features to {folder}: {error.strerror or error}") from error
    return np.load(path, mmap_mode="r")


def extract(
    extractor: Extractor,
    images: Images,
    preprocessing: Preprocessing,
    device: torch.device | str = "cpu",
    indices: Tensor | None = None,
) -> Iterator[Tensor]:
    """Computes features batch by batch, ``(B, F)`` on the CPU, of all images or of those at ``indices``, in order.

    Threads decode the next batch while one is computed, so at most two batches of images are in memory.
    """

    def read(at: Tensor) -> Tensor:
        return preprocessing(images[at]).contiguous(memory_format=torch.channels_last)

    batches = (torch.arange(images.shape[0]) if indices is None else indices).split(BATCH)
    for batch in ahead(read, batches):
        with torch.inference_mode():
            yield extractor(batch.to(device)).float().cpu()


def ahead(read: Callable[[Part], Whole], parts: Sequence[Part]) -> Iterator[Whole]:
    """Yields ``read(part)`` for each part in order, and reads one part ahead in a thread."""
    with ThreadPoolExecutor(1) as thread:
        waiting = [thread.submit(read, part) for part in parts[:1]]
        for part in parts[1:]:
            waiting.append(thread.submit(read, part))
            yield waiting.pop(0).result()
        for last in waiting:
            yield last.result()


def writable_folder(root: Path, dataset: str, cache: Path) -> Path:
    """The cache folder ``ROOT/features``, or ``CACHE/features`` if the root is an image folder or cannot be written."""
    return (root if dataset != "folder" and os.access(root, os.W_OK) else cache) / "features"


def _write(path: Path, extractor: Extractor, images: Images, preprocessing: Preprocessing, device: torch.device | str) -> None:
    extractor.to(device)
    extractor.to(memory_format=torch.channels_last)
    n, start = images.shape[0], 0
    batches = extract(extractor, images, preprocessing, device)
    with whole(path) as temporary:
        for batch in track(batches, f"features of {n} images", total=-(-n // BATCH), transient=True):
            if not start:
                cached = np.lib.format.open_memmap(temporary, "w+", np.float32, (n, batch.shape[1]))
            cached[start : start + len(batch)] = batch.numpy()
            start += len(batch)
        cached.flush()
