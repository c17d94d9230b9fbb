"""All result tables as one web page that needs nothing but itself."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from common.experiment.gallery import Gallery
from common.experiment.presentation import means_first, readable

SATURATED = 0.2
"""The difference from which on a heat map's colours are the darkest ones."""


class Chapter(NamedTuple):
    """An experiment on the page.

    Attributes:
        name: Of the experiment.
        title: Of the chapter.
        table: As :func:`common.experiment.report.tabulate` gives it, with a column ``command``.
        idle: Method, data set and protocol of what was not run and stands beside no reported number.
        galleries: Figures of its runs.
    """

    name: str
    title: str
    table: pd.DataFrame
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
        >>> print(page([Chapter("trial", "A trial", pd.DataFrame(columns=["command", "status"]))])[:15])
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
        commands = list(dict.fromkeys(chapter.table["command"]))
        sections = list(_sections(chapter, commands)) if commands else []
        views.append({**chapter._asdict(), "commands": commands, "sections": sections})
    return environment.get_template("page.html").render(chapters=views, others=list(others), saturated=SATURATED)


def _sections(chapter: Chapter, commands: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One for each data set and protocol, with the tables of each metric."""
    text = readable(chapter.table)
    table = chapter.table.assign(
        name=text["method"],
        paper_text=text["paper"],
        measured_text=text["measured (seeds)"].str.replace(r" \(\d+\)$", "", regex=True),
        delta_text=text["Δ"],
        interval=text["95 % interval"],
        by=chapter.table["command"].map({command: i for i, command in enumerate(commands, 1)}),
    )
    for (dataset, protocol), group in table.groupby(["dataset", "protocol"], sort=False):
        metrics = []
        for metric, rows in group.groupby("metric", sort=False):
            is_mean = rows["normal"].str.startswith("mean")
            classes = rows[~is_mean] if is_mean.any() else rows[:0]
            metrics.append({
                "name": metric,
                "compared": rows["delta"].notna().any(),
                "rows": list(means_first(rows.drop(classes.index)).itertuples()),
                "classes": list(classes.itertuples()),
                "heat": _heat(rows),
            })  # fmt: skip
        yield {
            "id": re.sub(r"[^\w]+", "-", f"{chapter.name}-{dataset}-{protocol}"),
            "title": f"{dataset}, {protocol}",
            "metrics": metrics,
            "measured": int((group["n_seeds"] > 0).sum()),
            "not_run": int((group["status"] == "not run").sum()),
        }


def _heat(rows: pd.DataFrame) -> dict[str, Any] | None:
    """Differences to the paper, a line for each method, score and rule and a column for each class; None without a class."""
    rows = rows[rows["delta"].notna() & (rows["rule"] != "oracle")]
    if rows[~rows["normal"].str.startswith("mean")]["normal"].nunique() < 2:
        return None
    table = rows.pivot_table(index=["name", "score", "rule"], columns="normal", values="delta", sort=False)
    classes = sorted(table, key=lambda normal: (normal.startswith("mean"), len(normal), normal))
    single = [normal for normal in classes if not normal.startswith("mean")]
    lines = []
    for key, deltas in table[classes].dropna(subset=single, how="all").iterrows():
        lines.append({"key": key, "cells": [None if pd.isna(delta) else (delta, *_colors(delta)) for delta in deltas]})
    return {"classes": classes, "lines": lines, "references": list(dict.fromkeys(rows["reference"]))}


def _colors(delta: float) -> tuple[str, str]:
    """Background and text; red is below the paper's number and blue above, which the colour-blind tell apart too."""
    red, green, blue, _ = colormaps["RdBu"](0.5 + 0.5 * max(-1.0, min(1.0, delta / SATURATED)))
    return to_hex((red, green, blue)), "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#fff"
