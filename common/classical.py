"""Classical one-class detectors on pixels: the yardstick in every table."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from common.data import OneClassDataModule
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.module import Scored, highest_of_each

DETECTORS: dict[str, Callable[[], BaseEstimator]] = {
    "ocsvm": lambda: OneClassSVM(nu=0.1, gamma="scale"),
    "lof": lambda: LocalOutlierFactor(novelty=True, algorithm="brute"),
}
"""Detectors with scikit-learn's ``fit`` and ``score_samples`` (higher = more normal), by preset."""

QUANTILE = 0.95


def fit_and_score(preset: str, data: OneClassDataModule, seed: int) -> tuple[Scored, dict[str, Any]]:
    """Fits a detector on the flattened training images and scores the test set, higher = more anomalous.

    Args:
        preset: A key of :data:`DETECTORS`.
        data: After ``setup``.
        seed: Of detectors with random parts.

    Returns:
        The scored test set, and the record's entries about the run.

    Raises:
        InputError: Unknown preset.

    Example:
        >>> data = OneClassDataModule("digits", normal=0)
        >>> data.setup()
        >>> scored, about = fit_and_score("ocsvm", data, seed=0)
        >>> about["metrics"]["ocsvm"]["auroc"] > 0.99
        True
    """
    if preset not in DETECTORS:
        raise InputError(f"unknown classical detector '{preset}': choose from {', '.join(DETECTORS)}")
    detector = DETECTORS[preset]()
    if "random_state" in detector.get_params():
        detector.set_params(random_state=seed)

    def flat(loader: Any) -> Any:
        return torch.cat([batch.image.flatten(1) for batch in loader]).numpy()

    def score(loader: Any) -> Scored:
        batches = list(loader)
        index, target, label = (
            torch.cat([getattr(batch, key) for batch in batches]).numpy() for key in ("index", "target", "label")
        )
        scored = Scored(index, target, label, {preset: -detector.score_samples(flat(batches)).astype("float64")})
        return scored if data.groups is None else highest_of_each(scored, data.groups[index], preset)

    detector.fit(flat(data.train_dataloader()))
    scored, held_out = score(data.test_dataloader()), data.val_dataloader()
    threshold = quantile_threshold(score(held_out).scores[preset], QUANTILE) if held_out else float("nan")
    scores, label = scored.scores[preset], scored.label
    return scored, {
        "rule": "last",
        "score": preset,
        "metrics": {preset: evaluate(scores, label, threshold)},
        "also": {},
        "selected_epoch": None,
        "reached": None,
        "epochs": None,
        "train_images_per_s": None,
        "parameters": None,
        "threshold": threshold,
        "device": "cpu",
    }
