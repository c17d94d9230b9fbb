"""The command line that all experiments share."""

import argparse
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from common.cli import Parser, chosen_device, one_line_errors
from common.data import load
from common.data.datamodule import default_root
from common.errors import DataMissingError, InputError
from common.experiment.cell import Cell, Settings, finished, is_seeded
from common.experiment.engines import Backend
from common.experiment.grid import Failure, run_grid
from common.experiment.published import Place, tabulate
from common.experiment.records import FILE, read_record
from common.experiment.render import write_tables
from common.experiment.terminal import show


@dataclass(frozen=True)
class Grid:
    """A product of choices; every class in turn is normal where ``normal`` is not given."""

    presets: tuple[str, ...]
    datasets: tuple[str, ...]
    protocols: tuple[str, ...] = ("standard",)
    normal: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("auroc",)


@dataclass(frozen=True)
class Experiment:
    """A paper's tables.

    Attributes:
        name: Of ``python -m experiments.<name>`` and of the files in ``reported`` and ``results``.
        title: Of the result page.
        main: The grid that the flags of the command line replace.
        also: Further grids; a flag narrows them to the values it names, and drops what has none of them.
        compare: Whose reported numbers stand beside ours, see :func:`common.experiment.table.summarise`.
        labels: Short names of methods, scores and metrics, for the terminal.
        seeds: By default.
    """

    name: str
    title: str
    main: Grid
    also: tuple[Grid, ...] = ()
    compare: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


def run_experiment(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment's cells, prints its tables and writes them into the runs folder or ``--out``.

    A preset is ``<preset>`` of the experiment's own method, or ``<method>-<preset>``; ``,key=value`` after it changes an
    argument of the module.

    Exit status: 0, 1 if a cell failed, 2 for a mistake of the user's, 130 after Ctrl-C.
    """
    with one_line_errors():
        arguments = _parser(experiment).parse_args(argv)
        if arguments.smoke:
            arguments.seeds = arguments.seeds[:1]
        settings = Settings(
            root=arguments.root,
            runs=arguments.runs,
            device=chosen_device(arguments.device),
            max_epochs=arguments.max_epochs,
            image_size=arguments.image_size,
            force=arguments.force,
            oracle=arguments.oracle,
        )
        _check_writable(settings.runs)
        console = Console()
        grids = [_narrowed(grid, arguments, grid is experiment.main) for grid in (experiment.main, *experiment.also)]
        grids = [_smoke(experiment)] if arguments.smoke else grids
        missing = {} if arguments.datasets else _missing_data(grids, settings)
        cells = [_cells(experiment.name, grid, missing, arguments) for grid in grids]
        wanted = list(dict.fromkeys(itertools.chain(*cells)))
        if arguments.dry_run:
            for cell in wanted:
                state = "done" if finished(cell, settings) else "to do"
                console.print(f"{state:5}  {cell.directory(settings.runs)}", highlight=False, soft_wrap=True)
            return
        for reason in missing.values():
            console.print(f"not run: {reason}", highlight=False, soft_wrap=True)
        failures: list[Failure] = []
        if not arguments.report_only:
            how = (arguments.jobs, console, arguments.backend, arguments.cells_per_gpu)
            failures = run_grid(wanted, settings, *how)
        done = [cell for cell in wanted if finished(cell, replace(settings, force=False, oracle=False))]
        records = [read_record(cell.directory(settings.runs) / FILE) for cell in done]
        table = tabulate(experiment.name, records, experiment.compare, places(experiment.name, grids))
        if not table["n_seeds"].any():
            raise InputError("no cell is done: there is nothing to report")
        show(table, console, experiment.labels)
        for path in write_tables(table, arguments.out or settings.runs, experiment.name, experiment.title):
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
        console.print(f"look at the runs: tensorboard --logdir {settings.runs}", highlight=False, soft_wrap=True)
        if failures:
            console.print(f"{len(failures)} cells failed; each has an error.txt in its folder", style="red")
            raise SystemExit(1)


def places(name: str, grids: Iterable[Grid]) -> list[Place]:
    """The rows that an experiment's table should hold."""
    found = []
    for grid in grids:
        for preset, dataset, protocol in itertools.product(grid.presets, grid.datasets, grid.protocols):
            row = "-".join(split_name(preset, name))
            found.append(Place(row, dataset, protocol, grid.metrics, grid.normal))
    return found


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = Parser(prog=f"python -m experiments.{experiment.name}", description=experiment.title)
    add = parser.add_argument
    add("--datasets", nargs="+", help="data sets by name; 'folder' takes --root as a tree of images")
    add("--protocols", nargs="+", help="NAME[,OPTION=VALUE]…, such as standard or standard,contamination=0.01")
    add(
        "--normal",
        nargs="+",
        help="normal classes, by number or name; A+B takes several as one; all in turn by default",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=list(experiment.seeds),
        help="of the training; the first where nothing is random",
    )
    add("--presets", nargs="+", help="PRESET of this method, or METHOD-PRESET; ,KEY=VALUE changes an argument")
    add("--root", type=Path, help="where data sets lie; $ONECLASS_DATA or the user's cache by default")
    add("--runs", type=Path, default=Path("runs"), help="where records go (default: runs)")
    add("--out", type=Path, help="where the tables go (default: the runs folder)")
    add("--jobs", type=_positive, help="cells at a time (default: one per core, --cells-per-gpu for each GPU, or a cluster)")
    add("--backend", choices=get_args(Backend), default="loky", help="processes of this machine, or a cluster's")
    add("--cells-per-gpu", type=_positive, default=1, help="with --device cuda, how many share a GPU (default: 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--max-epochs", type=int, help="instead of the presets'")
    add("--image-size", type=int, help="height and width, instead of the presets' or the data's own")
    add("--smoke", action="store_true", help="the smoke presets on the embedded digits, two classes, one seed")
    add("--oracle", action="store_true", help="score the test set after every epoch too; nothing is chosen by it")
    add("--dry-run", action="store_true", help="list the cells and whether they are done")
    add("--force", action="store_true", help="run again what is done")
    add("--report-only", action="store_true", help="the tables of what is done")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _narrowed(grid: Grid, arguments: argparse.Namespace, main: bool) -> Grid:
    """The grid with the flags' values: in place of the main grid's, and of the other grids' those that the flags name."""
    given = {name: values for name in ("presets", "datasets", "protocols", "normal") if (values := getattr(arguments, name))}
    chosen: dict[str, Any] = {}
    for name, values in given.items():
        declared = getattr(grid, name)
        chosen[name] = tuple(values if main or declared is None else (value for value in declared if value in values))
    return replace(grid, **chosen)


def _smoke(experiment: Experiment) -> Grid:
    """Each method's smoke preset, and the classical detectors of pixels, on two of the embedded digits."""
    names = [split_name(preset, experiment.name) for preset in experiment.main.presets if "," not in preset]
    presets = dict.fromkeys(f"{method}-{preset if method == 'classical' else 'smoke'}" for method, preset in names)
    return Grid(tuple(presets), ("digits",), normal=("0", "1"))


def _missing_data(grids: Sequence[Grid], settings: Settings) -> dict[str, str]:
    """The data sets that are not there and have to be fetched by hand, and how."""
    missing = {}
    for dataset in dict.fromkeys(dataset for grid in grids for dataset in grid.datasets):
        try:
            load(dataset, settings.root or default_root())
        except DataMissingError as error:
            missing[dataset] = str(error)
    return missing


def split_name(preset: str, experiment: str) -> tuple[str, str]:
    """Method and preset of ``<method>-<preset>``, or of the experiment's own ``<preset>``; options stay with the preset.

    Example:
        >>> split_name("classical-lof", "alocc"), split_name("stable,sigma=1e-1", "alocc")
        (('classical', 'lof'), ('alocc', 'stable,sigma=1e-1'))
    """
    name, comma, options = preset.partition(",")
    method, _, name = name.rpartition("-")
    return method or experiment, name + comma + options


def _cells(experiment: str, grid: Grid, missing: Collection[str], arguments: argparse.Namespace) -> list[Cell]:
    cells = []
    for dataset in grid.datasets:
        if dataset in missing:
            continue
        normal = _classes(dataset, arguments.root) if grid.normal is None else grid.normal
        for preset, protocol in itertools.product(grid.presets, grid.protocols):
            method, name = split_name(preset, experiment)
            seeds = arguments.seeds if is_seeded(method, name) else arguments.seeds[:1]
            cells += [Cell(method, name, dataset, protocol, k, seed) for k, seed in itertools.product(normal, seeds)]
    return cells


def _classes(dataset: str, root: Path | None) -> list[str]:
    classes = load(dataset, root or default_root()).classes
    return list(classes) if dataset == "folder" else [str(k) for k in range(len(classes))]


def _check_writable(runs: Path) -> None:
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write in the runs folder {runs}: {error.strerror}") from error
