"""The equations of OC-CNN, as pure functions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

TARGET, NOISE = 0, 1
"""The two classes, as the authors' code numbers them."""


def instance_norm(features: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Each feature vector minus its own mean, divided by its own standard deviation (Sec. II-B).

    Args:
        features: ``(B, D)``.
        sizes: Of parts that are normalised each by itself, D in all; one part by default.

    Returns:
        ``(B, D)``, of zero mean and unit variance over the entries of each part.

    Example:
        >>> instance_norm(torch.tensor([[1.0, 3.0], [10.0, 50.0]])).round(decimals=3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    parts = features.split(list(sizes) or features.shape[1], 1)
    return torch.cat([functional.layer_norm(part, part.shape[1:]) for part in parts], 1)


def pseudo_negatives(features: Tensor, sigma: float) -> Tensor:
    """As many vectors of fresh noise N(0, σ²I) as there are features, ``(B, D)``.

    Example:
        >>> noise = pseudo_negatives(torch.ones(1000, 50), sigma=0.5)
        >>> bool((noise.std() - 0.5).abs() < 0.01), bool(noise.mean().abs() < 0.01)
        (True, True)
    """
    return sigma * torch.randn_like(features)


def cross_entropy(logits: Tensor) -> Tensor:
    """Eq. 1: the mean cross-entropy of 2B rows, of which the first B are the target class and the others noise.

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
    """How much more a row looks like noise than like the target: the difference of its logits, ``(B, 2)`` to ``(B,)``.

    Its sigmoid is the probability of noise, which saturates.

    Example:
        >>> logit_difference(torch.tensor([[3.0, -1.0]]))
        tensor([-4.])
    """
    return logits[:, NOISE] - logits[:, TARGET]
