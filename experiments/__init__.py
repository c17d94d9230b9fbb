"""The papers' tables, one module each; and the first module that every command of ours imports.

Python may search the current folder first, or those of ``PYTHONPATH``. A file there can hide a package that we need, even
``common`` itself, so a command that cannot begin says here which files do.
"""

import os
import sys
from importlib.machinery import PathFinder
from itertools import takewhile


def hiding(folders: list[str]) -> list[str]:
    """The files in a user's own folders that hide modules which Python would find later.

    Args:
        folders: Python's search path; those before the standard library are the user's.
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


try:
    from common.cli import main as oneclass  # noqa: F401 - the command
except Exception as error:
    files = hiding(sys.path)
    if not files:
        raise
    reason = " ".join(str(error).split())
    print(f"error: {reason}: rename {' and '.join(files)}, which Python finds instead of a package", file=sys.stderr)
    sys.exit(2)
