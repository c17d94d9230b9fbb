"""The ``oneclass`` command, and the parser that turns a preset into a module, a data module and a trainer."""

import ctypes
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from common import testing
from common.command_line import Parser, for_the_user, one_line_errors
from common.data import OneClassDataModule
from common.deploy.export import Format, export
from common.deploy.folder import predict_folder
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.module import OneClassModule
from common.names import PARSER_MODE, joined
from common.presets import CLASS_KEYS, make_importable, preset_path, split_preset
from common.training.checkpoints import Oracle, Rule, checkpointing
from common.training.predictions import Predictions
from common.training.speed import Speed
from common.training.tensorboard import Figures
from common.training.watcher import Watcher

LOGGER = {
    "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": "fit", "default_hp_metric": False},
}

DESCRIPTION = """More commands, each with a --help of its own: oneclass check CLASS puts a method to the contract tests,
oneclass predict-folder scores a folder of images, oneclass export writes a trained detector as a program of its own.
--config takes a YAML file or a preset's name, such as ocgan-tuned."""


class OneClassCLI(LightningCLI):
    """Lightning's stock command line in subclass mode: any :class:`OneClassModule` by class path, one data module.

    ``--rule`` says which epoch is tested: the ``last`` one, the best on normal-only ``validation`` by the module's
    ``monitor``, or the first where that is below the module's ``rho`` (the last, where none is). ``--oracle`` scores the
    test set after every epoch beside it. The module's ``shape`` comes from the data.

    Args:
        args: Command line, or a configuration.
        run: Whether to run the subcommand of the command line.
        metadata: What a record says of the cell, which TensorBoard shows; ``name`` and ``cell``.
    """

    def __init__(self, args: Any = None, run: bool = True, metadata: Mapping[str, Any] | None = None) -> None:
        self.metadata = metadata
        super().__init__(
            OneClassModule,
            OneClassDataModule,
            args=args,
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "description": DESCRIPTION, "parser_mode": PARSER_MODE},
            save_config_callback=SaveConfigCallback if run else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "max_epochs": 20,
                "use_distributed_sampler": False,  # the data module's own deals its order out
                "logger": LOGGER,
            },
            auto_configure_optimizers=False,
        )

    model: OneClassModule
    datamodule: OneClassDataModule
    watcher: Watcher
    oracle: Oracle | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The link from data to module, the layout of the arithmetic, and the rule."""
        parser.link_arguments("data.shape", "model.init_args.shape", compute_fn=list, apply_on="instantiate")
        parser.add_lightning_class_args(Speed, "speed")
        parser.add_argument("--rule", type=Rule, default="last", help="the epoch that is tested")
        parser.add_argument("--oracle", type=bool, default=False, help="score the test set after every epoch, to look at")

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer.

        Raises:
            InputError: A part refuses its values.
        """
        try:
            super().instantiate_classes()
        except (ValueError, RuntimeError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise InputError(for_the_user(error) or f"model or data cannot be made of these values: {reason}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Hands module and data what they need of one another, and adds the callbacks that every run has."""
        rule = self._get(self.config_init, "rule")
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        self.watcher = Watcher()
        self.oracle = Oracle() if self._get(self.config_init, "oracle") else None
        self.datamodule.extractor = self.model.frozen()
        self.model.groups = self.datamodule.groups
        self.model.speed = self._get(self.config_init, "speed")
        callbacks: list[Callback] = [self.watcher, self._figures(), Predictions()]
        if self.oracle is not None:
            callbacks.append(self.oracle)
        callbacks += checkpointing(self.model, len(self.datamodule.splits.val) > 0, rule)
        try:
            trainer = self._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(f"the trainer cannot be made: {error}") from error
        if trainer.precision in {"16-true", "bf16-true"}:
            raise InputError(f"precision {trainer.precision} rounds scores and thresholds to three digits: give bf16-mixed")
        watching = [callback for callback in trainer.callbacks if getattr(callback, "monitor", None)]  # type: ignore[attr-defined]
        self.model.every_epoch_counts = self.oracle is not None or bool(watching)
        return trainer

    def _figures(self) -> Figures:
        if self.metadata is None:
            return Figures()
        cell = self.metadata["cell"]
        _, options = split_preset(cell["preset"])
        overrides = dict(option.split("=", 1) for option in options)
        classes = "+".join(self.datamodule.class_names())
        shown = {"method": self.metadata["name"], **cell, "normal": classes}
        del shown["preset"]
        return Figures(cell={key: str(value) for key, value in shown.items()}, overrides=overrides)


def assemble(config: dict[str, Any], metadata: Mapping[str, Any] | None = None) -> OneClassCLI:
    """The module, data module and trainer of a configuration in the parser's format.

    Raises:
        InputError: A key or value that the parser does not accept.
    """
    with _as_input_errors():
        return OneClassCLI(config, run=False, metadata=metadata)


def data_module(options: dict[str, Any]) -> OneClassDataModule:
    """The data module of a configuration's ``data``.

    Raises:
        InputError: A key or value that the parser does not accept.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(OneClassDataModule, "data")
    with _as_input_errors():
        module: OneClassDataModule = parser.instantiate_classes(parser.parse_object({"data": options})).data
    return module


@contextmanager
def _as_input_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (message := for_the_user(error)) is None:
            raise
        raise InputError(message) from error


def chosen_device(name: str) -> str:
    """For ``auto``, ``cuda`` where there is one, else ``cpu``: Apple's GPUs have no float64, which thresholds are kept in."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def configure_process() -> None:
    """Settles a process for training: Lightning keeps its tips to itself, and the C library keeps its memory.

    glibc gives every large block back to the system and asks for it anew in the next step; to let it keep them is worth
    5 to 15 % of the speed of small nets on a CPU, and changes no number. Where there is no GPU, this is written down: as
    Lightning sets PyTorch, every optimiser step would else look for a driver, for some quarter of a millisecond.
    """
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if platform.libc_ver()[0] == "glibc":
        mmap_threshold, trim_threshold = -3, -1
        for parameter in (mmap_threshold, trim_threshold):
            ctypes.CDLL(None).mallopt(parameter, 2**30)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.utils.tensorboard")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> None:
    """``oneclass fit|validate|test|predict``, Lightning's commands over modules and data, and the commands of this package.

    ``fit`` with ``--directory`` makes one cell of a table: it goes on where it was stopped, tests the chosen epoch, and
    leaves the record that the experiments read.

    Example:
        >>> main(["fit", "--config", "autoencoder-smoke", "--directory", "runs/one"])  # doctest: +SKIP
    """
    configure_process()
    arguments = list(sys.argv[1:] if argv is None else argv)
    make_importable(Path.cwd())
    own: dict[str, Callable[[Sequence[str]], None]] = {
        "check": testing.main, "predict-folder": _predict_folder, "export": _export
    }  # fmt: skip
    with one_line_errors():
        command, rest = (arguments or [""])[0], arguments[1:]
        if command in own:
            own[command](rest)
        elif command == "fit" and any(word.partition("=")[0] == "--directory" for word in rest):
            _fit_cell(rest)
        else:
            sys.argv[1:] = _presets_as_files(arguments)  # Lightning starts the other processes of DDP with the same command
            _check_checkpoint(arguments)
            OneClassCLI()


def _fit_cell(argv: Sequence[str]) -> None:
    from common.experiment.run import run_command  # which needs this module

    record = run_command(argv)
    metrics = record["metrics"][record["score"]]
    print(f"{record['score']}: AUROC {metrics['auroc']:.4f}, by the epoch {record['selected_epoch']} (rule: {record['rule']})")


def _presets_as_files(arguments: Sequence[str]) -> list[str]:
    """The command line as Lightning takes it: with the file of each preset that ``--config`` names, and classes as one text.

    A preset file's folder becomes importable.
    """
    words = list(arguments)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        at = position if equals else position + 1
        text = value if equals else "".join(words[at : at + 1])
        if flag.removeprefix("--") in CLASS_KEYS and text.startswith("["):
            words[at] = f"{flag}={joined(text)}" if equals else joined(text)
        if flag != "--config":
            continue
        if Path(text).is_file():
            make_importable(Path(text).parent)
        elif re.fullmatch(r"\w+-[\w.]+", text) and not text.endswith((".yaml", ".yml")):
            path = str(preset_path(text))
            words[at] = f"--config={path}" if equals else path
    return words


def _predict_folder(argv: Sequence[str]) -> None:
    parser = Parser(prog="oneclass predict-folder", description="Score every image of a folder with a trained detector.")
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="as oneclass fit or an experiment leaves it")
    add("folder", type=Path, metavar="DIR", help="searched with all that is below it")
    add("--out", type=Path, default=Path("predictions.csv"), metavar="CSV", help="path, score, p_value, label (%(default)s)")
    add("--threshold", help="quantile=Q or alpha=A of the held-out normal scores, or a score (the checkpoint's)")
    add("--figures", type=Path, metavar="DIR", help="where a contact sheet and a histogram go")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = vars(parser.parse_args(argv))
    predict_folder(**arguments | {"device": chosen_device(arguments["device"])})


def _export(argv: Sequence[str]) -> None:
    parser = Parser(prog="oneclass export", description="Write a trained detector as a program of its own.")
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="as oneclass fit or an experiment leaves it")
    parser.add_argument("--format", choices=get_args(Format), default="onnx")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CKPT with the ending .onnx or .pt2 by default")
    print(f"written: {export(**vars(parser.parse_args(argv)))}")


def _check_checkpoint(arguments: Sequence[str]) -> None:
    """Lightning would look at the file only after the data is loaded, and with a traceback."""
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--ckpt_path":
            value = value or "".join(arguments[position + 1 : position + 2])
            if value not in {"best", "last", "hpc", "null"}:
                load_checkpoint(Path(value))
