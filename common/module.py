"""The contract that every method fulfils, and the evaluation that all of them share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from common.data import OneClassDataModule, Sample
from common.data.features import Extractor
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.training.seeding import epoch_seed
from common.training.speed import Speed

Schedule = Literal["constant", "cosine"]
"""Of a learning rate: as it is, or along a cosine to 0."""


class Scored(NamedTuple):
    """A scored split: ``index``, ``target`` and ``label`` of ``(N,)`` samples, and by name ``(N,)`` float64 scores."""

    index: NDArray[np.int64]  # type: ignore[assignment]
    target: NDArray[np.int64]
    label: NDArray[np.int64]
    scores: dict[str, NDArray[np.float64]]


def highest_of_each(scored: Scored, groups: NDArray[np.int64], name: str) -> Scored:
    """One row for each group, in ascending order: a whole is as anomalous as its most anomalous part.

    Every score is the highest among the group's parts; ``index``, ``target`` and ``label`` are those of the part whose score
    ``name`` is the highest.

    Args:
        scored: ``(N,)`` scored parts.
        groups: ``(N,)`` group of each of them.
        name: A key of ``scored.scores``.

    Example:
        >>> parts = Scored(np.arange(3), np.zeros(3, int), np.zeros(3, int), {"error": np.array([2.0, 5.0, 3.0])})
        >>> frames = highest_of_each(parts, np.array([8, 4, 8]), "error")
        >>> frames.index, frames.scores
        (array([1, 2]), {'error': array([5., 3.])})
    """
    order = np.lexsort((scored.scores[name], groups))
    _, start, count = np.unique(groups[order], return_index=True, return_counts=True)
    highest = order[start + count - 1]
    scores = {key: np.maximum.reduceat(values[order], start) for key, values in scored.scores.items()}
    return Scored(scored.index[highest], scored.target[highest], scored.label[highest], scores)


class OneClassModule(LightningModule, ABC):
    """A one-class method: what a paper overrides, and around it one way of scoring, testing and thresholding.

    A subclass calls ``self.save_hyperparameters()`` in its ``__init__``, with at least ``shape`` (``(C, H, W)`` of an
    image or ``(F,)`` of a flat vector), ``score`` (the name of the score that counts) and ``threshold_quantile``; then it
    overrides :meth:`scores`, :meth:`training_step` and :meth:`configure_optimizers`. :meth:`training_step` returns its
    losses by name; each is logged as ``train/<name>`` and watched for NaN.

    Attributes:
        monitor: The normal-only criterion of the paper's epoch choice, a logged key.
        mode: Whether ``monitor`` is to be lowest (``min``) or highest (``max``).
        fixed_thresholds: Of scores that have a threshold by their meaning, where there are any.
        calibration: ``(n,)`` scores of the held-out samples after the last validation, in ascending order: float64, on the
            CPU, in the checkpoint; empty before, and where nothing is held out.
        threshold: Scalar buffer, the ``threshold_quantile`` of ``calibration``; NaN where that is empty.
        unfetched: Arguments, in place of those by which a new module fetches weights, for one that a checkpoint will fill.
    """

    hparams: Any
    monitor: ClassVar[str] = "val/reconstruction"
    mode: ClassVar[Literal["min", "max"]] = "min"
    fixed_thresholds: ClassVar[Mapping[str, float]] = {}
    unfetched: ClassVar[Mapping[str, Any]] = {}
    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.register_buffer("threshold", torch.tensor(math.nan, dtype=torch.float64))
        self.calibration = torch.empty(0, dtype=torch.float64)
        self.scored: Scored | None = None
        self._collected: list[dict[str, Tensor]] = []

    @abstractmethod
    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Every score of the method, by name.

        Args:
            x: ``(B, *shape)`` preprocessed inputs.

        Returns:
            Each ``(B,)``, finite, higher = more anomalous, not squashed; in eval mode a function of each input alone.
        """

    @abstractmethod
    def training_step(self, batch: Sample, batch_idx: int) -> Mapping[str, Tensor]:
        """One iteration of the paper's algorithm on normal samples; the losses by name, scalars."""

    @abstractmethod
    def configure_optimizers(self) -> Any:
        """The paper's optimisers, in the order in which ``training_step`` first uses them, and their schedulers."""

    def reconstruct(self, x: Tensor) -> Tensor | None:
        """``(B, *shape)`` reconstructions for the figures, or None where the method has none."""
        return None

    def embed(self, x: Tensor) -> Tensor | None:
        """``(B, D)`` latent vectors for the projector, or None where the method has none."""
        return None

    def figures(self, x: Tensor) -> Mapping[str, Figure]:
        """The method's own figures by name, shown every few epochs; ``x`` are up to 200 held-out samples, ``(B, *shape)``."""
        return {}

    def draws(self) -> bool:
        """Whether there are figures to draw while training: whether :meth:`reconstruct` or :meth:`figures` is overridden."""
        base, own = OneClassModule, type(self)
        return own.reconstruct is not base.reconstruct or own.figures is not base.figures

    def frozen(self) -> Extractor | None:
        """The layers that images go through and that never change, or None; the data module keeps their features.

        Where there are any, ``x`` of :meth:`scores`, :meth:`embed` and :meth:`training_step` is ``(B, *shape)`` images *or*
        ``(B, F)`` features.
        """
        return None

    def forward(self, x: Tensor) -> Tensor:
        """``(B,)`` scores, the one named by ``hparams.score``."""
        return self.scores(x)[self.hparams["score"]]

    def descend(self, optimizer: Any, loss: Tensor) -> None:
        """One step of an optimiser, or of each of several, down one loss: where all gradients are cleared, made and used."""
        optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        for one in optimizers:
            one.zero_grad()
        self.manual_backward(loss)
        for one in optimizers:
            one.step()

    def scheduled(self, optimizers: Sequence[Optimizer], schedule: Schedule) -> list[dict[str, Any]]:
        """What ``configure_optimizers`` returns: a constant rate for each, or one that falls to 0 at the last iteration."""
        if schedule == "constant":
            return [{"optimizer": optimizer} for optimizer in optimizers]
        steps = int(self.trainer.estimated_stepping_batches)
        schedulers = [{"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"} for optimizer in optimizers]
        return [{"optimizer": o, "lr_scheduler": s} for o, s in zip(optimizers, schedulers, strict=True)]

    def configure_callbacks(self) -> list[Callback]:
        """:class:`common.training.speed.Speed`, unless the trainer has one."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(callback, Speed) for callback in callbacks) else [Speed()]

    def on_train_epoch_start(self) -> None:
        """Noise, dropout and random latents repeat in a resumed run, and differ between the processes of a distributed one."""
        self._losses: list[dict[str, Tensor]] = []
        self._n_images = 0
        torch.manual_seed(epoch_seed(self.current_epoch) + self.global_rank)

    def on_train_batch_end(self, outputs: Mapping[str, Tensor], batch: Sample, batch_idx: int) -> None:  # type: ignore[override]
        """Keeps the losses, on their device, and steps the schedulers that count batches."""
        self._losses.append({name: len(batch.image) * loss.detach() for name, loss in outputs.items()})
        self._n_images += len(batch.image)
        self._step_schedulers("step")

    def on_train_epoch_end(self) -> None:
        """Logs each loss's mean over the epoch, by epoch on TensorBoard's x-axis; steps the schedulers that count epochs."""
        for name in self._losses[0]:
            mean = torch.stack([losses[name] for losses in self._losses]).sum() / self._n_images
            self.log(f"train/{name}", mean, sync_dist=True)
        self._losses.clear()
        self.log("step", float(self.current_epoch))
        self._step_schedulers("epoch")

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Scores a batch of held-out samples."""
        sample = {"index": batch.index, "target": batch.target, "label": batch.label}
        self._collected.append(sample | self.scores(batch.image))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Logs each score's mean over the held-out samples as ``val/<score>`` and sets the threshold, for wholes of samples."""
        scored = self._split()
        self.log_dict({f"val/{name}": float(values.mean()) for name, values in scored.scores.items()})
        self.log("step", float(self.current_epoch))
        scores = self._wholes(scored).scores[self.hparams["score"]]
        self.calibration = torch.from_numpy(np.sort(scores))
        self.threshold.fill_(quantile_threshold(scores, self.hparams["threshold_quantile"]))

    def on_test_epoch_end(self) -> None:
        """Keeps the scored test set as ``self.scored`` and logs its metrics, those of the chosen score as ``test/<metric>``."""
        self.scored = self._wholes(self._split())
        metrics = self.test_metrics()
        self.log_dict({f"test/{key}": float(value) for key, value in metrics[self.hparams["score"]].items()})
        self.log("step", float(self.current_epoch))

    def test_metrics(self) -> dict[str, dict[str, float]]:
        """:func:`common.evaluation.evaluate` of every score on the last test; the threshold belongs to the chosen one."""
        if self.scored is None:
            raise InputError("nothing has been tested yet: call Trainer.test first")
        return self.metrics_of(self.scored)

    def metrics_of(self, scored: Scored) -> dict[str, dict[str, float]]:
        """Likewise, of any scored split."""
        return {
            name: evaluate(
                values,
                scored.label,
                float(self.threshold) if name == self.hparams["score"] else None,
                self.fixed_thresholds.get(name),
            )
            for name, values in scored.scores.items()
        }

    @torch.no_grad()
    def score(self, batches: Iterable[Sample]) -> Scored:
        """A whole split, scored outside of the trainer's own loops; every net is back in its mode afterwards."""
        modes = [(net, net.training) for net in self.modules()]
        self.eval()
        for position, batch in enumerate(batches):
            self.validation_step(batch._replace(image=batch.image.to(self.device)), position)
        for net, mode in modes:
            net.training = mode
        return self._wholes(self._split())

    def predict_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """``index``, every score, and ``anomalous``: whether the chosen score reaches the threshold."""
        scores = self.scores(batch.image)
        return {"index": batch.index, **scores, "anomalous": scores[self.hparams["score"]] >= self.threshold}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds whose checkpoint this is, and the held-out scores."""
        checkpoint["method"] = type(self).__qualname__
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["calibration"] = self.calibration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the held-out scores, but from no checkpoint of another method.

        Raises:
            InputError: The checkpoint was written by another class.
        """
        method = checkpoint.get("method")
        if method != type(self).__qualname__:
            raise InputError(f"the checkpoint is one of {method or 'something else'}, not of {type(self).__qualname__}")
        self.calibration = checkpoint.get("calibration", self.calibration)

    def whole(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the processes of a distributed run have of a split, put together: in the order of ``index``, each sample once.

        Args:
            columns: ``(n,)`` each, with ``index``; in a run of one process they are the whole.
        """
        if self.trainer.world_size == 1:
            return columns
        columns = {name: torch.as_tensor(self.all_gather(values)).flatten() for name, values in columns.items()}
        first = np.unique(columns["index"].cpu().numpy(), return_index=True)[1]
        return {name: values[torch.from_numpy(first).to(values.device)] for name, values in columns.items()}

    def _split(self) -> Scored:
        columns = self.whole({name: torch.cat([part[name] for part in self._collected]) for name in self._collected[0]})
        self._collected.clear()
        index, target, label = (columns.pop(name).cpu().numpy() for name in ("index", "target", "label"))
        return Scored(index, target, label, {name: values.double().cpu().numpy() for name, values in columns.items()})

    def _wholes(self, scored: Scored) -> Scored:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        groups = data.groups if isinstance(data, OneClassDataModule) else None
        return scored if groups is None else highest_of_each(scored, groups[scored.index], self.hparams["score"])

    def _step_schedulers(self, interval: Literal["step", "epoch"]) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval:
                config.scheduler.step()  # type: ignore[call-arg]
