"""Losses that several papers use, as pure functions."""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum"]


def squared_error(reconstruction: Tensor, image: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared reconstruction error of each sample, ``e(x) = Σ (x - x̂)²`` or its mean over pixels and channels.

    Args:
        reconstruction: ``(B, ...)``, ``x̂``.
        image: ``(B, ...)``, ``x``.
        reduction: ``sum`` or ``mean`` over the values of a sample.

    Returns:
        ``(B,)``, at least 0.

    Example:
        >>> squared_error(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0), "sum")
        tensor([16., 16.])
    """
    error = (reconstruction - image).square().flatten(1)
    return error.mean(1) if reduction == "mean" else error.sum(1)


def add_noise(image: Tensor, std: float) -> Tensor:
    """Adds fresh Gaussian noise ``n ~ N(0, std²)`` to every entry; returns the image itself if ``std`` is 0.

    Args:
        image: ``(B, ...)``.
        std: Standard deviation, at least 0, in units of the image.

    Example:
        >>> bool((add_noise(torch.zeros(10_000), 0.5).std() - 0.5).abs() < 0.05)
        True
    """
    return image + std * torch.randn_like(image) if std else image
