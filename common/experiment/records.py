"""Reads and writes records of finished cells: one file in each cell's folder, one line each when published."""

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch.backends.cpu import get_cpu_capability

from common.errors import InputError
from common.files import write_whole
from common.names import dataset_label
from common.presets import REPOSITORY, split_preset

Record = dict[str, Any]

FILE = "metrics.json"


def read_record(path: Path) -> Record:
    """Reads a ``metrics.json``, in the present form if an earlier version wrote it; raises InputError if it is none."""
    if not path.is_file():
        raise InputError(f"there is no record {path}: give the folder of a finished cell")
    try:
        return _present(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record: {error!r}; delete it to run its cell again") from error


def write_record(path: Path, record: Record) -> None:
    """Writes a record completely or not at all; NaN becomes null."""
    write_whole(path, json.dumps(_plain(record), indent=1) + "\n")


def read_published(path: Path) -> list[Record]:
    """Reads the records of a ``.jsonl``, none if there is no such file; raises InputError for a line that is no record."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(_present(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"line {number} of {path} is not a record: {error!r}") from error
    return records


def publish(records: Iterable[Record], path: Path) -> int:
    """Adds records to a ``.jsonl``, one line a cell in order of their names; a cell's earlier line is replaced.

    Returns:
        How many lines are new or have changed.
    """
    lines = {cell_key(record): _line(record) for record in read_published(path)}
    before = dict(lines)
    lines |= {cell_key(record): _line(record) for record in records}
    write_whole(path, "".join(f"{lines[place]}\n" for place in sorted(lines)))
    return sum(before.get(place) != line for place, line in lines.items())


def cell_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the key that identifies a cell and orders published lines."""
    cell = record["cell"]
    return record["name"], cell["dataset"], cell["protocol"], cell["normal"].zfill(3), cell["seed"]


def row_key(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the key of a record's row: its name, the data set's label and the protocol."""
    cell = record["cell"]
    return record["name"], dataset_label(cell["dataset"]), cell["protocol"]


def auroc_text(record: Mapping[str, Any]) -> str:
    """Returns the AUROC of the record's own score, in words.

    Example:
        >>> auroc_text({"score": "loss", "metrics": {"loss": {"auroc": 0.5}}})
        'AUROC 0.5000'
        >>> auroc_text({"score": "loss", "metrics": {"loss": {"auroc": None}}})
        'no AUROC, as it tests one class only'
    """
    auroc = record["metrics"][record["score"]]["auroc"]
    if auroc is None or math.isnan(auroc):
        return "no AUROC, as it tests one class only"
    return f"AUROC {auroc:.4f}"


def base_of(name: str) -> str | None:
    """Returns the name of the row that a row with overrides varies.

    Example:
        >>> base_of("ocgan-tuned,mining_steps=0"), base_of("ocgan-tuned")
        ('ocgan-tuned', None)
    """
    preset, overrides = split_preset(name)
    return preset if overrides else None


def commit() -> str:
    """Returns the repository's commit, with ``-dirty`` if code or presets differ; empty outside of a repository."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "describe", "--always", "--abbrev=12"], capture_output=True, text=True, check=True)
        differs = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.yaml"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + "-dirty" * bool(differs)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a number may depend on, and the processor's instructions."""
    packages = ("oneclass", "torch", "torchvision", "pytorch-lightning", "numpy", "scikit-learn")
    own = {"python": platform.python_version(), "cpu": get_cpu_capability()}
    return own | {name: version(name) for name in packages}


def _present(record: Record) -> Record:
    cell = record["cell"]
    if "method" in cell:
        cell["preset"] = f"{cell.pop('method')}-{cell['preset']}"
        record = {"name": cell["preset"], "base": base_of(cell["preset"]), "rules": record.pop("also"), **record}
        record |= {"classes": cell["normal"].split("+"), "command": "", "class_path": "", "identity": {}}
        record.pop("config_sha256")
    record.setdefault("stale", "")
    for key in ("name", "metrics", "rules", "identity"):
        record[key]
    return record


def _line(record: Record) -> str:
    kept = {key: value for key, value in record.items() if key != "stale"}
    return json.dumps(_plain(kept, digits=6), separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any, digits: int = 0) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, digits) for item in value]
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{digits}g}") if digits else float(value)
    return value
