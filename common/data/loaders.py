"""Loaders of batches, from one tensor on the device or from files that are decoded as a stream."""

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler

from common.training.seeding import epoch_generator


class Sample(NamedTuple):
    """A batch: ``image (B, C, H, W)`` float, ``label (B,)`` 1 = anomalous, ``target (B,)`` class, ``index (B,)``.

    For tables, and for the features of frozen layers, ``image`` is ``(B, F)``.
    """

    image: Tensor
    label: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]


class _Sent(Sample):
    """A batch that a worker sends in shared memory, or through a pipe if that is full, as in small containers.

    PyTorch alone would fail in a thread of the worker, and the receiving process would wait for ever.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            for values in self:
                values.share_memory_()
        except RuntimeError:
            return pickle.loads, (pickle.dumps(Sample(*self)),)
        return Sample, tuple(self)


class EpochSampler(Sampler[int]):
    """Shuffles each epoch in an order that depends only on the global seed and the epoch, so a resumed run repeats it.

    A shuffled epoch leaves out a last batch of one sample, because batch norm cannot train on it; the next epoch leaves out
    another sample.

    The processes of a distributed run share the order: the k-th batches of all processes together are the k-th batch of a
    single process with a larger batch size. All processes get the same number of samples. A shuffled epoch leaves out the
    remainder; otherwise samples are repeated, see :meth:`common.scoring.ScoringModule.gathered`.
    """

    def __init__(self, n: int, batch_size: int, shuffle: bool) -> None:
        self.n, self.batch_size, self.shuffle, self.epoch = n, batch_size, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """The positions of an epoch, or this process's share of them."""
        rank, processes = _rank_and_processes()
        if self.shuffle:
            order = torch.randperm(self.n, generator=epoch_generator(self.epoch))
        else:
            order = torch.arange(len(self) * processes) % max(1, self.n)
        return order[rank::processes][: len(self)]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        _, processes = _rank_and_processes()
        if not self.shuffle:
            return -(-self.n // processes)
        share = self.n // processes
        return share - 1 if share > self.batch_size > 1 and share % self.batch_size == 1 else share


class ResidentLoader:
    """A loader whose batches are slices of one tensor on the device.

    Args:
        samples: All samples; images are kept channels-last.
        batch_size: The last batch may be smaller.
        shuffle: Whether to shuffle, see :class:`EpochSampler`.

    Example:
        >>> n = torch.arange(5)
        >>> loader = ResidentLoader(Sample(torch.rand(5, 1, 4, 4), n * 0, n, n), batch_size=2, shuffle=False)
        >>> [batch.index.tolist() for batch in loader], len(loader)
        ([[0, 1], [2, 3], [4]], 3)
    """

    def __init__(self, samples: Sample, batch_size: int, shuffle: bool) -> None:
        self._channels_last = samples.image.movedim(1, -1).contiguous()
        self._rest = samples[1:]
        self.batch_size = batch_size
        self.sampler = EpochSampler(len(self._channels_last), batch_size, shuffle)
        self.batch_sampler = None  # Lightning expects it of every loader that has a sampler

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Sample]:
        yield from self.batches(self.sampler.order())  # not before the first batch: Lightning sets the epoch after iter()

    def batches(self, order: Tensor) -> Iterator[Sample]:
        """Yields the samples at the given positions in batches."""
        for chosen in order.to(self._channels_last.device).split(self.batch_size):
            image = self._channels_last.index_select(0, chosen).movedim(-1, 1)
            yield Sample(image, *(values[chosen] for values in self._rest))


Loader = ResidentLoader | DataLoader[Sample]


def in_order(loader: Any) -> Iterator[Sample]:
    """Yields every sample of a training loader once, unshuffled; all processes of a distributed run get all samples."""
    if isinstance(loader, ResidentLoader):
        yield from loader.batches(torch.arange(loader.sampler.n))
    else:
        # another loader, because Lightning is about to use the workers of this one
        yield from DataLoader(loader.dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


class StreamedLoader(DataLoader[Sample]):
    """A loader that begins an epoch with its first batch.

    Lightning calls ``iter()`` before it sets the epoch of a resumed training, and workers would begin at once, in the order of
    the first epoch.
    """

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        yield from super().__iter__()


def streamed(
    inputs: Callable[[Tensor], Tensor], samples: Sample, batch_size: int, shuffle: bool, workers: int
) -> StreamedLoader:
    """A loader whose images are decoded in worker processes, or in this process if there are no workers.

    ``inputs`` makes the images of a batch from its indices ``(B,)``; ``samples.image`` is not used.
    """
    positions = range(len(samples.index))
    return StreamedLoader(
        positions,  # type: ignore[arg-type]
        batch_size,
        sampler=EpochSampler(len(positions), batch_size, shuffle),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(_collate, inputs, samples),
    )


def _collate(inputs: Callable[[Tensor], Tensor], samples: Sample, positions: list[int]) -> Sample:
    label, target, index = (values[positions] for values in samples[1:])
    return _Sent(inputs(index), label, target, index)


def _rank_and_processes() -> tuple[int, int]:
    running = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)
