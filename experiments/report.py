"""Every table in every form, from the committed records, the older aggregates and the records of a runs folder."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

import experiments
from common.cli import Parser, one_line_errors
from common.data import dataset_label
from common.errors import InputError
from common.experiment import Experiment
from common.experiment.gallery import galleries
from common.experiment.identity import is_current
from common.experiment.page import Chapter, Other, page
from common.experiment.plan import places
from common.experiment.published import RESULTS, Place, published
from common.experiment.records import FILE, Record, read_published, read_record
from common.experiment.render import write_tables
from common.experiment.terminal import show
from common.files import write_whole

Current = Callable[[Mapping[str, Any]], bool]

FALLBACK = "quickstart"
"""The experiment whose table holds the records that no other one declares."""


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
        records = [record | {"homes": homes(record, known)} for record in records_of(runs)]
        chapters = [chapter(experiment, records) for experiment in known]
        for experiment, part in zip(known, chapters, strict=True):
            if len(part.table):
                console.rule(experiment.title)
                show(part.table, console, experiment.labels)
                console.print(part.note, highlight=False, soft_wrap=True)
                write_tables(part.table, arguments.out, experiment.name, experiment.title, ("csv", "md", "tex"))
        write_whole(arguments.out / "index.html", page(chapters, others(known)))
        stale = [record for record in records if record["stale"]]
        for folder, reason in ((record["folder"], record["stale"]) for record in stale[:1]):
            console.print(f"{len(stale)} records of {runs} are stale, as {folder}: {reason}", highlight=False, soft_wrap=True)
        console.print(f"{len(records)} records of {runs}", highlight=False, soft_wrap=True)
        console.print(f"written: {arguments.out / 'index.html'}", highlight=False, soft_wrap=True)


def declared() -> list[Experiment]:
    """All experiments of this package.

    Example:
        >>> [experiment.name for experiment in declared()][:2]
        ['alocc', 'alocc_ablation']
    """
    modules = [importlib.import_module(f"experiments.{module.name}") for module in pkgutil.iter_modules(experiments.__path__)]
    return [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]


def records_of(runs: Path, current: Current = is_current) -> Iterator[Record]:
    """The records of a runs folder with their ``folder``; those that the present source did not make are ``stale``."""
    for path in sorted(runs.glob(f"*/*/*/normal=*/seed=*/{FILE}")):
        record = read_record(path) | {"folder": path.parent}
        yield record | {"stale": record["stale"] or ("" if current(record) else "the code has changed")}


def chapter(
    experiment: Experiment, records: Sequence[Record], current: Current = is_current, results: Path = RESULTS
) -> Chapter:
    """An experiment's part of the page.

    Args:
        experiment: With its grids.
        records: Of a runs folder, with their ``homes``; those of the experiment are added to what is published, and those
            that have no earlier home give figures.
        current: Whether the present source made a record.
        results: The folder of published records and aggregates.
    """
    rows, name = wanted(experiment), experiment.name
    own = [record for record in records if name in record["homes"]]
    table = published(name, experiment.compare, rows, own, results)
    present = set(zip(table["name"], table["dataset"], table["protocol"], strict=True))
    idle = dict.fromkeys(place[:3] for place in rows if place[:3] not in present)
    drawn = galleries(record for record in own if record["homes"][0] == name)
    note = provenance(read_published(results / f"{name}.jsonl"), current)
    return Chapter(name, experiment.title, table, note, list(idle), list(drawn))


def wanted(experiment: Experiment) -> list[Place]:
    """All rows that an experiment declares."""
    return places((experiment.main, *experiment.also), experiment.name)


def provenance(committed: Sequence[Record], current: Current = is_current) -> str:
    """How many records are published, and how many of them an earlier source made.

    Example:
        >>> provenance([{"identity": {}}, {"identity": {"source": "34efdfc16dd2"}}], lambda record: bool(record["identity"]))
        '2 published records, 1 of an earlier source'
    """
    earlier = sum(not current(record) for record in committed)
    return f"{len(committed)} published records, {earlier} of an earlier source"


def homes(record: Record, known: Sequence[Experiment]) -> list[str]:
    """The experiments that declare a record's cell or its base's, its own method's first; else that one, or the quickstart."""
    cell, method = record["cell"], record["name"].partition("-")[0]
    here = dataset_label(cell["dataset"]), cell["protocol"]
    found = []
    for experiment in known:
        rows = [row for row in wanted(experiment) if row[1:3] == here and row.name in (record["name"], record["base"])]
        if any(row.normal is None or cell["normal"] in row.normal for row in rows):
            found.append(experiment.name)
    found = found or [experiment.name for experiment in known if experiment.name == method]
    return sorted(found, key=lambda name: name != method) or [FALLBACK]


def others(known: Sequence[Experiment], results: Path = RESULTS) -> Iterator[Other]:
    """The committed tables that are of another kind, with what their pages say of them."""
    names = {experiment.name for experiment in known}
    for path in sorted(results.glob("*.csv")):
        if path.stem not in names:
            text = about.read_text() if (about := path.with_suffix(".md")).is_file() else ""
            title, command = re.search(r"# (.*)", text), re.search(r"Written by `(.*?)`", text)
            yield Other(path.stem, title[1] if title else path.stem, command[1] if command else "", pd.read_csv(path))


if __name__ == "__main__":
    main()
