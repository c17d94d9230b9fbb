"""The base class of all methods: what a paper overrides, and how every method is trained."""

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, ClassVar, Literal, get_args, get_origin

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from common.data import Sample
from common.data.features import Extractor
from common.data.loaders import in_order
from common.errors import InputError
from common.networks import evaluating
from common.scoring import ScoringModule
from common.training.seeding import epoch_seed
from common.training.speed import Speed

Schedule = Literal["constant", "cosine"]
"""A constant learning rate, or one that follows a cosine to 0."""


class Cosine(CosineAnnealingLR):
    """A cosine schedule that ends with this training, even if the checkpoint is from one with another number of epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps its own length. If that differs, the rate is the value of the new cosine at the same iteration."""
        iterations = self.T_max
        super().load_state_dict(state_dict)
        if self.T_max != iterations:
            self.T_max = iterations
            for group, rate in zip(self.optimizer.param_groups, self._get_closed_form_lr(), strict=True):
                group["lr"] = rate


class OneClassModule(ScoringModule):
    """Base class of a one-class method: a paper overrides a few methods, and training, scoring and testing are shared.

    A subclass calls ``self.save_hyperparameters()`` in its ``__init__``. The hyper-parameters include ``shape`` (``(C, H, W)``
    of an image or ``(F,)`` of a flat vector), ``score`` (the name of the reported score) and ``threshold_quantile``. The
    subclass overrides :meth:`scores`, :meth:`training_step` and :meth:`named_optimizers`.

    Attributes:
        monitor: The logged key by which the paper chooses the epoch; it needs normal samples only.
        mode: Whether the best ``monitor`` is the lowest (``min``) or the highest (``max``).
        offline_kwargs: Arguments that avoid downloading weights when the module is loaded from a checkpoint.
        every_epoch_counts: Whether an epoch before the last may be tested; then :meth:`after_epoch` runs after every epoch.
        speed: Memory format and fused optimisers.
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
        self._losses: dict[str, list[tuple[int, Tensor]]] = {}
        self._stepped: set[str] = set()
        self._prepared_phases = 0
        self._behind = False

    @abstractmethod
    def training_step(self, batch: Sample, batch_idx: int) -> Mapping[str, Tensor]:
        """Runs one iteration of the paper's algorithm on normal samples; returns scalar losses, logged as ``train/<name>``."""

    @abstractmethod
    def named_optimizers(self) -> dict[str, Optimizer]:
        """Returns the paper's optimisers by name, in the order in which :meth:`training_step` first uses them."""

    def scheduler(self, name: str, optimizer: Optimizer) -> LRScheduler | dict[str, Any] | None:
        """Returns the learning-rate schedule of one optimiser, as Lightning's ``lr_scheduler``; None for a constant rate.

        A dictionary has ``scheduler`` and ``interval``, ``step`` for iterations or ``epoch``. The schedule counts those of the
        epochs in which the optimiser steps, so each phase has its own.
        """
        return None

    @property
    def phases(self) -> Sequence[int]:
        """The epochs, ascending from 0, in which the phases of the training begin.

        A method with several phases, such as pretraining and training, chooses its optimiser by :attr:`phase`. Optimisers of
        different phases may share parameters. Only an epoch of the last phase can be selected for the test.
        """
        return (0,)

    @property
    def phase(self) -> int:
        """The index of the current phase, from 0."""
        return bisect_right(self.phases, self.current_epoch) - 1

    def prepare(self, batches: Iterable[Sample]) -> None:
        """Hook for a pass over the training data before a phase, for example to compute a centre, whitening or statistics.

        It runs once for each phase, in eval mode and without gradients, and not again when a run resumes. Store the results
        in buffers or parameters, so that they are saved in the checkpoint. The batches are the whole training set, unshuffled,
        in every process of a distributed run.
        """

    def after_epoch(self, batches: Iterable[Sample]) -> None:
        """Hook for a pass over the training data after an epoch that may be tested, for example to fit an SVM.

        It runs before the validation, like :meth:`prepare`, but the batches are those of the epoch, in the same order; in a
        distributed run each process gets its share. It also runs where ``max_steps`` or ``max_time`` cuts an epoch short.
        """

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """Returns ``(B, *shape)`` reconstructions for the figures, or None if the method has none."""
        return None

    def embed(self, x: Tensor) -> Tensor | None:
        """Returns ``(B, D)`` latent vectors for TensorBoard's projector, or None if the method has none."""
        return None

    def figures(self, x: Tensor) -> Mapping[str, Figure]:
        """Draws the method's own figures, by name, from up to 200 held-out samples ``(B, *shape)``."""
        return {}

    def frozen(self) -> Extractor | None:
        """Returns the frozen first layers, whose features the data module caches, or None.

        A method with frozen layers takes ``(B, *shape)`` images *or* ``(B, F)`` features in :meth:`scores`, :meth:`embed`
        and :meth:`training_step`.
        """
        return None

    def optimizer(self, name: str) -> Any:
        """The optimiser with this name, wrapped by Lightning."""
        configured: Any = self.optimizers()
        wrapped = configured if isinstance(configured, list) else [configured]
        optimizers = dict(zip(self._optimizer_names, wrapped, strict=True))
        if name not in optimizers:
            raise InputError(f"there is no optimiser '{name}': named_optimizers returns {', '.join(optimizers)}")
        return optimizers[name]

    def toggled(self, name: str) -> AbstractContextManager[None]:
        """Context in which only the parameters of one optimiser get gradients; put the forward pass inside, too."""
        return self.toggled_optimizer(self.optimizer(name))

    def descend(self, names: str | Sequence[str], loss: Tensor) -> None:
        """Steps one or several optimisers down a loss: the only place that clears, computes and applies gradients."""
        names = [names] if isinstance(names, str) else names
        optimizers = [self.optimizer(name) for name in names]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def cosine(self, optimizer: Optimizer, epochs: int | None = None) -> dict[str, Any]:
        """A schedule for :meth:`scheduler` that falls along a cosine to 0 at the last iteration.

        ``epochs`` are those in which the optimiser steps, for one of a single phase; by default all. Raises InputError if the
        length of the training is not known.
        """
        # With manual optimisation Lightning counts batches here, as on_train_batch_end does, not optimiser steps
        iterations = self.trainer.estimated_stepping_batches
        if math.isinf(iterations):
            raise InputError("a cosine schedule needs the length of the training: give trainer.max_epochs")
        if epochs is not None:
            iterations = epochs * self.trainer.num_training_batches
        return {"scheduler": Cosine(optimizer, int(iterations)), "interval": "step"}

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """The annotations of all arguments of ``__init__``, including those that it passes to base classes by ``**kwargs``."""
        annotations: dict[str, Any] = {}
        for initializer in (vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)):
            parameters = signature(initializer).parameters.values()
            named = {p.name: p.annotation for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
            annotations = named | annotations
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return {name: annotation for name, annotation in annotations.items() if name != "self"}

    def configure_optimizers(self) -> Any:
        """Builds Lightning's configuration from :meth:`named_optimizers` and :meth:`scheduler`.

        Raises InputError if an argument is none of its choices, as Python does not check them, if an optimiser refuses a
        hyper-parameter, such as its rate, and for a schedule that is not to be had.
        """
        for argument, annotation in self.arguments().items():
            choices = get_args(annotation) if get_origin(annotation) is Literal else ()
            if choices and (given := self.hparams.get(argument, choices[0])) not in choices:
                raise InputError(f"{argument} must be {' or '.join(map(str, choices))}, not {given}")
        configured: list[dict[str, Any]] = []
        try:
            optimizers = self.named_optimizers()
        except ValueError as error:
            raise InputError(str(error)) from error
        self._optimizer_names = list(optimizers)
        for name, optimizer in optimizers.items():
            optimizer.register_step_post_hook(lambda *_, name=name: self._stepped.add(name))
            configured.append({"optimizer": optimizer})
            if (scheduler := self.scheduler(name, optimizer)) is not None:
                options = scheduler if isinstance(scheduler, dict) else {"scheduler": scheduler}
                if options.keys() - {"scheduler", "interval"} or isinstance(options["scheduler"], ReduceLROnPlateau):
                    kinds = "a schedule by iteration or epoch, {'scheduler': …, 'interval': 'step' or 'epoch'}"
                    raise InputError(f"the schedule of '{name}' must be {kinds}: no metric, frequency or other key counts")
                configured[-1]["lr_scheduler"] = options | {"name": name}
        return configured

    def configure_callbacks(self) -> list[Callback]:
        """Adds the ``speed`` callback to the trainer, unless it is there."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if self.speed in callbacks else [self.speed]

    def on_train_start(self) -> None:
        """Raises InputError if the training would end before the last phase begins."""
        epochs = self.trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.phases[-1]:
            raise InputError(f"max_epochs {epochs} ends before the last phase begins, in epoch {self.phases[-1]}: give more")

    def refuse_early_end(self) -> None:
        """Raises InputError if what is scored would be untrained.

        The training has ended before the last phase began, or before :meth:`after_epoch` saw the last weights.
        """
        if 0 < self._prepared_phases < len(self.phases):
            begun = f"{self._prepared_phases} of {len(self.phases)} phases, the last from epoch {self.phases[-1]}"
            raise InputError(f"the training has ended in {begun}: let it go on")
        if self._behind:
            raise InputError("the training has ended before after_epoch, which fits to its last weights: let it go on")

    on_test_start = on_predict_start = refuse_early_end

    def on_train_epoch_start(self) -> None:
        """Prepares a new phase and seeds noise, dropout and random latents, so that a resumed run repeats them."""
        self._losses.clear()
        self._stepped.clear()
        seed, loader = epoch_seed(self.current_epoch), self.trainer.train_dataloader
        if self.phase >= self._prepared_phases:
            torch.manual_seed(seed)
            with evaluating(self):
                self.prepare(self._on_device(in_order(loader)))
            self._prepared_phases = self.phase + 1
        torch.manual_seed(seed + self.global_rank)

    def on_train_batch_end(self, outputs: Mapping[str, Tensor], batch: Sample, batch_idx: int) -> None:  # type: ignore[override]
        """Collects the losses on their device, and steps the schedulers that count iterations."""
        for name, loss in outputs.items():
            self._losses.setdefault(name, []).append((len(batch.image), loss.detach()))
        self._step_schedulers("step")
        self._behind = type(self).after_epoch is not OneClassModule.after_epoch
        trainer: Any = self.trainer
        is_last_epoch = self.current_epoch + 1 == trainer.max_epochs
        ends = is_last_epoch or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        # done after the last batch, and where the epoch is cut short; not before the trainer's min_epochs
        if trainer.fit_loop.epoch_loop.done and (ends or self.every_epoch_counts):
            with evaluating(self):
                self.after_epoch(self._on_device(trainer.train_dataloader))
            self._behind = False

    def on_train_epoch_end(self) -> None:
        """Logs the mean of each loss over the images of its batches, and steps the schedulers that count epochs."""
        for name, losses in self._losses.items():
            total = torch.stack([n * loss for n, loss in losses]).sum()
            self.log(f"train/{name}", total / sum(n for n, _ in losses), sync_dist=True)
        self._losses.clear()
        self.log("step", float(self.current_epoch))
        self._step_schedulers("epoch")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the class, the held-out scores, and how far :meth:`prepare` and :meth:`after_epoch` have come."""
        checkpoint["method"] = type(self).__qualname__
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["calibration"] = self.calibration
        checkpoint["prepared_phases"] = self._prepared_phases
        checkpoint["behind"] = self._behind

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what :meth:`on_save_checkpoint` added; raises InputError for the checkpoint of another class."""
        method = checkpoint.get("method")
        if method != type(self).__qualname__:
            raise InputError(f"the checkpoint is one of {method or 'something else'}, not of {type(self).__qualname__}")
        self.calibration = checkpoint.get("calibration", self.calibration)
        self._prepared_phases = checkpoint.get("prepared_phases", len(self.phases))
        self._behind = checkpoint.get("behind", False)

    def _criterion(self, scores: NDArray[np.float64]) -> float:
        """NaN until the last phase has begun, which a ModelCheckpoint takes for the worst value."""
        return super()._criterion(scores) if self._prepared_phases == len(self.phases) else math.nan

    def _step_schedulers(self, interval: Literal["step", "epoch"]) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and config.name in self._stepped:
                config.scheduler.step()  # type: ignore[call-arg]
