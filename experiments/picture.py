"""Draws a finished run: test images, their reconstructions, and the scores with the threshold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from common.command_line import Parser, one_line_errors
from common.data import OneClassDataModule
from common.deploy.load import load_detector
from common.errors import InputError
from common.evaluation.figures import ANOMALOUS, NORMAL
from common.experiment.folder import chosen_checkpoint
from common.experiment.records import FILE, Record, read_record
from common.files import save_figure
from common.presets import read_config

IMAGES = 6
"""Number of normal and of anomalous images, at equal steps of their rank by score, so that none is picked by hand."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draws one cell of a table, if its module reconstructs the input, like OCGAN."""
    parser = Parser(prog="python -m experiments.picture", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished cell, such as runs/ocgan-tuned/mnist/…/seed=0")
    parser.add_argument("--out", type=Path, default=Path("picture.png"), metavar="FILE", help="default: picture.png")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        figure = picture(arguments.run)
        save_figure(figure, arguments.out, dpi=110)
        print(f"written: {arguments.out}")


def picture(run: Path) -> Figure:
    """Draws images, reconstructions and the distribution of the record's score.

    Raises:
        InputError: The folder holds no finished cell, or its module does not reconstruct.
    """
    record = read_record(run / FILE)
    detector = load_detector(chosen_checkpoint(run, record))
    data = OneClassDataModule(**read_config(run / "config.yaml")["data"])
    data.setup()
    table = pd.read_csv(run / "scores.csv").sort_values(record["score"])
    if table["label"].nunique() < 2:
        raise InputError(f"{run} tests normal samples or anomalies alone: choose a run with both")
    chosen = pd.concat([_evenly(table[table["label"] == label]) for label in (0, 1)])
    images = data.images(chosen["index"].to_numpy(copy=True))
    with torch.inference_mode():
        decoded = detector.module.reconstruct(images)
    if decoded is None:
        raise InputError(f"{record['name']} does not reconstruct its input: choose a run of OCGAN, ALOCC or an autoencoder")
    figure = Figure(figsize=(9.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.1, 1))
    flagged = (chosen[record["score"]] >= threshold_of(record)).to_numpy()
    _draw_images(left, images.numpy(), decoded.numpy(), flagged)
    _draw_scores(right, table, record)
    cell = record["cell"]
    figure.suptitle(f"{record['name']} on {cell['dataset']}, normal class {'+'.join(record['classes'])}", fontsize=10)
    return figure


def threshold_of(record: Record) -> float:
    """The threshold of a record; infinite where nothing was held out, so that nothing is flagged."""
    return np.inf if record["threshold"] is None else float(record["threshold"])


def _evenly(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[(np.linspace(0.05, 0.95, IMAGES) * (len(rows) - 1)).astype(int)]


def _draw_images(axes: Axes, images: NDArray[np.float32], decoded: NDArray[np.float32], flagged: NDArray[np.bool_]) -> None:
    """Draws images above their reconstructions, with a frame around flagged ones."""
    low, high = images.min(), images.max()
    for place, pair in enumerate(zip(images, decoded, strict=True)):
        gap = 0.4 * (place >= IMAGES)
        for row, image in enumerate(pair):
            extent = (1.1 * place + gap, 1.1 * place + gap + 1, -1.1 * row - 1, -1.1 * row)
            axes.imshow(np.moveaxis(image, 0, -1), "gray", vmin=low, vmax=high, interpolation="nearest", extent=extent)
        if flagged[place]:
            corner = (extent[0] - 0.04, extent[2] - 0.04)
            axes.add_patch(Rectangle(corner, 1.08, 2.18, fill=False, color=ANOMALOUS, linewidth=1.6))
    axes.set(xlim=(-0.1, 2.2 * IMAGES + 0.4), ylim=(-2.2, 0.5))
    for start, name, color in ((0, "normal", NORMAL), (1.1 * IMAGES + 0.4, "anomalies", ANOMALOUS)):
        axes.text(start, 0.12, f"{name}, from low to high score", fontsize=8, color=color)
    axes.set_yticks([-0.5, -1.6], ["image", "decoded"], fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("framed: flagged by the threshold from held-out normal images", fontsize=8)


def _draw_scores(axes: Axes, table: pd.DataFrame, record: Record) -> None:
    scores = table[record["score"]]
    edges = np.linspace(scores.min(), scores.quantile(0.995), 41)
    for label, name, color in ((0, "normal", NORMAL), (1, "anomalies", ANOMALOUS)):
        values = scores[table["label"] == label].clip(upper=edges[-1])
        axes.hist(values, list(edges), density=True, alpha=0.5, color=color, label=f"{name} ({len(values)})")
    if np.isfinite(threshold_of(record)):
        axes.axvline(threshold_of(record), color="black", linewidth=1, label="threshold")
    auroc = record["metrics"][record["score"]]["auroc"]
    axes.set_title(f"AUROC {auroc:.3f}", fontsize=9)
    axes.set_xlabel("score (higher = more anomalous)", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)


if __name__ == "__main__":
    main()
