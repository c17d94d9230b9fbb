"""Informative-negative mining (Perera et al., CVPR 2019, Section 3.4 and Algorithm 1)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F


def mine(
    decoder: Callable[[Tensor], Tensor], classifier: Callable[[Tensor], Tensor], start: Tensor, steps: int, step_size: float
) -> Tensor:
    """Moves latents to points whose decoded images look abnormal to the classifier.

    It is gradient descent on the cross-entropy of each latent with the label *abnormal*, ``-log(1 - σ(C(De(tanh m))))``, in
    ``m = artanh l``, so that ``l`` stays in (-1, 1). Gradients are taken with respect to ``m`` only, so the nets get
    none.

    Args:
        decoder: ``(B, d)`` latents to images.
        classifier: Images to ``(B,)`` logits of being a reconstruction of a normal image.
        start: ``(B, d)`` in [-1, 1).
        steps: Number of steps, 5 in the paper.
        step_size: Step size of gradient descent.

    Returns:
        ``(B, d)`` in (-1, 1), detached.

    Example:
        >>> start = torch.zeros(2, 3)
        >>> mine(lambda latent: latent, lambda image: image.sum(1), start, steps=1, step_size=1.0)
        tensor([[-0.4621, -0.4621, -0.4621],
                [-0.4621, -0.4621, -0.4621]])
    """

    def loss(unbounded: Tensor) -> Tensor:
        return F.softplus(classifier(decoder(unbounded.tanh()))).sum()

    edge = 1 - 1e-6
    with torch.no_grad():
        unbounded = start.clamp(-edge, edge).atanh()
        for _ in range(steps):
            unbounded = unbounded - step_size * grad(loss)(unbounded)
        return unbounded.tanh().clamp(-edge, edge)
