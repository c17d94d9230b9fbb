"""Whether a record is of the present source (a stand-in of this branch)."""

from collections.abc import Mapping
from typing import Any


def is_current(record: Mapping[str, Any]) -> bool:
    """Whether the present source is the one that made a record."""
    return bool(record["identity"])
