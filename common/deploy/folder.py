"""A trained detector over a folder of images: a table and a contact sheet."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from common.data.features import ahead
from common.data.folders import left_out_line, listed
from common.data.images import ImageFiles
from common.deploy.load import Detector, load_detector
from common.errors import InputError, UnreadableError
from common.evaluation import conformal_p_value, image_grid, samples_needed, score_histogram, threshold_by
from common.files import refuse_input, whole

BATCH = 64
ON_SHEET = 16


def predict_folder(
    checkpoint: Path,
    folder: Path,
    out: Path = Path("predictions.csv"),
    threshold: str | None = None,
    figures: Path | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """Writes a table of ``path, score, p_value, label`` of every image in a folder as CSV, and says what it found.

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
        InputError: What :func:`common.deploy.load.load_detector` refuses, a detector of table rows or of float arrays, no
            such folder, no image in it that can be read, or a place that cannot be written or is one of the inputs.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    detector = load_detector(checkpoint, device)
    _check_that_files_fit(checkpoint, detector)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    paths, left_out = listed(folder)
    if not paths:
        raise InputError(f"no images in {folder}" + (f"; {left_out_line(folder, left_out)}" if left_out else ""))
    calibration = detector.module.calibration.numpy()
    limit = float(detector.module.threshold) if threshold is None else threshold_by(threshold, calibration)
    written = [out]
    if figures is not None:
        written += [figures / "contact_sheet.png", figures / "score_histogram.png"]
    for path in written:
        refuse_input(path, [checkpoint, *paths])
    with whole(out) as temporary:
        readable, scores, unreadable = judge(detector, paths, console)
        if not readable:
            raise InputError(f"none of the {len(paths)} images in {folder} can be read: {unreadable[0]}")
        table = pd.DataFrame({"path": readable, "score": scores})
        table["p_value"] = conformal_p_value(scores, calibration) if len(calibration) else np.nan
        table["label"] = np.nan if np.isnan(limit) else (scores >= limit).astype(int)
        table.to_csv(temporary, index=False, encoding="utf-8", errors="backslashreplace")  # of names that are not UTF-8
    if left_out:
        console.print(left_out_line(folder, left_out))
    for reason in unreadable:
        console.print(f"left out: {reason}")
    if np.isnan(limit):
        console.print("no labels: the checkpoint has no held-out scores; give a score as --threshold")
    elif np.isinf(limit) and threshold is not None and threshold.startswith("alpha="):
        needed = samples_needed(float(threshold.removeprefix("alpha=")))
        console.print(f"no image can be flagged: {threshold} needs {needed} held-out scores, not {len(calibration)}")
    else:
        console.print(f"{table['label'].sum()} of {len(table)} images reach the threshold {limit:.6g}")
    console.print(f"written: {out}")
    if figures is not None:
        for path in _draw(detector, readable, scores, limit, figures):
            console.print(f"written: {path}")
    return table


def judge(detector: Detector, paths: Sequence[Path], console: Console) -> tuple[list[Path], NDArray[np.float64], list[str]]:
    """Scores image files in batches; while one is scored the next is decoded in threads, and no more are in memory.

    Args:
        detector: Of images.
        paths: Decoded as the training images were, to ``detector.stored``.
        console: Where the progress is shown.

    Returns:
        The files that can be read, their ``(N,)`` scores, and what is wrong with each of the others.
    """
    files = _files(detector, paths)
    readable: list[Path] = []
    scores: list[Tensor] = []
    unreadable: list[str] = []

    def decoded(index: int) -> Tensor | str:
        try:
            return torch.tensor(files.decode(index)).permute(2, 0, 1)
        except UnreadableError as error:
            return str(error)

    parts = torch.arange(len(paths)).split(BATCH)
    with ThreadPoolExecutor() as pool:
        batches = ahead(lambda part: list(pool.map(decoded, part.tolist())), parts)
        for part, batch in track(zip(parts, batches, strict=True), "scoring", len(parts), console=console):
            images = [image for image in batch if isinstance(image, Tensor)]
            unreadable += [reason for reason in batch if isinstance(reason, str)]
            readable += [paths[index] for index, image in zip(part, batch, strict=True) if isinstance(image, Tensor)]
            if images:
                scores.append(detector.scores(torch.stack(images)))
    return readable, torch.cat(scores).numpy() if scores else np.empty(0), unreadable


def _check_that_files_fit(checkpoint: Path, detector: Detector) -> None:
    if len(detector.stored) != 3:
        raise InputError(f"{checkpoint} scores rows of {detector.stored[0]} columns, not images: score them in Python")
    if detector.preprocessing.minimum is not None and detector.decoding["depth"] == "uint8":
        reason = "was trained on float images in memory, whose range image files do not have"
        raise InputError(f"{checkpoint} {reason}: score them in Python")


def _files(detector: Detector, paths: Sequence[Path]) -> ImageFiles:
    channels, height, width = detector.stored
    return ImageFiles(list(paths), (height, width), channels, **detector.decoding)


def _draw(detector: Detector, paths: Sequence[Path], scores: NDArray[np.float64], limit: float, folder: Path) -> Iterator[Path]:
    order = np.argsort(-scores, kind="stable")
    most = order[: min(ON_SHEET, (len(order) + 1) // 2)]
    least = order[::-1][: min(ON_SHEET, len(order) // 2)]
    shown = np.append(most, least)
    sheet = _files(detector, paths)[torch.from_numpy(shown)]
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
