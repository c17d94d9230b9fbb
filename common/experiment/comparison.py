"""Methods side by side on arrays, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike
from rich.console import Console

from common.data.arrays import save_arrays
from common.errors import InputError
from common.experiment.cell import Settings
from common.experiment.declaration import Experiment, Grid
from common.experiment.grid import run_grid
from common.experiment.perform import check_writable, records_of, refuse_stale
from common.experiment.plan import cells_of, refuse_mistaken_presets, refuse_unknown_classes
from common.experiment.published import tabulate
from common.training.process import chosen_device


def compare(
    presets: Sequence[str],
    X_train: ArrayLike,
    y_train: ArrayLike,
    X_test: ArrayLike,
    y_test: ArrayLike,
    *,
    name: str = "arrays",
    protocol: str = "standard",
    normal: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    runs: Path | str = "runs",
    jobs: int | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Runs presets on arrays as an experiment runs them on a data set, and returns the table.

    The arrays are written to ``<runs>/<name>.npz``, so that every cell has a record, a command line and a folder for
    TensorBoard, and a second call with the same arrays trains nothing again.

    Args:
        presets: Names such as ``ocgan-small`` and ``classical-lof``, or YAML files; overrides follow after commas.
        X_train: Images ``(N, H, W)`` or ``(N, C, H, W)``, or a table ``(N, F)``; ``uint8`` or float.
        y_train: ``(N,)`` classes, numbers or names.
        X_test: ``(M, ...)``, as ``X_train``.
        y_test: ``(M,)`` classes.
        name: Of the data set.
        protocol: As :func:`common.data.parse_protocol` reads it.
        normal: The classes that are normal in turn; all by default.
        seeds: Of the training.
        runs: Where records go.
        jobs: Cells at a time; one per core by default.
        **settings: Further ones of :class:`common.experiment.Settings`, such as ``max_epochs``.

    Returns:
        Columns as :func:`common.experiment.table.summarise` gives them.

    Raises:
        InputError: Arrays that do not fit together, an unknown preset, stale records, or a cell that failed.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     table = compare(["classical-lof"], X[:900], y[:900], X[900:], y[900:], normal=["3"], runs=runs, jobs=1)
        ...     # doctest: +ELLIPSIS
        classical-lof arrays standard normal=3 seed=0: AUROC 0.9633  (... s)
        >>> bool(table["mean"][0] > 0.9)
        True
    """
    given = Settings(runs=Path(runs), **{"device": chosen_device("auto"), **settings})
    check_writable(given.runs)
    path = given.runs / f"{name}.npz"
    save_arrays(path, X_train, y_train, X_test, y_test)
    grid = Grid(tuple(presets), (str(path),), (protocol,), None if normal is None else tuple(map(str, normal)))
    cells = cells_of(grid, seeds, given)
    refuse_mistaken_presets(cells, given)
    refuse_unknown_classes(cells, given)
    if not given.force:
        refuse_stale(cells, given)
    if failures := run_grid(cells, given, jobs, Console()):
        raise InputError(f"{len(failures)} cells failed: {failures[0].message}")
    return tabulate(Experiment("", "", grid), records_of(cells, given))
