"""The contract that every method fulfils, and the evaluation that all methods share."""

import math
import sys
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from common.data import Sample
from common.data.features import Extractor
from common.data.loaders import in_order
from common.errors import InputError
from common.scoring import Scored, ScoringModule, highest_of_each
from common.training.seeding import epoch_seed
from common.training.speed import Speed

__all__ = ["OneClassModule", "Schedule", "Scored", "highest_of_each"]

Schedule = Literal["constant", "cosine"]
"""A learning rate that stays as it is, or that follows a cosine to 0."""


class Cosine(CosineAnnealingLR):
    """A cosine that ends with the training as it is now, also where a checkpoint is of one with another number of epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps its own length; if that is another one, the rate is that of the new cosine at the same iteration."""
        iterations = self.T_max
        super().load_state_dict(state_dict)
        if self.T_max != iterations:
            self.T_max = iterations
            for group, rate in zip(self.optimizer.param_groups, self._get_closed_form_lr(), strict=True):
                group["lr"] = rate


class OneClassModule(ScoringModule):
    """A one-class method: the few things a paper overrides, and one way of training, scoring, testing and thresholding.

    A subclass calls ``self.save_hyperparameters()`` in its ``__init__``. The hyper-parameters include ``shape`` (``(C, H, W)``
    of an image or ``(F,)`` of a flat vector), ``score`` (the name of the score that counts) and ``threshold_quantile``. The
    subclass overrides :meth:`scores`, :meth:`training_step` and :meth:`named_optimizers`.

    Attributes:
        monitor: The paper's own criterion for choosing an epoch, a logged key that needs normal samples only.
        mode: Whether the best ``monitor`` is the lowest (``min``) or the highest (``max``).
        offline_kwargs: Arguments that replace downloaded weights when a checkpoint is about to fill the module.
        every_epoch_counts: Whether an epoch before the last may be tested; then :meth:`after_epoch` follows every epoch.
        speed: How the arithmetic is laid out.
    """

    monitor: ClassVar[str] = "val/reconstruction"
    mode: ClassVar[Literal["min", "max"]] = "min"
    offline_kwargs: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every_epoch_counts = False
        self.speed = Speed()
        self._optimizer_names: list[str] = []
        self._stepped: set[str] = set()
        self._prepared_phases = 0

    @abstractmethod
    def training_step(self, batch: Sample, batch_idx: int) -> Mapping[str, Tensor]:
        """One iteration of the paper's algorithm on normal samples, to scalar losses that are logged as ``train/<name>``."""

    @abstractmethod
    def named_optimizers(self) -> dict[str, Optimizer]:
        """The paper's optimisers by name, in the order in which :meth:`training_step` first uses them."""

    def scheduler(self, name: str, optimizer: Optimizer) -> LRScheduler | dict[str, Any] | None:
        """The learning-rate schedule of one optimiser, as Lightning's ``lr_scheduler``; None for a constant rate.

        It counts the iterations or epochs in which the optimiser steps, so that each phase's schedule begins with the phase.
        """
        return None

    @property
    def phases(self) -> Sequence[int]:
        """The epochs in which the phases of the training begin, from 0, ascending.

        A method with several phases, such as pretraining and training, chooses its optimiser by :attr:`phase`. Optimisers of
        different phases may share parameters. Only an epoch of the last phase can be chosen as the best one.
        """
        return (0,)

    @property
    def phase(self) -> int:
        """The number of the current phase, from 0."""
        return bisect_right(self.phases, self.current_epoch) - 1

    def prepare(self, batches: Iterable[Sample]) -> None:
        """A pass over the training data before a phase begins, for a centre, whitening or statistics; by default nothing.

        It is called once for each phase, in eval mode and without gradients, and never again when a run resumes. What it
        computes must be in buffers or parameters, so that it travels with the checkpoint. The batches are the whole training
        set in its own order, the same in every process of a distributed run.
        """

    def after_epoch(self, batches: Iterable[Sample]) -> None:
        """A pass over the training data after an epoch that may be tested, before its validation; by default nothing.

        What holds of :meth:`prepare` holds here, but the batches are the epoch's own once more, in the same order; in a
        distributed run this process's share.
        """

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """``(B, *shape)`` reconstructions for the figures, or None where the method has none."""
        return None

    def embed(self, x: Tensor) -> Tensor | None:
        """``(B, D)`` latent vectors for the projector, or None where the method has none."""
        return None

    def figures(self, x: Tensor) -> Mapping[str, Figure]:
        """The method's own figures by name, drawn every few epochs from up to 200 held-out samples, ``(B, *shape)``."""
        return {}

    def frozen(self) -> Extractor | None:
        """The layers that images pass first and that never change, or None; the data module caches their features.

        A method with frozen layers takes ``(B, *shape)`` images *or* ``(B, F)`` features in :meth:`scores`, :meth:`embed`
        and :meth:`training_step`.
        """
        return None

    def optimizer(self, name: str) -> Any:
        """The optimiser of that name, as Lightning wraps it."""
        configured: Any = self.optimizers()
        return (configured if isinstance(configured, list) else [configured])[self._optimizer_names.index(name)]

    def toggled(self, name: str) -> AbstractContextManager[None]:
        """A block in which only the parameters of one optimiser receive gradients; forward passes belong inside, too."""
        return self.toggled_optimizer(self.optimizer(name))

    def descend(self, names: str | Sequence[str], loss: Tensor) -> None:
        """One step of one or several optimisers down a loss: the only place where gradients are cleared, made and used."""
        names = [names] if isinstance(names, str) else names
        optimizers = [self.optimizer(name) for name in names]
        self._stepped.update(names)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def cosine(self, optimizer: Optimizer) -> dict[str, Any]:
        """A :meth:`scheduler` whose rate falls to 0 at the last iteration, along a cosine.

        Raises:
            InputError: The training has no last iteration.
        """
        # Lightning's number of stepping batches counts batches, as on_train_batch_end does, not optimiser steps
        iterations = self.trainer.estimated_stepping_batches
        if math.isinf(iterations):
            raise InputError("a cosine schedule falls to the end of the training: give trainer.max_epochs")
        return {"scheduler": Cosine(optimizer, int(iterations)), "interval": "step"}

    @classmethod
    def argument_names(cls) -> set[str]:
        """The names of all arguments: those of ``__init__`` and, where it passes ``**kwargs`` on, of the base classes'."""
        names: set[str] = set()
        for initializer in (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)):
            parameters = signature(initializer).parameters.values()
            names |= {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return names - {"self"}

    def configure_optimizers(self) -> Any:
        """Lightning's hook, made of :meth:`named_optimizers` and :meth:`scheduler`.

        Raises:
            InputError: An optimiser refuses its rate or another of its hyper-parameters.
        """
        configured: list[dict[str, Any]] = []
        try:
            optimizers = self.named_optimizers()
        except ValueError as error:
            raise InputError(str(error)) from error
        self._optimizer_names = list(optimizers)
        for name, optimizer in optimizers.items():
            configured.append({"optimizer": optimizer})
            if (scheduler := self.scheduler(name, optimizer)) is not None:
                options = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler}
                configured[-1]["lr_scheduler"] = options | {"name": name}
        return configured

    def configure_callbacks(self) -> list[Callback]:
        """Adds ``speed`` to every trainer, once."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if self.speed in callbacks else [self.speed]

    def on_train_start(self) -> None:
        """Refuses a training that ends before the last phase begins."""
        epochs = self.trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.phases[-1]:
            raise InputError(f"max_epochs {epochs} ends before the last phase begins, in epoch {self.phases[-1]}: give more")

    def on_train_epoch_start(self) -> None:
        """Prepares a new phase and seeds noise, dropout and random latents, so that a resumed run repeats them."""
        self._losses: list[dict[str, Tensor]] = []
        self._n_images = 0
        self._stepped.clear()
        seed, loader = epoch_seed(self.current_epoch), self.trainer.train_dataloader
        if self.phase >= self._prepared_phases:
            torch.manual_seed(seed)
            with self._evaluating():
                self.prepare(self._on_device(in_order(loader)))
            self._prepared_phases = self.phase + 1
        torch.manual_seed(seed + self.global_rank)

    def on_train_batch_end(self, outputs: Mapping[str, Tensor], batch: Sample, batch_idx: int) -> None:  # type: ignore[override]
        """Keeps the losses, on their device, and steps what counts batches."""
        self._losses.append({name: len(batch.image) * loss.detach() for name, loss in outputs.items()})
        self._n_images += len(batch.image)
        self._step_schedulers("step")
        last_epoch = self.current_epoch + 1 == self.trainer.max_epochs
        if self.trainer.is_last_batch and (last_epoch or self.every_epoch_counts):
            with self._evaluating():
                batches: Any = self.trainer.train_dataloader
                self.after_epoch(self._on_device(batches))

    def on_train_epoch_end(self) -> None:
        """Logs each loss's mean over the epoch, by epoch on TensorBoard's x-axis; steps the schedulers that count epochs."""
        for name in self._losses[0]:
            mean = torch.stack([losses[name] for losses in self._losses]).sum() / self._n_images
            self.log(f"train/{name}", mean, sync_dist=True)
        self._losses.clear()
        self.log("step", float(self.current_epoch))
        self._step_schedulers("epoch")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the class, the held-out scores, and which phases have been prepared."""
        checkpoint["method"] = type(self).__qualname__
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["calibration"] = self.calibration
        checkpoint["prepared_phases"] = self._prepared_phases

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what :meth:`on_save_checkpoint` adds; refuses another class's checkpoint."""
        method = checkpoint.get("method")
        if method != type(self).__qualname__:
            raise InputError(f"the checkpoint is one of {method or 'something else'}, not of {type(self).__qualname__}")
        self.calibration = checkpoint.get("calibration", self.calibration)
        self._prepared_phases = checkpoint.get("prepared_phases", len(self.phases))

    def _criterion(self, scores: NDArray[np.float64]) -> float:
        """NaN, which a ModelCheckpoint takes for the worst value, until the last phase has begun."""
        return super()._criterion(scores) if self._prepared_phases == len(self.phases) else math.nan

    def _step_schedulers(self, interval: Literal["step", "epoch"]) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and config.name in self._stepped:
                config.scheduler.step()  # type: ignore[call-arg]


def import_class(class_path: str) -> type[OneClassModule]:
    """A method by its class path.

    Raises:
        InputError: It cannot be imported, is no :class:`OneClassModule`, or lacks one of its abstract methods.

    Example:
        >>> import_class("autoencoder.Autoencoder").__name__
        'Autoencoder'
    """
    try:
        cls = resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        file = getattr(sys.modules.get(class_path.partition(".")[0]), "__file__", None)
        where = f" from {file}" if file else ""
        raise InputError(f"cannot import '{class_path}'{where}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, OneClassModule)):
        raise InputError(f"'{class_path}' is not a class derived from common.module.OneClassModule")
    if missing := sorted(cls.__abstractmethods__):
        raise InputError(f"'{class_path}' lacks {', '.join(missing)}")
    return cls
