"""What people read of a summary: its rows as text, its sections, and the CSV, Markdown and LaTeX files of it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.experiment.table import is_mean
from common.files import write_whole

PACKAGES = r"\usepackage{booktabs,longtable,array}"
"""What the preamble of a LaTeX document needs."""

_LATEX_COLUMNS = r">{\raggedright\arraybackslash}p{0.17\linewidth}llllrrrr>{\raggedright\arraybackslash}p{0.18\linewidth}"


class Section(NamedTuple):
    """A data set and a protocol of a summary.

    Attributes:
        title: Both.
        rows: Class means first.
        metrics: The most important first.
        pivoted: Whether there are so many metrics that their means stand in one table with a column for each, and single
            classes with the first metric only.
    """

    title: str
    rows: pd.DataFrame
    metrics: list[str]
    pivoted: bool

    def of(self, metric: str) -> pd.DataFrame:
        """One metric's rows."""
        return self.rows[self.rows["metric"] == metric]

    def means(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """What each mean is called, and its rows."""
        for name, rows in self.rows[is_mean(self.rows)].groupby("normal", sort=False):
            yield str(name), rows


def sections(table: pd.DataFrame) -> Iterator[Section]:
    """The parts of a summary that stand under one heading."""
    for (dataset, protocol), rows in table.groupby(["dataset", "protocol"], sort=False):
        rows = rows.iloc[np.argsort(~is_mean(rows), kind="stable")]
        metrics = list(dict.fromkeys(rows["metric"]))
        yield Section(f"{dataset}, {protocol}", rows, metrics, bool(is_mean(rows).any()) and len(metrics) > 2)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A summary's rows as text, with columns that are empty throughout where there is nothing to say of a base.

    Example:
        >>> from common.experiment.table import as_summary
        >>> rows = readable(as_summary([{"name": "DAE", "paper": 0.877, "normal": "3", "class_name": "Dress"}]))
        >>> rows[["method", "normal", "paper", "Δ"]].values.tolist()
        [['DAE', '3 Dress', '0.877', '']]
    """
    spread = [f" ± {number(std)}" if seeds > 1 else "" for std, seeds in zip(table["std"], table["n_seeds"], strict=True)]
    seeds = table["n_seeds"].astype(str).where(table["n_seeds"] > 0, "")
    base = between(table["base_low"], table["base_high"], difference, " to ")
    return pd.DataFrame({
        "method": table["name"] + np.where(table["stale"] == "", "", " (stale)"),
        "score": table["score"],
        "normal": (table["normal"] + " " + table["class_name"]).str.strip(),
        "paper": texts(table["paper"], number),
        "measured": texts(table["mean"], number) + spread,
        "seeds": seeds,
        "Δ": texts(table["delta"], difference),
        "95 % interval": between(table["ci_low"], table["ci_high"], number, "–"),
        "Δ to base": texts(table["base_delta"], difference) + base.map(" ({})".format).where(base != "", ""),
        "base": table["base"].where(table["base_delta"].notna(), ""),
        "rule": table["rule"],
        "status": table["status"],
        "reference": table["reference"],
    }, index=table.index)  # fmt: skip


def number(value: float) -> str:
    """Three decimals, or none from 10 on; nothing for NaN."""
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def difference(value: float) -> str:
    """With its sign; nothing for NaN."""
    return "" if np.isnan(value) else f"{value:+.3f}"


def between(low: "pd.Series[float]", high: "pd.Series[float]", text: Callable[[float], str], to: str) -> "pd.Series[str]":
    """Intervals as text; nothing for NaN."""
    return (texts(low, text) + to + texts(high, text)).where(low.notna(), "")


def texts(values: "pd.Series[float]", text: Callable[[float], str]) -> "pd.Series[str]":
    """Every value as text; pandas would take an empty series for one of numbers."""
    return values.map(text).astype(object)


def pivoted(rows: pd.DataFrame, metrics: Sequence[str], text: Callable[[float, float], str]) -> pd.DataFrame:
    """A line for each name, score and rule with a column for each metric, and one for the numbers that it stands beside.

    Args:
        rows: Of one mean.
        metrics: The columns.
        text: Of a value and its standard deviation.

    Returns:
        Columns ``name, score, rule, seeds, kind, stale, command`` and the metrics; ``kind`` is empty where the line was
        measured, else ``reported`` or ``not run`` and whose numbers they are. A name stands once beside each of these.
    """
    lines = []
    shown: set[tuple[Any, Any]] = set()
    for (name, score, rule), of_one in rows.groupby(["name", "score", "rule"], sort=False):
        line = {"name": name, "score": score, "rule": rule, "kind": ""}
        line |= of_one[["stale", "command"]].iloc[0].to_dict()
        measured = of_one[of_one["n_seeds"] > 0]
        if len(measured):
            line["seeds"] = str(measured["n_seeds"].max())
            cells = zip(measured["metric"], measured["mean"], measured["std"], strict=True)
            lines.append(line | {metric: text(mean, std) for metric, mean, std in cells})
        for reference, theirs in of_one[of_one["reference"] != ""].groupby("reference", sort=False):
            if (name, reference) not in shown:
                shown.add((name, reference))
                kind = "reported" if len(measured) else theirs["status"].iloc[0]
                values = {metric: text(paper, np.nan) for metric, paper in zip(theirs["metric"], theirs["paper"], strict=True)}
                lines.append({**line, "kind": f"{kind}: {reference}", "seeds": ""} | values)
    columns = ["name", "score", "rule", "seeds", "kind", "stale", "command", *metrics]
    return pd.DataFrame(lines, columns=columns).fillna("")


def made_by(table: pd.DataFrame) -> dict[str, str]:
    """The commands of a summary in their order, and the commits at which each was run."""
    measured = table[table["command"] != ""]
    commits = {}
    for command, rows in measured.groupby("command", sort=False):
        names = dict.fromkeys(rows["commit"].str.split(", ").explode())
        commits[str(command)] = ", ".join(re.sub(r"^(\w{7})\w+", r"\1", str(name)) for name in names if name)
    return commits


def markdown(table: pd.DataFrame, title: str) -> str:
    """A summary as a page that names the commands that made it, and of several each row's.

    Where there are several metrics, their class means stand in one table, and each class only with the first metric; the
    CSV has them all.
    """
    commands = made_by(table)
    by = {command: str(i) for i, command in enumerate(commands, 1)} if len(commands) > 1 else {}
    lines = [f"# {title}", "", *_introduction(commands)]
    for section in sections(table):
        if section.pivoted:
            for mean, rows in section.means():
                lines += ["", f"## {section.title}, {mean} over the normal classes", ""]
                lines += _pivot_lines(rows, section.metrics, by)
        for metric in section.metrics[:1] if section.pivoted else section.metrics:
            lines += ["", f"## {section.title}, {metric}", "", *_row_lines(section.of(metric), by)]
    return "\n".join(lines) + "\n"


def _introduction(commands: dict[str, str]) -> list[str]:
    entries = [f"`{command}` (commit {commit})".replace(" (commit )", "") for command, commit in commands.items()]
    makers = entries[0] if entries else "no command"
    if len(entries) > 1:
        makers = "the commands below, to which the column `by` points"
    lines = [
        f"Written by {makers}; not edited by hand. `paper` is the number reported by `reference`;",
        "measured is mean ± standard deviation over seeds, the interval a stratified bootstrap over them.",
    ]
    if len(entries) > 1:
        lines += ["", *(f"{i}. {entry}" for i, entry in enumerate(entries, 1))]
    return lines


def _row_lines(rows: pd.DataFrame, by: Mapping[str, str]) -> list[str]:
    text = readable(rows)
    text["measured"] = (text["measured"] + " (" + text["seeds"] + ")").where(text["seeds"] != "", "")
    text = text.rename(columns={"measured": "measured (seeds)"}).drop(columns="seeds")
    if not text["base"].any():
        text = text.drop(columns=["Δ to base", "base"])
    return table_lines(_with_command(text, rows["command"], by))


def _pivot_lines(rows: pd.DataFrame, metrics: Sequence[str], by: Mapping[str, str]) -> list[str]:
    lines = pivoted(rows, metrics, lambda mean, std: number(mean) + (f" ± {number(std)}" if std == std else ""))
    lines["method"] = lines["name"] + np.where(lines["stale"] == "", "", " (stale)")
    not_run, reported = lines["kind"].str.startswith("not run"), lines["kind"].str.startswith("reported")
    lines.loc[not_run, "method"] += " " + lines["score"]
    lines.loc[reported & (lines["name"] == lines["name"].shift()), "method"] = ""
    lines["score"] = lines["score"].where(lines["kind"] == "", lines["kind"])
    lines["rule"] = lines["rule"].where(lines["kind"] == "", "")
    return table_lines(_with_command(lines[["method", "score", "rule", "seeds", *metrics]], lines["command"], by))


def _with_command(text: pd.DataFrame, command: "pd.Series[str]", by: Mapping[str, str]) -> pd.DataFrame:
    return text.assign(by=command.map(by).fillna("")) if by else text


def table_lines(text: pd.DataFrame) -> list[str]:
    """A frame of texts in Markdown."""
    body: list[list[str]] = [text.columns.tolist(), ["---"] * text.shape[1], *text.to_numpy().tolist()]
    return ["| " + " | ".join(line) + " |" for line in body]


def latex(table: pd.DataFrame, title: str) -> str:
    r"""A summary as a fragment to ``\input``, in booktabs' rules; the preamble needs :data:`PACKAGES`.

    One table for each data set, protocol and metric, class means first. A row that is not measured says so in place of a
    number. The comment on top names the commands.
    """
    comments = [f"{title}; needs {PACKAGES}", *(f"made by: {command}" for command in made_by(table))]
    parts = ["".join(f"% {comment}\n" for comment in comments)]
    parts.append("\\begingroup\\footnotesize\\setlength{\\tabcolsep}{3pt}\\setlength{\\LTcapwidth}{\\linewidth}\n")
    for section in sections(table):
        for metric in section.metrics:
            rows = section.of(metric)
            if section.pivoted and metric != section.metrics[0]:
                rows = rows[is_mean(rows)]
            if len(rows):
                parts.append(_longtable(rows, f"{title}: {section.title}, {metric}"))
    return "".join([*parts, "\\endgroup\n"])


def _longtable(rows: pd.DataFrame, title: str) -> str:
    text = readable(rows)
    text["method"] = text["method"].str.replace(",", ", ")  # may be broken there
    text["measured"] = text["measured"].where(rows["n_seeds"] > 0, text["status"])
    shown = text[["method", "score", "normal", "rule", "paper", "measured", "seeds", "Δ", "Δ to base", "reference"]]
    names = {
        "measured": "ours",
        "seeds": "$n$",
        "Δ": r"$\Delta$",
        "Δ to base": r"$\Delta$ to base",
        "reference": "whose number",
    }
    style = shown.rename(columns=names).style.hide(axis="index").format(escape="latex")
    fragment: str = style.to_latex(
        environment="longtable",
        hrules=True,
        column_format=_LATEX_COLUMNS,
        caption=f"{title}; mean ± standard deviation over $n$ seeds".replace("_", r"\_"),
        label="tab:" + re.sub(r"[^a-z0-9]+", "-", title.lower()),
    )
    for character, symbol in {"±": r"$\pm$", "Δ": r"$\Delta$", "& -": "& $-$"}.items():
        fragment = fragment.replace(character, symbol)
    return fragment + "\n"


def write_tables(
    table: pd.DataFrame, folder: Path, name: str, title: str, suffixes: Sequence[str] = ("csv", "md")
) -> list[Path]:
    """Writes a summary as ``<name>.csv``, ``<name>.md`` and ``<name>.tex``, each whole or not at all, and returns the paths."""
    contents = {"csv": lambda: table.to_csv(index=False, float_format="%.6g"), "md": lambda: markdown(table, title)}
    contents["tex"] = lambda: latex(table, title)
    paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
    for path, suffix in zip(paths, suffixes, strict=True):
        write_whole(path, contents[suffix]())
    return paths
