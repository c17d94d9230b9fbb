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

from common import testing
from common.command_line import Parser, for_the_user, one_line_errors
from common.data import OneClassDataModule
from common.deploy.export import Format, export
from common.deploy.folder import predict_folder
from common.errors import InputError
from common.names import joined
from common.presets import CLASS_KEYS, make_importable, preset_path
from common.training.lightning import OneClassCLI


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
