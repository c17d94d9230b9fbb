"""Checks what a run starts from and where it writes: fitting checkpoints, no file of the user's replaced."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback

from common.data import OneClassDataModule
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.importing import import_class
from common.training.checkpoints import CHOSEN, EpochCheckpoint

IDENTITY = ".identity"
"""The file that marks the folder of an experiment's cell; it says what the checkpoints in it belong to."""

NAMED = {"last": CHOSEN["last"], "best": CHOSEN["validation"]}
"""The checkpoints of a run's own folder that ``--ckpt_path`` takes by name."""


class SaveConfig(SaveConfigCallback):
    """Writes the configuration into the logger's folder under a free name, so that no file of the user's is replaced."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes ``config.yaml``, or where that is there ``config-1.yaml``, ``config-2.yaml`` and so on."""
        folder, number = Path(trainer.log_dir or trainer.default_root_dir), count(1)
        while not self.already_saved and (folder / self.config_filename).exists():
            self.config_filename = f"config-{next(number)}.yaml"
        super().setup(trainer, pl_module, stage)


def flags_of_model(words: Sequence[str]) -> set[str]:
    """The module's arguments that a command line sets.

    Example:
        >>> sorted(flags_of_model(["--model.init_args.lr=0.1", "--model.latent", "4", "--data.normal", "3"]))
        ['latent', 'lr']
    """
    found = (re.match(r"--model\.(?:init_args\.|dict_kwargs\.)?(\w+)", word) for word in words)
    return {match[1] for match in found if match}


def refuse_contradictions(path: Path, config: Mapping[str, Any], given: Collection[str] | None = None) -> dict[str, Any]:
    """Raises InputError if a command contradicts the checkpoint it starts from, or if there is no such checkpoint.

    The checkpoint may have another method, another scaling of the data, or another value of a given argument.

    Args:
        path: Of the checkpoint.
        config: Of the command: ``model`` and ``data``.
        given: The module's arguments that the user has set; all of them by default.

    Returns:
        The checkpoint's values of the other arguments, where they differ from the configuration's.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> contents = {"method": "Autoencoder", "state_dict": {}, "hyper_parameters": {"latent": 8, "lr": 0.1}}
        >>> model = {"class_path": "autoencoder.Autoencoder", "init_args": {"latent": 8, "lr": 0.2}}
        >>> data = {"normalization": "unit", "class_mean": False}
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "last.ckpt")
        ...     torch.save(contents, path)
        ...     refuse_contradictions(path, {"model": model, "data": data}, given={"latent"})
        {'lr': 0.1}
    """
    contents = load_checkpoint(path)
    model, data = config["model"], config["data"]
    method = import_class(model["class_path"]).__qualname__
    if contents["method"] != method:
        raise InputError(f"{path}: the checkpoint is one of {contents['method']}, not of {method}")
    scaling = contents.get(OneClassDataModule.__qualname__, {}).get("preprocessing", {})
    for name in ("normalization", "class_mean"):
        if scaling.get(name, data[name]) != data[name]:
            raise InputError(f"{path} was trained with {name} {scaling[name]}: give --data.{name} {scaling[name]}")
    overruled, trained = {}, contents["hyper_parameters"]
    for name, value in {**model.get("init_args", {}), **model.get("dict_kwargs", {})}.items():
        if name == "shape" or name not in trained or _plain(trained[name]) == _plain(value):
            continue
        if given is None or name in given:
            raise InputError(f"{path} has {name} {trained[name]}, not {value}: give the same, or train without a checkpoint")
        overruled[name] = trained[name]
    return overruled


def keep_apart(callbacks: Sequence[Checkpoint]) -> None:
    """Raises InputError if a further ModelCheckpoint has the name of one of the run's own files.

    Its ``save_last`` goes into ``own-last.ckpt``, as it may be in the middle of an epoch.

    Args:
        callbacks: The trainer's checkpoint callbacks, the run's own among them.

    Example:
        >>> mine = ModelCheckpoint(filename="mine", save_last=True)
        >>> keep_apart([EpochCheckpoint("last"), mine])
        >>> mine.CHECKPOINT_NAME_LAST
        'own-last'
    """
    ours = [callback for callback in callbacks if isinstance(callback, EpochCheckpoint)]
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback in ours:
            continue
        callback.CHECKPOINT_NAME_LAST = "own-last"
        if callback.dirpath is None and callback.filename in {one.filename for one in ours}:
            raise InputError(f"{callback.filename}.ckpt is a file of the run: give your ModelCheckpoint another filename")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
