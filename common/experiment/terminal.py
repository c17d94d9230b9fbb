"""A summary in a terminal of 80 columns, at any number of classes, metrics and overrides."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.experiment.render import Section, between, difference, pivoted, readable, sections
from common.experiment.table import is_mean

NAMES = 20
"""Columns that are left to the names of rows."""


class Line(NamedTuple):
    """A line of a table: a row's name, which of its scores and rules, the cells, and whether it belongs to the one above."""

    name: str
    variant: str
    cells: Sequence[str]
    style: str = ""
    below: bool = False


def show(table: pd.DataFrame, console: Console, labels: Mapping[str, str] | None = None) -> None:
    """Prints a summary.

    Where several classes were normal in turn: the class means with their intervals (one table with a column for each
    metric, where there are several), then every class as papers print it, or the lowest and the highest where they do not
    fit; the reported numbers and the difference to a base below ours. Where it was one class: its rows.

    Args:
        table: As :func:`common.experiment.published.tabulate` gives it.
        console: Where to.
        labels: Short names of rows, scores and metrics.
    """
    labels = labels or {}
    for section in sections(table):
        title = section.title.replace(",", " ·", 1)
        for name, rows in section.rows.groupby("normal", sort=False):
            if is_mean(rows).any():
                _show_means(f"{title} · {name} over the normal classes", section, rows, console, labels)
        if not is_mean(section.rows).any():
            _show_single(title, section, console, labels)
            continue
        for metric in section.metrics[:1] if section.pivoted else section.metrics:
            heading = f"{title} · {labels.get(metric, metric)} · each class as the normal one"
            _show_classes(heading, section.of(metric), console, labels)


def _show_means(title: str, section: Section, rows: pd.DataFrame, console: Console, labels: Mapping[str, str]) -> None:
    metrics = section.metrics
    if section.pivoted:
        _show_metrics(title, rows, metrics, console, labels)
        metrics, rows = metrics[:1], rows[rows["n_seeds"] > 0]
    for metric in metrics:
        if len(of_metric := rows[rows["metric"] == metric]):
            _show_details(f"{title} · {labels.get(metric, metric)}", of_metric, console, labels)


def _show_single(title: str, section: Section, console: Console, labels: Mapping[str, str]) -> None:
    for normal, rows in section.rows.groupby("normal", sort=False):
        heading = f"{title} · normal {readable(rows)['normal'].iloc[0]}"
        if len(section.metrics) > 2:
            _show_metrics(heading, rows, section.metrics, console, labels)
        for metric, of_metric in rows[rows["n_seeds"] > 0].groupby("metric", sort=False):
            _show_details(f"{heading} · {labels.get(str(metric), str(metric))}", of_metric, console, labels)


def _show_details(title: str, rows: pd.DataFrame, console: Console, labels: Mapping[str, str]) -> None:
    """A line for each row, with its interval, the paper's number and the difference to its base."""
    text, compared = readable(rows), (rows["reference"] != "").any()
    change, bounds = rows["base_delta"].map(difference), between(rows["base_low"], rows["base_high"], "+.3f")
    lines = []
    for index, name, variant in _variants(rows, labels):
        row = text.loc[index]
        measured = f"{row['measured']} ({row['seeds']})" if row["seeds"] else ""
        cells = [measured, row["95 % interval"], *([row["paper"], row["Δ"], row["status"]] if compared else [])]
        lines.append(Line(name, variant, cells, "" if row["seeds"] else "dim"))
        if row["base"]:
            below = [change[index], bounds[index].replace("0.", "."), *([""] * (len(cells) - 2))]
            lines.append(Line(name, f"Δ to {labels.get(row['base'], row['base'])}", below, "dim", below=True))
    references = "; ".join(dict.fromkeys(_sources(rows)))
    rules = ", ".join(dict.fromkeys(filter(None, rows["rule"])))
    caption = "; ".join(filter(None, [rules and f"epoch: {rules}", references and f"paper: {references}"]))
    header = ["measured (seeds)", "95 % interval", *(["paper", "Δ", "status"] if compared else [])]
    console.print(_table(title, header, lines, caption))


def _sources(rows: pd.DataFrame) -> Iterator[str]:
    """Whose numbers stand beside ours, and the tables of the others, whose lines have their names."""
    for reference, status in zip(rows["reference"], rows["status"], strict=True):
        if reference:
            yield reference.rpartition(", ")[2] if status == "reported" else reference


def _show_metrics(
    title: str, rows: pd.DataFrame, metrics: Sequence[str], console: Console, labels: Mapping[str, str]
) -> None:
    """A column for each metric, in as many tables as it takes."""
    table = pivoted(rows, metrics, lambda mean, _: _short(mean))
    room = console.width - NAMES
    names = [labels.get(metric, metric) for metric in metrics]
    widths = [max([len(name), *table[metric].str.len()]) + 2 for name, metric in zip(names, metrics, strict=True)]
    while metrics:
        fitting = max(1, int((np.cumsum(widths) <= room).sum()))
        lines = list(_metric_lines(table, metrics[:fitting], labels))
        references = "; ".join(dict.fromkeys(rows["reference"].str.rpartition(", ")[2].replace("", None).dropna()))
        caption = f"dim: reported ({references})" if references else ""
        console.print(_table(title, names[:fitting], lines, caption))
        metrics, names, widths = metrics[fitting:], names[fitting:], widths[fitting:]


def _metric_lines(table: pd.DataFrame, metrics: Sequence[str], labels: Mapping[str, str]) -> Iterator[Line]:
    for index, name, variant in _variants(table, labels):
        row = table.loc[index]
        kind, _, reference = row["kind"].partition(": ")
        if not kind:
            yield Line(name, variant, row[metrics])
        elif (table["name"] == row["name"]).sum() > 1 and kind == "reported":
            yield Line(name, reference.rpartition(", ")[0], row[metrics], "dim", below=True)
        else:
            yield Line(f"{name} ({kind})" if kind == "not run" else name, variant, row[metrics], "dim")


def _show_classes(title: str, rows: pd.DataFrame, console: Console, labels: Mapping[str, str]) -> None:
    """A line for each row's name, score and rule, with a column for each class, and the classes' names below."""
    rows = rows[(rows["n_seeds"] > 0) & (rows["rule"] != "oracle") & ~rows["normal"].str.contains(r"\+")]
    rows = rows[~is_mean(rows) | ~rows["normal"].str.fullmatch(r"mean of \d+")]
    single = rows[~is_mean(rows)]
    if not len(single):
        return
    classes = sorted(dict.fromkeys(single["normal"]), key=lambda normal: (len(normal), normal))
    means = dict.fromkeys(rows.loc[is_mean(rows), "normal"])
    columns = [*classes, *(means if len(means) == 1 else ())]
    texts = {normal: text for normal, text in zip(rows["normal"], readable(rows)["normal"], strict=True)}
    is_narrow = sum(max(len(column), 4) + 1 for column in [*classes, "mean"]) <= console.width - NAMES
    lines = []
    for (name, variant), of_one in _groups(rows, labels):
        values = of_one.set_index("normal")
        reported = values[values["reference"] != ""]
        shown = [(variant, values["mean"], "")]
        if not is_mean(reported).all():
            shown.append((reported["reference"].iloc[0], reported["paper"], "dim"))
        for label, series, style in shown:
            cells = [_short(series.get(k)) for k in columns] if is_narrow else _extremes(series, classes, columns, texts)
            lines.append(Line(name, label, cells, style, below=bool(style)))
    names = [texts[normal] for normal in classes if texts[normal] != normal]
    header = [*classes, *(["mean"] if len(means) == 1 else [])] if is_narrow else ["mean", "lowest", "highest"]
    printed = _table(title, header, lines, ", ".join(names) if is_narrow else "")
    printed.box = None if is_narrow else printed.box
    console.print(printed)


def _extremes(values: "pd.Series[float]", classes: Sequence[str], columns: Sequence[str], texts: Mapping[str, str]) -> list[str]:
    """The mean, and the lowest and the highest class with their names."""
    single = values[values.index.isin(classes)]
    low, high = single.idxmin(), single.idxmax()
    mean = _short(values.get(columns[-1])) if len(columns) > len(classes) else ""
    return [mean, f"{_short(single[low])} {texts[str(low)]}", f"{_short(single[high])} {texts[str(high)]}"]


def _variants(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[object, str, str]]:
    """Each row's index, what it is called, and which of its name's scores and rules it is, where there are several."""
    for (name, variant), group in _groups(rows, labels):
        for index in group.index:
            yield index, name, variant


def _groups(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    for name, of_name in rows.groupby("name", sort=False):
        label = labels.get(str(name), str(name)) + (" (stale)" if of_name["stale"].any() else "")
        several = {column: of_name[column].nunique() > 1 for column in ("score", "rule")}
        for (score, rule), group in of_name.groupby(["score", "rule"], sort=False):
            parts = [labels.get(score, score) if several["score"] else "", rule if several["rule"] else ""]
            yield (label, " ".join(filter(None, parts))), group


def _table(title: str, header: Sequence[str], lines: Iterable[Line], caption: str) -> Table:
    table = Table(
        title=title, caption=caption or None, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0), min_width=min(78, len(title)),
    )  # fmt: skip
    table.add_column("", overflow="fold", min_width=min(NAMES, max((len(line.name) for line in lines), default=0)))
    for name in header:
        table.add_column(name, justify="left" if name in {"95 % interval", "status"} else "right", overflow="fold")
    for name, group in groupby(lines, key=lambda line: line.name):
        of_name = list(group)
        has_variants = len({line.variant for line in of_name if not line.below}) > 1
        text = _breakable(name)
        if has_variants:
            table.add_row(text)
        for line in of_name:
            indented = "  " * (has_variants + line.below) + _breakable(line.variant)
            table.add_row(indented if has_variants or line.below else text, *line.cells, style=line.style)
    return table


def _breakable(name: str) -> str:
    """A name that a line may end in after each override."""
    return re.sub(r",(?! )", ", ", name)


def _short(value: float | None) -> str:
    """``.984`` and ``1.00``: eleven of them fit a line."""
    if value is None or np.isnan(value):
        return ""
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) > 0.9995 else f"{value:.3f}".replace("0.", ".", 1)
