"""The ``oneclass`` command, and the parser that turns a preset into a module, a data module and a trainer."""

import argparse
import ctypes
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from common.data import OneClassDataModule
from common.deploy.export import Format, export
from common.deploy.folder import predict_folder
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.module import OneClassModule
from common.training.callbacks import Figures, FiniteLoss, FirstBelow, Oracle, Predictions, Throughput
from common.training.interruption import Interruptible
from common.training.speed import Speed

LOGGER = {
    "class_path": "pytorch_lightning.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": "fit", "default_hp_metric": False},
}

DESCRIPTION = "Two more commands, each with a --help of its own: oneclass predict-folder, oneclass export."

Rule = Literal["last", "validation", "rho"]


class Parser(argparse.ArgumentParser):
    """Its errors are told as all others are."""

    def error(self, message: str) -> NoReturn:
        """A mistake on the command line."""
        raise InputError(f"{message}; see {self.prog} --help")


class OneClassCLI(LightningCLI):
    """Lightning's stock command line in subclass mode: any :class:`OneClassModule` by class path, one data module.

    ``--rule`` says which epoch is tested: the ``last`` one, the best on normal-only ``validation`` by the module's
    ``monitor``, or the first where that is below the module's ``rho`` (the last, where none is). ``--oracle`` scores the
    test set after every epoch beside it. The module's ``shape`` comes from the data.
    """

    def __init__(self, args: Any = None, run: bool = True) -> None:
        super().__init__(
            OneClassModule,
            OneClassDataModule,
            args=args,
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "description": DESCRIPTION},
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
    throughput: Throughput
    oracle: Oracle | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The link from data to module, the layout of the arithmetic, and the rule."""
        parser.link_arguments("data.shape", "model.init_args.shape", compute_fn=list, apply_on="instantiate")
        parser.add_lightning_class_args(Speed, "speed")
        parser.add_argument("--rule", type=Rule, default="last", help="the epoch that is tested")
        parser.add_argument("--oracle", type=bool, default=False, help="score the test set after every epoch, to look at")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that every run has."""
        rule = self._get(self.config_init, "rule")
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        self.throughput = Throughput()
        self.oracle = Oracle() if self._get(self.config_init, "oracle") else None
        self.model.speed = self._get(self.config_init, "speed")
        self.model.groups = self.datamodule.groups
        self.datamodule.extractor = self.model.frozen()
        extra: list[Callback] = [
            self.throughput,
            FiniteLoss(),
            Figures(),
            Predictions(),
            *([self.oracle] if self.oracle else []),
            Interruptible(),
            *checkpointing(self.model, self.datamodule, rule),
        ]
        trainer = self._instantiate_trainer(config, extra)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self.model.every_epoch_counts = any(isinstance(c, Oracle) or getattr(c, "monitor", None) for c in callbacks)
        return trainer


def assemble(config: dict[str, Any]) -> OneClassCLI:
    """The module, data module and trainer of a configuration in the parser's format.

    Raises:
        InputError: A key or value that the parser does not accept.
    """
    try:
        return OneClassCLI(config, run=False)
    except Exception as error:
        if (message := _for_the_user(error)) is None:
            raise
        raise InputError(message) from error


def checkpointing(module: OneClassModule, data: OneClassDataModule, rule: Rule) -> list[Checkpoint]:
    """The files of :data:`CHOSEN`: ``last`` after every epoch; before it the rule's own, and ``rho`` wherever it is given.

    Two callbacks, because Lightning's ``save_last`` writes only when the best has changed.

    Raises:
        InputError: The rule needs held-out samples, or the module's ``rho``, and there are none.
    """
    rho, held_out = module.hparams.get("rho"), len(data.splits.val) > 0
    if rule != "last" and not held_out:
        raise InputError(f"rule '{rule}' needs held-out normal samples: give data.val_fraction above 0")
    if rule == "rho" and rho is None:
        raise InputError("rule 'rho' needs its bound: give model.init_args.rho, where the method has it")
    always: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks: list[Checkpoint] = []
    if rule == "validation":
        callbacks.append(ModelCheckpoint(filename="best", monitor=module.monitor, mode=module.mode, **always))
    if rho is not None and held_out:
        callbacks.append(FirstBelow(module.monitor, rho))
    return [*callbacks, ModelCheckpoint(filename="last", **always)]


CHOSEN: dict[Rule, str] = {"last": "last.ckpt", "validation": "best.ckpt", "rho": "rho.ckpt"}
"""The checkpoint of the epoch that a rule has chosen, if it has."""


def chosen_device(name: str) -> str:
    """For ``auto``, ``cuda`` where there is one, else ``cpu``: Apple's GPUs have no float64, which thresholds are kept in."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def settle() -> None:
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line and exit status 2 for what the user can mend, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        _exit(130, "interrupted: give the same command again to go on")
    except Exception as error:
        if (message := _for_the_user(error)) is None:
            raise
        _exit(2, f"error: {message}")


def main(argv: Sequence[str] | None = None) -> None:
    """``oneclass fit|validate|test|predict``, Lightning's commands over modules and data; ``predict-folder`` and ``export``.

    Example:
        >>> main(["fit", "--model", "autoencoder.Autoencoder", "--print_config=skip_null"])  # doctest: +SKIP
    """
    settle()
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.argv[1:] = arguments  # Lightning starts the other processes of a distributed run with the same command
    with one_line_errors():
        if arguments[:1] == ["predict-folder"]:
            _predict_folder(arguments[1:])
        elif arguments[:1] == ["export"]:
            _export(arguments[1:])
        else:
            _check_checkpoint(arguments)
            OneClassCLI()


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


def _for_the_user(error: BaseException) -> str | None:
    """One line from an :class:`InputError`, however wrapped, or from a parser or trainer that refuses; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):  # raised in a loader's worker it brings a traceback, and itself last
            return str(cause).splitlines()[-1].removeprefix(f"{type(cause).__module__}.{type(cause).__name__}: ")
        cause = cause.__cause__ or cause.__context__
    if not isinstance(error, ArgumentError | MisconfigurationException):
        return None
    message = " ".join(str(error).split())
    if rejected := re.search(r"given class_path '([^']+)': (.+?) Expected a ", message):
        return f"{rejected[1]}: {rejected[2].strip(' -')}"
    return message[:500]


def _exit(status: int, message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(status)
