"""Batches of one data set under one protocol, for one normal class."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from common.data.datasets import ImageData, load
from common.data.features import Extractor, features, writable_folder
from common.data.protocols import PROTOCOLS, Splits, check_options
from common.data.transforms import Normalization, Preprocessing
from common.errors import InputError
from common.training.seeding import epoch_generator


class Sample(NamedTuple):
    """A batch: ``image (B, C, H, W)`` float, ``label (B,)`` 1 = anomalous, ``target (B,)`` class, ``index (B,)``.

    ``image`` is ``(B, F)`` features for a module that declares frozen layers.
    """

    image: Tensor
    label: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]


class EpochSampler(Sampler[int]):
    """A new order in each epoch that depends on nothing but the global seed and the epoch: a resumed run repeats it.

    Where the last batch of a shuffled epoch would hold a single sample, of which batch norm makes nothing, that sample is
    left out; in the next epoch it is another.

    The processes of a distributed run deal the order out among themselves, so that their k-th batches together are the k-th
    of one process whose batches are as many times larger. All get as many: what does not divide is left out of a shuffled
    epoch and repeated in one that is not, see :meth:`common.module.OneClassModule.whole`.
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
    """Batches are slices of one tensor that lies where the arithmetic is.

    Args:
        samples: All the samples; images are kept channels-last.
        batch_size: The last batch is smaller if it does not divide.
        shuffle: In the order of :class:`EpochSampler`.

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
        self.batch_sampler = None  # Lightning asks every loader that has a sampler

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Sample]:
        yield from self._batches(self.sampler.order())  # at the first batch: Lightning sets the epoch after iter()

    def in_order(self) -> Iterator[Sample]:
        """Every sample once, in the data set's order, in every process of a distributed run."""
        return self._batches(torch.arange(self.sampler.n))

    def _batches(self, order: Tensor) -> Iterator[Sample]:
        for chosen in order.to(self._channels_last.device).split(self.batch_size):
            image = self._channels_last.index_select(0, chosen).movedim(-1, 1)
            yield Sample(image, *(values[chosen] for values in self._rest))


def in_order(loader: Any) -> Iterator[Sample]:
    """Every sample of a training loader once, unshuffled, the same in every process of a distributed run.

    Example:
        >>> n = torch.arange(5)
        >>> loader = ResidentLoader(Sample(torch.rand(5, 1, 4, 4), n * 0, n, n), batch_size=2, shuffle=True)
        >>> [batch.index.tolist() for batch in in_order(loader)]
        [[0, 1], [2, 3], [4]]
    """
    if isinstance(loader, DataLoader):
        # a loader of its own: Lightning is about to use the workers of the other
        workers, collate = loader.num_workers, loader.collate_fn
        loader = DataLoader(loader.dataset, loader.batch_size, num_workers=workers, collate_fn=collate)
    yield from loader.in_order() if isinstance(loader, ResidentLoader) else loader


class _Stream(Dataset[Sample]):
    """Decodes and transforms one batch at a time, or reads its features, in a worker of a DataLoader."""

    def __init__(self, inputs: Callable[[Tensor], Tensor], chosen: Sample) -> None:
        self.inputs, self.chosen = inputs, chosen

    def __len__(self) -> int:
        return len(self.chosen.index)

    def __getitems__(self, positions: list[int]) -> Sample:
        label, target, index = (values[positions] for values in self.chosen[1:])
        return Sample(self.inputs(index), label, target, index)


class _Pictures:
    """Preprocessed images by their index."""

    def __init__(self, data: ImageData, preprocessing: Preprocessing) -> None:
        self.data, self.preprocessing = data, preprocessing

    def __call__(self, index: Tensor) -> Tensor:
        return self.preprocessing(self.data.images[index])


class _Kept:
    """Kept features by their image's index."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        self.features = features

    def __call__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.features[index.numpy()])


def _as_is(batch: Any) -> Any:
    return batch


Stage = Literal["train", "val", "test"]


class OneClassDataModule(LightningDataModule):
    """One data set under one protocol, with one class (or several) taken as normal.

    A set that fits into ``memory_gib`` as floats is preprocessed once and stays on the module's device; a larger one is
    streamed from its files by ``workers`` processes. For a module with frozen layers batches hold their features, which are
    computed once for the whole data set and kept, see :func:`common.data.features.features`.

    Args:
        dataset: A key of :data:`common.data.datasets.DATASETS`.
        normal: The normal class or classes, by number or by name.
        root: Where data sets lie; ``$ONECLASS_DATA`` or the user's cache by default.
        protocol: A key of :data:`common.data.protocols.PROTOCOLS`.
        val_fraction: Share of the normal training samples that is held out, in [0, 1); the protocol's own by default,
            as with the next four.
        contamination: Unlabelled anomalies in training, as a share of the normal training samples, in [0, 1).
        anomalous: The classes that count as anomalies.
        share: The anomalies' share of the test set; protocols ``proportion`` and ``no_split`` only.
        limit: The number of samples of each normal class; protocol ``no_split`` only.
        split_seed: Of the protocol's random choices; not the training's seed, so that seeds vary the training alone.
        batch_size: Of training, for each process of a distributed run.
        eval_batch_size: Of validation, test and prediction; scores do not depend on it.
        image_size: Height and width, or one number for both; the data's own by default.
        channels: 1 or 3; the data's own by default.
        normalization: ``unit`` [0, 1], ``symmetric`` [-1, 1] or Deep SVDD's ``gcn``.
        class_mean: Subtract the mean training image.
        memory_gib: Above this size a split is streamed instead of kept.
        workers: Processes that decode a streamed set; as many as there are cores by default.

    Attributes:
        extractor: Frozen layers whose features the batches hold; those of the trainer's module, if it declares any.
        kept: Those features, ``(N, F)`` of the whole data set.

    Raises:
        InputError: For everything a user can get wrong, see :mod:`common.data.datasets` and
            :mod:`common.data.protocols`.

    Example:
        >>> data = OneClassDataModule("digits", normal=3, batch_size=32)
        >>> data.setup()
        >>> batch = next(iter(data.train_dataloader()))
        >>> tuple(batch.image.shape), batch.label.sum().item(), set(batch.target.tolist())
        ((32, 1, 8, 8), 0, {3})
    """

    def __init__(
        self,
        dataset: str = "digits",
        normal: int | str | list[int | str] = 0,
        root: str | None = None,
        protocol: str = "standard",
        val_fraction: float | None = None,
        contamination: float | None = None,
        anomalous: list[int] | None = None,
        share: float | None = None,
        limit: int | None = None,
        split_seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        image_size: int | list[int] | None = None,
        channels: Literal[1, 3] | None = None,
        normalization: Normalization = "unit",
        class_mean: bool = False,
        memory_gib: float = 4.0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        options = {
            "val_fraction": val_fraction,
            "contamination": contamination,
            "anomalous": anomalous,
            "share": share,
            "limit": limit,
        }
        given = {name: value for name, value in options.items() if value is not None}
        check_options(protocol, given)
        if normalization not in get_args(Normalization) or channels not in {None, 1, 3}:
            raise InputError(f"no normalization '{normalization}' or no channels {channels}: unit, symmetric, gcn; 1, 3")
        if batch_size < 1 or eval_batch_size < 1:
            raise InputError("batch_size and eval_batch_size are at least 1")
        self.dataset, self.root, self.channels = dataset, Path(root) if root else default_root(), channels
        self.size = None if image_size is None else _height_and_width(image_size)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.memory_gib, self.workers = memory_gib, os.cpu_count() if workers is None else workers
        self._normal, self._protocol = normal, protocol
        self._options = {**given, "seed": split_seed}
        self.preprocessing = Preprocessing(normalization, class_mean, self.size, channels)
        self.extractor: Extractor | None = None
        self._loaded_for: Extractor | None = None
        self.kept: NDArray[np.float32] | None = None
        self._inputs: Callable[[Tensor], Tensor]
        self._loaders: dict[Stage, ResidentLoader | DataLoader[Sample]] = {}

    @cached_property
    def data(self) -> ImageData:
        """The whole data set as stored."""
        return load(self.dataset, self.root, self.size, self.channels)

    @cached_property
    def normal(self) -> list[int]:
        """The normal classes' numbers."""
        classes = self.data.classes
        chosen = self._normal if isinstance(self._normal, list) else [self._normal]
        numbers = [classes.index(k) if k in classes else int(k) if k.isdecimal() else -1 for k in map(str, chosen)]
        for name, number in zip(chosen, numbers, strict=True):
            if not 0 <= number < len(classes):
                raise InputError(f"'{self.dataset}' has no class '{name}': choose from {', '.join(classes)}")
        return numbers

    @cached_property
    def splits(self) -> Splits:
        """Index arrays of training, validation and test; a group is not divided."""
        data, protocol = self.data, PROTOCOLS[self._protocol]
        if data.groups is None:
            return protocol(data.targets, data.official_test, self.normal, **self._options)
        _, first = np.unique(data.groups, return_index=True)
        of_groups = protocol(data.targets[first], data.official_test[first], self.normal, **self._options)
        return Splits(*(np.flatnonzero(np.isin(data.groups, part)) for part in of_groups))

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """``(N,)`` number of the group that each image of the data set is a part of, or None where each is one by itself."""
        return self.data.groups

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images a module sees."""
        _, channels, height, width = self.data.images.shape
        return (self.channels or channels, *(self.size or (height, width)))

    def setup(self, stage: str | None = None) -> None:
        """Fits the preprocessing on the training images and builds the loaders, once."""
        module = self.trainer.lightning_module if self.trainer else None
        frozen: Callable[[], Extractor | None] | None = getattr(module, "frozen", None)
        declared = frozen() if frozen else self.extractor
        if self._loaders and declared is self._loaded_for:
            return
        self.extractor = self._loaded_for = declared
        train = torch.from_numpy(self.splits.train)
        self.preprocessing = self.preprocessing.fit(self.data.images[part] for part in train.split(1000))
        self._inputs, self.kept = _Pictures(self.data, self.preprocessing), None
        if self.extractor is not None:
            folder = writable_folder(self.root, self.dataset, _cache())
            self.kept = features(self.extractor, self.data.images, self.preprocessing, folder, self.dataset, self._device)
            self._inputs = _Kept(self.kept)
        self._loaders = {
            "train": self._loader(self.splits.train, self.batch_size, shuffle=True),
            "val": self._loader(self.splits.val, self.eval_batch_size, shuffle=False),
            "test": self._loader(self.splits.test, self.eval_batch_size, shuffle=False),
        }

    def state_dict(self) -> dict[str, Any]:
        """What an image goes through before a module sees it: travels with the checkpoint.

        ``stored`` is ``(C, H, W)`` of the images as decoded, ``preprocessing`` the fields of :class:`Preprocessing`.
        """
        return {"stored": list(self.data.images.shape[1:]), "preprocessing": vars(self.preprocessing)}

    def train_dataloader(self) -> ResidentLoader | DataLoader[Sample]:
        """Shuffled training samples."""
        return self._loaders["train"]

    def val_dataloader(self) -> ResidentLoader | DataLoader[Sample] | list[Any]:
        """Held-out samples, or nothing where none are held out."""
        return self._loaders["val"] if len(self.splits.val) else []

    def test_dataloader(self) -> ResidentLoader | DataLoader[Sample]:
        """The protocol's test samples in the data set's order."""
        return self._loaders["test"]

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A resident batch is where it belongs."""
        if isinstance(batch, Sample) and batch.image.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Preprocessed images ``(B, C, H, W)`` of given data-set indices, on the CPU."""
        return self.preprocessing(self.data.images[torch.as_tensor(np.asarray(indices))])

    def inputs(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """What batches hold of given data-set indices, on the CPU: images, or features where they are kept."""
        return self._inputs(torch.as_tensor(np.asarray(indices)))

    def _loader(self, indices: NDArray[np.int64], batch_size: int, shuffle: bool) -> ResidentLoader | DataLoader[Sample]:
        index = torch.from_numpy(indices)
        target = torch.from_numpy(self.data.targets[indices])
        label = torch.from_numpy(~np.isin(self.data.targets[indices], self.normal)).long()
        chosen = Sample(torch.empty(0), label, target, index)
        shape = self.shape if self.kept is None else self.kept.shape[1:]
        if 4 * len(indices) * np.prod(shape) > self.memory_gib * 2**30:
            return DataLoader(
                _Stream(self._inputs, chosen),
                batch_size,
                sampler=EpochSampler(len(index), batch_size, shuffle),
                num_workers=self.workers or 0,
                persistent_workers=bool(self.workers),
                collate_fn=_as_is,
            )
        image = torch.empty(len(indices), *shape)
        for at in torch.arange(len(index)).split(1000):
            image[at] = self._inputs(index[at])
        resident = chosen._replace(image=image)
        return ResidentLoader(Sample(*(values.to(self._device) for values in resident)), batch_size, shuffle)

    @property
    def _device(self) -> torch.device | str:
        return self.trainer.strategy.root_device if self.trainer else "cpu"


def _rank_and_processes() -> tuple[int, int]:
    running = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if running else (0, 1)


def default_root() -> Path:
    """``$ONECLASS_DATA``, else ``oneclass`` in the user's cache directory, which is made."""
    if given := os.environ.get("ONECLASS_DATA"):
        return Path(given)
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "oneclass"


def _height_and_width(size: int | list[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size if len(size) == 2 else (0, 0)
    if height < 1 or width < 1:
        raise InputError(f"image_size is one positive number or [height, width], not {size}")
    return height, width
