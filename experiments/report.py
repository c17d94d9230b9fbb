"""Every table in every form, from the committed results and from the records of a runs folder."""

import contextlib
import importlib
import itertools
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

import experiments
from common.cli import Parser, one_line_errors
from common.errors import InputError
from common.experiment import Cell, Experiment, Grid
from common.experiment.cell import Record, Settings, config_sha256, read_record
from common.experiment.command import split_name
from common.experiment.gallery import galleries, scores_of
from common.experiment.latex import latex
from common.experiment.page import Chapter, Other, page
from common.experiment.presentation import merged, read, save, show
from common.experiment.report import COLUMNS, KEY, only_reported, reported, tabulate
from common.files import write_whole
from common.presets import REPOSITORY

RESULTS = REPOSITORY / "experiments" / "results"
MORE = "# and what config.yaml says besides"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints every experiment's tables, and writes each as CSV, Markdown and LaTeX and all as ``index.html``."""
    parser = Parser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--runs", type=Path, help="whose records are added, with their figures (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where everything goes (default: report)")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        if arguments.runs and not arguments.runs.is_dir():
            raise InputError(f"there is no runs folder {arguments.runs}")
        runs, console = arguments.runs or Path("runs"), Console()
        known = declared()
        records = [
            (record, homes(record, known))
            for path in sorted(runs.glob("*/*/*/normal=*/seed=*/metrics.json"))
            if (record := read_record(path))
        ]
        chapters = []
        for experiment in known:
            table, idle = table_of(experiment, [record for record, of_record in records if experiment in of_record], runs)
            drawn = galleries((record for record, of_record in records if of_record[:1] == [experiment]), runs)
            chapters.append(Chapter(experiment.name, experiment.title, table, idle, list(drawn)))
        for experiment, chapter in zip(known, chapters, strict=True):
            if len(chapter.table):
                console.rule(experiment.title)
                show(chapter.table, console, experiment.labels)
                save(chapter.table, arguments.out, experiment.name, experiment.title)
                write_whole(arguments.out / f"{experiment.name}.tex", latex(chapter.table, experiment.title))
        write_whole(arguments.out / "index.html", page(chapters, others(known)))
        console.print(f"{len(records)} records of {runs}, {sum(not of_record for _, of_record in records)} of no experiment")
        console.print(f"written: {arguments.out / 'index.html'}", highlight=False, soft_wrap=True)


def declared() -> list[Experiment]:
    """All experiments of this package.

    Example:
        >>> [experiment.name for experiment in declared()][:2]
        ['alocc', 'alocc_ablation']
    """
    modules = [importlib.import_module(f"experiments.{module.name}") for module in pkgutil.iter_modules(experiments.__path__)]
    return [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]


def homes(record: Record, known: Sequence[Experiment]) -> list[Experiment]:
    """The experiments that declare a record's cell, its own method's first; that alone for what nobody declares."""
    cell = Cell(**record["cell"])
    found = [experiment for experiment in known if _declares(experiment, cell)]
    found = found or [experiment for experiment in known if experiment.name == cell.method]
    return sorted(found, key=lambda experiment: experiment.name != cell.method)


def table_of(experiment: Experiment, records: Sequence[Record], runs: Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """An experiment's table, and the method, data set and protocol of what it has no row for.

    Of a method's rows (those of a preset, data set, protocol, score, metric and rule) the committed ones stand, unless the
    records are of at least as many cells.

    Args:
        experiment: Declared in this package.
        records: Of cells that are its own.
        runs: Where they lie.
    """
    path = RESULTS / f"{experiment.name}.csv"
    table = read(path) if path.is_file() else pd.DataFrame(columns=[*COLUMNS, "command"])
    numbers = reported(experiment.name)
    if records:
        table = _merged(table, _as_full(_measured(experiment, records, numbers, runs), table))
    beside, idle = [], []
    for grid in _grids(experiment):
        names = ["-".join(split_name(preset, experiment.name)) for preset in grid.presets]
        places = list(itertools.product(names, grid.datasets, grid.protocols))
        rows = only_reported(table, places, numbers, experiment.compare, grid.metrics)
        single = grid.normal or ()
        beside.append(rows[rows["normal"].isin(single)] if len(single) == 1 else rows)  # beside one class no mean stands
        idle += places
    new = pd.concat(beside).drop_duplicates([*KEY, "normal", "reference"]).assign(command="python -m experiments.report")
    listed = pd.MultiIndex.from_frame(table[KEY])
    table = _merged(table, new[~pd.MultiIndex.from_frame(new[KEY]).isin(listed)])
    present = set(zip(table["method"] + "-" + table["preset"], table["dataset"], table["protocol"], strict=True))
    return table, [place for place in dict.fromkeys(idle) if place not in present]


def others(known: Sequence[Experiment]) -> Iterator[Other]:
    """The committed tables that are of another kind, with what their pages say of them."""
    names = {experiment.name for experiment in known}
    for path in sorted(RESULTS.glob("*.csv")):
        if path.stem not in names:
            text = about.read_text() if (about := path.with_suffix(".md")).is_file() else ""
            title, command = re.search(r"# (.*)", text), re.search(r"Written by `(.*?)`", text)
            yield Other(path.stem, title[1] if title else path.stem, command[1] if command else "", pd.read_csv(path))


def _grids(experiment: Experiment) -> tuple[Grid, ...]:
    return experiment.main, *experiment.also


def _declares(experiment: Experiment, cell: Cell) -> bool:
    return any(_in_grid(cell, experiment, grid) for grid in _grids(experiment))


def _in_grid(cell: Cell, experiment: Experiment, grid: Grid) -> bool:
    presets = {split_name(preset, experiment.name) for preset in grid.presets}
    place = cell.dataset in grid.datasets and cell.protocol in grid.protocols
    return place and (cell.method, cell.preset) in presets and (grid.normal is None or cell.normal in grid.normal)


def _measured(experiment: Experiment, records: Sequence[Record], numbers: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """The records' table, each row with the command that makes it, in which all presets stand that differ in nothing else."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        cell = record["cell"]
        groups.setdefault((cell["method"], cell["preset"], cell["dataset"], cell["protocol"]), []).append(record)
    tables = []
    presets: dict[str, list[str]] = {}
    for (method, preset, *_), group in groups.items():
        flags = _flags(group)
        presets.setdefault(flags, []).append(f"{method}-{preset}")
        for grid in _grids(experiment):
            if of_grid := [record for record in group if _in_grid(Cell(**record["cell"]), experiment, grid)]:
                tables.append(_tabulated(experiment, grid, of_grid, numbers, runs).assign(command=flags))
        if not any(_declares(experiment, Cell(**record["cell"])) for record in group):
            tables.append(_tabulated(experiment, experiment.main, group, numbers, runs).assign(command=flags))
    python = f"python -m experiments.{experiment.name} --presets"
    commands = {flags: f"{python} {shlex.join(names)} {flags}" for flags, names in presets.items()}
    table = pd.concat(tables).drop_duplicates([*KEY, "normal"], ignore_index=True)
    return table.assign(command=table["command"].map(commands))


def _tabulated(
    experiment: Experiment, grid: Grid, records: Sequence[Record], numbers: pd.DataFrame, runs: Path
) -> pd.DataFrame:
    return tabulate(records, numbers, experiment.compare, grid.metrics, _wanted(records, grid, runs))


def _wanted(records: Sequence[Record], grid: Grid, runs: Path) -> list[Cell]:
    """Cells without which there is no class mean: a stand-in for any class that is tested and was never the normal one."""
    cell = Cell(**records[0]["cell"])
    if grid.normal:
        return [Cell(cell.method, cell.preset, cell.dataset, cell.protocol, normal, 0) for normal in grid.normal]
    classes = scores_of(records[0], runs)["target"].nunique()
    normal = {record["cell"]["normal"] for record in records}
    return [Cell(cell.method, cell.preset, cell.dataset, cell.protocol, "another", 0)] if len(normal) < classes else []


def _flags(records: Sequence[Record]) -> str:
    """What comes after the presets in the command that makes records of one data set and protocol."""
    cells = [Cell(**record["cell"]) for record in records]
    flags = {
        "datasets": [cells[0].dataset],
        "protocols": [cells[0].protocol],
        "normal": dict.fromkeys(cell.normal for cell in cells),
        "seeds": sorted({str(cell.seed) for cell in cells}, key=int),
    }
    parts = [part for flag, values in flags.items() for part in (f"--{flag}", *values)]
    oracle = ["--oracle"] if any("oracle" in record["also"] for record in records) else []
    more = {_other_flags(record) for record in records}
    return f"{shlex.join([*parts, *oracle])} {more.pop() if len(more) == 1 else MORE}".strip()


def _other_flags(record: Record) -> str:
    """What a record's hash says of the flags that change numbers."""
    cell, epochs = Cell(**record["cell"]), record.get("epochs")
    if cell.dataset != "folder":  # whose files are part of the hash
        for flags, settings in (("", Settings()), (f"--max-epochs {epochs}", Settings(max_epochs=epochs))):
            with contextlib.suppress(InputError):
                if config_sha256(cell, settings) == record["config_sha256"]:
                    return flags
    return MORE


def _as_full(table: pd.DataFrame, committed: pd.DataFrame) -> pd.DataFrame:
    """A table less the methods of which more cells are committed."""
    sizes, before = (rows[~rows["normal"].str.startswith("mean")].groupby(KEY)["n_seeds"].sum() for rows in (table, committed))
    full = sizes.index[sizes >= before.reindex(sizes.index).fillna(0)]
    return table[pd.MultiIndex.from_frame(table[KEY]).isin(full)]


def _merged(earlier: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    return merged(earlier, table) if len(earlier) and len(table) else table if len(table) else earlier


if __name__ == "__main__":
    main()
