"""One cell of a table: a method, a preset, a data set, a protocol, a normal class and a seed, run to its record."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from pytorch_lightning import seed_everything
from threadpoolctl import threadpool_limits

from common.classical import detector, fit_and_score
from common.cli import CHOSEN, assemble, settle
from common.data import OneClassDataModule, parse_protocol
from common.data.datamodule import default_root
from common.data.datasets import fingerprint
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.files import write_whole
from common.presets import REPOSITORY, Config, read_preset
from common.scoring import Scored


@dataclass(frozen=True, order=True)
class Cell:
    """What is run; its record lies in ``runs/<method>-<preset>/<dataset>/<protocol>/normal=<k>/seed=<s>/``.

    Attributes:
        method: A package with ``configs/<preset>.yaml``, or ``classical``.
        preset: The YAML's name, and after it, as ``,key=value``, arguments of the module that are to differ;
            ``configs/<preset>.<dataset>.yaml`` is taken where there is one. For ``classical`` a key of
            :data:`common.classical.DETECTORS`, and after it ``,backbone=<net>`` and other arguments of
            :func:`common.backbones.split` where it is to see features, and ``,image_size=<n>``.
        dataset: A key of :data:`common.data.DATASETS`.
        protocol: As :func:`common.data.parse_protocol` reads it.
        normal: The normal class, by number or name; several joined by ``+``.
        seed: Of the training.

    Example:
        >>> Cell("autoencoder", "smoke", "digits", "standard", "3", 0).directory(Path("runs")).as_posix()
        'runs/autoencoder-smoke/digits/standard/normal=3/seed=0'
    """

    method: str
    preset: str
    dataset: str
    protocol: str
    normal: str
    seed: int

    def directory(self, runs: Path) -> Path:
        """Where the record lies."""
        name = f"{self.method}-{self.preset}"
        return runs / name / self.dataset / self.protocol / f"normal={self.normal}" / f"seed={self.seed}"

    def config(self, settings: "Settings") -> Config:
        """The preset with this cell's data filled in; the parser's format, less root, runs folder and device.

        Raises:
            InputError: Unknown method, preset or protocol, or an option that is not ``key=value``.

        Example:
            >>> Cell("classical", "iforest_ruff", "mnist", "standard", "3", 0).config(Settings())["data"]["normalization"]
            'gcn'
        """
        preset, *options = self.preset.split(",")
        classical = self.method == "classical"
        config: Config = {"data": detector(preset).data} if classical else read_preset(self.method, preset, self.dataset)
        given: Config = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals:
                raise InputError(f"'{option}' is no option of the preset '{preset}': give key=value, an argument of its module")
            given[key] = yaml.safe_load(value)
        data = {**config.get("data", {}), "dataset": self.dataset, "normal": self.normal.split("+")}
        if "model" in config:
            config["model"]["init_args"] |= given
        elif given:
            data |= {"image_size": given.pop("image_size", None), "channels": 3}
            config["backbone"] = {"name": given.pop("backbone", None), **given}
        data |= parse_protocol(self.protocol)
        if settings.image_size is not None:
            data["image_size"] = settings.image_size
        trainer = dict(config.get("trainer", {}))
        if settings.max_epochs is not None:
            trainer["max_epochs"] = settings.max_epochs
        return {**config, "data": data, "trainer": trainer, "seed_everything": self.seed}


def is_seeded(method: str, preset: str) -> bool:
    """Whether a seed makes a difference, as it does to all that is trained but not to every classical detector.

    Example:
        >>> is_seeded("classical", "lof"), is_seeded("classical", "iforest"), is_seeded("alocc", "paper")
        (False, True, True)
    """
    return method != "classical" or detector(preset.partition(",")[0]).seeded


@dataclass(frozen=True)
class Settings:
    """How cells are run; of all this only ``max_epochs`` and ``image_size`` change a result, and the device its last digits.

    Attributes:
        root: Where data sets lie.
        runs: Where records go.
        device: ``auto``, ``cpu`` or ``cuda``.
        max_epochs: Instead of the preset's.
        image_size: Instead of the preset's, or of the data's own.
        threads: Of PyTorch and of the linear algebra libraries, for each cell; all by default.
        gpu: With the device ``cuda``, which one; the first by default.
        progress: Lightning's progress bar.
        force: Run again what is done.
        oracle: Score the test set after every epoch, for the record's ``oracle`` entry; it changes no other number.
    """

    root: Path | None = None
    runs: Path = Path("runs")
    device: str = "auto"
    max_epochs: int | None = None
    image_size: int | None = None
    threads: int | None = None
    gpu: int | None = None
    progress: bool = False
    force: bool = False
    oracle: bool = False


Record = dict[str, Any]


def finished(cell: Cell, settings: Settings) -> Record | None:
    """The record of a cell that is done, or None.

    Raises:
        InputError: It was made with another configuration, or cannot be read.
    """
    path = cell.directory(settings.runs) / "metrics.json"
    if settings.force or not path.is_file():
        return None
    record = read_record(path)
    if record["config_sha256"] != config_sha256(cell, settings):
        raise InputError(f"{path.parent} was made with another configuration: give --force to redo it, or other --runs")
    if settings.oracle and cell.method != "classical" and "oracle" not in record["also"]:
        raise InputError(f"{path.parent} was made without --oracle: give --force to redo it, or other --runs")
    return record


def read_record(path: Path) -> Record:
    """A ``metrics.json``.

    Raises:
        InputError: It is not one.
    """
    try:
        record: Record = json.loads(path.read_text())
        record["cell"], record["metrics"], record["also"], record["config_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record: {error!r}; delete it to run its cell again") from error
    return record


def config_sha256(cell: Cell, settings: Settings) -> str:
    """A hash of all that determines a cell's numbers: the configuration and, for a folder, the files in it."""
    data = fingerprint(cell.dataset, settings.root or default_root())
    content = json.dumps([cell.config(settings), data], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def run(cell: Cell, settings: Settings) -> Record:
    """Trains and tests a cell, going on from its checkpoint if it has one, and writes its record last.

    Args:
        cell: What to run.
        settings: How.

    Raises:
        InputError: For what the user can mend.
        NonFiniteLossError: A loss became NaN.
    """
    if (record := finished(cell, settings)) is not None:
        return record
    started = time.perf_counter()
    settle()
    threads = settings.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    sha = config_sha256(cell, settings)
    directory = _prepare(cell.directory(settings.runs), sha + " oracle" * settings.oracle, settings.force)
    config = cell.config(settings)
    config["data"]["root"] = None if settings.root is None else str(settings.root)
    seed_everything(cell.seed, workers=True, verbose=False)
    with threadpool_limits(threads):
        if cell.method == "classical":
            scored, about = _run_classical(cell, config, directory)
        else:
            scored, about = _run_module(config, directory, settings)
    write_whole(directory / "scores.csv", pd.DataFrame(scored._asdict()["scores"]).assign(
        index=scored.index, target=scored.target, label=scored.label
    )[["index", "target", "label", *scored.scores]].to_csv(index=False))  # fmt: skip
    record = {
        "cell": asdict(cell),
        **about,
        "wall_s": round(time.perf_counter() - started, 3),
        "config_sha256": sha,
        "git": _git(),
        "versions": _versions(),
    }
    write_whole(directory / "metrics.json", json.dumps(_plain(record), indent=1))
    (directory / "error.txt").unlink(missing_ok=True)
    return record


def _run_module(config: Config, directory: Path, settings: Settings) -> tuple[Scored, Record]:
    logger = {"save_dir": str(directory), "name": "", "version": "", "default_hp_metric": False}
    config["trainer"] |= {
        "accelerator": {"cuda": "gpu"}.get(settings.device, settings.device),
        "devices": 1 if settings.gpu is None else [settings.gpu],
        "default_root_dir": str(directory),
        "logger": {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": logger},
        "enable_progress_bar": settings.progress,
        "enable_model_summary": settings.progress,
    }
    cli = assemble(config | {"oracle": settings.oracle})
    write_whole(directory / "config.yaml", cli.parser.dump(cli.config, skip_none=False))
    checkpoints = directory / "checkpoints"
    last = checkpoints / "last.ckpt"
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    chosen = checkpoints / CHOSEN[cli.config.rule]
    reached = chosen.is_file()
    chosen = chosen if reached else last
    also: dict[str, Any] = {}
    for rule, name in CHOSEN.items():
        if rule != cli.config.rule and (path := checkpoints / name).is_file():
            checkpoint = load_checkpoint(path)
            cli.model.load_state_dict(checkpoint["state_dict"])
            scored = cli.model.score(cli.datamodule.test_dataloader())
            also[rule] = {"metrics": cli.model.metrics_of(scored), "selected_epoch": _epoch(checkpoint)}
    if cli.oracle:
        also["oracle"] = {"metrics": cli.oracle.results(), "curve": cli.oracle.curve}
    cli.trainer.test(cli.model, cli.datamodule, ckpt_path=str(chosen), weights_only=True, verbose=False)
    assert cli.model.scored is not None
    return cli.model.scored, {
        "rule": cli.config.rule,
        "score": cli.model.hparams["score"],
        "metrics": cli.model.test_metrics(),
        "also": also,
        "selected_epoch": _epoch(load_checkpoint(chosen)),
        "reached": reached,
        "epochs": cli.trainer.max_epochs,
        "train_images_per_s": round(cli.throughput.images_per_s, 1),
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "threshold": float(cli.model.threshold),
        "device": str(cli.model.device),
    }


def _epoch(checkpoint: Mapping[str, Any]) -> int:
    epoch: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return epoch


def _run_classical(cell: Cell, config: Config, directory: Path) -> tuple[Scored, Record]:
    write_whole(directory / "config.yaml", yaml.safe_dump(config))
    data = OneClassDataModule(**config["data"])
    return fit_and_score(cell.preset.partition(",")[0], data, cell.seed, config.get("backbone"))


def _prepare(directory: Path, sha: str, force: bool) -> Path:
    """The cell's folder, with a note of the configuration whose checkpoint may be gone on from."""
    if force and directory.is_dir():
        shutil.rmtree(directory)
    note = directory / ".config_sha256"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if note.is_file() and note.read_text() != sha:
            raise InputError(f"{directory} was begun with another configuration: give --force to begin again")
        write_whole(note, sha)
    except OSError as error:
        raise InputError(f"cannot write in {directory}: {error.strerror}") from error
    return directory


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _git() -> str:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    packages = ("oneclass", "torch", "torchvision", "pytorch-lightning", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
