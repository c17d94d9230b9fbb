"""ALOCC's objectives as pure functions (Sabokrou et al., CVPR 2018, Eqs. 3 to 5).

Everywhere ``real`` and ``fake`` are D's logits of clean images ``X`` and of reconstructions ``R(X~)``, ``(B,)``.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Adversarial = Literal["minimax", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What D minimises, the negative of Eq. 3: ``-E[log D(X)] - E[log(1 - D(R(X~)))]``.

    Example:
        >>> import torch
        >>> discriminator_loss(torch.zeros(4), torch.zeros(4))
        tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


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
