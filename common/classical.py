"""Classical one-class detectors on pixels, or on the features of a backbone: the yardstick in every table."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.metrics import euclidean_distances
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import SVC, OneClassSVM
from sklearn.utils import check_random_state

from common.backbones import split
from common.data import OneClassDataModule
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.module import Scored, highest_of_each

Rows = NDArray[np.float64]


class NoiseSVM(BaseEstimator):  # type: ignore[misc]
    """A linear SVM between the data and as many rows of Gaussian noise.

    Args:
        sigma: Standard deviation of the noise, of mean 0.
        C: Of the SVM.
        random_state: Of the noise.
    """

    def __init__(self, sigma: float = 0.01, C: float = 0.5, random_state: int | None = None) -> None:
        self.sigma, self.C, self.random_state = sigma, C, random_state

    def fit(self, X: Rows) -> "NoiseSVM":
        """``(N, F)`` normal samples."""
        noise = check_random_state(self.random_state).normal(0, self.sigma, X.shape)
        self.svm_ = SVC(kernel="linear", C=self.C).fit(np.append(X, noise, 0), np.arange(2 * len(X)) < len(X))
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Decision function, higher = more normal."""
        values: Rows = self.svm_.decision_function(X)
        return values


class MinimaxProbabilityMachine(BaseEstimator):  # type: ignore[misc]
    """The half-space that holds the data with the highest worst-case probability over all laws of their mean and covariance.

    The single-class minimax probability machine of Lanckriet, El Ghaoui and Jordan (NIPS 2002), without its robust terms: of
    all directions w, Σ⁻¹μ separates the data from the origin best. Principal components come first, as Σ has to be inverted.

    Args:
        components: At most so many, and fewer than samples.
        ridge: Added to Σ, as a share of its mean variance.
    """

    def __init__(self, components: int = 1000, ridge: float = 1e-4) -> None:
        self.components, self.ridge = components, ridge

    def fit(self, X: Rows) -> "MinimaxProbabilityMachine":
        """``(N, F)`` normal samples."""
        pca = PCA(min(self.components, len(X) - 1, X.shape[1])).fit(X)
        variance = pca.explained_variance_ + self.ridge * pca.explained_variance_.mean()
        self.w_ = pca.components_.T @ ((pca.components_ @ X.mean(0)) / variance)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """w·x, higher = more normal."""
        values: Rows = X @ self.w_
        return values


class SVDD(BaseEstimator):  # type: ignore[misc]
    """The smallest ball around the data but for outliers (Tax and Duin, Machine Learning 54, 2004), in the input space.

    Its dual is that of a one-class SVM whose kernel is minus half the squared distance.

    Args:
        nu: Upper bound of the share of samples outside, in (0, 1].
    """

    def __init__(self, nu: float = 0.5) -> None:
        self.nu = nu

    def fit(self, X: Rows) -> "SVDD":
        """``(N, F)`` normal samples."""
        svm = OneClassSVM(kernel="precomputed", nu=self.nu).fit(-euclidean_distances(X, squared=True) / 2)
        self.centre_ = svm.dual_coef_[0] @ X[svm.support_] / svm.dual_coef_.sum()
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Minus the squared distance to the ball's centre."""
        values: Rows = -euclidean_distances(X, self.centre_[None], squared=True)[:, 0]
        return values


DETECTORS: dict[str, Callable[[], BaseEstimator]] = {
    "ocsvm": lambda: OneClassSVM(nu=0.1, gamma="scale"),
    "lof": lambda: LocalOutlierFactor(novelty=True, algorithm="brute"),
    "ocsvm_linear": lambda: OneClassSVM(kernel="linear", nu=0.5),
    "bsvm": NoiseSVM,
    "mpm": MinimaxProbabilityMachine,
    "svdd": SVDD,
}
"""Detectors with scikit-learn's ``fit`` and ``score_samples`` (higher = more normal), by preset; the last four are OC-CNN's."""

QUANTILE = 0.95


def fit_and_score(
    preset: str, data: OneClassDataModule, seed: int, backbone: Mapping[str, Any] | None = None
) -> tuple[Scored, dict[str, Any]]:
    """Fits a detector on the flattened training images, or their features, and scores the test set, higher = more anomalous.

    Args:
        preset: A key of :data:`DETECTORS`.
        data: Set up here.
        seed: Of detectors with random parts.
        backbone: Arguments of :func:`common.backbones.split`, whose frozen features are taken instead of pixels.

    Returns:
        The scored test set, and the record's entries about the run.

    Raises:
        InputError: Unknown preset, or what the backbone refuses.

    Example:
        >>> scored, about = fit_and_score("ocsvm", OneClassDataModule("digits", normal=0), seed=0)
        >>> about["metrics"]["ocsvm"]["auroc"] > 0.99
        True
    """
    if preset not in DETECTORS:
        raise InputError(f"unknown classical detector '{preset}': choose from {', '.join(DETECTORS)}")
    detector = DETECTORS[preset]()
    if "random_state" in detector.get_params():
        detector.set_params(random_state=seed)
    if backbone:
        try:
            data.extractor, _ = split(**backbone)
        except TypeError as error:
            raise InputError(f"options of a detector: backbone, weights, head_layers and image_size ({error})") from error
    data.setup()

    def flat(loader: Any) -> Any:
        return torch.cat([batch.image.flatten(1) for batch in loader]).double().numpy()

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
