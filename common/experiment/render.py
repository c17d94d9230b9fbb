"""Divides a summary into sections and lines, and formats its values as text."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.experiment.table import is_mean


class Section(NamedTuple):
    """The part of a summary for one data set and protocol.

    Attributes:
        title: Both.
        rows: Class means first.
        metrics: The most important first.
        pivoted: Whether there are so many metrics that their means stand in one table with a column for each.
        detailed: The metrics that have rows of single classes: all, or, where ``pivoted``, the first and those of which a
            paper prints single classes.
    """

    title: str
    rows: pd.DataFrame
    metrics: list[str]
    pivoted: bool
    detailed: list[str]

    def of(self, metric: str) -> pd.DataFrame:
        """One metric's rows."""
        return self.rows[self.rows["metric"] == metric]

    def metrics_of(self, rows: pd.DataFrame) -> list[str]:
        """The metrics of some of the rows: papers' means may have fewer than ours."""
        return [metric for metric in self.metrics if metric in set(rows["metric"])]


LINE = ["name", "score", "rule"]
"""What the rows of a line share."""

ENDS = ("lowest", "highest")
"""Columns in place of those of many classes."""


def sections(table: pd.DataFrame, most_classes: int | None = None) -> Iterator[Section]:
    """Divides a summary into sections; of more than ``most_classes`` classes it keeps the lowest and the highest."""
    for (dataset, protocol), rows in table.groupby(["dataset", "protocol"], sort=False):
        rows = rows.iloc[np.argsort(~is_mean(rows), kind="stable")]
        metrics = list(dict.fromkeys(rows["metric"]))
        is_pivoted = bool(is_mean(rows).any()) and len(metrics) > 2
        printed = {metrics[0], *rows["metric"][~is_mean(rows) & rows["paper"].notna()]}
        detailed = [metric for metric in metrics if metric in printed or not is_pivoted]
        rows = rows[is_mean(rows) | rows["metric"].isin(detailed)]
        if most_classes is not None and rows[~is_mean(rows)]["normal"].nunique() > most_classes:
            rows = pd.concat([rows[is_mean(rows)], extremes(rows)], ignore_index=True)
        yield Section(f"{dataset}, {protocol}", rows, list(dict.fromkeys(rows["metric"])), is_pivoted, detailed)


def extremes(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each line its lowest and its highest class, which stands in ``class_name`` then."""
    single = rows[~is_mean(rows) & (rows["n_seeds"] > 0)]
    single = single.assign(class_name=(single["normal"] + " " + single["class_name"]).str.strip())
    of_line = single.groupby([*LINE, "metric"], sort=False)["mean"]
    lowest, highest = single.loc[of_line.idxmin()], single.loc[of_line.idxmax()]
    ends = pd.concat([lowest.assign(normal=ENDS[0]), highest.assign(normal=ENDS[1])])
    return ends.sort_index(kind="stable", ignore_index=True)  # a class may be both


def by_class(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of single classes and their means, for a column each, and the columns in their order.

    Means over different classes do not belong in one column: where there are several, it has those over all classes alone.
    """
    means, single = rows[is_mean(rows)], rows[~is_mean(rows)]
    if means["normal"].nunique() > 1:
        means = means[means["normal"] == "mean"]
    columns = sorted(set(single["normal"]), key=lambda normal: (len(normal), normal))
    return pd.concat([single, means.assign(normal="mean")], ignore_index=True), [*columns, *["mean"][: len(means)]]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Formats the rows of a summary as text; missing values are empty.

    Example:
        >>> from common.experiment.table import as_summary
        >>> rows = readable(as_summary([{"name": "DAE", "paper": 0.877, "normal": "3", "class_name": "Dress"}]))
        >>> rows[["method", "normal", "paper", "Δ"]].values.tolist()
        [['DAE', '3 Dress', '0.877', '']]
    """
    return pd.DataFrame([_texts(row) for row in table.to_dict("records")], index=table.index)


def _texts(row: Mapping[Any, Any]) -> dict[str, str]:
    spread = f" ± {number(row['std'])}" if row["n_seeds"] > 1 else ""
    change = difference(row["base_delta"])
    bounds = interval(row["base_low"], row["base_high"], "+.3f", " to ")
    return {
        "method": row["name"] + (" (stale)" if row["stale"] else ""),
        "score": row["score"],
        "normal": f"{row['normal']} {row['class_name']}".strip(),
        "paper": number(row["paper"]),
        "measured": number(row["mean"]) + spread,
        "seeds": str(row["n_seeds"] or ""),
        "Δ": difference(row["delta"]),
        "95 % interval": interval(row["ci_low"], row["ci_high"]),
        "Δ to base": f"{change} ({bounds})" if bounds else change,
        "base": row["base"] if change else "",
        "rule": row["rule"],
        "status": row["status"],
        "reference": row["reference"],
    }


def number(value: float) -> str:
    """Formats a number with three decimals, or none from 10 on; NaN is empty."""
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def difference(value: float) -> str:
    """Formats a difference with its sign; NaN is empty."""
    return "" if np.isnan(value) else f"{value:+.3f}"


def interval(low: float, high: float, text: str = ".3f", to: str = "–") -> str:
    """Formats an interval's bounds; NaN is empty."""
    return "" if np.isnan(low) else f"{low:{text}}{to}{high:{text}}"


def pivoted(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """A line for each name, score and rule, and one for each source of reported numbers, which stands once below a name.

    Args:
        rows: A summary's, with the texts ``ours`` and ``theirs``.
        by: The column whose values become columns.

    Returns:
        Columns ``name, score, rule, kind, seeds, stale, command`` and those of ``by``; ``kind`` is empty where the line was
        measured, else ``reported: <reference>`` or ``not run: <reference>``.
    """
    rows = rows.assign(order=rows.groupby(LINE, sort=False).ngroup(), kind="", seeds="")
    is_measured = rows["n_seeds"] > 0
    ours = rows[is_measured].assign(text=rows["ours"], seeds=rows["n_seeds"].astype(str))
    theirs = rows[rows["reference"] != ""].assign(text=rows["theirs"], rule="")
    theirs["kind"] = theirs["status"].where(~is_measured, "reported")
    theirs["score"] = theirs["score"].where(theirs["kind"] == "not run", "")
    theirs["kind"] += ": " + theirs["reference"]
    lines = pd.concat([ours, theirs]).sort_values("order", kind="stable")
    key = [*LINE, "kind"]
    cells = lines.pivot_table(index=key, columns=by, values="text", aggfunc="first", sort=False).fillna("")
    return lines.groupby(key, sort=False)[["seeds", "stale", "command"]].first().join(cells).reset_index()


def made_by(table: pd.DataFrame) -> dict[str, str]:
    """The commands of a summary in their order, and the commits at which each was run."""
    measured = table[table["command"] != ""]
    commits = {}
    for command, rows in measured.groupby("command", sort=False):
        names = dict.fromkeys(rows["commit"].str.split(", ").explode())
        commits[str(command)] = ", ".join(re.sub(r"^(\w{7})\w+", r"\1", str(name)) for name in names if name)
    return commits


def numbered(commands: Mapping[str, str]) -> dict[str, str]:
    """The number of each command on a page."""
    return {command: str(i) for i, command in enumerate(commands, 1)}


def rows_text(rows: pd.DataFrame, by: Mapping[str, str]) -> pd.DataFrame:
    """A summary's rows as a page shows them, with the numbers of their commands."""
    text = readable(rows)
    text["measured"] += (" (" + text["seeds"] + ")").where(text["seeds"] != "", "")
    text = text.rename(columns={"measured": "measured (seeds)"}).drop(columns="seeds")
    if not text["base"].any():
        text = text.drop(columns=["Δ to base", "base"])
    return text.assign(by=rows["command"].map(by).fillna(""))
