"""Records of finished cells (a stand-in of this branch, with the functions that the tables use)."""

import json
from pathlib import Path
from typing import Any

from common.errors import InputError

Record = dict[str, Any]

FILE = "metrics.json"


def read_record(path: Path) -> Record:
    """A ``metrics.json``.

    Raises:
        InputError: It is not one.
    """
    try:
        return _present(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record: {error!r}; delete it to run its cell again") from error


def read_published(path: Path) -> list[Record]:
    """The records of a ``.jsonl``; none where there is no such file.

    Raises:
        InputError: A line that is no record.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(_present(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"line {number} of {path} is not a record: {error!r}") from error
    return records


def _present(record: Record) -> Record:
    cell = record["cell"]
    if "method" in cell:
        preset = f"{cell.pop('method')}-{cell['preset']}"
        cell["preset"] = preset
        name, _, overrides = preset.partition(",")
        record = {"name": preset, "base": name if overrides else None, "rules": record.pop("also"), **record}
        record |= {"classes": cell["normal"].split("+"), "command": "", "class_path": "", "identity": {}}
    record.setdefault("stale", "")
    for key in ("name", "metrics", "rules", "identity"):
        record[key]
    return record


def dataset_label(name: str) -> str:
    """How a data set is called in rows and folders; a stand-in of ``common.data.dataset_label``."""
    return Path(name).stem if name.endswith(".npz") else name.replace(":", ".")
