"""Runs an experiment's command after its flags have been read."""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike
from rich.console import Console

from common.data import DATASETS, ImageData, content_digest, image_data, load, load_arrays, save_arrays
from common.data.datamodule import default_root
from common.errors import DataMissingError, InputError
from common.experiment.cell import Cell, Settings
from common.experiment.declaration import Experiment, Grid, full_name
from common.experiment.documents import write_tables
from common.experiment.grid import cells_at_a_time, run_grid, threads_per_cell
from common.experiment.overview import write_overview
from common.experiment.plan import bases, narrowed, prepared, refuse_unknown_classes
from common.experiment.published import RESULTS, apart, published, tabulate
from common.experiment.records import Record, publish, read_published
from common.experiment.run import finished
from common.experiment.table import long
from common.experiment.terminal import show
from common.training.process import chosen_device
from common.training.tensorboard import write_summary_runs


def perform(experiment: Experiment, arguments: argparse.Namespace) -> None:
    """Runs an experiment's cells, then prints and writes its tables."""
    console = Console(highlight=False, markup=False)  # names of files and classes may have brackets
    settings = _settings(arguments)
    if not (arguments.dry_run or arguments.report_only):
        for folder in filter(None, (settings.runs, arguments.out)):
            check_writable(folder)
    grids = narrowed(experiment, arguments)
    datasets = itertools.chain(*(grid.datasets for grid in grids))
    missing = {} if arguments.datasets else missing_data(datasets, settings.root)
    seeds = arguments.seeds[:1] if arguments.smoke else arguments.seeds
    declared = itertools.chain(*(grid.presets for grid in (experiment.main, *experiment.also)))
    known = {full_name(preset, experiment.name) for preset in declared}
    wanted = prepared(grids, seeds, settings, missing, known)
    if arguments.dry_run:
        limit = cells_at_a_time(wanted, settings, arguments.jobs, arguments.cells_per_gpu)
        _list(wanted, replace(settings, threads=threads_per_cell(limit)), console)
        return
    refuse_unknown_classes(wanted, settings)
    _say_what_is_run(wanted, missing, settings, console)
    if not arguments.keep:
        refuse_stale(wanted, settings, "--force runs them again, --keep shows them, marked")
    failures: dict[Cell, str] = {}
    if not arguments.report_only:
        failures = run_grid(wanted, settings, arguments.jobs, console, arguments.backend, arguments.cells_per_gpu)
    records = records_of(wanted, settings)
    if failures and not records:
        raise InputError(f"all {len(failures)} cells failed; each has an error.txt in its folder")
    if not records:
        raise InputError("no cell is done: there is nothing to report")
    _report(experiment, grids, records, arguments, console)
    if failures:
        console.print(f"{len(failures)} cells failed; each has an error.txt in its folder", style="red")
        raise SystemExit(1)


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
        InputError: Arrays that do not fit together, a file of this name with something else, an unknown preset, stale
            records, or a cell that failed.

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
    may_replace = given.force or given.keep
    if path.exists() and not may_replace and not _holds(path, image_data(X_train, y_train, X_test, y_test)):
        raise InputError(
            f"{path} holds other data: give another name; force=True replaces it, keep=True too and shows its records"
        )
    save_arrays(path, X_train, y_train, X_test, y_test)
    grid = Grid(tuple(presets), (str(path),), (protocol,), None if normal is None else tuple(map(str, normal)))
    cells = prepared([grid], seeds, given)
    refuse_unknown_classes(cells, given)
    if not given.keep:
        refuse_stale(cells, given, "force=True runs them again, keep=True shows them, marked")
    if failures := run_grid(cells, given, jobs, Console(highlight=False, markup=False)):
        raise InputError(f"{len(failures)} cells failed: {next(iter(failures.values()))}")
    return tabulate(Experiment("", "", grid), records_of(cells, given))


def _holds(path: Path, data: ImageData) -> bool:
    """Whether a file has these arrays."""
    try:
        return content_digest(load_arrays(path)) == content_digest(data)
    except InputError:
        return False


def records_of(cells: Sequence[Cell], settings: Settings) -> list[Record]:
    """Returns the records of finished cells; those of preset files say which row they are a variant of."""
    found = bases(dict.fromkeys(cell.preset for cell in cells))
    records = []
    for cell in cells:
        record = finished(cell, replace(settings, force=False))
        if record is not None:
            records.append(record | {"base": record["base"] or found.get(cell.name)})
    return records


def _report(
    experiment: Experiment, grids: Sequence[Grid], records: Sequence[Record], arguments: argparse.Namespace, console: Console
) -> None:
    """Prints and writes the tables, and with ``--publish`` adds the records to the committed ones."""
    table = tabulate(replace(experiment, main=grids[0], also=tuple(grids[1:])), records)
    show(table, console, experiment.labels)
    for path in write_tables(table, experiment, arguments.out or arguments.runs):
        console.print(f"written: {path}", soft_wrap=True)
    write_summary_runs(long([record for record in records if not record["stale"]]), arguments.runs)
    if arguments.publish:
        n = publish_records(experiment, records)
        console.print(f"published: {n} new lines in {RESULTS / experiment.name}.jsonl", soft_wrap=True)
    console.print(f"look at the runs: tensorboard --logdir {arguments.runs}", soft_wrap=True)


def publish_records(experiment: Experiment, records: Sequence[Record]) -> int:
    """Adds records to an experiment's committed ones and makes its page and picture again; returns the number of new lines.

    Raises InputError if uncommitted code made one of them, or if its row was published with other settings or data.
    """
    dirty = [record for record in records if record["git"].endswith("-dirty") or not record["git"]]
    if dirty:
        raise InputError(f"uncommitted code made {len(dirty)} of {len(records)} records: commit, then run them with --force")
    path = RESULTS / f"{experiment.name}.jsonl"
    for record, beside in zip(records, apart(records, read_published(path)), strict=True):
        if beside["name"] != record["name"]:
            raise InputError(f"{record['name']} is published with other settings: call this row {beside['name']} in --presets")
        if beside["stale"] != record["stale"]:
            raise InputError(f"{record['name']} cannot be published: {beside['stale']}")
    n = publish(records, path)
    table = published(experiment)
    write_tables(table, experiment, RESULTS, ("md",))
    write_overview(table, experiment, RESULTS)
    return n


def refuse_stale(cells: Sequence[Cell], settings: Settings, advice: str = "--force runs them again") -> None:
    """Raises InputError if configuration, data or code of a record have changed since.

    It says which records, why, and what to do: ``advice`` names the caller's own flags.
    """
    reasons: dict[str, list[Cell]] = {}
    for cell in cells:
        record = finished(cell, settings)
        if record is not None and record["stale"]:
            reasons.setdefault(record["stale"], []).append(cell)
    if reasons:
        said = [
            f"{len(group)} of {', '.join(dict.fromkeys(cell.name for cell in group))}: {why}" for why, group in reasons.items()
        ]
        raise InputError(
            f"stale records in {settings.runs} ({'; '.join(said)}): {advice}; "
            "other data of the same name need another runs folder"
        )


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        root=arguments.root,
        runs=arguments.runs,
        device=chosen_device(arguments.device),
        max_epochs=arguments.max_epochs,
        image_size=arguments.image_size,
        force=arguments.force,
        keep=arguments.keep,
        oracle=arguments.oracle,
    )


def _list(cells: Sequence[Cell], settings: Settings, console: Console) -> None:
    """Prints each cell's command, good to paste, and its state as a comment."""
    for cell in cells:
        record = finished(cell, settings)
        state = "done"
        if record is None:
            state = "to do"
        elif record["stale"]:
            state = f"stale: {record['stale']}"
        console.print(f"{cell.command(settings)}  # {state}", soft_wrap=True)


def _say_what_is_run(cells: Sequence[Cell], missing: Mapping[str, str], settings: Settings, console: Console) -> None:
    for reason in missing.values():
        console.print(f"not run: {reason}", soft_wrap=True)
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        if dataset not in DATASETS or dataset == "folder":
            load(dataset, settings.root or default_root())  # here, where it says what is left out, and not in every worker
            console.print(
                f"no preset is made for '{dataset}': the general ones are used, for a table those for tables",
                soft_wrap=True,
            )


def missing_data(datasets: Iterable[str], root: Path | None, error: type[InputError] = DataMissingError) -> dict[str, str]:
    """The data sets whose loading raises the error, each with its message; by default those that are fetched by hand."""
    missing = {}
    for dataset in dict.fromkeys(datasets):
        try:
            load(dataset, root or default_root())
        except error as reason:
            missing[dataset] = str(reason)
    return missing


def check_writable(folder: Path) -> None:
    """Creates a folder; raises InputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write in the folder {folder}: {error.strerror}") from error
