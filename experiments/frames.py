"""Draws a finished run on video frames: the most anomalous patches of two frames, and the scores of their clip."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.command_line import Parser, one_line_errors
from common.data import OneClassDataModule
from common.data.images import Patches
from common.deploy.load import load_detector
from common.errors import InputError
from common.evaluation.figures import ANOMALOUS, NORMAL
from common.experiment.folder import chosen_checkpoint
from common.experiment.records import FILE, Record, read_record
from common.files import save_figure
from experiments.picture import threshold_of

MARKED = 10
"""Number of patches that are marked in a frame."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draws one cell of a table whose samples are patches of frames, like ALOCC's on UCSD Ped2."""
    parser = Parser(prog="python -m experiments.frames", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished cell, such as runs/alocc-stable/ucsd_ped2/…/seed=0")
    parser.add_argument("--clip", help="such as Test004 (default: the first clip with normal and abnormal frames)")
    parser.add_argument("--out", type=Path, default=Path("frames.png"), metavar="FILE", help="default: frames.png")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        figure = frames(arguments.run, arguments.clip)
        save_figure(figure, arguments.out, dpi=85)
        print(f"written: {arguments.out}")


def frames(run: Path, clip: str | None = None) -> Figure:
    """Draws a clip's abnormal and normal frame of median score, their most anomalous patches, and the scores of all frames.

    Of a net, which is saved, the ten most anomalous patches are marked; of a classical detector, which is not, only one.

    Raises:
        InputError: The folder holds no finished cell, its samples are not patches of files, or there is no such clip.
    """
    record = read_record(run / FILE)
    table = pd.read_csv(run / "scores.csv")
    if "top" not in table:
        raise InputError(f"{run} was not tested on patches of frames: choose a run on ucsd_ped2")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    data = OneClassDataModule(**config["data"])
    rows = _of_clip(table, clip)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.4, 1))
    shown = [_median(rows, record["score"], label) for label in (1, 0)]
    for column, row in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        _draw_frame(axes, row, _most_anomalous(run, record, data, row), data, record)
    _draw_scores(figure.add_subplot(grid[1, :]), rows, shown, record)
    auroc, eer = (record["metrics"][record["score"]][metric] for metric in ("auroc", "eer"))
    figure.suptitle(f"{record['name']}, AUROC of all frames {auroc:.3f}, equal error rate {eer:.3f}", fontsize=10)
    return figure


def _of_clip(table: pd.DataFrame, clip: str | None) -> pd.DataFrame:
    """The rows of one clip in order, with the columns ``clip`` and ``frame``."""
    paths = [Path(path) for path in table["path"]]
    table = table.assign(clip=[path.parent.name for path in paths], frame=[int(path.stem) for path in paths])
    both = table.groupby("clip")["label"].nunique() == 2
    known = list(both.index[both])
    if not known or clip not in {None, *known}:
        raise InputError(f"no clip '{clip or ''}' with normal and abnormal frames was tested: choose from {', '.join(known)}")
    return table[table["clip"] == (clip or known[0])].sort_values("frame")


def _median(rows: pd.DataFrame, score: str, label: int) -> "pd.Series[float]":
    """The frame of a label that has the median score, so that none is picked by hand."""
    ranked = rows[rows["label"] == label].sort_values(score)
    return ranked.iloc[(len(ranked) - 1) // 2]


def _most_anomalous(run: Path, record: Record, data: OneClassDataModule, row: "pd.Series[float]") -> list[tuple[int, float]]:
    """Indices and scores of a frame's most anomalous patches, the highest first."""
    checkpoint = chosen_checkpoint(run, record)
    if not checkpoint.is_file():
        return [(int(row["index"]), float(row[record["score"]]))]
    assert data.groups is not None
    patches = np.flatnonzero(data.groups == data.groups[int(row["index"])])
    scores = load_detector(checkpoint).scores(data.data.images[torch.from_numpy(patches)])
    highest = scores.argsort(descending=True)[:MARKED]
    return list(zip(patches[highest].tolist(), scores[highest].tolist(), strict=True))


def _draw_frame(
    axes: Axes, row: "pd.Series[float]", marked: Sequence[tuple[int, float]], data: OneClassDataModule, record: Record
) -> None:
    images = data.data.images
    assert isinstance(images, Patches)
    height, width = images.shape[2:]
    number = int(images.corners[int(row["index"])][0])
    axes.imshow(images.frames[number], "gray", vmin=0, vmax=255)
    for index, score in marked:
        _, top, left = images.corners[index].tolist()
        color = ANOMALOUS if score >= threshold_of(record) else "white"
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, color=color, linewidth=1.4))
    kind = "abnormal" if row["label"] else "normal"
    axes.set_title(f"{row['clip']}, frame {row['frame']}, {kind}: score {row[record['score']]:.3g}", fontsize=9)
    axes.set_xlabel("most anomalous patches; orange: above the threshold", fontsize=8)
    axes.set(xticks=[], yticks=[])


def _draw_scores(axes: Axes, rows: pd.DataFrame, shown: Sequence["pd.Series[float]"], record: Record) -> None:
    frame, score = rows["frame"], rows[record["score"]]
    bounds = np.flatnonzero(np.diff(rows["label"], prepend=0, append=0))
    for start, end in bounds.reshape(-1, 2):
        axes.axvspan(frame.iloc[start] - 0.5, frame.iloc[end - 1] + 0.5, color=ANOMALOUS, alpha=0.15, linewidth=0)
    axes.plot(frame, score, color=NORMAL, linewidth=1.2)
    axes.plot([row["frame"] for row in shown], [row[record["score"]] for row in shown], "o", color="black", markersize=4)
    if np.isfinite(threshold_of(record)):
        axes.axhline(threshold_of(record), color="black", linewidth=1)
    axes.set_title(
        f"{rows['clip'].iloc[0]}: shaded frames are abnormal; dots: the frames above; line: threshold from held-out frames",
        fontsize=9,
    )
    axes.set_xlabel("frame", fontsize=8)
    axes.set_ylabel(f"score: {record['score'].replace('_', ' ')}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(x=0)


if __name__ == "__main__":
    main()
