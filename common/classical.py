"""Classical one-class detectors on pixels, HOG or a backbone's features: the yardstick in every table.

What each preset is, where its settings come from and which published row it stands for: ``experiments/classical.md``.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from skimage.feature import hog
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.covariance import EllipticEnvelope, EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import euclidean_distances, pairwise_distances_chunked
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, OneClassSVM
from sklearn.utils import check_random_state
from torch import Tensor

from common.backbones import split
from common.data import OneClassDataModule
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.module import Scored, highest_of_each

Rows = NDArray[np.float64]


def diameter(X: Rows) -> float:
    """The largest Euclidean distance between two of ``(N, F)`` samples.

    Example:
        >>> diameter(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
        5.0
    """
    return float(max(part.max() for part in pairwise_distances_chunked(X)))


class HOG(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of images given as rows of pixels.

    Nine unsigned orientations in cells of ``cell`` x ``cell`` pixels, blocks of 2 x 2 cells at every cell, L2-Hys; of several
    channels the one with the steepest gradient counts at each pixel.

    Args:
        shape: ``(C, H, W)`` of the images.
        cell: Height and width of a cell, in pixels; an image is at least two cells high and wide.

    Raises:
        InputError: Rows that are no such images, or images too small.

    Example:
        >>> HOG(shape=(1, 28, 28)).fit_transform(np.random.rand(3, 784)).shape
        (3, 1296)
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), cell: int = 4) -> None:
        self.shape, self.cell = shape, cell

    def fit(self, X: Rows, y: None = None) -> "HOG":
        """``(N, C*H*W)`` pixels, only looked at for their number."""
        if X.shape[1] != np.prod(self.shape):
            raise InputError(f"HOG wants the pixels of images, not {X.shape[1]} features: leave out the backbone")
        if min(self.shape[1:]) < 2 * self.cell:
            raise InputError(f"HOG wants images of {2 * self.cell} x {2 * self.cell} pixels or more: give a larger image_size")
        return self

    def transform(self, X: Rows) -> Rows:
        """``(N, C*H*W)`` pixels to ``(N, B*36)`` features of B blocks, in [0, 1]."""
        describe = partial(hog, pixels_per_cell=(self.cell,) * 2, cells_per_block=(2, 2), channel_axis=0)
        return np.stack([describe(image) for image in X.reshape(-1, *self.shape)])


def exact_pca(X: Rows, components: float) -> PCA:
    """Principal components of ``(N, F)`` samples by the faster of the exact solvers, so that no random number plays a part.

    Args:
        X: The samples.
        components: Their number, or in (0, 1) the share of the variance that they explain.

    Example:
        >>> int(exact_pca(np.outer(np.arange(5.0), [1, 1]), 0.95).n_components_)
        1
    """
    return PCA(components, svd_solver="covariance_eigh" if X.shape[1] <= len(X) else "full").fit(X)


class PrincipalComponents(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Coordinates along the leading principal components, see :func:`exact_pca`.

    Args:
        components: Their number, or in (0, 1) the share of the variance that they explain.

    Example:
        >>> PrincipalComponents().fit_transform(np.outer(np.arange(5.0), [1, 1])).shape
        (5, 1)
    """

    def __init__(self, components: float = 0.95) -> None:
        self.components = components

    def fit(self, X: Rows, y: None = None) -> "PrincipalComponents":
        """``(N, F)`` normal samples."""
        self.pca_ = exact_pca(X, self.components)
        return self

    def transform(self, X: Rows) -> Rows:
        """``(N, F)`` to ``(N, components)``."""
        coordinates: Rows = self.pca_.transform(X)
        return coordinates


class PCAReconstruction(BaseEstimator):  # type: ignore[misc]
    """Squared distance to the subspace of the leading principal components: the linear autoencoder.

    Args:
        components: At most so many, and fewer than samples and features.

    Example:
        >>> line = np.outer(np.arange(5.0), [1, 1])
        >>> (-PCAReconstruction(1).fit(line).score_samples(np.array([[7.0, 7.0], [1.0, -1.0]]))).round(6).tolist()
        [0.0, 2.0]
    """

    def __init__(self, components: int = 32) -> None:
        self.components = components

    def fit(self, X: Rows, y: None = None) -> "PCAReconstruction":
        """``(N, F)`` normal samples."""
        self.pca_ = exact_pca(X, min(self.components, *(size - 1 for size in X.shape)))
        return self

    def score_samples(self, X: Rows) -> Rows:
        """``(N,)`` minus the squared error of the reconstruction."""
        errors: Rows = ((X - self.pca_.inverse_transform(self.pca_.transform(X))) ** 2).sum(1)
        return -errors


class Mahalanobis(EmpiricalCovariance):  # type: ignore[misc]
    """The Mahalanobis distance to the mean, with the empirical covariance.

    Example:
        >>> square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> Mahalanobis().fit(square).score_samples(np.array([[3.0, 4.0]])).tolist()
        [-25.0]
    """

    def score_samples(self, X: Rows) -> Rows:
        """``(N, F)`` to ``(N,)`` minus the squared distance."""
        values: Rows = -self.mahalanobis(X)
        return values


class DenseKernelDensity(BaseEstimator):  # type: ignore[misc]
    """Kernel density from all distances, by matrix products: in high dimension the trees of scikit-learn's are far slower.

    Args:
        bandwidth: A distance; ``scott``: N ** (-1 / (F + 4)), as scikit-learn has it; ``diameter``: the square of the
            largest distance between two training samples, as Deep SVDD's code has it (Ruff et al., ICML 2018). That is so
            wide that the order of the scores is the order of the mean distance, or with the Gaussian kernel of the mean
            squared distance, to the training samples.
        kernel: ``gaussian``, exp(-d² / 2h²), or ``exponential``, exp(-d / h).

    Example:
        >>> density = DenseKernelDensity(1.0).fit(np.zeros((1, 2)))
        >>> density.score_samples(np.array([[3.0, 4.0]])).tolist()
        [-12.5]
    """

    def __init__(
        self,
        bandwidth: float | Literal["scott", "diameter"] = "scott",
        kernel: Literal["gaussian", "exponential"] = "gaussian",
    ) -> None:
        self.bandwidth, self.kernel = bandwidth, kernel

    def fit(self, X: Rows, y: None = None) -> "DenseKernelDensity":
        """``(N, F)`` normal samples, which are kept."""
        rules: dict[Any, Callable[[], float]] = {
            "scott": lambda: len(X) ** (-1 / (X.shape[1] + 4)),
            "diameter": lambda: diameter(X) ** 2,
        }
        self.bandwidth_ = rules.get(self.bandwidth, lambda: float(self.bandwidth))()
        self.samples_ = X
        return self

    def score_samples(self, X: Rows) -> Rows:
        """``(N, F)`` to ``(N,)`` log-density, but for the kernel's constant."""
        h = self.bandwidth_

        def log_mean(distances: Rows, _: int) -> Rows:
            exponents = -(distances**2) / (2 * h**2) if self.kernel == "gaussian" else -distances / h
            return logsumexp(exponents, axis=1) - np.log(exponents.shape[1])

        return np.concatenate([*pairwise_distances_chunked(X, self.samples_, reduce_func=log_mean, working_memory=128)])


class WideOneClassSVM(BaseEstimator):  # type: ignore[misc]
    """A one-class SVM whose kernel is exp(-d²/D²), D the largest distance between two training samples.

    Args:
        nu: Upper bound of the share of training samples outside, in (0, 1].

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 2))
        >>> bool(WideOneClassSVM().fit(X).score_samples(np.array([[0, 0], [9, 9]])).argmin())
        True
    """

    def __init__(self, nu: float = 0.1) -> None:
        self.nu = nu

    def fit(self, X: Rows, y: None = None) -> "WideOneClassSVM":
        """``(N, F)`` normal samples."""
        self.svm_ = OneClassSVM(nu=self.nu, gamma=1 / diameter(X) ** 2).fit(X)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """``(N, F)`` to ``(N,)`` sum of the support vectors' kernels."""
        values: Rows = self.svm_.score_samples(X)
        return values


class NoiseSVM(BaseEstimator):  # type: ignore[misc]
    """A linear SVM between the data and as many rows of Gaussian noise.

    Args:
        sigma: Standard deviation of the noise, of mean 0.
        C: Of the SVM.
        random_state: Of the noise.
    """

    def __init__(self, sigma: float = 0.01, C: float = 0.5, random_state: int | None = None) -> None:
        self.sigma, self.C, self.random_state = sigma, C, random_state

    def fit(self, X: Rows, y: None = None) -> "NoiseSVM":
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

    def fit(self, X: Rows, y: None = None) -> "MinimaxProbabilityMachine":
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

    def fit(self, X: Rows, y: None = None) -> "SVDD":
        """``(N, F)`` normal samples."""
        svm = OneClassSVM(kernel="precomputed", nu=self.nu).fit(-euclidean_distances(X, squared=True) / 2)
        self.centre_ = svm.dual_coef_[0] @ X[svm.support_] / svm.dual_coef_.sum()
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Minus the squared distance to the ball's centre."""
        values: Rows = -euclidean_distances(X, self.centre_[None], squared=True)[:, 0]
        return values


class Detector(NamedTuple):
    """A preset.

    Attributes:
        build: Makes an estimator with scikit-learn's ``fit`` and ``score_samples`` (higher = more normal), or a pipeline that
            ends in one. A parameter ``shape`` gets that of the images, and ``random_state`` the seed if it is ``seeded``.
        data: Arguments of :class:`common.data.OneClassDataModule` that belong to it.
        seeded: Whether it has random parts; else one seed says all.
    """

    build: Callable[[], BaseEstimator]
    data: Mapping[str, Any] = {}
    seeded: bool = False


_WHOLE_CLASS = {"val_fraction": 0.0}
_AS_DEEP_SVDD = {"normalization": "gcn", **_WHOLE_CLASS}

DETECTORS: dict[str, Detector] = {
    "ocsvm": Detector(lambda: OneClassSVM(nu=0.1, gamma="scale")),
    "hog_ocsvm": Detector(lambda: make_pipeline(HOG(), OneClassSVM(nu=0.1, gamma="scale"))),
    "lof": Detector(lambda: LocalOutlierFactor(novelty=True, algorithm="brute")),
    "pca": Detector(PCAReconstruction),
    "kde": Detector(DenseKernelDensity),
    "mahalanobis": Detector(lambda: make_pipeline(PrincipalComponents(), Mahalanobis())),
    "elliptic": Detector(lambda: make_pipeline(PrincipalComponents(), EllipticEnvelope(support_fraction=0.95)), seeded=True),
    "iforest": Detector(IsolationForest, seeded=True),
    "pca_iforest": Detector(lambda: make_pipeline(PrincipalComponents(), IsolationForest()), seeded=True),
    "ocsvm_ruff": Detector(WideOneClassSVM, _WHOLE_CLASS),
    "kde_ruff": Detector(lambda: DenseKernelDensity("diameter", "exponential"), _WHOLE_CLASS),
    "kde_ruff_gcn": Detector(lambda: make_pipeline(PrincipalComponents(), DenseKernelDensity("diameter")), _AS_DEEP_SVDD),
    "iforest_ruff": Detector(lambda: make_pipeline(PrincipalComponents(), IsolationForest()), _AS_DEEP_SVDD, seeded=True),
    "ocsvm_linear": Detector(lambda: OneClassSVM(kernel="linear", nu=0.5)),
    "bsvm": Detector(NoiseSVM, seeded=True),
    "mpm": Detector(MinimaxProbabilityMachine),
    "svdd": Detector(SVDD),
}
"""By preset; the four ``_ruff`` are Deep SVDD's shallow rows, the last four OC-CNN's compared methods."""


def detector(preset: str) -> Detector:
    """A preset's detector.

    Raises:
        InputError: There is none of that name.

    Example:
        >>> detector("kde_ruff").data
        {'val_fraction': 0.0}
    """
    if preset not in DETECTORS:
        raise InputError(f"unknown classical detector '{preset}': choose from {', '.join(DETECTORS)}")
    return DETECTORS[preset]


QUANTILE = 0.95


def fit_and_score(
    preset: str, data: OneClassDataModule, seed: int, backbone: Mapping[str, Any] | None = None
) -> tuple[Scored, dict[str, Any]]:
    """Fits a detector on the flattened training images, or their features, and scores the test set, higher = more anomalous.

    The training images come in the data set's order, so that the seed changes nothing but what a detector draws.

    Args:
        preset: A key of :data:`DETECTORS`.
        data: Set up here; the preset's own data settings are the caller's to give.
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
    chosen = detector(preset)
    estimator = chosen.build()
    given = {"shape": data.shape, **({"random_state": seed} if chosen.seeded else {})}
    parameters = ((key, key.rpartition("__")[2]) for key in estimator.get_params())
    estimator.set_params(**{key: given[name] for key, name in parameters if name in given})
    if backbone:
        try:
            data.extractor, _ = split(**backbone)
        except TypeError as error:
            raise InputError(f"options of a detector: backbone, weights, head_layers and image_size ({error})") from error
    data.setup()

    def rows(batches: Iterable[Tensor]) -> Rows:
        return torch.cat([batch.flatten(1) for batch in batches]).double().numpy()

    def score(loader: Any) -> Scored:
        batches = list(loader)
        index, target, label = (
            torch.cat([getattr(batch, key) for batch in batches]).numpy() for key in ("index", "target", "label")
        )
        scored = Scored(index, target, label, {preset: -estimator.score_samples(rows(batch.image for batch in batches))})
        return scored if data.groups is None else highest_of_each(scored, data.groups[index], preset)

    train = data.splits.train
    estimator.fit(
        rows(data.inputs(part) for part in np.split(train, range(data.eval_batch_size, len(train), data.eval_batch_size)))
    )
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
