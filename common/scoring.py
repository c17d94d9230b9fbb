"""Scoring, thresholds and metrics, the same for every method."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor

from common.data import Sample
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.networks import evaluating


class Scored(NamedTuple):
    """The scores of a split by name, ``(N,)`` float64 each, with ``index``, ``target`` and ``label`` of its samples."""

    index: NDArray[np.int64]  # type: ignore[assignment]
    target: NDArray[np.int64]
    label: NDArray[np.int64]
    scores: dict[str, NDArray[np.float64]]


MERGED_AFTER = 100
"""Batches after which their columns become one. Each small tensor that stays lies where a batch of images was, and would keep
the next one from fitting there: 1.5 million patches took 5 GB that way."""


def highest_of_each(scored: Scored, groups: NDArray[np.int64], name: str) -> Scored:
    """Reduces scores of parts to scores of groups: a group is as anomalous as its most anomalous part.

    ``groups`` is the ``(N,)`` group number of each part. Every score is the maximum over the group; ``index``, ``target``
    and ``label`` are those of the part with the highest score ``name``. Groups are in ascending order.

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


class ScoringModule(LightningModule, ABC):
    """The part of :class:`common.module.OneClassModule` that validates, tests and predicts.

    Attributes:
        fixed_thresholds: Thresholds that follow from the meaning of a score, by the name of the score.
        groups: ``(N,)`` group number of each sample of the data set; None if there are no groups.
        calibration: ``(n,)`` float64 scores of the held-out samples at the last validation, ascending, on the CPU; saved in
            the checkpoint. Empty before the first validation and if nothing is held out.
        threshold: Scalar buffer, the ``threshold_quantile`` of ``calibration``; NaN while that is empty.
        scored: The last tested split; None before a test.
    """

    hparams: Any
    fixed_thresholds: ClassVar[Mapping[str, float]] = {}
    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(math.nan, dtype=torch.float64))
        self.calibration = torch.empty(0, dtype=torch.float64)
        self.groups: NDArray[np.int64] | None = None
        self.scored: Scored | None = None
        self._metrics: dict[str, dict[str, float]] = {}
        self._collected: list[dict[str, Tensor]] = []

    @abstractmethod
    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Computes every score of ``(B, *shape)`` preprocessed inputs, by name.

        Each is ``(B,)``, finite, without a sigmoid, higher = more anomalous. In eval mode it depends on its own input only.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Computes the ``(B,)`` scores that ``hparams.score`` names."""
        return self.scores(x)[self.hparams["score"]]

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Scores a batch of held-out samples."""
        if batch_idx == 0:
            self._collected.clear()  # an interrupted split may have left some
        sample = {"index": batch.index, "target": batch.target, "label": batch.label}
        self._collected.append(sample | self._scores_of(batch.image))
        if len(self._collected) == MERGED_AFTER:
            self._collected = [_merged(self._collected)]

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Logs the mean of each score over the held-out samples as ``val/<score>``, and sets the threshold (per group)."""
        scored = self._split()
        self.log_dict({f"val/{name}": self._criterion(values) for name, values in scored.scores.items()})
        self.log("step", float(self.current_epoch))
        scores = self._by_group(scored).scores[self.hparams["score"]]
        self.calibration = torch.from_numpy(np.sort(scores))
        self.threshold.fill_(quantile_threshold(scores, self.hparams["threshold_quantile"]))

    def on_test_epoch_end(self) -> None:
        """Keeps the scored test set as ``self.scored``, and logs the metrics of the chosen score as ``test/<metric>``."""
        self.scored = self._by_group(self._split())
        self._metrics = self.metrics_of(self.scored)
        self.log_dict({f"test/{key}": float(value) for key, value in self._metrics[self.hparams["score"]].items()})
        self.log("step", float(self.current_epoch))

    def test_metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of every score in the last test; raises InputError before a test."""
        if self.scored is None:
            raise InputError("nothing has been tested yet: call Trainer.test first")
        return self._metrics

    def metrics_of(self, scored: Scored) -> dict[str, dict[str, float]]:
        """The metrics of every score of a split, see :func:`common.evaluation.evaluate`; the threshold applies to one score."""
        metrics: dict[str, dict[str, float]] = {}
        for name, values in scored.scores.items():
            threshold = float(self.threshold) if name == self.hparams["score"] else None
            metrics[name] = evaluate(values, scored.label, threshold, self.fixed_thresholds.get(name))
        return metrics

    def score(self, batches: Iterable[Sample]) -> Scored:
        """Scores a whole split outside of the trainer's loops."""
        with evaluating(self):
            for position, batch in enumerate(self._on_device(batches)):
                self.validation_step(batch, position)
        return self._by_group(self._split())

    def predict_step(self, batch: Sample, batch_idx: int) -> dict[str, Tensor]:
        """Returns ``index``, every score, and ``anomalous``: whether the chosen score reaches the threshold."""
        scores = self._scores_of(batch.image)
        return {"index": batch.index, **scores, "anomalous": scores[self.hparams["score"]] >= self.threshold}

    def gathered(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gathers columns ``(n,)`` from all processes of a distributed run, ordered by ``index``, each sample once."""
        if self.trainer.world_size == 1:
            return columns
        columns = {name: torch.as_tensor(self.all_gather(values)).flatten() for name, values in columns.items()}
        first = np.unique(columns["index"].cpu().numpy(), return_index=True)[1]
        return {name: values[torch.from_numpy(first).to(values.device)] for name, values in columns.items()}

    def _scores_of(self, x: Tensor) -> dict[str, Tensor]:
        """:meth:`scores`; raises InputError if it returns something else than a batch of each score."""
        scores, cls = self.scores(x), type(self).__name__
        if not isinstance(scores, Mapping) or not all(isinstance(values, Tensor) for values in scores.values()):
            raise InputError(f"{cls}.scores must return tensors by name, such as {{'{self.hparams['score']}': tensor}}")
        for name, values in scores.items():
            if values.shape != (len(x),):
                raise InputError(
                    f"{cls}.scores gives '{name}' the shape {tuple(values.shape)}: give one number per sample, {(len(x),)}"
                )
        if self.hparams["score"] not in scores:
            raise InputError(f"{cls} has no score '{self.hparams['score']}': choose from {', '.join(scores)}")
        return scores

    def _split(self) -> Scored:
        parts = _merged(self._collected)
        self._collected.clear()
        columns = self.gathered(parts)
        index, target, label = (columns.pop(name).cpu().numpy() for name in ("index", "target", "label"))
        return Scored(index, target, label, {name: values.double().cpu().numpy() for name, values in columns.items()})

    def _by_group(self, scored: Scored) -> Scored:
        if self.groups is None:
            return scored
        return highest_of_each(scored, self.groups[scored.index], self.hparams["score"])

    def _criterion(self, scores: NDArray[np.float64]) -> float:
        """The value by which the epoch is chosen: the mean of the held-out scores."""
        return float(scores.mean())

    def _on_device(self, batches: Iterable[Sample]) -> Iterator[Sample]:
        for batch in batches:
            yield batch._replace(image=batch.image.to(self.device, self.dtype))  # type: ignore[arg-type]


def _merged(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenates the columns of parts that all have the same ones."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
