"""OC-CNN's normalisation, noise, loss and score as pure functions (Oza and Patel, IEEE SPL 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

TARGET, NOISE = 0, 1
"""Class numbers of normal images and of noise, as in the authors' code."""


def instance_norm(features: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Subtracts each feature vector's own mean and divides by its own standard deviation (Sec. II-B).

    Args:
        features: ``(B, D)``.
        sizes: Sizes of parts that are normalised separately; their sum is D. By default there is one part.

    Returns:
        ``(B, D)``, with zero mean and unit variance over the entries of each part.

    Example:
        >>> instance_norm(torch.tensor([[1.0, 3.0], [10.0, 50.0]])).round(decimals=3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    parts = features.split(list(sizes) or features.shape[1], 1)
    return torch.cat([functional.layer_norm(part, part.shape[1:]) for part in parts], 1)


def pseudo_negatives(features: Tensor, sigma: float) -> Tensor:
    """Draws as many vectors of noise N(0, σ²I) as there are feature vectors.

    Args:
        features: ``(B, D)``; only their shape, type and device count.
        sigma: The noise's standard deviation σ, at least 0.

    Returns:
        ``(B, D)``.

    Example:
        >>> noise = pseudo_negatives(torch.ones(1000, 50), sigma=0.5)
        >>> bool((noise.std() - 0.5).abs() < 0.01), bool(noise.mean().abs() < 0.01)
        (True, True)
    """
    return sigma * torch.randn_like(features)


def cross_entropy(logits: Tensor) -> Tensor:
    """The loss of Eq. 1: the mean cross-entropy of 2B rows, first B of the target class and then B of noise.

    Args:
        logits: ``(2B, 2)``.

    Returns:
        A scalar.

    Example:
        >>> cross_entropy(torch.tensor([[20.0, 0.0], [0.0, 20.0]])).item() < 1e-6
        True
    """
    half = len(logits) // 2
    classes = torch.tensor([TARGET, NOISE], device=logits.device).repeat_interleave(half)
    return functional.cross_entropy(logits, classes)


def logit_difference(logits: Tensor) -> Tensor:
    """The anomaly score: logit of noise minus logit of the target class, ``(B, 2)`` to ``(B,)``.

    Its sigmoid would be the probability of noise, which saturates.

    Example:
        >>> logit_difference(torch.tensor([[3.0, -1.0]]))
        tensor([-4.])
    """
    return logits[:, NOISE] - logits[:, TARGET]
