"""All result tables as one web page that needs nothing but itself."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from common.experiment.gallery import Gallery
from common.experiment.render import difference, made_by, readable, sections
from common.experiment.table import is_mean

SATURATED = 0.2
"""The difference from which on a heat map's colours are the darkest ones."""

NUMBERS = {
    "paper": "paper", "measured": "mean", "seeds": "n_seeds", "Δ": "delta", "95 % interval": "ci_low",
    "Δ to base": "base_delta",
}  # fmt: skip
"""Columns of a page's tables that are sorted by a number, and the summary's column that holds it."""


class Chapter(NamedTuple):
    """An experiment on the page.

    Attributes:
        name: Of the experiment.
        title: Of the chapter.
        table: A summary.
        note: On its records.
        idle: Name, data set and protocol of what was not run and stands beside no reported number.
        galleries: Figures of its runs.
    """

    name: str
    title: str
    table: pd.DataFrame
    note: str = ""
    idle: Sequence[tuple[str, str, str]] = ()
    galleries: Sequence[Gallery] = ()


class Other(NamedTuple):
    """A table of another kind, shown as it is."""

    name: str
    title: str
    command: str
    table: pd.DataFrame


def page(chapters: Iterable[Chapter], others: Iterable[Other] = ()) -> str:
    """The page; a click on a header sorts its table, and without scripts everything is there all the same.

    Example:
        >>> from common.experiment.table import as_summary
        >>> print(page([Chapter("trial", "A trial", as_summary([]))])[:15])
        <!doctype html>
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = []
    for chapter in chapters:
        commands = made_by(chapter.table)
        numbers = {command: i for i, command in enumerate(commands, 1)}
        parts = list(_parts(chapter, numbers))
        idle = pd.DataFrame(chapter.idle, columns=["method", "data", "protocol"]).assign(status="not run")
        views.append({**chapter._asdict(), "commands": commands, "sections": parts, "idle": _rows(idle)})
    tables = [{**other._asdict(), "table": _rows(other.table)} for other in others]
    return environment.get_template("page.html").render(chapters=views, others=tables, saturated=SATURATED)


def _parts(chapter: Chapter, numbers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """One for each data set and protocol, with the tables of each metric."""
    for section in sections(chapter.table):
        metrics = []
        for metric in section.metrics:
            rows = section.of(metric)
            single = rows[~is_mean(rows)] if is_mean(rows).any() else rows[:0]
            metrics.append({
                "name": metric,
                "compared": rows["delta"].notna().any(),
                "rows": _summary_rows(rows.drop(single.index), numbers),
                "classes": _summary_rows(single, numbers),
                "heat": _heat(rows),
            })  # fmt: skip
        yield {
            "id": re.sub(r"[^\w]+", "-", f"{chapter.name}-{section.title}"),
            "title": section.title,
            "metrics": metrics,
            "measured": int((section.rows["n_seeds"] > 0).sum()),
            "not_run": int((section.rows["status"] == "not run").sum()),
        }


def _summary_rows(rows: pd.DataFrame, numbers: Mapping[str, int]) -> dict[str, Any]:
    text, keys = readable(rows), pd.DataFrame({column: rows[source] for column, source in NUMBERS.items()})
    if not text["base"].any():
        text = text.drop(columns=["Δ to base", "base"])
    text = text.rename(columns={"reference": "whose number"}).assign(by=rows["command"].map(numbers))
    keys["by"] = text["by"]
    return {**_rows(text, keys), "measured": list(rows["n_seeds"] > 0)}


def _rows(text: pd.DataFrame, keys: pd.DataFrame | None = None) -> dict[str, Any]:
    """A table's header and body; each cell as its text and, where it is a number, the number."""
    keys = text.select_dtypes("number") if keys is None else keys
    columns = []
    for column in text:
        values = keys[column] if column in keys else [None] * len(text)
        columns.append(list(zip(text[column], values, strict=True)))
    return {"header": {column: column in keys for column in text}, "body": list(zip(*columns, strict=True)), "measured": None}


def _heat(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Differences to the paper, a line for each name, score and rule and a column for each class; None without a class."""
    rows = rows[rows["delta"].notna() & (rows["rule"] != "oracle")]
    single = sorted(set(rows.loc[~is_mean(rows), "normal"]), key=lambda normal: (len(normal), normal))
    if len(single) < 2:
        return None
    table = rows.pivot_table(index=["name", "score", "rule"], columns="normal", values="delta", sort=False)
    classes = [*single, *(normal for normal in table if normal not in single)]
    lines = []
    for key, deltas in table[classes].dropna(subset=single, how="all").iterrows():
        cells = [None if pd.isna(delta) else (difference(delta), *_colors(delta)) for delta in deltas]
        lines.append({"key": key, "cells": cells})
    return {"classes": classes, "lines": lines, "references": list(dict.fromkeys(rows["reference"]))}


def _colors(delta: float) -> tuple[str, str]:
    """Background and text; red is below the paper's number and blue above, which the colour-blind tell apart too."""
    red, green, blue, _ = colormaps["RdBu"](0.5 + 0.5 * max(-1.0, min(1.0, delta / SATURATED)))
    return to_hex((red, green, blue)), "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#fff"
