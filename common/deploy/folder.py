"""A trained detector over a folder of images: a table and a contact sheet."""

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from common.data.features import ahead
from common.data.images import EXTENSIONS, ImageFiles
from common.deploy.load import Detector, load_detector
from common.errors import InputError, UnreadableError
from common.evaluation import conformal_p_value, image_grid, score_histogram, threshold_by
from common.files import whole

BATCH = 64
ON_SHEET = 16


class Judged(NamedTuple):
    """Some files: those that could be read, their ``(N,)`` scores, and what is wrong with each of the others."""

    paths: list[Path]
    scores: NDArray[np.float64]
    unreadable: list[str]


def image_files(folder: Path) -> list[Path]:
    """All image files in a folder and below it, in the order of their paths; hidden ones are left out.

    Raises:
        InputError: No such folder, or no images in it.

    Example:
        >>> image_files(Path("/nowhere"))
        Traceback (most recent call last):
        common.errors.InputError: no folder /nowhere
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    found = sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise InputError(f"no images in {folder}")
    return found


def judge(detector: Detector, paths: Sequence[Path]) -> Iterator[Judged]:
    """Scores files batch by batch; the next batch is decoded in threads meanwhile, and no more than two are in memory.

    Args:
        detector: Of images.
        paths: Decoded as the training images were: scaled and centre-cropped to ``detector.stored``.
    """
    files = _files(detector, paths)

    def decoded(index: int) -> tuple[Path, Tensor | str]:
        try:
            return paths[index], torch.tensor(files.decode(index)).permute(2, 0, 1)
        except UnreadableError as error:
            return paths[index], str(error)

    batches = [range(len(paths))[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    with ThreadPoolExecutor() as pool:
        for batch in ahead(lambda indices: list(pool.map(decoded, indices)), batches):
            good = [(path, image) for path, image in batch if isinstance(image, Tensor)]
            scores = detector.scores(torch.stack([image for _, image in good])).numpy() if good else np.empty(0)
            yield Judged([path for path, _ in good], scores, [image for _, image in batch if isinstance(image, str)])


def predict_folder(
    checkpoint: Path,
    folder: Path,
    out: Path = Path("predictions.csv"),
    threshold: str | None = None,
    figures: Path | None = None,
    device: str = "cpu",
) -> Judged:
    """Writes a CSV of ``path, score, p_value, label`` of every image in a folder, and says what it found.

    Higher scores are more anomalous; ``p_value`` is :func:`common.evaluation.conformal_p_value` among the checkpoint's
    held-out normal scores; ``label`` is 1 where the score reaches the threshold. Where the checkpoint holds no such scores
    ``p_value`` is empty, and ``label`` too unless ``threshold`` is a score. Files that cannot be read are named, and left out.

    Args:
        checkpoint: As ``oneclass fit`` or an experiment leaves it.
        folder: Searched with all that is below it.
        out: The CSV, which is there whole or not at all.
        threshold: As :func:`common.evaluation.threshold_by` reads it; that of the checkpoint by default.
        figures: Where ``contact_sheet.png`` and ``score_histogram.png`` go.
        device: Of the module.

    Raises:
        InputError: What :func:`common.deploy.load.load_detector` and :func:`image_files` refuse, a detector of table rows or
            of float images, no image that can be read, or a place that cannot be written.

    Example:
        >>> predict_folder(Path("runs/fit/version_0/checkpoints/last.ckpt"), Path("new"))  # doctest: +SKIP
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    detector = load_detector(checkpoint, device)
    _check_that_files_fit(checkpoint, detector)
    paths = image_files(folder)
    calibration = detector.module.calibration.numpy()
    limit = float(detector.module.threshold) if threshold is None else threshold_by(threshold, calibration)
    parts = []
    with whole(out) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "score", "p_value", "label"))
        for part in track(judge(detector, paths), "scoring", -(-len(paths) // BATCH), console=console):
            parts.append(part)
            table.writerows(_rows(part, calibration, limit))
        judged = Judged(
            [path for part in parts for path in part.paths],
            np.concatenate([part.scores for part in parts]),
            [reason for part in parts for reason in part.unreadable],
        )
        if not judged.paths:
            raise InputError(f"none of the {len(paths)} images in {folder} can be read: {judged.unreadable[0]}")
    for reason in judged.unreadable:
        console.print(f"left out: {reason}")
    if np.isnan(limit):
        console.print("no labels: the checkpoint has no held-out scores; give a score as --threshold")
    else:
        flagged = int((judged.scores >= limit).sum())
        console.print(f"{flagged} of {len(judged.paths)} images reach the threshold {limit:.6g}")
    console.print(f"written: {out}")
    if figures is not None:
        for path in _draw(detector, judged, limit, figures):
            console.print(f"written: {path}")
    return judged


def _check_that_files_fit(checkpoint: Path, detector: Detector) -> None:
    if len(detector.stored) != 3:
        raise InputError(f"{checkpoint} scores rows of {detector.stored[0]} columns, not images: score them in Python")
    if detector.preprocessing.minimum is not None:
        raise InputError(f"{checkpoint} was trained on float images, whose range image files do not have: score them in Python")


def _files(detector: Detector, paths: Sequence[Path]) -> ImageFiles:
    channels, height, width = detector.stored
    return ImageFiles(list(paths), (height, width), channels)


def _rows(part: Judged, calibration: NDArray[np.float64], limit: float) -> Iterator[tuple[object, ...]]:
    p_values = conformal_p_value(part.scores, calibration) if len(calibration) and part.paths else [""] * len(part.paths)
    for path, score, p_value in zip(part.paths, part.scores, p_values, strict=True):
        yield path, score, p_value, "" if np.isnan(limit) else int(score >= limit)


def _draw(detector: Detector, judged: Judged, limit: float, folder: Path) -> Iterator[Path]:
    images = _files(detector, judged.paths)
    order = np.argsort(-judged.scores, kind="stable")
    most = order[: min(ON_SHEET, (len(order) + 1) // 2)]
    least = order[::-1][: min(ON_SHEET, len(order) // 2)]
    shown, scores = np.append(most, least), judged.scores
    sheet = images[torch.from_numpy(shown)]
    groups = {"most": sheet[: len(most)], "least": sheet[len(most) :]}
    titles = [f"{score:.4g}" for score in scores[shown]]
    drawn = {
        "contact_sheet": image_grid(groups, titles, "most and least anomalous images, with scores"),
        "score_histogram": score_histogram(scores, scores >= limit, limit),
    }
    for name, figure in drawn.items():
        with whole(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        yield folder / f"{name}.png"
