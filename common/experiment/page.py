"""Makes one self-contained web page of all result tables."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from PIL import Image

from common.experiment.declaration import Experiment
from common.experiment.records import Record, row_key
from common.experiment.render import difference, made_by, numbered, rows_text, sections
from common.experiment.table import is_mean

SATURATED = 0.2
"""The difference from which on a heat map's colours are the darkest ones."""

WIDTH = 640
"""Of figures, in pixels."""


class Gallery(NamedTuple):
    """A run's figures: what each is, and the image as a data URI."""

    title: str
    pictures: dict[str, str]


class Chapter(NamedTuple):
    """An experiment on the page.

    Attributes:
        experiment: Which one.
        table: Its summary.
        note: On its records.
        not_run: What was not run and stands beside no reported number: columns ``method, data, protocol``.
        galleries: Figures of its runs.
    """

    experiment: Experiment
    table: pd.DataFrame
    note: str = ""
    not_run: pd.DataFrame = pd.DataFrame()
    galleries: Sequence[Gallery] = ()


def page(chapters: Sequence[Chapter]) -> str:
    """Returns the page. A click on a header sorts its table; without scripts everything is still shown.

    Example:
        >>> from common.experiment.declaration import Grid
        >>> from common.experiment.table import as_summary
        >>> print(page([Chapter(Experiment("trial", "A trial", Grid((), ())), as_summary([]))])[:15])
        <!doctype html>
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    for function in (difference, differences, made_by, numbered, rows_text, sections):
        environment.globals[function.__name__] = function
    return environment.get_template("page.html").render(chapters=chapters, saturated=SATURATED)


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences to the paper: a line for each name, score and rule, a column for each class, the mean last."""
    rows = rows[rows["delta"].notna() & (rows["rule"] != "oracle")]
    single = sorted(set(rows.loc[~is_mean(rows), "normal"]), key=lambda normal: (len(normal), normal))
    table = rows.pivot_table(index=["name", "score", "rule"], columns="normal", values="delta", sort=False)
    classes = [*single, *(normal for normal in table if normal not in single)]
    return table[classes].dropna(subset=single, how="all") if len(single) > 1 else table[:0][[]]


def galleries(records: Iterable[Record]) -> Iterator[Gallery]:
    """The figures of one run of each row, data set and protocol: of the first seed, of the class with the median AUROC.

    The entry ``folder`` of a record says where its run lies.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: (record["cell"]["seed"], _auroc(record))):
        groups.setdefault(row_key(record), []).append(record)
    for (name, dataset, protocol), group in groups.items():
        seed = group[0]["cell"]["seed"]
        of_seed = [record for record in group if record["cell"]["seed"] == seed]
        middle = of_seed[(len(of_seed) - 1) // 2]
        paths = sorted(Path(middle["folder"], "figures").glob("*.png"))
        title = f"{name} on {dataset}, {protocol}, normal class {middle['cell']['normal']}, seed {seed}"
        if paths:
            yield Gallery(title, {path.stem.replace("_", " "): _data_uri(path) for path in paths})


def _auroc(record: Record) -> float:
    return record["metrics"].get(record["score"], {}).get("auroc") or 0.0


def _data_uri(path: Path) -> str:
    small = io.BytesIO()
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDTH, 2 * WIDTH))
        image.save(small, "WEBP", quality=70, method=4)
    return "data:image/webp;base64," + base64.b64encode(small.getvalue()).decode()
