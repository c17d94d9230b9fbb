"""The command line that all experiments share."""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from common.cli import chosen_device
from common.command_line import Parser, one_line_errors
from common.data import DATASETS, load
from common.data.datamodule import default_root
from common.errors import DataMissingError, InputError
from common.experiment.cell import Cell, Settings
from common.experiment.engines import Backend
from common.experiment.grid import Failure, cells_at_a_time, run_grid, threads_per_cell
from common.experiment.overview import write_overview
from common.experiment.plan import Experiment, Grid, bases, cells_of, narrowed, refuse_one_name
from common.experiment.published import RESULTS, published, tabulate
from common.experiment.records import Record, publish
from common.experiment.render import write_tables
from common.experiment.run import finished
from common.experiment.table import long
from common.experiment.terminal import show
from common.training.tensorboard import write_summary_runs


def run_experiment(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment's cells, prints its tables and writes them into the runs folder or ``--out``.

    Exit status: 0, 1 if a cell failed, 2 for a mistake of the user's, 130 after Ctrl-C.
    """
    with one_line_errors():
        arguments = _parser(experiment).parse_args(argv)
        console = Console()
        settings = _settings(arguments)
        if not (arguments.dry_run or arguments.report_only):
            check_writable(settings.runs)
        grids = narrowed(experiment, arguments)
        missing = {} if arguments.datasets else _missing_data(grids, settings)
        seeds = arguments.seeds[:1] if arguments.smoke else arguments.seeds
        wanted: list[Cell] = []
        for grid in grids:
            wanted += cells_of(grid, seeds, settings, missing)
        wanted = list(dict.fromkeys(wanted))
        refuse_one_name(dict.fromkeys(cell.preset for cell in wanted))
        if arguments.dry_run:
            limit = cells_at_a_time(wanted, settings, arguments.jobs, arguments.cells_per_gpu)
            _list(wanted, replace(settings, threads=threads_per_cell(limit)), console)
            return
        _say_what_is_run(wanted, missing, settings, console)
        if not arguments.keep:
            refuse_stale(wanted, settings)
        failures: list[Failure] = []
        if not arguments.report_only:
            failures = run_grid(wanted, settings, arguments.jobs, console, arguments.backend, arguments.cells_per_gpu)
        records = records_of(wanted, settings)
        if not records:
            raise InputError("no cell is done: there is nothing to report")
        _report(experiment, grids, records, arguments, console)
        if failures:
            console.print(f"{len(failures)} cells failed; each has an error.txt in its folder", style="red")
            raise SystemExit(1)


def records_of(cells: Sequence[Cell], settings: Settings) -> list[Record]:
    """The records of the cells that are done; a preset file's name the row that it is a variant of."""
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

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    table = tabulate(replace(experiment, main=grids[0], also=tuple(grids[1:])), records)
    show(table, console, experiment.labels)
    for path in write_tables(table, experiment, arguments.out or arguments.runs):
        say(f"written: {path}")
    write_summary_runs(long([record for record in records if not record["stale"]]), arguments.runs)
    if arguments.publish:
        say(f"published: {publish_records(experiment, records)} new lines in {RESULTS / experiment.name}.jsonl")
    say(f"look at the runs: tensorboard --logdir {arguments.runs}")


def publish_records(experiment: Experiment, records: Sequence[Record]) -> int:
    """Adds records to an experiment's committed ones and makes its page and picture again; returns the number of new lines.

    Raises:
        InputError: Uncommitted code made one of them.
    """
    dirty = [record for record in records if record["git"].endswith("-dirty") or not record["git"]]
    if dirty:
        raise InputError(f"uncommitted code made {len(dirty)} of {len(records)} records: commit, then run them with --force")
    n = publish(records, RESULTS / f"{experiment.name}.jsonl")
    table = published(experiment)
    write_tables(table, experiment, RESULTS, ("md",))
    write_overview(table, experiment, RESULTS)
    return n


def refuse_stale(cells: Sequence[Cell], settings: Settings) -> None:
    """Stops where records are not what their cells would give now.

    Raises:
        InputError: There are such; it says which, and why.
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
            f"stale records in {settings.runs} ({'; '.join(said)}): --force runs them again, --keep shows them, marked"
        )


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = Parser(prog=f"python -m experiments.{experiment.name}", description=experiment.title)
    _add_what(parser.add_argument_group("what is run").add_argument, experiment)
    _add_how(parser.add_argument_group("how and where").add_argument)
    _add_done(parser.add_argument_group("what is done already").add_argument)
    return parser


def _add_what(add: Callable[..., Any], experiment: Experiment) -> None:
    add(
        "--presets",
        nargs="+",
        metavar="PRESET",
        help="PRESET of this method, METHOD-PRESET, or a YAML file; ,KEY=VALUE overrides",
    )
    add("--datasets", nargs="+", metavar="DATA", help="a data set's name, a .npz file, module:function; 'folder' takes --root")
    add(
        "--protocols",
        nargs="+",
        metavar="PROTOCOL",
        help="NAME or module:function, with ,OPTION=VALUE: standard,contamination=0.01",
    )
    add(
        "--normal",
        nargs="+",
        metavar="CLASS",
        help="normal classes, by number or name; A+B takes several as one (default: all in turn)",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=list(experiment.seeds),
        help="of the training; the first where nothing is random",
    )
    add("--max-epochs", type=_positive, help="instead of the presets'")
    add("--image-size", type=int, help="height and width, instead of the presets' or the data's own")
    add("--oracle", action="store_true", help="score the test set after every epoch too; nothing is chosen by it")
    add("--smoke", action="store_true", help="the smoke presets on the embedded digits, two classes, one seed")


def _add_how(add: Callable[..., Any]) -> None:
    add("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    add("--runs", type=Path, default=Path("runs"), help="where records go (default: runs)")
    add("--out", type=Path, help="where this command's tables go (default: the runs folder)")
    add("--jobs", type=_positive, help="cells at a time (default: one per core, --cells-per-gpu for each GPU, or a cluster)")
    add("--backend", choices=get_args(Backend), default="loky", help="processes of this machine, or a cluster's")
    add("--cells-per-gpu", type=_positive, default=1, help="with --device cuda, how many share a GPU (default: 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_done(add: Callable[..., Any]) -> None:
    add("--dry-run", action="store_true", help="print the command of each cell, and whether it is done")
    add("--force", action="store_true", help="run again what is done")
    add("--keep", action="store_true", help="show stale records, marked, rather than stop at them")
    add("--report-only", action="store_true", help="the tables of what is done")
    add("--publish", action="store_true", help="add finished cells to the committed records, and make their page again")


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return int(text)


def _list(cells: Sequence[Cell], settings: Settings, console: Console) -> None:
    """Prints each cell's command, good to paste, and its state as a comment."""
    for cell in cells:
        record = finished(cell, settings)
        state = "done"
        if record is None:
            state = "to do"
        elif record["stale"]:
            state = f"stale: {record['stale']}"
        console.print(f"{cell.command(settings)}  # {state}", highlight=False, soft_wrap=True, markup=False)


def _say_what_is_run(cells: Sequence[Cell], missing: Mapping[str, str], settings: Settings, console: Console) -> None:
    for reason in missing.values():
        console.print(f"not run: {reason}", highlight=False, soft_wrap=True)
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        if dataset not in DATASETS or dataset == "folder":
            load(dataset, settings.root or default_root())  # here, where it says what is left out, and not in every worker
            console.print(
                f"{dataset} has no presets of its own: the general ones are used, those for tables if it is one",
                highlight=False,
                soft_wrap=True,
            )


def _missing_data(grids: Sequence[Grid], settings: Settings) -> dict[str, str]:
    """The data sets that are not there and have to be fetched by hand, and how."""
    missing = {}
    for dataset in dict.fromkeys(itertools.chain(*(grid.datasets for grid in grids))):
        try:
            load(dataset, settings.root or default_root())
        except DataMissingError as error:
            missing[dataset] = str(error)
    return missing


def check_writable(runs: Path) -> None:
    """Makes the runs folder.

    Raises:
        InputError: It cannot be written.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write in the runs folder {runs}: {error.strerror}") from error
