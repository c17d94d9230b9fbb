"""Renders a summary as text, sections, CSV, Markdown and LaTeX."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.experiment.declaration import Experiment
from common.experiment.table import is_mean
from common.files import write_whole

PACKAGES = r"\usepackage{booktabs,longtable,array}"
"""What the preamble of a LaTeX document needs."""

LATEX_NAMES = {
    "method": "method", "score": "score", "normal": "normal", "rule": "rule", "paper": "paper", "measured": "ours",
    "seeds": "$n$", "Δ": r"$\Delta$", "Δ to base": r"$\Delta$ to base", "reference": "whose number",
}  # fmt: skip
"""Columns of a LaTeX table, and what their headings are."""

LATEX_COLUMNS = r">{\raggedright\arraybackslash}p{0.17\linewidth}llllrrrr>{\raggedright\arraybackslash}p{0.18\linewidth}"


class Section(NamedTuple):
    """The part of a summary for one data set and protocol.

    Attributes:
        title: Both.
        rows: Class means first.
        metrics: The most important first.
        pivoted: Whether there are so many metrics that their means stand in one table with a column for each. Single classes
            have rows of the first metric only then.
    """

    title: str
    rows: pd.DataFrame
    metrics: list[str]
    pivoted: bool

    def of(self, metric: str) -> pd.DataFrame:
        """One metric's rows."""
        return self.rows[self.rows["metric"] == metric]


LINE = ["name", "score", "rule"]
"""What the rows of a line share."""

ENDS = ("lowest", "highest")
"""Columns in place of those of many classes."""

MOST_CLASSES = 20
"""Of more classes Markdown and LaTeX show the lowest and the highest; records, CSV and HTML have all."""


def sections(table: pd.DataFrame, most_classes: int | None = None) -> Iterator[Section]:
    """Divides a summary into sections; of more than ``most_classes`` classes it keeps the lowest and the highest."""
    for (dataset, protocol), rows in table.groupby(["dataset", "protocol"], sort=False):
        rows = rows.iloc[np.argsort(~is_mean(rows), kind="stable")]
        is_pivoted = bool(is_mean(rows).any()) and rows["metric"].nunique() > 2
        if is_pivoted:
            rows = rows[is_mean(rows) | (rows["metric"] == rows["metric"].iloc[0])]
        if most_classes is not None and rows[~is_mean(rows)]["normal"].nunique() > most_classes:
            rows = pd.concat([rows[is_mean(rows)], extremes(rows)])
        yield Section(f"{dataset}, {protocol}", rows, list(dict.fromkeys(rows["metric"])), is_pivoted)


def extremes(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each line its lowest and its highest class, which stands in ``class_name`` then."""
    single = rows[~is_mean(rows) & (rows["n_seeds"] > 0)]
    single = single.assign(class_name=(single["normal"] + " " + single["class_name"]).str.strip())
    of_line = single.groupby([*LINE, "metric"], sort=False)["mean"]
    lowest, highest = single.loc[of_line.idxmin()], single.loc[of_line.idxmax()]
    return pd.concat([lowest.assign(normal=ENDS[0]), highest.assign(normal=ENDS[1])]).sort_index(kind="stable")


def by_class(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of single classes and their means, for a column each, and the columns in their order.

    Means over different classes do not belong in one column: where there are several, it has those over all classes alone.
    """
    means, single = rows[is_mean(rows)], rows[~is_mean(rows)]
    if means["normal"].nunique() > 1:
        means = means[means["normal"] == "mean"]
    columns = sorted(set(single["normal"]), key=lambda normal: (len(normal), normal))
    return pd.concat([single, means.assign(normal="mean")]), [*columns, *["mean"][: len(means)]]


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


def markdown(table: pd.DataFrame, title: str) -> str:
    """A summary as a page that names the commands that made it, and each row's.

    Where there are several metrics, their class means stand in one table, and single classes have the first metric only. Each
    class has a column, as papers print them, with the paper's numbers below ours; CSV and HTML have its spread and interval.
    """
    commands = made_by(table)
    by = numbered(commands)
    lines = [
        f"# {title}",
        "",
        "Written by the commands below, to which the column `by` points; not edited by hand. `METHOD` is a row's method.",
        "`paper` is the number reported by `reference`; measured is mean ± standard deviation over seeds, the interval a",
        "stratified bootstrap over them.",
        "",
    ]
    for command, commit in commands.items():
        made_at = f" (commit {commit})" * bool(commit)
        lines.append(f"{by[command]}. `{_short(command)}`{made_at}")
    for section in sections(table, MOST_CLASSES):
        if section.pivoted:
            for mean, rows in section.rows[is_mean(section.rows)].groupby("normal", sort=False):
                rows = rows.assign(ours=readable(rows)["measured"], theirs=readable(rows)["paper"])
                text = _pivoted_text(rows, section.metrics, "metric", by)
                lines += ["", f"## {section.title}, {mean} over the normal classes", "", *table_lines(text)]
        for metric in section.metrics[: 1 if section.pivoted else None]:
            rows = section.of(metric)
            in_columns = _in_columns(rows)
            lines += ["", f"## {section.title}, {metric}", "", *table_lines(rows_text(rows[~in_columns], by))]
            if in_columns.any():
                text = _classes_text(rows[in_columns | is_mean(rows)], by)
                lines += ["", "Each class as the normal one:", "", *table_lines(text)]
    return "\n".join(lines) + "\n"


def _short(command: str) -> str:
    """A command with ``METHOD`` in place of five presets or more."""
    return re.sub(r"(?<=--presets )(?:[^-\s]\S* ){5,}", "'METHOD' ", command)


def _in_columns(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are of a single class in a line of several."""
    single = ~is_mean(rows)
    n_classes = rows["normal"].where(single).groupby([rows[key] for key in LINE]).transform("nunique")
    return single & (n_classes > 1)


def rows_text(rows: pd.DataFrame, by: Mapping[str, str]) -> pd.DataFrame:
    """A summary's rows as a page shows them, with the numbers of their commands."""
    text = readable(rows)
    text["measured"] += (" (" + text["seeds"] + ")").where(text["seeds"] != "", "")
    text = text.rename(columns={"measured": "measured (seeds)"}).drop(columns="seeds")
    if not text["base"].any():
        text = text.drop(columns=["Δ to base", "base"])
    return text.assign(by=rows["command"].map(by).fillna(""))


def _classes_text(rows: pd.DataFrame, by: Mapping[str, str]) -> pd.DataFrame:
    """One metric's lines with a column for each class, and their means."""
    text = readable(rows)
    names = dict(zip(rows["normal"], text["normal"], strict=True)) | dict(zip(ENDS, ENDS, strict=True))
    which = (" (" + rows["class_name"] + ")").where(rows["normal"].isin(ENDS), "")
    lines, columns = by_class(rows.assign(ours=rows["mean"].map(number) + which, theirs=text["paper"]))
    has_class = ~is_mean(lines).groupby([lines[key] for key in LINE]).transform("all")
    return _pivoted_text(lines[has_class], columns, "normal", by).rename(columns=names)


def _pivoted_text(rows: pd.DataFrame, columns: Sequence[str], of: str, by: Mapping[str, str]) -> pd.DataFrame:
    """Lines with a column for each metric or class."""
    lines = pivoted(rows, of)
    lines["method"] = lines["name"] + np.where(lines["stale"] == "", "", " (stale)")
    lines["method"] += np.where(lines["kind"].str.startswith("not run"), " " + lines["score"], "")
    is_below = lines["kind"].str.startswith("reported") & (lines["name"] == lines["name"].shift())
    lines["method"] = lines["method"].mask(is_below, "")
    lines["score"] = lines["score"].where(lines["kind"] == "", lines["kind"])
    return lines[["method", "score", "rule", "seeds", *columns]].assign(by=lines["command"].map(by).fillna(""))


def table_lines(text: pd.DataFrame) -> list[str]:
    """A frame of texts in Markdown."""
    body: list[list[str]] = [text.columns.tolist(), ["---"] * text.shape[1], *text.to_numpy().tolist()]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in body]


def latex(table: pd.DataFrame, title: str) -> str:
    r"""A summary as a fragment to ``\input``, in booktabs' rules; the preamble needs :data:`PACKAGES`.

    One table for each data set, protocol and metric, class means first. A row that is not measured says so in place of a
    number. The comment on top names the commands.
    """
    comments = [f"{title}; needs {PACKAGES}", *(f"made by: {command}" for command in made_by(table))]
    parts = [f"% {comment}\n" for comment in comments]
    parts.append("\\begingroup\\footnotesize\\setlength{\\tabcolsep}{3pt}\\setlength{\\LTcapwidth}{\\linewidth}\n")
    for section in sections(table, MOST_CLASSES):
        for metric in section.metrics:
            parts.append(_longtable(section.of(metric), f"{title}: {section.title}, {metric}"))
    return "".join([*parts, "\\endgroup\n"])


def _longtable(rows: pd.DataFrame, title: str) -> str:
    text = readable(rows)
    text["method"] = text["method"].str.replace(",", ", ")  # may be broken there
    text["measured"] = text["measured"].where(rows["n_seeds"] > 0, text["status"])
    shown = text[list(LATEX_NAMES)].rename(columns=LATEX_NAMES)
    fragment: str = (
        shown.style.hide(axis="index")
        .format(escape="latex")
        .to_latex(
            environment="longtable",
            hrules=True,
            column_format=LATEX_COLUMNS,
            caption=f"{title}; mean ± standard deviation over $n$ seeds".replace("_", r"\_"),
            label="tab:" + re.sub(r"[^a-z0-9]+", "-", title.lower()),
        )
    )
    return fragment.replace("±", r"$\pm$").replace("& -", "& $-$") + "\n"


def write_tables(
    table: pd.DataFrame, experiment: Experiment, folder: Path, suffixes: Sequence[str] = ("csv", "md")
) -> list[Path]:
    """Writes a summary as ``<name>.csv``, ``<name>.md`` and ``<name>.tex``, each whole or not at all, and returns the paths."""
    contents = {"csv": lambda: table.to_csv(index=False, float_format="%.6g")}
    contents["md"] = lambda: markdown(table, experiment.title)
    contents["tex"] = lambda: latex(table, experiment.title)
    paths = [folder / f"{experiment.name}.{suffix}" for suffix in suffixes]
    for path, suffix in zip(paths, suffixes, strict=True):
        write_whole(path, contents[suffix]())
    return paths
