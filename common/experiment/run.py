"""Runs one cell: trains, tests, and writes its record last; a stopped cell resumes from its checkpoint."""

import inspect
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pandas as pd
import torch
import yaml
from pytorch_lightning import seed_everything
from threadpoolctl import threadpool_limits

from common.classical import fit_and_score
from common.data import OneClassDataModule
from common.data.images import places
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.experiment.folder import begin, clear
from common.experiment.identity import difference, identity, refuse_changed_code, source_of
from common.experiment.records import FILE, Record, base_of, commit, read_record, versions, write_record
from common.files import write_whole
from common.presets import Config, merged
from common.scoring import Scored
from common.training.checkpoints import CHOSEN
from common.training.lightning import assemble, data_module
from common.training.process import configure_process
from common.training.watcher import interruptible


def finished(cell: Cell, settings: Settings) -> Record | None:
    """The record of a cell that is done, or None; its ``stale`` says why it is not what the cell would give now, if so.

    Raises InputError if it cannot be read.
    """
    path = cell.directory(settings.runs) / FILE
    if settings.force or not path.is_file():
        return None
    record = read_record(path)
    record["stale"] = difference(record["identity"], identity(cell.config(settings)))
    if not record["stale"] and settings.oracle and cell.detector is None and "oracle" not in record["rules"]:
        record["stale"] = "it was made without --oracle"
    return record


def run(cell: Cell, settings: Settings) -> Record:
    """Trains and tests a cell, unless it is done, and writes its record last.

    Raises InputError for what the user can mend, such as a stale record, and NonFiniteLossError if a loss became NaN.
    """
    record, directory = finished(cell, settings), cell.directory(settings.runs)
    if record is not None:
        if record["stale"]:
            raise InputError(f"{directory} is stale ({record['stale']}): give --force to run it again")
        return record
    config = cell.config(settings)
    metadata = {
        "name": cell.name,
        "cell": asdict(cell),
        "base": base_of(cell.name),
        "command": cell.command(Settings(threads=settings.threads, max_epochs=settings.max_epochs,
                                         image_size=settings.image_size, oracle=settings.oracle)),
    }  # fmt: skip
    if settings.force:
        clear(directory)
    if cell.detector is not None:
        return complete(config, directory, metadata, settings.threads, cell.detector)
    config["trainer"] |= {
        "accelerator": settings.device,
        "devices": 1 if settings.gpu is None else [settings.gpu],
        "enable_progress_bar": settings.progress,
        "enable_model_summary": settings.progress,
    }
    config["oracle"] = settings.oracle
    return complete(config, directory, metadata, settings.threads)


def run_command(arguments: Sequence[str]) -> Record:
    """``oneclass fit --directory DIR …``: one cell from its command line, to the numbers that a grid gives it.

    Args:
        arguments: What comes after ``fit``: ``--config`` with a preset's name or file, overrides as ``--key=value``,
            ``--directory`` and perhaps ``--threads``.

    Raises:
        InputError: A mistake in the arguments, or a directory with the record of something else.

    Example:
        >>> run_command(["--config", "autoencoder-smoke", "--data.normal=3", "--directory", "runs/one"])  # doctest: +SKIP
    """
    config = merged(arguments)
    directory, threads = Path(str(config.pop("directory"))), config.pop("threads", None)
    data, seed = config["data"], config.setdefault("seed_everything", 0)
    cell = {"dataset": data.setdefault("dataset", "digits"), "protocol": data.setdefault("protocol", "standard"),
            "normal": data.setdefault("normal", "0"), "seed": seed}  # fmt: skip
    config.setdefault("trainer", {})
    in_table = len(directory.parts) > 4 and directory.parts[-1] == f"seed={seed}"
    name = directory.parts[-5] if in_table else directory.name
    metadata = {
        "name": name,
        "cell": {"preset": name, **cell},
        "base": base_of(name),
        "command": shlex.join(["oneclass", "fit", *_without_root(arguments)]),
    }
    path = directory / FILE
    if path.is_file():
        record = read_record(path)
        if stale := difference(record["identity"], identity(config)):
            raise InputError(f"{directory} holds another record ({stale}): give another --directory, or delete it")
        return record
    return complete(config, directory, metadata, threads)


def _without_root(arguments: Sequence[str]) -> list[str]:
    """A command's words without the place of its data, which says nothing on another machine."""
    kept, words = [], iter(arguments)
    for word in words:
        if word == "--data.root":
            next(words, None)  # its value
        elif not word.startswith("--data.root="):
            kept.append(word)
    return kept


def complete(config: Config, directory: Path, metadata: Record, threads: int | None, detector: str | None = None) -> Record:
    """Runs a configuration in its folder to its record; raises InputError for what the user can mend.

    Args:
        config: As :meth:`common.experiment.Cell.config` gives it, with the trainer's device.
        directory: Where checkpoints, figures and the record go.
        metadata: The record's entries about the cell.
        threads: Of PyTorch and the linear algebra libraries; all by default.
        detector: A key of :data:`common.classical.DETECTORS`, where there is no module to train.
    """
    started = time.perf_counter()
    configure_process()
    threads = threads or os.cpu_count() or 1
    for name, number, least in (("threads", threads, 1), ("seed_everything", config["seed_everything"], 0)):
        if not isinstance(number, int) or number < least:
            raise InputError(f"{name} must be a number of at least {least}, not {number}")
    torch.set_num_threads(threads)
    own = identity(config)
    refuse_changed_code(config)
    begin(directory, own)
    seed_everything(config["seed_everything"], workers=True, verbose=False)
    with threadpool_limits(threads), interruptible():
        if detector is None:
            scores, results = _run_module(config, directory, metadata)
        else:
            scores, results = _run_classical(config, directory, detector)
    write_whole(directory / "scores.csv", scores.to_csv(index=False))
    record = {
        **metadata,
        **results,
        "wall_s": round(time.perf_counter() - started, 3),
        "class_path": source_of(config),
        "identity": own,
        "git": commit(),
        "versions": versions(),
    }
    write_record(directory / FILE, record)
    (directory / "error.txt").unlink(missing_ok=True)
    return record | {"stale": ""}


def _run_module(config: Config, directory: Path, metadata: Record) -> tuple[pd.DataFrame, Record]:
    trainer = {**config["trainer"], "default_root_dir": str(directory)}
    trainer["logger"] = _logger(trainer.get("logger", True), directory)
    cli = assemble({**config, "trainer": trainer}, metadata)
    _refuse_no_test(cli.datamodule)
    if cli.trainer.max_epochs == cli.trainer.max_steps == -1 and not {"max_time", "callbacks"} & trainer.keys():
        raise InputError("with trainer.max_epochs -1 the training never ends: give a number of epochs")
    # without its folder: who trains by this file trains into another one
    write_whole(directory / "config.yaml", cli.parser.dump(cli.parser.parse_object(config), skip_none=False))
    checkpoints = directory / "checkpoints"
    last = checkpoints / "last.ckpt"
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if not last.is_file():
        raise InputError(f"no epoch was trained in {directory}: look at the limits in trainer")
    device = cli.trainer.strategy.root_device
    cli.model.to(device)  # the trainer leaves it on the CPU
    by_rule = checkpoints / CHOSEN[cli.config.rule]
    chosen = by_rule if by_rule.is_file() else last
    rules: dict[str, Any] = {}
    for rule in ("last", "rho"):
        path = checkpoints / CHOSEN[rule]
        if rule != cli.config.rule and path.is_file():
            rules[rule] = _of_checkpoint(cli, path)
    if cli.oracle:
        rules["oracle"] = {"metrics": cli.oracle.results(), "curve": cli.oracle.curve, "monitored": cli.oracle.monitored}
    cli.trainer.test(cli.model, cli.datamodule, ckpt_path=str(chosen), weights_only=True, verbose=False)
    assert cli.model.scored is not None
    return _scores(cli.model.scored, cli.datamodule), {
        **_classes(cli.datamodule),
        "rule": cli.config.rule,
        "score": cli.model.hparams["score"],
        "metrics": cli.model.test_metrics(),
        "rules": rules,
        "selected_epoch": _epoch(load_checkpoint(chosen)),
        "reached": by_rule.is_file(),
        "epochs": cli.trainer.max_epochs,
        "train_images_per_s": round(cli.watcher.images_per_s, 1),
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "threshold": float(cli.model.threshold),
        "device": str(device),
    }


def _of_checkpoint(cli: Any, path: Path) -> Record:
    """Metrics of the test set by another epoch's weights."""
    checkpoint = load_checkpoint(path)
    cli.model.load_state_dict(checkpoint["state_dict"])
    scored = cli.model.score(cli.datamodule.test_dataloader())
    return {"metrics": cli.model.metrics_of(scored), "selected_epoch": _epoch(checkpoint)}


def _run_classical(config: Config, directory: Path, detector: str) -> tuple[pd.DataFrame, Record]:
    write_whole(directory / "config.yaml", yaml.safe_dump(config, allow_unicode=True))
    data = data_module(config["data"])
    _refuse_no_test(data)
    scored, results = fit_and_score(detector, data, config["seed_everything"], config.get("backbone"))
    return _scores(scored, data), _classes(data) | results


def _refuse_no_test(data: OneClassDataModule) -> None:
    if not len(data.splits.test):
        raise InputError(f"{data.dataset}: protocol '{data.protocol}' leaves no sample to test: give more, or another protocol")


def _classes(data: OneClassDataModule) -> Record:
    """The names of the normal classes, and how many classes there are."""
    return {"classes": data.class_names(), "n_classes": len(data.data.classes)}


def _logger(logger: Any, directory: Path) -> Any:
    """The configured loggers, those that write files in the cell's folder; TensorBoard's by default."""
    if logger is True or logger is None:
        logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": {"default_hp_metric": False}}
    if isinstance(logger, str):
        logger = {"class_path": logger}
    if isinstance(logger, list):
        return [_logger(one, directory) for one in logger]
    if not isinstance(logger, Mapping):
        return logger
    if "class_path" not in logger:
        raise InputError("trainer.logger names no class: give trainer.logger.class_path too")
    class_path = logger["class_path"]
    name = class_path if "." in class_path else f"pytorch_lightning.loggers.{class_path}"
    try:
        known = inspect.signature(resolve_name(name)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import the logger {class_path}: {error}") from error
    own = {"save_dir": str(directory), "name": "", "version": ""}
    defaults = {key: value for key, value in own.items() if key in known}
    return {"class_path": name, "init_args": defaults | dict(logger.get("init_args") or {})}


def _scores(scored: Scored, data: OneClassDataModule) -> pd.DataFrame:
    """A row for each tested sample, or for each group with its most anomalous sample, with its file if it has one."""
    columns = {"index": scored.index, "target": scored.target, "label": scored.label, **scored.scores}
    return pd.DataFrame(columns | places(data.data.images, scored.index))


def _epoch(checkpoint: Mapping[str, Any]) -> int:
    epoch: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return epoch
