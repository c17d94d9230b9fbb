"""Finds a user's files that hide a package, as Python may search the current folder or ``PYTHONPATH`` first."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from itertools import takewhile

from common.errors import InputError


@contextmanager
def naming_hidden_packages() -> Iterator[None]:
    """Context for imports: if one fails and a user's files hide a package, InputError names these files."""
    try:
        yield
    except Exception as error:
        if not (files := hiding(sys.path)):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{reason}: rename {' and '.join(files)}, which Python finds instead of a package") from error


def hiding(folders: list[str]) -> list[str]:
    """The files in a user's own folders that hide modules of Python or of a package.

    The folders are Python's search path; those before the standard library are the user's.
    """
    files = []
    repository = os.path.dirname(os.path.dirname(__file__))
    own = takewhile(lambda folder: folder != os.path.dirname(os.__file__), folders)
    for position, folder in enumerate(own):
        entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in (entry.removesuffix(".py") for entry in entries):
            here = PathFinder.find_spec(name, [folder])
            behind = PathFinder.find_spec(name, [*folders[position + 1 :], repository])
            if here and here.origin and behind and behind.origin not in {None, here.origin}:
                files.append(here.origin)
    return files
