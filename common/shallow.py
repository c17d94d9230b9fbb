"""Classical detectors that scikit-learn lacks, with its ``fit``, ``transform`` and ``score_samples``.

All are fitted to ``(N, F)`` normal samples; ``score_samples`` returns ``(N,)``, higher = more normal.
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
    """The largest Euclidean distance between any two of ``(N, F)`` samples.

    Example:
        >>> diameter(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
        5.0
    """
    return float(max(part.max() for part in pairwise_distances_chunked(X)))


class HOG(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of images given as rows of pixels.

    Nine unsigned orientations in cells of ``cell`` x ``cell`` pixels, blocks of 2 x 2 cells at every cell, L2-Hys. At each
    pixel the channel with the steepest gradient is used.

    Args:
        shape: ``(C, H, W)`` of the images.
        cell: Height and width of a cell, in pixels; images must be at least two cells high and wide.

    Raises:
        InputError: The rows do not have the pixels of such images, or the images are too small.

    Example:
        >>> HOG(shape=(1, 28, 28)).fit_transform(np.random.rand(3, 784)).shape
        (3, 1296)
    """

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), cell: int = 4) -> None:
        self.shape, self.cell = shape, cell

    def fit(self, X: Rows, y: None = None) -> "HOG":
        """Checks the number of pixels; nothing is fitted."""
        if len(self.shape) != 3 or X.shape[1] != np.prod(self.shape):
            raise InputError(f"HOG needs the pixels of images, not {X.shape[1]} features or columns: leave out the backbone")
        if min(self.shape[1:]) < 2 * self.cell:
            raise InputError(f"HOG needs images of {2 * self.cell} x {2 * self.cell} pixels or more: give a larger image_size")
        return self

    def transform(self, X: Rows) -> Rows:
        """Converts ``(N, C*H*W)`` pixels to ``(N, B*36)`` features of B blocks, in [0, 1]."""
        describe = partial(hog, pixels_per_cell=(self.cell,) * 2, cells_per_block=(2, 2), channel_axis=0)
        return np.stack([describe(image) for image in X.reshape(-1, *self.shape)])


class PrincipalComponents(PCA):  # type: ignore[misc]
    """PCA by the faster of scikit-learn's exact solvers, so that the result is deterministic.

    Args:
        n_components: Number of components, or in (0, 1) the share of the variance that they explain.

    Example:
        >>> PrincipalComponents().fit_transform(np.outer(np.arange(5.0), [1, 1])).shape
        (5, 1)
    """

    def __init__(self, n_components: float = 0.95) -> None:
        super().__init__(n_components)

    def fit(self, X: Rows, y: None = None) -> "PrincipalComponents":
        """Fits the components with the faster exact solver."""
        self.svd_solver = "covariance_eigh" if X.shape[1] <= len(X) else "full"
        return super().fit(X)

    def fit_transform(self, X: Rows, y: None = None) -> Rows:
        """Fits, and projects ``(N, F)`` to ``(N, n_components)``."""
        return self.fit(X).transform(X)


class PCAReconstruction(BaseEstimator):  # type: ignore[misc]
    """Squared distance to the subspace of the leading principal components: a linear autoencoder.

    Args:
        components: Maximum number of components; always fewer than samples and features.

    Example:
        >>> line = np.outer(np.arange(5.0), [1, 1])
        >>> (-PCAReconstruction(1).fit(line).score_samples(np.array([[7.0, 7.0], [1.0, -1.0]]))).round(6).tolist()
        [0.0, 2.0]
    """

    def __init__(self, components: int = 32) -> None:
        self.components = components

    def fit(self, X: Rows, y: None = None) -> "PCAReconstruction":
        """Fits the subspace."""
        self.pca_ = PrincipalComponents(min(self.components, *(size - 1 for size in X.shape))).fit(X)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Returns the negative squared error of the reconstruction."""
        return -((X - self.pca_.inverse_transform(self.pca_.transform(X))) ** 2).sum(1)


class Mahalanobis(EmpiricalCovariance):  # type: ignore[misc]
    """The Mahalanobis distance to the mean, with the empirical covariance.

    Example:
        >>> Mahalanobis().fit(np.array([[-1.0], [1.0]])).score_samples(np.array([[1.0], [2.0]])).round(6).tolist()
        [-1.0, -4.0]
    """

    def score_samples(self, X: Rows) -> Rows:
        """Returns the negative squared distance."""
        return -self.mahalanobis(X)


class NearestNeighborDistance(NearestNeighbors):  # type: ignore[misc]
    """The mean Euclidean distance to the nearest training samples, computed by matrix products.

    Args:
        n_neighbors: Number of neighbours, k; limited by the number of samples. Two as in DN2 (Bergman, Cohen and Hoshen, "Deep
            Nearest Neighbor Anomaly Detection", arXiv 2002.10445, 2020) and PANDA (Reiss et al., CVPR 2021).

    Example:
        >>> detector = NearestNeighborDistance(2).fit(np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]]))
        >>> detector.score_samples(np.array([[0.0, 0.0]])).tolist()
        [-2.5]
    """

    def __init__(self, n_neighbors: int = 2) -> None:
        super().__init__(n_neighbors=n_neighbors, algorithm="brute")

    def score_samples(self, X: Rows) -> Rows:
        """Returns the negative mean distance."""
        distances, _ = self.kneighbors(X, min(self.n_neighbors, self.n_samples_fit_))
        return -distances.mean(1)


class DenseKernelDensity(BaseEstimator):  # type: ignore[misc]
    """Kernel density by matrix products, which are far faster in high dimension than scikit-learn's trees.

    Args:
        bandwidth: A distance; ``scott``: N ** (-1 / (F + 4)), as in scikit-learn; ``diameter``: the square of the largest
            distance between two training samples, as in Deep SVDD's code (Ruff et al., ICML 2018), which ranks samples by
            their mean distance to the training samples, or with the Gaussian kernel by the mean squared distance.
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
        """Stores the samples and sets the bandwidth."""
        self.samples_ = X
        if self.bandwidth == "scott":
            self.bandwidth_ = len(X) ** (-1 / (X.shape[1] + 4))
        elif self.bandwidth == "diameter":
            self.bandwidth_ = diameter(X) ** 2
        else:
            self.bandwidth_ = float(self.bandwidth)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Returns the log-density, without the constant of the kernel."""
        h = self.bandwidth_

        def log_mean(distances: Rows, _: int) -> Rows:
            exponents = -(distances**2) / (2 * h**2) if self.kernel == "gaussian" else -distances / h
            return logsumexp(exponents, axis=1) - np.log(exponents.shape[1])

        return np.concatenate([*pairwise_distances_chunked(X, self.samples_, reduce_func=log_mean, working_memory=128)])


class WideOneClassSVM(OneClassSVM):  # type: ignore[misc]
    """A one-class SVM with the kernel exp(-d²/D²), where D is the largest distance between two training samples.

    Args:
        nu: Upper bound on the share of training samples outside, in (0, 1].

    Example:
        >>> np.diff(WideOneClassSVM().fit(np.arange(9.0)[:, None]).score_samples(np.array([[4.0], [20.0]]))) < 0
        array([ True])
    """

    def __init__(self, nu: float = 0.1) -> None:
        super().__init__(nu=nu)

    def fit(self, X: Rows, y: None = None) -> "WideOneClassSVM":
        """Sets the width of the kernel and fits the SVM."""
        self.gamma = 1 / diameter(X) ** 2
        return super().fit(X)


class NoiseSVM(BaseEstimator):  # type: ignore[misc]
    """A linear SVM that separates the data from as many rows of Gaussian noise.

    Args:
        sigma: Standard deviation of the noise, which has mean 0.
        C: Regularisation parameter of the SVM.
        random_state: Seed of the noise.

    Example:
        >>> (NoiseSVM(random_state=0).fit(np.ones((9, 2))).score_samples(np.array([[1.0, 1.0], [0.0, 0.0]])) > 0).tolist()
        [True, False]
    """

    def __init__(self, sigma: float = 0.01, C: float = 0.5, random_state: int | None = None) -> None:
        self.sigma, self.C, self.random_state = sigma, C, random_state

    def fit(self, X: Rows, y: None = None) -> "NoiseSVM":
        """Draws the noise and fits the SVM."""
        noise = check_random_state(self.random_state).normal(0, self.sigma, X.shape)
        self.svm_ = SVC(kernel="linear", C=self.C).fit(np.append(X, noise, 0), np.arange(2 * len(X)) < len(X))
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Returns the decision function of the SVM."""
        return self.svm_.decision_function(X)


class MinimaxProbabilityMachine(BaseEstimator):  # type: ignore[misc]
    """The single-class minimax probability machine of Lanckriet, El Ghaoui and Jordan (NIPS 2002), without robust terms.

    It finds the half-space that holds the data with the highest worst-case probability, over all distributions with their
    mean μ and covariance Σ. Its normal is w = Σ⁻¹μ. Because Σ is inverted, principal components are taken first.

    Args:
        components: Maximum number of principal components; always fewer than samples.
        ridge: Added to Σ, as a share of its mean variance.

    Example:
        >>> MinimaxProbabilityMachine(ridge=0).fit(np.array([[3.0], [4.0], [5.0]])).score_samples(np.array([[4.0]])).round(6)
        array([16.])
    """

    def __init__(self, components: int = 1000, ridge: float = 1e-4) -> None:
        self.components, self.ridge = components, ridge

    def fit(self, X: Rows, y: None = None) -> "MinimaxProbabilityMachine":
        """Computes the direction w."""
        pca = PrincipalComponents(min(self.components, len(X) - 1, X.shape[1])).fit(X)
        variance = pca.explained_variance_ + self.ridge * pca.explained_variance_.mean()
        self.w_ = pca.components_.T @ ((pca.components_ @ X.mean(0)) / variance)
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Returns w·x."""
        return X @ self.w_


class SVDD(BaseEstimator):  # type: ignore[misc]
    """The smallest ball in input space around the data, except outliers (Tax and Duin, Machine Learning 54, 2004).

    Its dual is that of a one-class SVM whose kernel is the negative half of the squared distance.

    Args:
        nu: Upper bound on the share of samples outside, in (0, 1].

    Example:
        >>> SVDD(nu=0.1).fit(np.array([[0.0], [1.0], [4.0]])).score_samples(np.array([[3.0], [5.0]])).round(2).tolist()
        [-1.0, -9.0]
    """

    def __init__(self, nu: float = 0.5) -> None:
        self.nu = nu

    def fit(self, X: Rows, y: None = None) -> "SVDD":
        """Computes the centre."""
        svm = OneClassSVM(kernel="precomputed", nu=self.nu).fit(-euclidean_distances(X, squared=True) / 2)
        self.centre_ = svm.dual_coef_[0] @ X[svm.support_] / svm.dual_coef_.sum()
        return self

    def score_samples(self, X: Rows) -> Rows:
        """Returns the negative squared distance to the centre."""
        return -euclidean_distances(X, self.centre_[None], squared=True)[:, 0]
