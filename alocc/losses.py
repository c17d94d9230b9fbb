"""ALOCC's objectives as pure functions (Sabokrou et al., CVPR 2018, Eqs. 3 to 5).

Everywhere ``real`` and ``fake`` are D's logits of clean images ``X`` and of reconstructions ``R(X~)``, ``(B,)``.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Adversarial = Literal["minimax", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What D minimises, the negative of Eq. 3: ``-E[log D(X)] - E[log(1 - D(R(X~)))]``, a scalar.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(4), torch.zeros(4))
        tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def good_and_bad_loss(real: Tensor, repaired: Tensor, fake: Tensor, pseudo: Tensor, alpha: float, beta: float) -> Tensor:
    """What D minimises when it learns good reconstructions from bad ones as well (after Zaheer et al., CVPR 2020).

    ``-(1 - α) E[log D(X)] - α E[log D(R(X))] - (1 - β) E[log(1 - D(R(X~)))] - β E[log(1 - D(R(X')))]``, with pseudo-anomalies
    ``X'``, whose logits are ``pseudo``; with α = β = 0 it is :func:`discriminator_loss`.

    Example:
        >>> import torch
        >>> good_and_bad_loss(*torch.zeros(4, 8), alpha=0.5, beta=0.9)
        tensor(1.3863)
    """
    good = (1 - alpha) * F.softplus(-real).mean() + alpha * F.softplus(-repaired).mean()
    bad = (1 - beta) * F.softplus(fake).mean() + beta * F.softplus(pseudo).mean()
    return good + bad


def adversarial_loss(fake: Tensor, form: Adversarial) -> Tensor:
    """What R minimises: of Eq. 3 ``E[log(1 - D(R(X~)))]`` (``minimax``), or as in the code ``-E[log D(R(X~))]``.

    Example:
        >>> import torch
        >>> adversarial_loss(torch.zeros(4), "minimax"), adversarial_loss(torch.zeros(4), "non_saturating")
        (tensor(-0.6931), tensor(0.6931))
    """
    return -F.softplus(fake).mean() if form == "minimax" else F.softplus(-fake).mean()


def cross_entropy_to_noisy(reconstruction: Tensor, noisy: Tensor) -> Tensor:
    """The official code's reconstruction loss: sigmoid cross-entropy, R's tanh output as logit, the noisy input as label.

    Not a proper cross-entropy, since the logit is bounded by 1 and the label may leave [0, 1]; Eq. 4 in its place is the
    squared error to the clean image.

    Args:
        reconstruction: ``(B, ...)`` in (-1, 1).
        noisy: ``(B, ...)``.

    Returns:
        ``(B,)``, the mean over an image.

    Example:
        >>> import torch
        >>> cross_entropy_to_noisy(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor([0.3133])
    """
    return F.binary_cross_entropy_with_logits(reconstruction, noisy, reduction="none").flatten(1).mean(1)
