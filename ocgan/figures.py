"""Figures of OCGAN's latent space, drawn during training."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from common.evaluation.figures import image_grid


def mining_grid(images: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> Figure:
    """Draws up to 8 decoded latents of each kind in a row, with the classifier's probability of *normal* above each.

    Args:
        images: Decoded images by kind, such as ``random`` and ``mined``, ``(B, C, H, W)``.
        logits: Logits of the classifier by kind, ``(B,)``; empty if there is no classifier.

    Example:
        >>> import torch
        >>> figure = mining_grid({"random": torch.zeros(2, 1, 8, 8)}, {"random": torch.zeros(2)})
        >>> [text.get_text() for text in figure.axes[0].texts][1:3]
        ['0.50', '0.50']
    """
    rows, titles, kinds = [], [], []
    for kind, decoded in images.items():
        row = decoded[:8].float().cpu().numpy()
        rows.append(row)
        if kind in logits:
            normal = logits[kind].sigmoid()
            titles += [f"{p:.2f}" for p in normal[:8].tolist()]
            kinds.append(f"{kind} (C = {normal.mean():.2f})")
        else:
            titles += [""] * len(row)
            kinds.append(kind)
    return image_grid({"": np.concatenate(rows)}, titles, "decoded latents: " + ", then ".join(kinds))


def latent_histogram(latent: Tensor) -> Figure:
    """Draws a histogram of all entries of codes, and the uniform density on (-1, 1) that the latent discriminator asks for.

    Args:
        latent: ``(B, d)`` in (-1, 1).

    Example:
        >>> import torch
        >>> latent_histogram(torch.zeros(5, 2)).axes[0].get_xlabel()
        'entry of the code'
    """
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(latent.flatten().float().cpu().numpy(), np.linspace(-1, 1, 41).tolist(), density=True, label="codes")
    axes.axhline(0.5, color="black", linestyle="--", label="uniform")
    axes.set(xlim=(-1, 1), xlabel="entry of the code", ylabel="density")
    axes.legend()
    return figure
