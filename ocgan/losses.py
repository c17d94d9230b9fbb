"""OCGAN's losses as pure functions (Perera, Nallapati and Xiang, CVPR 2019, Section 3).

Every critic (latent discriminator, visual discriminator, classifier) returns ``(B,)`` logits; only the losses apply a sigmoid.
"""

from torch import Tensor
from torch.nn import functional as F


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The loss of a critic: ``-E[log σ(real)] - E[log(1 - σ(fake))]``, a scalar.

    ``real`` and ``fake`` are uniform latents and codes for the latent discriminator (l_latent), images and decoded uniform
    latents for the visual discriminator (l_visual, with the labels of Algorithm 1), and reconstructions and decoded uniform
    latents for the classifier (l_classifier).

    Args:
        real: ``(B,)`` logits of inputs with label 1.
        fake: ``(B',)`` logits of inputs with label 0; there may be fewer.

    Example:
        >>> import torch
        >>> critic_loss(torch.zeros(4), torch.zeros(2))
        tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """The loss of encoder and decoder against a critic: ``-E[log σ(fake)]``, a scalar, with label 1 as in Algorithm 1.

    Args:
        fake: ``(B,)`` logits of codes or of decoded random latents, through which gradients flow.

    Example:
        >>> import torch
        >>> fooling_loss(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(-fake).mean()


def relative_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared error in proportion to the image's contrast: ``Σ (x - x̂)² / √(n Σ (x - min x)²)``; not in the paper.

    A drawing with many strokes has a larger squared error than one with few, even if both are familiar, because errors occur
    at the edges of strokes. Dividing by the root of the image's energy above its darkest value removes half of that
    effect.

    Args:
        reconstruction: ``(B, ...)``, ``n`` values each.
        image: ``(B, ...)``.

    Returns:
        ``(B,)``, at least 0. For a constant image the squared error is divided by a small constant.

    Example:
        >>> import torch
        >>> image = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
        >>> relative_error(torch.zeros(1, 4), image), relative_error(torch.zeros(1, 4), 2 * image)
        (tensor([0.8660]), tensor([1.7321]))
    """
    flat = image.flatten(1)
    energy = (flat - flat.amin(1, keepdim=True)).square().mean(1)
    return (reconstruction.flatten(1) - flat).square().mean(1) / energy.sqrt().clamp_min(1e-3)
