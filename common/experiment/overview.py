"""Draws an experiment's class means: dots with intervals, beside the papers' numbers."""

import io
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.experiment.declaration import Experiment
from common.experiment.table import is_mean
from common.files import whole

OURS, BASELINE, REPORTED = "#0072B2", "#999999", "#D55E00"
INCHES_PER_ROW = 0.2
INCHES_PER_LETTER = 0.06
COLORS = 96
"""Of the picture's file: a palette takes a third of the bytes of full colours."""


def write_overview(table: pd.DataFrame, experiment: Experiment, folder: Path) -> list[Path]:
    """Writes :func:`overview` as ``<name>.png`` and returns its path; nothing where there is nothing to draw."""
    figure = overview(table, experiment)
    if figure is None:
        return []
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=88)
    path = folder / f"{experiment.name}.png"
    with whole(path) as temporary:
        Image.open(buffer).convert("RGB").quantize(COLORS).save(temporary, "PNG", optimize=True)
    return [path]


def overview(table: pd.DataFrame, experiment: Experiment) -> Figure | None:
    """One panel for each data set and protocol, one line for each row and score, the best on top; None without a measured mean.

    A dot is the measured mean over the classes, with its 95 % interval where there are several seeds; the epoch is that of
    the row's own rule, and a mean over some of the classes names them. An open diamond is the number that a paper reports
    for that row; rows of other methods that papers report have a diamond alone. The experiment's labels shorten the names.
    """
    means = table[is_mean(table) & (table["metric"] == "auroc") & (table["rule"] != "oracle") & (table["stale"] == "")]
    panels = []
    for (dataset, protocol), rows in means.groupby(["dataset", "protocol"], sort=False):
        rows = rows[(rows["n_seeds"] > 0) | (rows["status"] == "reported")]
        rows = rows.drop_duplicates(["name", "score", "normal", "reference"])  # a row's own rule comes first
        rows = rows.assign(position=rows["mean"].fillna(rows["paper"])).sort_values("position", kind="stable")
        if (rows["n_seeds"] > 0).any():
            panels.append((f"{dataset}, {protocol}", rows))
    if not panels:
        return None
    heights = [len(rows) + 3 for _, rows in panels]
    longest = max(len(label) for _, rows in panels for label in _labels(rows, experiment))
    width = max(7.2, 3.6 + INCHES_PER_LETTER * longest)
    figure = Figure(figsize=(width, INCHES_PER_ROW * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(panels), height_ratios=heights)
    for place, (title, rows) in enumerate(panels):
        _draw(figure.add_subplot(grid[place]), title, rows, experiment)
    figure.legend(*_legend(figure), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, title: str, rows: pd.DataFrame, experiment: Experiment) -> None:
    lines = pd.Series(range(len(rows)), index=rows.index)
    is_baseline = rows["name"].str.startswith("classical-")
    for kind, color, label in ((~is_baseline, OURS, "ours"), (is_baseline, BASELINE, "ours, classical detectors")):
        part = rows[kind & (rows["n_seeds"] > 0)]
        if part.empty:
            continue
        below, above = part["mean"] - part["ci_low"], part["ci_high"] - part["mean"]
        width = [side.fillna(0).clip(lower=0) for side in (below, above)]  # a mean of equal values differs by rounding
        axes.errorbar(part["mean"], lines[part.index], xerr=width, fmt="o", color=color, markersize=4, capsize=2, label=label)
    reported = rows[rows["paper"].notna()]
    if len(reported):
        axes.plot(reported["paper"], lines[reported.index], "D", mfc="none", color=REPORTED, markersize=5, label="reported")
    axes.set_yticks(lines, _labels(rows, experiment), fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="both", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _labels(rows: pd.DataFrame, experiment: Experiment) -> list[str]:
    """Each row's short name, its score where the name does not tell it, and its seeds; or whose number it is."""
    labels = []
    columns = ("name", "score", "normal", "n_seeds", "reference")
    for name, score, normal, seeds, reference in zip(*(rows[key] for key in columns), strict=True):
        if not seeds:
            labels.append(reference)
            continue
        text = experiment.labels.get(name, name).removeprefix(f"{experiment.name}-").removeprefix("classical-")
        if score and not name.startswith("classical-"):
            text += f", {experiment.labels.get(score, score)}"
        labels.append(f"{text}{normal.removeprefix('mean')} ({seeds})")
    return labels


def _legend(figure: Figure) -> tuple[list[Artist], list[str]]:
    """Each kind of mark once, whichever panels have it."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
