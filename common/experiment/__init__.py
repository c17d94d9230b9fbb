"""Cells of a table, the grid that runs them, and the tables that their records make.

``Cell``, ``Settings`` and ``compare`` need PyTorch, which takes seconds to import, and are imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from common.experiment.command import run_experiment
from common.experiment.declaration import Experiment, Grid

if TYPE_CHECKING:
    from common.experiment.cell import Cell, Settings
    from common.experiment.perform import compare

__all__ = ["Cell", "Experiment", "Grid", "Settings", "compare", "run_experiment"]

LATER = {"Cell": "cell", "Settings": "cell", "compare": "perform"}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"common.experiment.{LATER[name]}"), name)
