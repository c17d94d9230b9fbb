"""Cells of a table, the grid that runs them, and the report that reads their records."""

from common.experiment.cell import Cell
from common.experiment.command import Experiment, Grid, run_experiment

__all__ = ["Cell", "Experiment", "Grid", "run_experiment"]
