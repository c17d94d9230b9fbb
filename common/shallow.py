"""Estimators of the classical detectors that scikit-learn lacks, with its ``fit``, ``transform`` and ``score_samples``.

All are fitted to ``(N, F)`` normal samples; ``score_samples`` gives ``(N,)``, higher = more normal.
"""

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from skimage.feature import hog
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.metrics import euclidean_distances, pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC, OneClassSVM
from sklearn.utils import check_random_state

from common.errors import InputError

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
        """Only looks at the number of pixels."""
        if len(self.shape) != 3 or X.shape[1] != np.prod(self.shape):
            raise InputError(f"HOG wants the pixels of images, not {X.shape[1]} features or columns: leave out the backbone")
        if min(self.shape[1:]) < 2 * self.cell:
            raise InputError(f"HOG wants images of {2 * self.cell} x {2 * self.cell} pixels or more: give a larger image_size")
        return self

    def transform(self, X: Rows) -> Rows:
        """``(N, C*H*W)`` pixels to ``(N, B*36)`` features of B blocks, in [0, 1]."""
        describe = partial(hog, pixels_per_cell=(self.cell,) * 2, cells_per_block=(2, 2), channel_axis=0)
        return np.stack([describe(image) for image in X.reshape(-1, *self.shape)])


class PrincipalComponents(PCA):  # type: ignore[misc]
    """PCA by the faster of scikit-learn's exact solvers, so that no random number plays a part.

    Args:
        n_components: Their number, or in (0, 1) the share of the variance that they explain.

    Example:
        >>> PrincipalComponents().fit_transform(np.outer(np.arange(5.0), [1, 1])).shape
        (5, 1)
    """

    def __init__(self, n_components: float = 0.95) -> None:
        super().__init__(n_components)

    def fit(self, X: Rows, y: None = None) -> "PrincipalComponents":
        """Chooses the solver."""
        self.svd_solver = "covariance_eigh" if X.shape[1] <= len(X) else "full"
        return super().fit(X)

    def fit_transform(self, X: Rows, y: None = None) -> Rows:
        """``(N, F)`` to ``(N, n_components)``."""
        return self.fit(X).transform(X)


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
        """Finds the subspace."""
        self.pca_ = PrincipalComponents(min(self.components, *(size - 1 for size in X.shape))).fit(X)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Minus the squared error of the reconstruction."""
        return -((X - self.pca_.inverse_transform(self.pca_.transform(X))) ** 2).sum(1)


class Mahalanobis(EmpiricalCovariance):  # type: ignore[misc]
    """The Mahalanobis distance to the mean, with the empirical covariance."""

    def score_samples(self, X: Rows) -> Rows:
        """Minus the squared distance."""
        return -self.mahalanobis(X)


class NearestNeighborDistance(NearestNeighbors):  # type: ignore[misc]
    """The mean Euclidean distance to the nearest training samples, from all distances by matrix products.

    Args:
        n_neighbors: Their number, k; fewer where there are fewer samples. Two as in DN2 (Bergman, Cohen and Hoshen, "Deep
            Nearest Neighbor Anomaly Detection", arXiv 2002.10445, 2020) and PANDA (Reiss et al., CVPR 2021).

    Example:
        >>> detector = NearestNeighborDistance(2).fit(np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]]))
        >>> detector.score_samples(np.array([[0.0, 0.0]])).tolist()
        [-2.5]
    """

    def __init__(self, n_neighbors: int = 2) -> None:
        super().__init__(n_neighbors=n_neighbors, algorithm="brute")

    def score_samples(self, X: Rows) -> Rows:
        """Minus the mean distance."""
        distances, _ = self.kneighbors(X, min(self.n_neighbors, self.n_samples_fit_))
        return -distances.mean(1)


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
        """Keeps the samples."""
        self.samples_ = X
        if self.bandwidth == "scott":
            self.bandwidth_ = len(X) ** (-1 / (X.shape[1] + 4))
        elif self.bandwidth == "diameter":
            self.bandwidth_ = diameter(X) ** 2
        else:
            self.bandwidth_ = float(self.bandwidth)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Log-density, but for the kernel's constant."""
        h = self.bandwidth_

        def log_mean(distances: Rows, _: int) -> Rows:
            exponents = -(distances**2) / (2 * h**2) if self.kernel == "gaussian" else -distances / h
            return logsumexp(exponents, axis=1) - np.log(exponents.shape[1])

        return np.concatenate([*pairwise_distances_chunked(X, self.samples_, reduce_func=log_mean, working_memory=128)])


class WideOneClassSVM(OneClassSVM):  # type: ignore[misc]
    """A one-class SVM whose kernel is exp(-d²/D²), D the largest distance between two training samples.

    Args:
        nu: Upper bound of the share of training samples outside, in (0, 1].
    """

    def __init__(self, nu: float = 0.1) -> None:
        super().__init__(nu=nu)

    def fit(self, X: Rows, y: None = None) -> "WideOneClassSVM":
        """Sets the kernel's width."""
        self.gamma = 1 / diameter(X) ** 2
        return super().fit(X)


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
        """Draws the noise."""
        noise = check_random_state(self.random_state).normal(0, self.sigma, X.shape)
        self.svm_ = SVC(kernel="linear", C=self.C).fit(np.append(X, noise, 0), np.arange(2 * len(X)) < len(X))
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Decision function."""
        return self.svm_.decision_function(X)


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
        """Finds the direction."""
        pca = PrincipalComponents(min(self.components, len(X) - 1, X.shape[1])).fit(X)
        variance = pca.explained_variance_ + self.ridge * pca.explained_variance_.mean()
        self.w_ = pca.components_.T @ ((pca.components_ @ X.mean(0)) / variance)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """w·x."""
        return X @ self.w_


class SVDD(BaseEstimator):  # type: ignore[misc]
    """The smallest ball around the data but for outliers (Tax and Duin, Machine Learning 54, 2004), in the input space.

    Its dual is that of a one-class SVM whose kernel is minus half the squared distance.

    Args:
        nu: Upper bound of the share of samples outside, in (0, 1].
    """

    def __init__(self, nu: float = 0.5) -> None:
        self.nu = nu

    def fit(self, X: Rows, y: None = None) -> "SVDD":
        """Finds the centre."""
        svm = OneClassSVM(kernel="precomputed", nu=self.nu).fit(-euclidean_distances(X, squared=True) / 2)
        self.centre_ = svm.dual_coef_[0] @ X[svm.support_] / svm.dual_coef_.sum()
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Minus the squared distance to the centre."""
        return -euclidean_distances(X, self.centre_[None], squared=True)[:, 0]
