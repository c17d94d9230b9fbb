"""Prints a summary in 80 columns, for any number of classes, metrics and overrides."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.experiment.render import Section, by_class, difference, extremes, interval, pivoted, readable, sections
from common.experiment.table import is_mean

NAMES = 20
"""Columns that are left to the names of rows."""


class Line(NamedTuple):
    """A line of a table: a row's name, which of its scores and rules or what beside it, the cells, and their style."""

    name: str
    variant: str
    cells: Sequence[str]
    style: str = ""


def show(table: pd.DataFrame, console: Console, labels: Mapping[str, str] | None = None) -> None:
    """Prints a summary, as :func:`common.experiment.published.tabulate` gives it; labels are short names.

    Where several classes were normal in turn: the class means with their intervals (one table with a column for each
    metric, where there are several), then every class as papers print it, or the lowest and the highest where they do not
    fit; the reported numbers and the difference to a base below ours. Where it was one class: its rows.
    """
    for column in ("name", "score", "metric", "base"):
        table = table.assign(**{column: table[column].replace(labels or {})})
    table["name"] += np.where(table["stale"] == "", "", " (stale)")
    for section in sections(table):
        title, means = section.title.replace(",", " ·", 1), is_mean(section.rows)
        for _, rows in (section.rows[means] if means.any() else section.rows).groupby("normal", sort=False):
            normal = readable(rows)["normal"].iloc[0]
            which = f"{normal} over the normal classes" if means.any() else f"normal {normal}"
            _show_rows(f"{title} · {which}", section, rows, console)
        if means.any():
            for metric in section.detailed:
                _show_classes(f"{title} · {metric} · each class as the normal one", section.of(metric), console)


def plain(text: pd.DataFrame, title: str = "") -> Table:
    """Makes a table of a frame of texts."""
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in text:
        table.add_column(str(column), overflow="fold")
    for line in text.itertuples(index=False):
        table.add_row(*line)
    return table


def _show_rows(title: str, section: Section, rows: pd.DataFrame, console: Console) -> None:
    """The rows of one mean or class: all metrics in one table, where there are many, and details."""
    metrics = section.metrics_of(rows)
    if len(metrics) > 2:
        lines = pivoted(rows.assign(ours=rows["mean"].map(_short), theirs=rows["paper"].map(_short)), "metric")
        references = "; ".join(dict.fromkeys(rows["reference"].str.rpartition(", ")[2].replace("", None).dropna()))
        width = 2 + max(len(text) for metric in metrics for text in (metric, *lines[metric]))
        size = max(1, (console.width - NAMES) // width)
        for start in range(0, len(metrics), size):
            shown = metrics[start : start + size]
            console.print(_table(title, shown, _lines(lines, shown), references and f"dim: reported ({references})"))
        metrics, rows = metrics[:1] if section.pivoted else metrics, rows[rows["n_seeds"] > 0]
    for metric in metrics:
        if (rows["metric"] == metric).any():
            console.print(_details(f"{title} · {metric}", rows[rows["metric"] == metric]))


def _details(title: str, rows: pd.DataFrame) -> Table:
    """A line for each row, with its interval, the paper's number and the difference to its base."""
    header = ["measured (seeds)", "95 % interval"]
    if (rows["reference"] != "").any():
        header += ["paper", "Δ", "status"]
    text = readable(rows).assign(variant=_variants(rows))
    text["measured (seeds)"] = text["measured"] + (" (" + text["seeds"] + ")").where(text["seeds"] != "", "")
    lines = []
    for index, row in rows.iterrows():
        cells = text.loc[index]
        lines.append(Line(row["name"], cells["variant"], cells[header], "" if cells["seeds"] else "dim"))
        if cells["base"]:
            bounds = interval(row["base_low"], row["base_high"], "+.3f", " to ").replace("0.", ".")
            below = [difference(row["base_delta"]), bounds, *[""] * (len(header) - 2)]
            lines.append(Line(row["name"], f"Δ to {row['base']}", below, "dim"))
    rules = ", ".join(dict.fromkeys(filter(None, rows["rule"])))
    # Rows of other methods say their names themselves.
    names = rows["reference"].where(rows["status"] != "reported", rows["reference"].str.rpartition(", ")[2])
    references = "; ".join(dict.fromkeys(filter(None, names)))
    caption = "; ".join(filter(None, [rules and f"epoch: {rules}", references and f"paper: {references}"]))
    return _table(title, header, lines, caption)


def _show_classes(title: str, rows: pd.DataFrame, console: Console) -> None:
    """Every class in a column, with the classes' names below; or, where they do not fit, the lowest and the highest ones."""
    rows = rows[(rows["n_seeds"] > 0) & (rows["rule"] != "oracle") & (rows["together"] <= 1)]
    if is_mean(rows).all():
        return
    names = {"mean": "mean"} | dict(zip(rows["normal"], readable(rows)["normal"], strict=True))
    rows = rows.assign(ours=rows["mean"].map(_short), theirs=rows["paper"].map(_short))
    lines, columns = by_class(rows)
    is_narrow = sum(max(len(column), 4) + 1 for column in columns) <= console.width - NAMES
    caption = ", ".join(names[column] for column in columns if names[column] != column) if is_narrow else ""
    if not is_narrow:
        ends = extremes(rows)
        lines, columns = by_class(pd.concat([ends.assign(ours=ends["ours"] + " " + ends["class_name"]), rows[is_mean(rows)]]))
    lines = pivoted(lines, "normal")
    table = _table(title, columns, _lines(lines, columns), caption)
    if is_narrow:
        table.box = None
    console.print(table)


def _lines(table: pd.DataFrame, columns: Sequence[str]) -> Iterator[Line]:
    """What :func:`common.experiment.render.pivoted` gives; reported numbers are below ours or have a line with their name."""
    measured = set(table.loc[table["kind"] == "", "name"])
    for (_, row), variant in zip(table.iterrows(), _variants(table), strict=True):
        kind, _, reference = row["kind"].partition(": ")
        if kind == "reported" and row["name"] in measured:
            variant = reference.rpartition(", ")[0] or reference
        name = f"{row['name']} (not run)" if kind == "not run" else row["name"]
        yield Line(name, variant, list(row[list(columns)]), "dim" if kind else "")


def _variants(rows: pd.DataFrame) -> "pd.Series[str]":
    """Which of a name's scores and rules a row is of, where the name has several."""
    several = rows[["score", "rule"]].replace("", None).groupby(rows["name"]).transform("nunique") > 1
    return (rows["score"].where(several["score"], "") + " " + rows["rule"].where(several["rule"], "")).str.strip()


def _table(title: str, header: Sequence[str], lines: Iterable[Line], caption: str) -> Table:
    lines = list(lines)
    table = plain(pd.DataFrame(), title)
    table.caption, table.min_width = caption or None, min(78, len(title))
    table.add_column("", overflow="fold", min_width=min(NAMES, max(len(line.name) for line in lines)))
    for name in header:
        table.add_column(name, justify="left" if name in {"95 % interval", "status"} else "right", overflow="fold")
    above = ""
    for line in lines:
        if line.variant and line.name != above:
            table.add_row(_breakable(line.name))
        table.add_row("  " + _breakable(line.variant) if line.variant else _breakable(line.name), *line.cells, style=line.style)
        above = line.name
    return table


def _breakable(name: str) -> str:
    """A name that a line may end in after each override."""
    return re.sub(r",(?! )", ", ", name)


def _short(value: float) -> str:
    """``.984`` and ``1.00``: eleven of them fit a line."""
    if np.isnan(value):
        return ""
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) > 0.9995 else f"{value:.3f}".replace("0.", ".", 1)
