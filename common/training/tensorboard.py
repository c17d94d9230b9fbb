"""Writes for TensorBoard: figures of a run, and columns that compare runs and methods."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard.writer import SummaryWriter

from common.data import OneClassDataModule
from common.data.transforms import resize
from common.evaluation import figures
from common.files import whole
from common.module import OneClassModule
from common.scoring import Scored
from common.training.checkpoints import run_folder

COMPARED = ("auroc", "aupr_anomaly", "fpr95_anomaly", "eer", "balanced_accuracy_threshold")
"""The final metrics beside a run's columns, where the run has them; as ``compare/<metric>``, which sorts before ``figures``."""

DRAW_EVERY_S = 20.0
"""Seconds between the figures while training; the last epoch always has them."""
PROJECTED, THUMBNAIL = 1000, 64
"""Points in the projector, more of which make a browser slow, and pixels of their pictures; at most."""


class Figures(Callback):
    """Draws a run's figures while it trains and after its test, also as PNG, and writes its row under HPARAMS.

    While training: held-out images over their reconstructions, and the method's own figures. After a test, for the score
    that counts: ROC and precision-recall curves, a histogram for every class, the most anomalous normals beside the least
    anomalous anomalies, what the threshold flags, and the latent projector. PNGs go to ``figures`` in the run's folder. The
    rest needs a TensorBoardLogger among the trainer's loggers, and is left out without one.

    The row under HPARAMS has the columns ``cell/<name>``, then ``overrides``, and the final metrics of :data:`COMPARED`.
    Loggers other than TensorBoard get the columns when training starts.

    Args:
        cell: Method, dataset, protocol, normal class and seed of this run. By default the module's class, the dataset and
            normal class of the data module, and the process's seed.
        overrides: Hyper-parameters that differ from the preset, by their key on the command line.

    Example:
        >>> callback = Figures({"method": "ocgan-tuned", "normal": "3", "seed": "0"}, {"mining_steps": 0})
    """

    def __init__(self, cell: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None) -> None:
        self.cell, self.overrides, self._due = cell, overrides or {}, 0.0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Tells other loggers which run this is; TensorBoard needs the final metrics beside it."""
        self._due = time.monotonic() + DRAW_EVERY_S
        columns = self._columns(trainer, module)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(columns)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Draws reconstructions and :meth:`OneClassModule.figures`, now and then."""
        assert isinstance(module, OneClassModule)
        data, last = _data(trainer), trainer.current_epoch + 1 == trainer.max_epochs
        if not (last or time.monotonic() >= self._due) or not _draws(module):
            return
        self._due = time.monotonic() + DRAW_EVERY_S
        inputs = _as_seen(data.images(data.splits.val[:200]), module)
        with torch.random.fork_rng(devices=[module.device] if module.device.type == "cuda" else []):
            # figures of random latents change no later random number, whenever they are drawn
            drawn = dict(module.figures(inputs))
            reconstructions = module.reconstruct(inputs[:8])
        if reconstructions is not None and inputs.ndim == 4:
            drawn["reconstructions"] = figures.image_grid({"image": inputs[:8], "reconstruction": reconstructions})
        self._show(trainer, drawn)

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Draws the finished run and writes its row."""
        assert isinstance(module, OneClassModule)
        if not module.scored or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = _data(trainer)
        scored, name = module.scored, module.hparams["score"]
        self._show(trainer, _result_figures(data, scored, name, float(module.threshold)))
        if (logger := _tensorboard(trainer)) is None:
            return
        writer, scores = logger.experiment, scored.scores[name]
        for target in np.unique(scored.target):
            members = scored.target == target
            kind = "anomalous" if scored.label[members][0] else "normal"
            writer.add_histogram(f"scores/{kind} {data.data.classes[target]}", scores[members])
        if 0 < scored.label.sum() < len(scored.label):
            ranks = scores.argsort().argsort() / max(1, len(scores) - 1)
            writer.add_pr_curve("test/anomalies found", scored.label, ranks)
        self._project(writer, data, module, scored)
        _write_row(logger, self._columns(trainer, module), module.test_metrics()[name])

    def _columns(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        cell, data = self.cell, _data(trainer)
        if cell is None:
            cell = {
                "method": type(module).__name__,
                "dataset": data.dataset,
                "normal": "+".join(data.class_names()),
                "seed": os.environ.get("PL_GLOBAL_SEED", "0"),
            }
        return _hparams_columns(cell, self.overrides)

    def _show(self, trainer: Trainer, drawn: Mapping[str, Figure]) -> None:
        logger, folder = _tensorboard(trainer), run_folder(trainer) / "figures"
        if not drawn or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, figure in drawn.items():
            pixels = _render(figure)
            with whole(folder / f"{name}.png") as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
            if logger is not None:
                logger.experiment.add_image(f"figures/{name}", pixels, trainer.current_epoch, dataformats="HWC")

    def _project(self, writer: SummaryWriter, data: OneClassDataModule, module: OneClassModule, scored: Scored) -> None:
        chosen = np.linspace(0, len(scored.index) - 1, min(PROJECTED, len(scored.index))).astype(int)
        parts = np.array_split(scored.index[chosen], -(-len(chosen) // 100))
        with torch.no_grad():
            latents = [module.embed(_as_seen(data.inputs(part), module)) for part in parts]
        found = [latent for latent in latents if latent is not None]
        if not found:
            return
        score = scored.scores[module.hparams["score"]][chosen]
        metadata = []
        for target, label, value in zip(scored.target[chosen], scored.label[chosen], score, strict=True):
            metadata.append([data.data.classes[target], "anomalous" if label else "normal", f"{value:.6g}"])
        images = _thumbnails(data, parts) if _has_images(data) else None
        header = ["class", "label", "score"]
        writer.add_embedding(torch.cat(found).cpu(), metadata, images, module.current_epoch, "latent", header)


def write_summary_runs(frame: pd.DataFrame, runs: Path) -> None:
    """Writes one TensorBoard run for each method, data set and protocol: its mean metrics over classes and seeds.

    It lies in ``<runs>/summary/<name> <dataset> <protocol>`` and replaces the one that is there.

    Args:
        frame: As :func:`common.experiment.table.long` returns it: one row for each number of a record.
        runs: The runs folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> row = {"name": "classical-lof", "dataset": "digits", "protocol": "standard", "normal": "3", "seed": 0}
        >>> frame = pd.DataFrame([{**row, "metric": "auroc", "value": 0.9, "chosen": True}])
        >>> with TemporaryDirectory() as runs:
        ...     write_summary_runs(frame, Path(runs))
        ...     [folder.name for folder in Path(runs, "summary").iterdir()]
        ['classical-lof digits standard']
    """
    chosen = frame[frame["chosen"] & frame["metric"].isin(COMPARED)]
    for (name, dataset, protocol), row in chosen.groupby(["name", "dataset", "protocol"], sort=False):
        # Mean over seeds first: every class counts the same, however many of its seeds are done.
        per_class = row.groupby(["metric", "normal"])["value"].mean()
        means = per_class.groupby("metric").mean().dropna()
        cell = {"method": name, "dataset": dataset, "protocol": protocol}
        for column in ("normal", "seed"):
            distinct = row[column].unique()
            cell[column] = str(distinct[0]) if len(distinct) == 1 else f"mean of {len(distinct)}"
        folder = f"{name} {dataset} {protocol}".replace("/", "_")
        for earlier in (runs / "summary" / folder).glob("events.out.tfevents.*"):
            earlier.unlink()
        logger = TensorBoardLogger(runs / "summary", folder, version="", default_hp_metric=False)
        _write_row(logger, _hparams_columns(cell, {}), means)
        logger.finalize("success")


def _hparams_columns(cell: Mapping[str, str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a run under HPARAMS, which TensorBoard sorts by name: the cell's first."""
    columns: dict[str, Any] = {f"cell/{name}": value for name, value in cell.items()}
    for key, value in overrides.items():
        name = key if "." in key else f"model.{key}"
        columns[name] = value if isinstance(value, int | float | str) else str(value)
    return columns


def _result_figures(data: OneClassDataModule, scored: Scored, name: str, threshold: float) -> dict[str, Figure]:
    """The figures of one score on a tested split, by name; a table has those of the scores alone."""
    scores, label = scored.scores[name], scored.label
    drawn = {"score_histogram": figures.score_histogram(scores, label, threshold, data.data.classes, scored.target)}
    both = 0 < label.sum() < len(label)
    if both:
        drawn["roc"] = figures.roc_curve_figure(scores, label)
        drawn["precision_recall"] = figures.precision_recall_figure(scores, label)
    if not _has_images(data):
        return drawn
    if both:
        drawn["extremes"] = _extremes(data, scored, scores)
    if (scores >= threshold).any():
        drawn["flagged"] = _flagged(data, scored, scores, threshold)
    return drawn


def _write_row(logger: TensorBoardLogger, columns: dict[str, Any], metrics: Any) -> None:
    logger.log_hyperparams(columns, {f"compare/{metric}": metrics[metric] for metric in COMPARED if metric in metrics})


def _extremes(data: OneClassDataModule, scored: Scored, scores: NDArray[np.float64]) -> Figure:
    """Where the method errs most: the 8 most anomalous normals above the 8 least anomalous anomalies."""
    normal, anomalous = np.flatnonzero(scored.label == 0), np.flatnonzero(scored.label == 1)
    highest = normal[np.argsort(-scores[normal])][:8]
    lowest = anomalous[np.argsort(scores[anomalous])][:8]
    groups = {"normal": data.images(scored.index[highest]), "anomalous": data.images(scored.index[lowest])}
    titles = [f"{score:.4g}" for score in scores[np.append(highest, lowest)]]
    return figures.image_grid(groups, titles, "most anomalous normals and least anomalous anomalies, with scores")


def _flagged(data: OneClassDataModule, scored: Scored, scores: NDArray[np.float64], threshold: float) -> Figure:
    flagged = np.flatnonzero(scores >= threshold)
    shown = flagged[np.argsort(-scores[flagged])][:16]
    names = [name.split(" - ")[0] for name in data.data.classes]  # torchvision says "3 - three"
    titles = [f"{names[scored.target[i]]}: {scores[i]:.3g}" for i in shown]
    n_anomalous = int(scored.label[flagged].sum())
    caption = f"{len(flagged)} of {len(scores)} at or above {threshold:.4g}, {n_anomalous} anomalous"
    return figures.image_grid({"": data.images(scored.index[shown])}, titles, caption)


def _thumbnails(data: OneClassDataModule, parts: list[NDArray[np.int64]]) -> Tensor:
    """``(N, 3, H, W)`` in [0, 1]; ``parts`` are data-set indices."""
    size = (min(data.shape[1], THUMBNAIL), min(data.shape[2], THUMBNAIL))
    images = torch.cat([resize(data.images(part), size) for part in parts])
    images = images - images.amin()
    images = images / images.amax().clamp_min(1e-12)
    height, width = size
    # TensorBoard's sheet of pictures has as many in a row as in a column, and must not be higher than wide
    return F.pad(images.expand(-1, 3, -1, -1), (0, max(0, height - width)))


def _render(figure: Figure) -> NDArray[np.uint8]:
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _as_seen(x: Tensor, module: OneClassModule) -> Tensor:
    """Inputs on the module's device and in its precision."""
    return x.to(module.device, module.dtype)  # type: ignore[arg-type]


def _has_images(data: OneClassDataModule) -> bool:
    return len(data.shape) == 3


def _draws(module: OneClassModule) -> bool:
    """Whether a method has something to draw while it trains; else no image need be decoded for it."""
    own = type(module)
    return own.reconstruct is not OneClassModule.reconstruct or own.figures is not OneClassModule.figures


def _data(trainer: Trainer) -> OneClassDataModule:
    data: OneClassDataModule = trainer.datamodule  # type: ignore[attr-defined]
    return data


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
