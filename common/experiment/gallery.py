"""Figures of finished runs as images that a web page holds in itself."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from common.data import dataset_label
from common.errors import InputError
from common.evaluation.figures import ANOMALOUS, score_histogram
from common.experiment.records import Record

WIDTH = 640
REDRAWN = {"roc", "precision_recall"}
"""Figures of one class that the curves of all classes replace."""


class Picture(NamedTuple):
    """An image as a data URI, its size in pixels, and a text."""

    uri: str
    width: int
    height: int
    text: str


class Gallery(NamedTuple):
    """Figures of a method on a data set under a protocol."""

    title: str
    pictures: list[Picture]


def galleries(records: Iterable[Record]) -> Iterator[Gallery]:
    """Draws each row's data sets and protocols, with the first seed: ROC curves of all classes, and the figures of one class.

    That class is the one with the median AUROC (the lower of two).

    Args:
        records: Of finished cells; ``folder`` says where each lies.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        cell = record["cell"]
        groups.setdefault((record["name"], dataset_label(cell["dataset"]), cell["protocol"]), []).append(record)
    for (name, dataset, protocol), group in groups.items():
        seed = min(record["cell"]["seed"] for record in group)
        drawn = [record for record in group if record["cell"]["seed"] == seed and _auroc(record) is not None]
        if not drawn:
            continue
        drawn.sort(key=lambda record: (_auroc(record), record["cell"]["normal"]))
        middle = drawn[(len(drawn) - 1) // 2]
        pictures = [_drawn(_roc_curves(drawn), f"ROC, {len(drawn)} normal classes" if len(drawn) > 1 else "ROC")]
        pictures += _of_class(middle)
        yield Gallery(f"{name} on {dataset}, {protocol}, seed {seed}", pictures)


def _scores(record: Record) -> pd.DataFrame:
    """A finished cell's scored test set: columns ``target``, ``label`` and ``score``, the record's own."""
    path = Path(record["folder"], "scores.csv")
    try:
        return pd.read_csv(path).rename(columns={record["score"]: "score"})[["target", "label", "score"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}): run its cell again with --force") from error


def _auroc(record: Record) -> float | None:
    value: float | None = record["metrics"].get(record["score"], {}).get("auroc")
    return value


def _roc_curves(records: Sequence[Record]) -> Figure:
    """Thin: each class; thick: the mean of the true positive rates."""
    grid = np.linspace(0, 1, 201)
    curves = []
    for record in records:
        scores = _scores(record)
        fpr, tpr, _ = roc_curve(scores["label"], scores["score"])
        curves.append(np.interp(grid, fpr, tpr))
    figure = Figure(figsize=(3.6, 3.8), layout="constrained")
    axes = figure.subplots(subplot_kw={"aspect": "equal", "xlim": (0, 1), "ylim": (0, 1)})
    axes.plot([0, 1], [0, 1], ":", color="0.45")
    axes.plot(grid, np.transpose(curves), color="0.6", linewidth=0.7)
    axes.plot(grid, np.mean(curves, axis=0), color=ANOMALOUS, linewidth=2)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(f"mean AUROC {np.mean([_auroc(record) for record in records]):.3f}", fontsize=10)
    return figure


def _of_class(record: Record) -> Iterator[Picture]:
    where = f"normal class {record['cell']['normal']}"
    files = sorted(Path(record["folder"], "figures").glob("*.png"))
    if "score_histogram" not in {path.stem for path in files}:
        scores = _scores(record)
        figure = score_histogram(scores["score"], scores["label"], record.get("threshold"), targets=scores["target"])
        yield _drawn(figure, f"score histogram, {where}")
    for path in files:
        if path.stem not in REDRAWN:
            with Image.open(path) as image:
                yield _picture(image, f"{path.stem.replace('_', ' ')}, {where}")


def _drawn(figure: Figure, text: str) -> Picture:
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return _picture(Image.fromarray(np.asarray(canvas.buffer_rgba())), text)


def _picture(image: Image.Image, text: str) -> Picture:
    image = image.convert("RGB")
    image.thumbnail((WIDTH, 2 * WIDTH))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=70, method=4)
    return Picture("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(), *image.size, text)
