"""OCGAN's objectives as pure functions (Perera, Nallapati and Xiang, CVPR 2019, Section 3).

Every critic (latent discriminator, visual discriminator, classifier) gives logits, ``(B,)``; there is no sigmoid but here.
"""

from torch import Tensor
from torch.nn import functional as F


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What a critic minimises: ``-E[log σ(real)] - E[log(1 - σ(fake))]``, a scalar.

    Of the latent discriminator ``real`` are uniform latents and ``fake`` encodings (l_latent), of the visual discriminator
    images and decoded uniform latents (l_visual, with Algorithm 1's labels), of the classifier reconstructions and decoded
    uniform latents (l_classifier).

    Args:
        real: ``(B,)`` logits of what is labelled 1.
        fake: ``(B',)`` logits of what is labelled 0; there may be fewer.

    Example:
        >>> import torch
        >>> critic_loss(torch.zeros(4), torch.zeros(2))
        tensor(1.3863)
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """What encoder and decoder minimise against a critic: ``-E[log σ(fake)]``, a scalar; label 1, as in Algorithm 1.

    Example:
        >>> import torch
        >>> fooling_loss(torch.zeros(4))
        tensor(0.6931)
    """
    return F.softplus(-fake).mean()


def relative_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared error in proportion to the image's contrast: ``Σ (x - x̂)² / √(n Σ (x - min x)²)``; not in the paper.

    A drawing of many strokes has a larger squared error than one of few, however well both are known: the error of a
    stroke's rim grows with its length. Division by the root of the image's energy above its own darkest value takes half
    of that away.

    Args:
        reconstruction: ``(B, ...)``, ``n`` values each.
        image: ``(B, ...)``.

    Returns:
        ``(B,)``, at least 0; of a constant image, its squared error over a small number.

    Example:
        >>> import torch
        >>> image = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
        >>> relative_error(torch.zeros(1, 4), image), relative_error(torch.zeros(1, 4), 2 * image)
        (tensor([0.8660]), tensor([1.7321]))
    """
    flat = image.flatten(1)
    energy = (flat - flat.amin(1, keepdim=True)).square().mean(1)
    return (reconstruction.flatten(1) - flat).square().mean(1) / energy.sqrt().clamp_min(1e-3)
