"""The papers' tables, one module each; and the first module that every command of ours imports."""

import sys
from importlib.util import find_spec
from pathlib import Path

_found = find_spec("common")
_ours = Path(__file__).resolve().parents[1] / "common" / "__init__.py"
if _found is None or not _found.origin or Path(_found.origin).resolve() != _ours:
    place = _found and (_found.origin or next(iter(_found.submodule_search_locations or ())))
    print(f"error: rename {place}, which Python finds instead of our package common", file=sys.stderr)
    sys.exit(2)

try:
    from common.errors import InputError
    from common.hidden import naming_hidden_packages

    with naming_hidden_packages():
        from common.cli import main as oneclass  # noqa: F401 - the command
except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
