"""Writes every table in every format, from committed records and those of a runs folder."""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

import experiments
from common.command_line import Parser, one_line_errors
from common.errors import InputError
from common.experiment import Experiment
from common.experiment.documents import write_tables
from common.experiment.identity import is_current
from common.experiment.overview import write_overview
from common.experiment.page import Chapter, galleries, page
from common.experiment.published import RESULTS, apart, published
from common.experiment.records import FILE, Record, read_published, read_record, row_key
from common.experiment.terminal import show
from common.files import write_whole

FALLBACK = "quickstart"
"""The experiment whose table shows records that no other experiment declares."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables of every experiment, and writes them as CSV, Markdown, LaTeX, pictures and ``index.html``."""
    parser = Parser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--runs", type=Path, help="runs folder whose records and figures are added (default: runs)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where all files are written (default: report)")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        if arguments.runs and not arguments.runs.is_dir():
            raise InputError(f"there is no runs folder {arguments.runs}")
        runs, console = arguments.runs or Path("runs"), Console(highlight=False, markup=False)
        known = declared()
        records = [record | {"homes": homes(record, known)} for record in records_of(runs)]
        chapters = [chapter(experiment, records) for experiment in known]
        for experiment, part in zip(known, chapters, strict=True):
            if len(part.table):
                console.rule(experiment.title)
                show(part.table, console, experiment.labels)
                console.print(part.note)
                write_tables(part.table, experiment, arguments.out, ("csv", "md", "tex"))
                write_overview(part.table, experiment, arguments.out)
        write_whole(arguments.out / "index.html", page(chapters))
        stale = [f"{record['folder']}: {record['stale']}" for record in records if record["stale"]]
        if stale:
            console.print(f"{len(stale)} records of {runs} are stale, as {stale[0]}", soft_wrap=True)
        console.print(f"{len(records)} records of {runs}\nwritten: {arguments.out / 'index.html'}", soft_wrap=True)


def declared() -> list[Experiment]:
    """All experiments of this package.

    Example:
        >>> [experiment.name for experiment in declared()][:2]
        ['alocc', 'alocc_ablation']
    """
    modules = [importlib.import_module(f"experiments.{module.name}") for module in pkgutil.iter_modules(experiments.__path__)]
    return [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]


def records_of(runs: Path) -> Iterator[Record]:
    """Yields the records of a runs folder with their ``folder``; records of an earlier source are marked ``stale``."""
    for path in sorted(runs.glob(f"*/*/*/normal=*/seed=*/{FILE}")):
        record = read_record(path) | {"folder": path.parent}
        yield record | {"stale": record["stale"] or ("" if is_current(record) else "the code has changed")}


def homes(record: Record, known: Sequence[Experiment]) -> list[str]:
    """The experiments that show a record: those that declare it or its base, else that of its method, else the quickstart."""
    method = record["name"].partition("-")[0]
    found = [experiment.name for experiment in known if _declares(experiment, record)]
    found = found or [experiment.name for experiment in known if experiment.name == method]
    return sorted(found, key=lambda name: name != method) or [FALLBACK]


def _declares(experiment: Experiment, record: Record) -> bool:
    name, *here = row_key(record)
    names, normal = (name, record["base"]), record["cell"]["normal"]
    places = [place for place in experiment.places if place.name in names and [place.dataset, place.protocol] == here]
    return any(place.normal is None or normal in place.normal for place in places)


def chapter(experiment: Experiment, records: Sequence[Record], results: Path = RESULTS) -> Chapter:
    """Makes the chapter of an experiment for the page.

    Args:
        experiment: The experiment with its grids.
        records: Records of a runs folder with their ``homes``. Those of the experiment are added to the published ones;
            figures are shown for records whose first home it is.
        results: The folder of published records.
    """
    name = experiment.name
    own = [record for record in records if name in record["homes"]]
    table = published(experiment, own, results)
    wanted = pd.DataFrame([place[:3] for place in experiment.places], columns=["method", "data", "protocol"]).drop_duplicates()
    present = pd.MultiIndex.from_frame(table[["name", "dataset", "protocol"]])
    committed = read_published(results / f"{name}.jsonl")
    earlier = sum(not is_current(record) for record in committed)
    note = f"{len(committed)} published records, {earlier} of an earlier source"
    if others := [record for record in apart(own, committed) if record["stale"]]:
        note += f"; {len(others)} of the runs folder are stale: {others[0]['stale']}"
    not_run = wanted[~pd.MultiIndex.from_frame(wanted).isin(present)]
    drawn = galleries(record for record in own if record["homes"][0] == name)
    return Chapter(experiment, table, note, not_run, list(drawn))


if __name__ == "__main__":
    main()
