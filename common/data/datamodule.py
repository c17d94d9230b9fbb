"""Batches of one data set under one protocol, for one normal class."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from common.data.arrays import checked
from common.data.datasets import load
from common.data.decoding import Fit
from common.data.features import Extractor, features, writable_folder
from common.data.images import ImageData, ImageFiles, Images, Patches, is_table
from common.data.loaders import Loader, ResidentLoader, Sample, streamed
from common.data.protocols import Indices, Splits
from common.data.splitting import class_numbers, parse_protocol, split
from common.data.transforms import Normalization, Preprocessing, height_and_width
from common.errors import InputError
from common.names import dataset_label

Classes = str | int | list[str | int]
"""Classes by name or number; in one text they are joined by ``+``. ``str`` comes first: the parser keeps ``01`` as it is."""


class OneClassDataModule(LightningDataModule):
    """One data set under one protocol, with one class (or several) taken as normal.

    A data set that fits into ``memory_gib`` as floats is preprocessed once and stays on the module's device. A larger one
    is streamed from its files by ``workers`` processes; patches are cut from their frames, which are in memory, by this
    process. If the module has frozen layers, assign them before ``setup``
    (``data.extractor = module.frozen()``, as the ``oneclass`` command does): batches then hold their features, see
    :func:`common.data.features.features`.

    Args:
        dataset: A key of :data:`common.data.datasets.DATASETS`, a ``.npz`` file or ``module:function``, see
            :func:`common.data.load`; for arrays in memory see :meth:`of`.
        normal: The normal class or classes, by name or number, or joined by ``+``.
        root: The folder that holds data sets; ``$ONECLASS_DATA`` or the user's cache by default.
        protocol: ``name[,option=value]…``, see :func:`common.data.parse_protocol`. It takes precedence over the next six.
        val_fraction: Share of the normal training samples that is held out, in [0, 1). This and the next five default to
            the values of the protocol.
        contamination: Unlabelled anomalies in training, as a share of the normal training samples, in [0, 1).
        anomalous: The classes that count as anomalies, in the format of ``normal``.
        share: Share of anomalies in the test set; protocols ``proportion`` and ``no_split`` only.
        limit: Number of samples of each normal class, the first ones; protocol ``no_split`` only.
        n_train: Number of normal training samples, or groups of samples, that are drawn; protocol ``standard`` only.
        split_seed: Seed of the protocol's random choices. The seed of the training does not change the split.
        batch_size: Training batch size, for each process of a distributed run.
        eval_batch_size: Batch size of validation, test and prediction; scores do not depend on it.
        image_size: Height and width, or one number for both; by default images keep their size. Tables ignore it.
        channels: 1 or 3; by default images keep their channels. Tables ignore it.
        fit: How image files of another aspect ratio are brought to the size: ``crop`` keeps the centre, ``squeeze`` distorts
            them, ``pad`` adds black bars. Arrays are always squeezed.
        normalization: ``unit``, ``symmetric`` or ``gcn``, see :class:`common.data.Preprocessing`.
        class_mean: Subtract the mean training image.
        memory_gib: Splits larger than this are streamed instead of kept in memory.
        workers: Number of processes that decode a streamed split; one per core by default.

    Raises:
        InputError: An argument is invalid.

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
        normal: Classes = 0,
        root: str | None = None,
        protocol: str = "standard",
        val_fraction: float | None = None,
        contamination: float | None = None,
        anomalous: Classes | None = None,
        share: float | None = None,
        limit: int | None = None,
        n_train: int | None = None,
        split_seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        image_size: int | list[int] | None = None,
        channels: Literal[1, 3] | None = None,
        fit: Fit = "crop",
        normalization: Normalization = "unit",
        class_mean: bool = False,
        memory_gib: float = 4.0,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        self._options = parse_protocol(protocol, {
            "val_fraction": val_fraction, "contamination": contamination, "anomalous": anomalous, "share": share,
            "limit": limit, "n_train": n_train,
        })  # fmt: skip
        self.protocol: str = self._options.pop("protocol")
        if normalization not in get_args(Normalization) or channels not in {None, 1, 3}:
            raise InputError(f"give normalization unit, symmetric or gcn, and channels 1 or 3: not {normalization}, {channels}")
        if fit not in get_args(Fit):
            raise InputError(f"unknown fit '{fit}': choose from {', '.join(get_args(Fit))}")
        if min(batch_size or 0, eval_batch_size or 0) < 1 or (workers or 0) < 0:
            raise InputError("batch_size and eval_batch_size must be at least 1, and workers at least 0")
        self.dataset, self.root, self.channels = dataset, Path(root) if root else default_root(), channels
        self.fit = fit
        self.size = None if image_size is None else height_and_width(image_size)
        self.batch_size, self.eval_batch_size, self.split_seed = batch_size, eval_batch_size, split_seed
        self.memory_gib, self.workers = memory_gib, os.cpu_count() if workers is None else workers
        self._normal = normal
        self.preprocessing = Preprocessing(normalization, class_mean, self.size, channels)
        self.extractor: Extractor | None = None
        self._loaded_for: Extractor | None = None
        self._inputs: Callable[[Tensor], Tensor]
        self._loaders: dict[str, Loader] = {}

    @classmethod
    def of(cls, data: ImageData, name: str = "arrays", **options: Any) -> "OneClassDataModule":
        """Makes a data module from a data set in memory, see :func:`common.data.image_data`; the options are the class's.

        Raises:
            InputError: The parts of the data set do not match.

        Example:
            >>> from common.data import image_data
            >>> table = image_data(np.random.rand(60, 5), np.arange(60) % 3)
            >>> OneClassDataModule.of(table, protocol="balanced", normal=1).shape
            (5,)
        """
        module = cls(name, **options)
        module.data = checked(data)
        return module

    @cached_property
    def data(self) -> ImageData:
        """The whole data set, before preprocessing."""
        data = load(self.dataset, self.root, self.size, self.channels)
        if self.fit == "crop" or not isinstance(data.images, ImageFiles):
            return data
        return data._replace(images=data.images.with_fit(self.fit))

    @cached_property
    def normal(self) -> list[int]:
        """The normal classes' numbers."""
        return class_numbers(self._normal, self.data.classes, self.dataset)

    def class_names(self) -> list[str]:
        """The names of the normal classes."""
        return [self.data.classes[number] for number in self.normal]

    @cached_property
    def splits(self) -> Splits:
        """Indices of the training, validation and test samples; the samples of a group stay together."""
        options = dict(self._options)
        if "anomalous" in options:
            options["anomalous"] = class_numbers(options["anomalous"], self.data.classes, self.dataset)
        data = self.data
        if data.groups is None:
            return split(self.protocol, data.targets, data.official_test, self.normal, self.split_seed, options)
        group_numbers, first = np.unique(data.groups, return_index=True)
        targets, official_test = data.targets[first], data.official_test[first]
        parts = split(self.protocol, targets, official_test, self.normal, self.split_seed, options)
        return Splits(*(np.flatnonzero(np.isin(data.groups, group_numbers[part])) for part in parts))

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """``(N,)`` group number of each image, or None if there are no groups."""
        return self.data.groups

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of the preprocessed images, or ``(F,)`` of the rows of a table."""
        if is_table(self.data.images):
            return tuple(self.data.images.shape[1:])
        channels, *size = self.data.images.shape[1:]
        return (self.channels or channels, *(self.size or size))

    def setup(self, stage: str | None = None) -> None:
        """Fits the preprocessing to the training samples and builds the loaders, once for each extractor."""
        if self._loaders and self.extractor is self._loaded_for:
            return
        self._loaded_for = self.extractor
        self.preprocessing = self.preprocessing.fit(self.data.images, torch.from_numpy(self.splits.train))
        self._build()

    def _build(self) -> None:
        self._inputs, shape = partial(_preprocessed, self.data.images, self.preprocessing), self.shape
        if self.extractor is not None:
            if is_table(self.data.images):
                raise InputError(f"'{self.dataset}' is a table, but a backbone takes images: choose a method without it")
            folder, label = writable_folder(self.root, self.dataset, _cache()), dataset_label(self.dataset)
            cached = features(self.extractor, self.data.images, self.preprocessing, folder, label, self._device)
            self._inputs, shape = partial(_rows, cached), cached.shape[1:]
        self._loaders = {
            "train": self._loader(self.splits.train, shape, self.batch_size, shuffle=True),
            "val": self._loader(self.splits.val, shape, self.eval_batch_size, shuffle=False),
            "test": self._loader(self.splits.test, shape, self.eval_batch_size, shuffle=False),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to score new images: stored shape, decoding and preprocessing."""
        images = self.data.images
        decoding = images.decoding if isinstance(images, ImageFiles) else {"fit": self.fit}
        return {"stored": list(images.shape[1:]), "decoding": decoding, "preprocessing": vars(self.preprocessing)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the checkpoint's scaling, so that its module sees these data as it saw those of its training.

        Raises InputError if the checkpoint's images had other channels or another size, or came to their size in another way,
        or if its table had another number of columns.
        """
        trained, images = Preprocessing(**state_dict["preprocessing"]), self.data.images
        if is_table(images):
            if state_dict["stored"] != list(images.shape[1:]):
                raise InputError(f"the checkpoint's data have the shape {state_dict['stored']}, not {list(images.shape[1:])}")
        else:
            channels, *size = state_dict["stored"]
            then = {"channels": trained.channels or channels, "image_size": list(trained.size or size)}
            now: dict[str, Any] = {"channels": self.shape[0], "image_size": list(self.shape[1:])}
            if isinstance(images, ImageFiles):
                then["fit"], now["fit"] = state_dict.get("decoding", {}).get("fit", self.fit), self.fit
            for name, value in then.items():
                if value != now[name]:
                    raise InputError(
                        f"the checkpoint's images have {name} {value}, not {now[name]}: give --data.{name} '{value}'"
                    )
        if not trained.same_as(self.preprocessing):
            self.preprocessing = trained
            self._build()

    def train_dataloader(self) -> Loader:
        """Shuffled training samples."""
        return self._loaders["train"]

    def val_dataloader(self) -> Loader | list[Any]:
        """Held-out samples; an empty list if none are held out."""
        return self._loaders["val"] if len(self.splits.val) else []

    def test_dataloader(self) -> Loader:
        """Test samples, in the order of the data set."""
        return self._loaders["test"]

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch to the device, unless it is already there."""
        if isinstance(batch, Sample) and batch.image.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def images(self, indices: Sequence[int] | Indices) -> Tensor:
        """Preprocessed images ``(B, C, H, W)`` or rows ``(B, F)`` at the given indices of the data set, on the CPU."""
        return _preprocessed(self.data.images, self.preprocessing, torch.as_tensor(np.asarray(indices)))

    def inputs(self, indices: Sequence[int] | Indices) -> Tensor:
        """The inputs of the module at the given indices, on the CPU: images, or features of frozen layers."""
        return self._inputs(torch.as_tensor(np.asarray(indices)))

    def _loader(self, indices: Indices, shape: tuple[int, ...], batch_size: int, shuffle: bool) -> Loader:
        index = torch.from_numpy(indices)
        target = torch.from_numpy(self.data.targets[indices])
        label = torch.from_numpy(~np.isin(self.data.targets[indices], self.normal)).long()
        samples = Sample(torch.empty(0), label, target, index)
        if 4 * len(indices) * np.prod(shape) > self.memory_gib * 2**30:
            # a worker would send patches more slowly than they are cut from frames that are in memory already
            workers = 0 if isinstance(self.data.images, Patches) else self.workers or 0
            return streamed(self._inputs, samples, batch_size, shuffle, workers)
        # channels last from the start, as the loader keeps them: so no set is in memory twice
        image = torch.empty(len(indices), *shape[1:], shape[0]).movedim(-1, 1)
        for at in torch.arange(len(index)).split(1000):
            image[at] = self._inputs(index[at])
        resident = samples._replace(image=image)
        return ResidentLoader(Sample(*(values.to(self._device) for values in resident)), batch_size, shuffle)

    @property
    def _device(self) -> torch.device | str:
        return self.trainer.strategy.root_device if self.trainer else "cpu"


def default_root() -> Path:
    """The default data folder: ``$ONECLASS_DATA``, else ``oneclass`` in the user's cache, created if possible."""
    if given := os.environ.get("ONECLASS_DATA"):
        return Path(given)
    cache = _cache()
    with suppress(OSError):  # the embedded digits need no folder
        cache.mkdir(parents=True, exist_ok=True)
    return cache


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "oneclass")


# The workers of a stream make their batches with these functions, which must be picklable.


def _preprocessed(images: Images, preprocessing: Preprocessing, index: Tensor) -> Tensor:
    return preprocessing(images[index])


def _rows(features: NDArray[np.float32], index: Tensor) -> Tensor:
    return torch.from_numpy(features[index.numpy()])
