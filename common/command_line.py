"""Reports a user's mistake in one line, with exit status 2, for every command."""

import argparse
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentError

from common.errors import InputError, Terminated

NO_GPU = "PyTorch finds no GPU here: leave out --device cuda, or the trainer's accelerator"
LIBRARIES = {
    "Expected more than 1 value per channel": "batch norm cannot train on a single sample: give data.batch_size at least 2",
    "numpy accepts from 0 to": f"a seed lies in [0, {2**32})",
    "No supported gpu backend found": NO_GPU,
    "`CUDAAccelerator` can not run on your system": NO_GPU,
    "Could not determine home directory": "there is no home folder: set XDG_CACHE_HOME, and ONECLASS_DATA where data lie",
    "codec can't": "text that is not ASCII, and the locale has another encoding: set PYTHONUTF8=1",
    "Early stopping conditioned on metric": "EarlyStopping's monitor is no logged key: give one that TensorBoard shows",
    "no HPC checkpoint was found": "--ckpt_path hpc finds no checkpoint of an earlier job of the cluster: leave it out",
    "Unexpected config:": "--config names a file without keys and values",
}
"""What libraries say to a mistake of the user's, and what we say instead."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like all other commands, and takes ``-1e-3`` as a value."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes a number with an exponent for a flag

    def error(self, message: str) -> NoReturn:
        """A mistake on the command line."""
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """Reads a whole number of at least 1, as the ``type`` of a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """Reads a whole number of at least 0 and below 2**32, as the ``type`` of a flag."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {2**32 - 1}")
    return int(text)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Context that ends the program with one line: exit status 2 for a user's mistake, 130 for Ctrl-C, 143 for SIGTERM.

    In the block a character that the terminal's encoding does not have is printed as ``?``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none, and takes everything
            stream.reconfigure(errors="replace")
    try:
        yield
    except KeyboardInterrupt as interrupt:
        status = 143 if isinstance(interrupt, Terminated) else 130
        _exit(status, f"interrupted: {str(interrupt) or 'give the same command again to go on'}")
    except Exception as error:
        if (message := for_the_user(error)) is None:
            raise
        _exit(2, f"error: {message}")


def for_the_user(error: BaseException) -> str | None:
    """Returns one line for a mistake of the user's, found by us or by a library; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            message = str(cause)
            if message.startswith("Caught ") and "\nOriginal Traceback" in message:  # PyTorch's, from a loader's worker
                message = message.rpartition(f"{type(cause).__module__}.{type(cause).__name__}: ")[2]
            return " ".join(message.splitlines())
        cause = cause.__cause__ or cause.__context__
    message = " ".join(str(error).split())
    for theirs, ours in LIBRARIES.items():
        if theirs in message:
            return ours
    if isinstance(error, ArgumentError):
        return _of_parser(message)
    by_lightning = any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__)  # not imported for its name
    return message[:500] if by_lightning else None


def _of_parser(message: str) -> str:
    '''What jsonargparse refuses: the key, what it must be and what it is.

    Example:
        >>> _of_parser("""Parser key "lr": Expected a <class 'float'>. Got value: fast""")
        'lr must be float, not fast'
    '''
    none = " - Expected a <class 'NoneType'>"
    if nested := re.search(f"given class_path '([^']+)': (.+){none} Given value type", message):
        return f"{nested[1]}: {_of_parser(nested[2].partition(' - Not a valid subclass')[0])}"
    refused = re.search(r'Parser key "([^"]+)": (?:- Expected a path .+? invalid - )?(.+)', message)
    if refused is None:
        return message[:500]
    key, reason = refused.groups()
    reason = reason.replace(none, "").replace("dot import path string", "class path")
    types = re.findall(r"Expected an? (.+?)(?=\.? Got value|: | - | Given value|$)", reason)
    value = re.search(r"G(?:ot|iven) value: (.+?)(?= - Expected|$)", reason)
    if value is None or not types:
        return f"{key}: {reason.rpartition('Errors: - ')[2].partition(' Given value')[0][:500]}"
    names = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+)\]", r"\1\2", name) for name in types]
    return f"{key} must be {' or '.join(dict.fromkeys(names))}, not {value[1]}"


def _exit(status: int, message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(status)
