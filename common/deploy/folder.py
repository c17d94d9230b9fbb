"""Applies a trained detector to a folder of images, and writes a table and a contact sheet."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
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
    """Scores every image in a folder, writes ``path, score, p_value, label`` as CSV, and prints a summary.

    Higher scores are more anomalous. ``p_value`` is :func:`common.evaluation.conformal_p_value` among the held-out normal
    scores in the checkpoint; ``label`` is 1 if the score reaches the threshold. If the checkpoint has no held-out scores,
    ``p_value`` is empty, and so is ``label`` unless ``threshold`` is a score. Unreadable files are named and left out.

    Args:
        checkpoint: A checkpoint of ``oneclass fit`` or of an experiment.
        folder: Searched together with its subfolders.
        out: The CSV file; it and the figures are written completely or not at all.
        threshold: A rule of :func:`common.evaluation.threshold_by`; by default the threshold of the checkpoint.
        figures: Folder for ``contact_sheet.png`` and ``score_histogram.png``.
        device: Where to run the module.

    Raises:
        InputError: The checkpoint cannot be loaded or is for tables or float arrays; the folder is missing or has no
            readable image; or an output cannot be written or would replace an input.
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
    with ExitStack() as stack:
        # all places are tried before the work begins, and nothing is replaced before everything is made
        temporary, *for_figures = [stack.enter_context(whole(path)) for path in written]
        readable, scores, unreadable = judge(detector, paths, console)
        if not readable:
            raise InputError(f"none of the {len(paths)} images in {folder} can be read: {unreadable[0]}")
        table = pd.DataFrame({"path": readable, "score": scores})
        table["p_value"] = conformal_p_value(scores, calibration) if len(calibration) else np.nan
        table["label"] = np.nan if np.isnan(limit) else (scores >= limit).astype(int)
        table.to_csv(temporary, index=False, encoding="utf-8", errors="backslashreplace")  # of names that are not UTF-8
        if figures is not None:
            for temporary, figure in zip(for_figures, _drawn(detector, readable, scores, limit), strict=True):
                figure.savefig(temporary, format="png", dpi=120)
    if left_out:
        console.print(left_out_line(folder, left_out))
    for reason in unreadable:
        console.print(f"left out: {reason}")
    if np.isnan(limit):
        console.print("no labels, because the checkpoint has no held-out scores: give a score as --threshold")
    elif np.isinf(limit) and threshold is not None and threshold.startswith("alpha="):
        needed = samples_needed(float(threshold.removeprefix("alpha=")))
        console.print(f"no image can be flagged: {threshold} needs {needed} held-out scores, not {len(calibration)}: give more")
    else:
        console.print(f"{table['label'].sum()} of {len(table)} images reach the threshold {limit:.6g}")
    for path in written:
        console.print(f"written: {path}")
    return table


def judge(detector: Detector, paths: Sequence[Path], console: Console) -> tuple[list[Path], NDArray[np.float64], list[str]]:
    """Scores image files; returns the readable ones, their ``(N,)`` scores, and an error message for each of the others.

    Files are decoded like the training images, to ``detector.stored``. Threads decode the next batch, so at most two batches
    are in memory.
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


def _drawn(detector: Detector, paths: Sequence[Path], scores: NDArray[np.float64], limit: float) -> list[Figure]:
    """The contact sheet and the histogram."""
    order = np.argsort(-scores, kind="stable")
    most = order[: min(ON_SHEET, (len(order) + 1) // 2)]
    least = order[::-1][: min(ON_SHEET, len(order) // 2)]
    shown = np.append(most, least)
    sheet = _files(detector, paths)[torch.from_numpy(shown)]
    groups = {"most": sheet[: len(most)], "least": sheet[len(most) :]}
    titles = [f"{score:.4g}" for score in scores[shown]]
    contact_sheet = image_grid(groups, titles, "most and least anomalous images, with scores")
    return [contact_sheet, score_histogram(scores, scores >= limit, limit)]
