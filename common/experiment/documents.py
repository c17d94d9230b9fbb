"""Writes a summary as CSV, Markdown and LaTeX."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.experiment.declaration import Experiment
from common.experiment.render import ENDS, LINE, by_class, made_by, number, numbered, pivoted, readable, rows_text, sections
from common.experiment.table import is_mean
from common.files import write_whole

MOST_CLASSES = 20
"""Of more classes Markdown and LaTeX show the lowest and the highest; records, CSV and HTML have all."""

PACKAGES = r"\usepackage{booktabs,longtable,array}"
"""What the preamble of a LaTeX document needs."""

LATEX_NAMES = {
    "method": "method", "score": "score", "normal": "normal", "rule": "rule", "paper": "paper", "measured": "ours",
    "seeds": "$n$", "Δ": r"$\Delta$", "Δ to base": r"$\Delta$ to base", "reference": "whose number",
}  # fmt: skip
"""Columns of a LaTeX table, and what their headings are."""

LATEX_COLUMNS = r">{\raggedright\arraybackslash}p{0.17\linewidth}llllrrrr>{\raggedright\arraybackslash}p{0.18\linewidth}"


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
                text = _pivoted_text(rows, section.metrics_of(rows), "metric", by)
                lines += ["", f"## {section.title}, {mean} over the normal classes", "", *table_lines(text)]
        for metric in section.detailed:
            rows = section.of(metric)
            in_columns = _in_columns(rows)
            lines += ["", f"## {section.title}, {metric}"]
            if not in_columns.all():
                lines += ["", *table_lines(rows_text(rows[~in_columns], by))]
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


def _classes_text(rows: pd.DataFrame, by: Mapping[str, str]) -> pd.DataFrame:
    """One metric's lines with a column for each class, and their means; a line of a mean alone has none here."""
    rows = rows[~is_mean(rows).groupby([rows[key] for key in LINE]).transform("all")]
    text = readable(rows)
    names = dict(zip(rows["normal"], text["normal"], strict=True)) | dict(zip(ENDS, ENDS, strict=True))
    which = (" (" + rows["class_name"] + ")").where(rows["normal"].isin(ENDS), "")
    lines, columns = by_class(rows.assign(ours=rows["mean"].map(number) + which, theirs=text["paper"]))
    return _pivoted_text(lines, columns, "normal", by).rename(columns=names)


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
