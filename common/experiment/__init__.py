"""Cells of a table, the grid that runs them, and the tables that their records make."""

from common.experiment.cell import Cell, Settings
from common.experiment.command import run_experiment
from common.experiment.compare import compare
from common.experiment.plan import Experiment, Grid

__all__ = ["Cell", "Experiment", "Grid", "Settings", "compare", "run_experiment"]
