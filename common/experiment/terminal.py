"""A summary in a terminal of 80 columns, at any number of classes, metrics and overrides."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

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
        if is_mean(section.rows).any():
            headings = {mean: f"{title} · {mean} over the normal classes" for mean, _ in section.means()}
        else:
            names = dict(zip(section.rows["normal"], readable(section.rows)["normal"], strict=True))
            headings = {normal: f"{title} · normal {name}" for normal, name in names.items()}
        for normal, heading in headings.items():
            _show_rows(heading, section, section.rows[section.rows["normal"] == normal], console, labels)
        if is_mean(section.rows).any():
            for metric in section.metrics[:1] if section.pivoted else section.metrics:
                heading = f"{title} · {labels.get(metric, metric)} · each class as the normal one"
                _show_classes(heading, section.of(metric), console, labels)


def _show_rows(heading: str, section: Section, rows: pd.DataFrame, console: Console, labels: Mapping[str, str]) -> None:
    metrics = section.metrics
    if len(metrics) > 2:
        _show_metrics(heading, rows, metrics, console, labels)
        metrics, rows = metrics[:1] if section.pivoted else metrics, rows[rows["n_seeds"] > 0]
    for metric in metrics:
        of_metric = rows[rows["metric"] == metric]
        if len(of_metric):
            _show_details(f"{heading} · {labels.get(metric, metric)}", of_metric, console, labels)


def _show_details(title: str, rows: pd.DataFrame, console: Console, labels: Mapping[str, str]) -> None:
    """A line for each row, with its interval, the paper's number and the difference to its base."""
    text, compared = readable(rows), (rows["reference"] != "").any()
    change, bounds = rows["base_delta"].map(difference), between(rows["base_low"], rows["base_high"], difference, " to ")
    lines = []
    for index, name, variant in _each(rows, labels):
        row = text.loc[index]
        measured = f"{row['measured']} ({row['seeds']})" if row["seeds"] else ""
        cells = [measured, row["95 % interval"]]
        if compared:
            cells += [row["paper"], row["Δ"], row["status"]]
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


def _show_metrics(title: str, rows: pd.DataFrame, metrics: Sequence[str], console: Console, labels: Mapping[str, str]) -> None:
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
    for index, name, variant in _each(table, labels):
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
    together = rows["normal"].str.contains(r"\+|^mean of \d+$")
    rows = rows[(rows["n_seeds"] > 0) & (rows["rule"] != "oracle") & ~together]
    single = rows[~is_mean(rows)]
    if not len(single):
        return
    names = dict(zip(single["normal"], readable(single)["normal"], strict=True))
    classes = sorted(names, key=lambda normal: (len(normal), normal))
    means = list(dict.fromkeys(rows.loc[is_mean(rows), "normal"]))
    mean = means[0] if len(means) == 1 else ""  # means over other classes do not belong in one column
    is_narrow = sum(max(len(column), 4) + 1 for column in [*classes, "mean"]) <= console.width - NAMES
    lines = []
    for name, variant, of_one in _groups(rows, labels):
        values = of_one.set_index("normal")
        lines.append(Line(name, variant, _class_cells(values["mean"], classes, mean, {} if is_narrow else names)))
        reported = values[values["reference"] != ""]
        if not is_mean(reported).all():
            cells = _class_cells(reported["paper"], classes, mean, {} if is_narrow else names)
            lines.append(Line(name, reported["reference"].iloc[0], cells, "dim", below=True))
    if is_narrow:
        table = _table(title, [*classes, "mean"], lines, ", ".join(names[k] for k in classes if names[k] != k))
        table.box = None
    else:
        table = _table(title, ["lowest", "highest", "mean"], lines, "")
    console.print(table)


def _class_cells(values: "pd.Series[float]", classes: Sequence[str], mean: str, names: Mapping[str, str]) -> list[str]:
    """Every class, or with their names the lowest and the highest; and the mean."""
    last = _short(values.get(mean, np.nan))
    if not names:
        return [*(_short(values.get(k, np.nan)) for k in classes), last]
    single = values[values.index.isin(classes)].sort_values()
    found = [f"{_short(value)} {names[str(k)]}" for k, value in single.items()]
    return [found[0], found[-1], last]


def _groups(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """What each of the rows' names is called, which of its scores and rules, where there are several, and their rows."""
    for name, of_name in rows.groupby("name", sort=False):
        label = labels.get(str(name), str(name)) + (" (stale)" if of_name["stale"].any() else "")
        scores, rules = of_name["score"].nunique() > 1, of_name["rule"].nunique() > 1
        for (score, rule), group in of_name.groupby(["score", "rule"], sort=False):
            parts = [labels.get(str(score), str(score))] if scores else []
            parts += [str(rule)] if rules else []
            yield label, " ".join(filter(None, parts)), group


def _each(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[Any, str, str]]:
    """As :func:`_groups`, with the index of every row."""
    for name, variant, group in _groups(rows, labels):
        for index in group.index:
            yield index, name, variant


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


def _short(value: float) -> str:
    """``.984`` and ``1.00``: eleven of them fit a line."""
    if np.isnan(value):
        return ""
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) > 0.9995 else f"{value:.3f}".replace("0.", ".", 1)
