"""Exceptions for mistakes that the user can fix, and the place of those in the user's code."""

import sysconfig
import traceback
from pathlib import Path


class InputError(ValueError):
    """A mistake that the user can fix, described in one line; commands end with exit status 2."""


class Terminated(KeyboardInterrupt):
    """The signal SIGTERM, by which clusters end a job: it ends a training as Ctrl-C does, with exit status 143."""


class DataMissingError(InputError):
    """A data set that is missing and cannot be downloaded automatically."""


class WeightsMissingError(InputError):
    """Pretrained weights of a net that are missing and cannot be downloaded."""


class UnreadableError(InputError):
    """Image files or a checkpoint that cannot be read."""


def where(error: BaseException) -> str:
    """The last line of a method's own code that an error went through, such as `` (my_idea.py, line 12)``; else empty."""
    libraries = (str(Path(__file__).parent), *{sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*libraries, "<")):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""
