"""ALOCC's losses as pure functions (Sabokrou et al., CVPR 2018, Eqs. 3 to 5).

``real`` and ``fake`` are D's ``(B,)`` logits of clean images ``X`` and of reconstructions ``R(X~)`` of noisy images.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Adversarial = Literal["minimax", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss, the negative of Eq. 3: ``-E[log D(X)] - E[log(1 - D(R(X~)))]``, a scalar.

    Args:
        real: ``(B,)`` logits of clean images ``X``.
        fake: ``(B',)`` logits of repaired noisy images ``R(X~)``.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(4), torch.zeros(4))
        tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def good_and_bad_loss(real: Tensor, repaired: Tensor, fake: Tensor, pseudo: Tensor, alpha: float, beta: float) -> Tensor:
    """The discriminator's loss if it also tells good from bad reconstructions (after Zaheer et al., CVPR 2020).

    ``-(1 - α) E[log D(X)] - α E[log D(R(X))] - (1 - β) E[log(1 - D(R(X~)))] - β E[log(1 - D(R(X')))]``, with pseudo-anomalies
    ``X'``. With α = β = 0 this is :func:`discriminator_loss`.

    Args:
        real: ``(B,)`` logits of clean images ``X``.
        repaired: ``(B,)`` logits of reconstructions ``R(X)`` of clean images.
        fake: ``(B,)`` logits of repaired noisy images ``R(X~)``.
        pseudo: ``(B,)`` logits of repaired pseudo-anomalies ``R(X')``.
        alpha: α in [0, 1], the weight of ``repaired`` among what D accepts.
        beta: β in [0, 1], the weight of ``pseudo`` among what D rejects.

    Example:
        >>> import torch
        >>> good_and_bad_loss(*torch.zeros(4, 8), alpha=0.5, beta=0.9)
        tensor(1.3863)
    """
    good = (1 - alpha) * F.softplus(-real).mean() + alpha * F.softplus(-repaired).mean()
    bad = (1 - beta) * F.softplus(fake).mean() + beta * F.softplus(pseudo).mean()
    return good + bad


def adversarial_loss(fake: Tensor, form: Adversarial) -> Tensor:
    """The reconstructor's loss against D: ``E[log(1 - D(R(X~)))]`` of Eq. 3 (``minimax``), or ``-E[log D(R(X~))]`` of the code.

    Args:
        fake: ``(B,)`` logits of repaired noisy images ``R(X~)``.
        form: ``minimax`` or ``non_saturating``, the code's.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> adversarial_loss(torch.zeros(4), "minimax"), adversarial_loss(torch.zeros(4), "non_saturating")
        (tensor(-0.6931), tensor(0.6931))
    """
    return -F.softplus(fake).mean() if form == "minimax" else F.softplus(-fake).mean()


def cross_entropy_to_noisy(reconstruction: Tensor, noisy: Tensor) -> Tensor:
    """The official code's reconstruction loss: sigmoid cross-entropy with R's tanh output as logit, the noisy input as label.

    It is not a proper cross-entropy, because the logit is bounded by 1 and the label may leave [0, 1]. Eq. 4 of the paper is
    the squared error to the clean image instead.

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
