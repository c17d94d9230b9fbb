"""Decides which epochs are kept, which one is tested, and in which folder a run's files go."""

import math
import os
import time
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from common.errors import InputError
from common.files import whole
from common.module import OneClassModule

Rule = Literal["last", "validation", "rho"]
"""The epoch that is tested: the last, the best on held-out normals, or the first whose ``monitor`` is below ``rho``."""

CHOSEN: dict[Rule, str] = {"last": "last.ckpt", "validation": "best.ckpt", "rho": "rho.ckpt"}
"""The checkpoint of each rule's epoch; ``rho.ckpt`` is missing where no epoch was below the bound."""


SAVE_EVERY_S = 20.0
"""Seconds of training that a kill may cost."""


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints, figures and predictions, the same for every logger and in every process.

    It is ``trainer.default_root_dir`` where that was given. Otherwise it is the first logger's own folder, as in Lightning.

    Example:
        >>> run_folder(Trainer(default_root_dir="runs/mine", logger=False, enable_checkpointing=False)).as_posix()
        'runs/mine'
    """
    root, logger = Path(trainer.default_root_dir), trainer.logger
    # Lightning takes the current folder where none is given.
    if logger is None or root.absolute() != Path.cwd():
        return root
    folder = logger.log_dir or Path(logger.save_dir or root, str(logger.name), str(logger.version))
    # A logger counts its versions in each process by itself.
    return Path(trainer.strategy.broadcast(str(folder)))


def checkpointing(module: OneClassModule, held_out: bool, rule: Rule) -> list[Checkpoint]:
    """The callbacks that write the files of :data:`CHOSEN`.

    ``last`` is kept after every epoch, ``best`` under its own rule only, and ``rho`` wherever the module has the bound. Raises
    InputError if the rule needs held-out samples, or the module's ``rho``, and there are none.
    """
    rho = module.hparams.get("rho")
    if rule != "last" and not held_out:
        raise InputError(
            f"rule '{rule}' needs held-out normal samples: give a larger data.val_fraction or more samples, and validate"
        )
    if rule == "rho" and rho is None:
        raise InputError("rule 'rho' needs its bound: give model.init_args.rho, where the method has it")
    callbacks: list[Checkpoint] = []
    if rule == "validation":
        callbacks.append(EpochCheckpoint("best", module.monitor, module.mode))
    if rho is not None and held_out:
        callbacks.append(FirstBelow(module.monitor, rho))
    # Not Lightning's save_last, which writes only when the best has changed. It comes after the others, whose state it keeps.
    return [*callbacks, EpochCheckpoint("last")]


class EpochCheckpoint(ModelCheckpoint):
    """Saves each epoch, or the best one so far, as ``checkpoints/<filename>.ckpt`` in the run's folder.

    When that is written is the matter of :class:`WholeCheckpoints`.

    The best one has the lowest (``min``) or highest (``max``) value of a logged key, ``monitor``.
    """

    def __init__(self, filename: str, monitor: str | None = None, mode: Literal["min", "max"] = "min") -> None:
        always: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        super().__init__(filename=filename, monitor=monitor, mode=mode, **always)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the run's folder, whatever the logger says, and has every checkpoint of the trainer written whole."""
        self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes Lightning validate the last epoch, as the threshold must belong to the last weights."""
        if trainer.current_epoch + 1 == trainer.max_epochs and trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best epoch so far if its checkpoint lies in this run's folder, by whatever path it was written.

        Lightning compares paths as text. It would forget the epoch of a folder that was moved. It would delete the epoch of a
        folder that is spelt differently, as it takes one file for two.
        """
        path, score = self.format_checkpoint_name({}), state_dict["best_model_score"]
        if score is not None and Path(path).is_file():
            best = {"best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: score}}
            super().load_state_dict({**state_dict, **best, "dirpath": self.dirpath})


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints completely or not at all, and those of :class:`EpochCheckpoint` at most every :data:`SAVE_EVERY_S`.

    Lightning writes a checkpoint to ``$TMPDIR`` first and copies it, so a kill or a full disk leaves half a file.

    For small nets a file after every epoch costs as much as the training. So ``last.ckpt`` is written after the first epoch,
    then after those that end :data:`SAVE_EVERY_S` later, and when the training ends, by Ctrl-C or an error too. Until then it
    waits in memory, and ``best.ckpt`` with it: it is written first, so that ``last.ckpt`` never knows of a best epoch that is
    not there.
    """

    def __init__(self) -> None:
        self._waiting: dict[Path, dict[str, Any]] = {}
        self._due = 0.0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a local checkpoint, or keeps it until it is due; Lightning writes to other places."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        if file.name in {CHOSEN["last"], CHOSEN["validation"]} and time.monotonic() < self._due:
            self._waiting[file] = _snapshot(checkpoint)
            return
        self._waiting.pop(file, None)
        if file.name == CHOSEN["last"]:
            self.teardown()
            self._due = time.monotonic() + SAVE_EVERY_S
        _write(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint that may still wait; of a local file only what is used, as optimisers' states are large."""
        self.teardown()
        local = "://" not in str(path)
        # elsewhere a file that is mapped cannot be replaced, as the next checkpoint replaces it
        read = partial(torch.load, mmap=os.name == "posix") if local else super().load_checkpoint
        checkpoint: dict[str, Any] = read(path, map_location=map_location, weights_only=weights_only)
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint that may still wait."""
        self._waiting.pop(Path(path), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Writes what still waits; Lightning calls this at the end of every training, also after an error."""
        while self._waiting:
            file = next(iter(self._waiting))
            _write(self._waiting.pop(file), file)


def _snapshot(value: Any) -> Any:
    """A copy that training does not change; for many small tensors several times as fast as :func:`copy.deepcopy`."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        kept = copy(value)  # which keeps what PyTorch notes at a state dict
        kept.update({key: _snapshot(entry) for key, entry in value.items()})
        return kept
    if type(value) in {list, tuple}:
        return type(value)(map(_snapshot, value))
    return deepcopy(value)


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    with whole(file) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(checkpoint, stream)
        except RuntimeError as error:  # so PyTorch says that the disk is full
            raise error.__context__ or error from None


class FirstBelow(Checkpoint):
    """Writes ``rho.ckpt`` after the first epoch whose ``monitor`` is below ``rho``: ALOCC's stopping rule, on held-out normals.

    Training goes on, so that later epochs can be compared. ``val/rho`` is logged beside the monitored curve, and
    ``val/below_rho`` (0 or 1) shows the chosen epoch, which travels with the checkpoint.
    """

    def __init__(self, monitor: str, rho: float) -> None:
        self.monitor, self.rho, self.found = monitor, rho, False

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compares the criterion with the bound after the epoch's validation, and writes."""
        criterion = trainer.callback_metrics.get(self.monitor)
        below = criterion is not None and bool(criterion < self.rho)
        if below and not self.found:
            self.found = True
            trainer.save_checkpoint(run_folder(trainer) / "checkpoints" / "rho.ckpt")
        module.log_dict({"val/rho": self.rho, "val/below_rho": float(below)})

    def state_dict(self) -> dict[str, Any]:
        """Whether the epoch has been."""
        return {"found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run keeps to the epoch that was chosen."""
        self.found = state_dict["found"]


class Oracle(Callback):
    """Scores the test set after every epoch, to show what a choice by test labels *would* give; nothing is chosen by it.

    Logs ``oracle/auroc_<score>``.

    Attributes:
        curve: For every score, the AUROC after each epoch.
        monitored: The module's ``monitor`` after each epoch; NaN where nothing is held out.
        best: For every score, the metrics of the epoch where that AUROC is highest, with that ``epoch``, from 1.
    """

    def __init__(self) -> None:
        self.curve: dict[str, list[float]] = {}
        self.monitored: list[float] = []
        self.best: dict[str, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Scores and logs."""
        assert isinstance(module, OneClassModule)
        self.monitored.append(float(trainer.callback_metrics.get(module.monitor, math.nan)))
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
        """The curves travel with the checkpoint."""
        return {"curve": self.curve, "monitored": self.monitored, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run goes on with the curves."""
        self.curve, self.monitored, self.best = state_dict["curve"], state_dict["monitored"], state_dict["best"]
