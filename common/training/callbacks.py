"""What every run shows and guards: TensorBoard's pictures, throughput, and losses that must stay finite."""

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
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from common.data import OneClassDataModule, Sample
from common.data.transforms import resize
from common.errors import InputError
from common.evaluation import figures
from common.module import OneClassModule
from common.scoring import Scored


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite: training is over."""


class FiniteLoss(Callback):
    """Stops a run whose loss is not finite, naming epoch, batch and loss.

    The losses are looked at every ``every_n_batches`` and at the epoch's end, so that a GPU is not made to wait for each
    batch.

    Raises:
        NonFiniteLossError: At the latest ``every_n_batches`` after it happened, before a checkpoint is written.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        self.every_n_batches = every_n_batches
        self._seen: list[tuple[int, Mapping[str, Tensor]]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Collects, and looks every so often."""
        self._seen.append((batch_idx, {name: loss.detach() for name, loss in outputs.items()}))
        if len(self._seen) >= self.every_n_batches or trainer.is_last_batch:
            self._look(trainer.current_epoch)

    def _look(self, epoch: int) -> None:
        values = torch.stack([torch.stack(list(losses.values())) for _, losses in self._seen])
        bad = (~torch.isfinite(values)).nonzero().tolist()
        seen, self._seen = self._seen, []
        if bad:
            batch_idx, losses = seen[bad[0][0]]
            name, loss = list(losses.items())[bad[0][1]]
            raise NonFiniteLossError(f"{name} is {loss.item()} in epoch {epoch}, batch {batch_idx}: lower the learning rate")


class Throughput(Callback):
    """Counts training images and seconds, validation and checkpoints left out, over all sittings of a run."""

    def __init__(self) -> None:
        self.images, self.seconds, self._start = 0, 0.0, 0.0

    @property
    def images_per_s(self) -> float:
        """Mean over the run."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Sample, batch_idx: int
    ) -> None:
        """Stops it after the last batch."""
        self.images += len(batch.image) * trainer.world_size
        if trainer.is_last_batch:
            if module.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Logs ``train/images_per_s``."""
        module.log("train/images_per_s", self.images_per_s)

    def state_dict(self) -> dict[str, Any]:
        """Travels with the checkpoint."""
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]


class FirstBelow(Checkpoint):
    """Writes ``rho.ckpt`` after the first epoch whose ``monitor`` is below ``rho``: ALOCC's stopping rule, on held-out normals.

    Training goes on, so that what came after can be compared. ``val/rho`` is logged beside the monitored curve, and
    ``val/below_rho`` (0 or 1) shows the chosen epoch.

    Args:
        monitor: A logged key.
        rho: The bound, in the unit of ``monitor``.

    Attributes:
        epoch: The chosen epoch, counted from 1; None until there is one.
    """

    def __init__(self, monitor: str, rho: float) -> None:
        self.monitor, self.rho, self.epoch = monitor, rho, None

    epoch: int | None

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Looks, after the validation of the epoch."""
        below = bool(trainer.callback_metrics[self.monitor] < self.rho)
        if below and self.epoch is None:
            self.epoch = trainer.current_epoch + 1
            trainer.save_checkpoint(Path(trainer.log_dir or trainer.default_root_dir, "checkpoints", "rho.ckpt"))
        module.log_dict({"val/rho": self.rho, "val/below_rho": float(below)})

    def state_dict(self) -> dict[str, Any]:
        """Travels with the checkpoint."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps to the epoch that was chosen."""
        self.epoch = state_dict["epoch"]


class Oracle(Callback):
    """Scores the test set after every epoch, to show what a choice by test labels *would* give; nothing is chosen by it.

    Logs ``oracle/auroc_<score>``.

    Attributes:
        curve: For every score, the AUROC after each epoch.
        best: For every score, the metrics of the epoch where that AUROC is highest, with that ``epoch``, from 1.
    """

    def __init__(self) -> None:
        self.curve: dict[str, list[float]] = {}
        self.best: dict[str, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Scores and logs."""
        assert isinstance(module, OneClassModule)
        scored = module.score(trainer.datamodule.test_dataloader())  # type: ignore[attr-defined]
        for name, metrics in module.metrics_of(scored).items():
            curve = self.curve.setdefault(name, [])
            if not curve or metrics["auroc"] > max(curve):
                self.best[name] = {**metrics, "epoch": trainer.current_epoch + 1}
            curve.append(metrics["auroc"])
            module.log(f"oracle/auroc_{name}", metrics["auroc"])

    def results(self, last: int = 10) -> dict[str, dict[str, float]]:
        """``best``, and as ``auroc_spread`` the range, max - min, of the AUROC over the ``last`` epochs."""
        return {name: {**best, "auroc_spread": float(np.ptp(self.curve[name][-last:]))} for name, best in self.best.items()}

    def state_dict(self) -> dict[str, Any]:
        """Travels with the checkpoint."""
        return {"curve": self.curve, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the curve."""
        self.curve, self.best = state_dict["curve"], state_dict["best"]


class Figures(Callback):
    """TensorBoard's pictures, each also a PNG in ``<log_dir>/figures``.

    While training: a grid of held-out images over their reconstructions, and the method's own figures. After a test, for
    the score that counts: ROC and precision-recall curves, a histogram for every class, the most anomalous normals beside
    the least anomalous anomalies, what the threshold flags, the latent projector, and the hyper-parameters with the final
    metrics.

    Args:
        every_n_epochs: Of those, which the last epoch always has.
        projected: Points in the projector; more than a thousand make a browser slow.
        thumbnail: Pixels of their pictures, at most.
    """

    def __init__(self, every_n_epochs: int = 5, projected: int = 1000, thumbnail: int = 64) -> None:
        self.every_n_epochs, self.projected, self.thumbnail = every_n_epochs, projected, thumbnail

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The reconstruction grid and :meth:`OneClassModule.figures`."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        if not (due and isinstance(data, OneClassDataModule) and isinstance(module, OneClassModule) and module.draws()):
            return
        images = data.images(data.splits.val[:200]).to(module.device)
        drawn = dict(module.figures(images))
        reconstructions = module.reconstruct(images[:8])
        if reconstructions is not None and images.ndim == 4:
            drawn["reconstructions"] = figures.reconstruction_grid(images[:8], reconstructions)
        self._show(trainer, drawn, trainer.current_epoch)

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything about the finished run."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not (isinstance(data, OneClassDataModule) and isinstance(module, OneClassModule) and module.scored):
            return
        scored, name = module.scored, module.hparams["score"]
        self._show(trainer, result_figures(data, scored, name, float(module.threshold)), trainer.current_epoch)
        if (writer := _writer(trainer)) is None:
            return
        scores = scored.scores[name]
        for target in np.unique(scored.target):
            kind = "anomalous" if scored.label[scored.target == target][0] else "normal"
            writer.add_histogram(f"scores/{kind} {data.data.classes[target]}", scores[scored.target == target])
        if 0 < scored.label.sum() < len(scored.label):
            ranks = scores.argsort().argsort() / max(1, len(scores) - 1)
            writer.add_pr_curve("test/anomalies found", scored.label, ranks)
        self._project(writer, data, module, scored)
        self._hparams(trainer, data, module)

    def _show(self, trainer: Trainer, drawn: Mapping[str, Figure], epoch: int) -> None:
        writer, log_dir = _writer(trainer), trainer.log_dir
        for name, figure in drawn.items() if trainer.is_global_zero else ():
            pixels = _render(figure)
            if log_dir is not None:
                folder = Path(log_dir, "figures")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{name}.png")
            if writer is not None:
                writer.add_image(name, pixels, global_step=epoch, dataformats="HWC")

    def _project(self, writer: SummaryWriter, data: OneClassDataModule, module: OneClassModule, scored: Scored) -> None:
        chosen = np.linspace(0, len(scored.index) - 1, min(self.projected, len(scored.index))).astype(int)
        parts = np.array_split(scored.index[chosen], -(-len(chosen) // 100))
        with torch.no_grad():
            latents = [module.embed(data.inputs(part).to(module.device)) for part in parts]
        latent = torch.cat([part for part in latents if part is not None] or [torch.empty(0)])
        if not len(latent):
            return
        score = scored.scores[module.hparams["score"]][chosen]
        metadata = [
            [data.data.classes[t], "anomalous" if label else "normal", f"{s:.6g}"]
            for t, label, s in zip(scored.target[chosen], scored.label[chosen], score, strict=True)
        ]
        size = (min(data.shape[1], self.thumbnail), min(data.shape[2], self.thumbnail))
        thumbnails = torch.cat([resize(data.images(part), size) for part in parts])
        thumbnails = thumbnails - thumbnails.amin()
        thumbnails = thumbnails / thumbnails.amax().clamp_min(1e-12)
        thumbnails = thumbnails.expand(-1, 3, -1, -1) if thumbnails.shape[1] == 1 else thumbnails
        header = ["class", "label", "score"]
        writer.add_embedding(latent.cpu(), metadata, thumbnails, module.current_epoch, "latent", header)

    def _hparams(self, trainer: Trainer, data: OneClassDataModule, module: OneClassModule) -> None:
        assert isinstance(trainer.logger, TensorBoardLogger)
        run = {
            "dataset": data.dataset,
            "normal": "+".join(map(str, data.normal)),
            "seed": os.environ.get("PL_GLOBAL_SEED", "0"),
        }
        plain = {key: value for key, value in module.hparams.items() if isinstance(value, int | float | str) and key[0] != "_"}
        metrics = module.test_metrics()[module.hparams["score"]]
        trainer.logger.log_hyperparams(run | plain, {f"hp/{key}": metrics[key] for key in ("auroc", "aupr_anomaly", "eer")})


class Predictions(Callback):
    """Writes ``predictions.csv`` into the log directory: data-set index, every score, and whether the threshold is reached."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects."""
        self._batches.append(outputs)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes."""
        assert isinstance(module, OneClassModule)
        columns = module.gathered({name: torch.cat([part[name] for part in self._batches]) for name in self._batches[0]})
        path = Path(trainer.log_dir or ".", "predictions.csv")
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}).to_csv(path, index=False)
            print(f"written: {path}")


def result_figures(data: OneClassDataModule, scored: Scored, name: str, threshold: float) -> dict[str, Figure]:
    """The pictures of one score on a tested split, by name.

    Args:
        data: Where the images are.
        scored: The scored split.
        name: Of the score.
        threshold: At or above which a sample is flagged; NaN where there is none.

    Raises:
        InputError: The split has no sample.
    """
    if not len(scored.index):
        raise InputError("there is nothing to draw: the scored split is empty")
    scores, label = scored.scores[name], scored.label
    classes = data.data.classes
    flag = threshold if np.isfinite(threshold) else None
    drawn = {"score_histogram": figures.score_histogram(scores, label, flag, classes, scored.target)}
    normal, anomalous = np.flatnonzero(label == 0), np.flatnonzero(label == 1)
    if len(normal) and len(anomalous):
        highest = normal[np.argsort(-scores[normal])][:8]
        lowest = anomalous[np.argsort(scores[anomalous])][:8]
        drawn |= {
            "roc": figures.roc_curve_figure(scores, label),
            "precision_recall": figures.precision_recall_figure(scores, label),
            "extremes": figures.extremes_figure(
                data.images(scored.index[highest]), scores[highest], data.images(scored.index[lowest]), scores[lowest]
            ),
        }
    flagged = np.flatnonzero(scores >= threshold)
    if len(flagged):
        shown = flagged[np.argsort(-scores[flagged])][:16]
        names = [name.split(" - ")[0] for name in classes]  # torchvision says "3 - three"
        titles = [f"{names[scored.target[i]]}: {scores[i]:.3g}" for i in shown]
        caption = f"{len(flagged)} of {len(scores)} at or above {threshold:.4g}, {int(label[flagged].sum())} anomalous"
        drawn["flagged"] = figures.image_grid(data.images(scored.index[shown]), titles, caption)
    return drawn


def _render(figure: Figure) -> NDArray[np.uint8]:
    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _writer(trainer: Trainer) -> SummaryWriter | None:
    return trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None
