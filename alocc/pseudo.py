"""Pseudo-anomalies made of normal samples, for the discriminator to reject."""

import torch
from torch import Tensor


def pasted(image: Tensor) -> Tensor:
    """Each image with a random rectangle of another one of the batch, taken from another place.

    The rectangle's sides are 2/7 to 11/14 of the image's, the other image is shifted (around the edges) by up to a third. Of
    flat vectors a random share of the features is taken from another.

    Args:
        image: ``(B, C, H, W)`` or ``(B, F)``.

    Returns:
        The same shape; drawn anew at every call.

    Example:
        >>> image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 28, 28)
        >>> mixed = pasted(image)
        >>> mixed.shape, bool((mixed != image).any())
        (torch.Size([4, 1, 28, 28]), True)
    """
    b, device = len(image), image.device
    other = image[torch.randperm(b, device=device)]
    if image.ndim == 2:
        return torch.where(torch.rand_like(image) < torch.rand(b, 1, device=device), other, image)
    sides = image.shape[-2:]
    for axis, side in zip((-2, -1), sides, strict=True):
        shift = torch.randint(-(side // 3), side // 3 + 1, ())
        other = other.index_select(axis, (torch.arange(side) - shift).remainder(side).to(device))
    rows, columns = (_interval(b, side, device) for side in sides)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], other, image)


def crossed(latent: Tensor) -> Tensor:
    """Each code with a random share of its entries from another one, and Gaussian noise of a random strength.

    The strength is uniform between none and three of the batch's standard deviations, entry by entry; the result is clamped
    to the batch's range.

    Args:
        latent: ``(B, ...)`` codes of normal samples.

    Returns:
        The same shape; drawn anew at every call.

    Example:
        >>> latent = torch.randn(8, 5)
        >>> bool((crossed(latent) >= latent.amin(0)).all())
        True
    """
    b, device = len(latent), latent.device
    share, strength = torch.rand(2, b, *[1] * (latent.ndim - 1), device=device)
    mixed = torch.where(torch.rand_like(latent) < share, latent, latent[torch.randperm(b, device=device)])
    noise = 3 * strength * latent.std(0, correction=min(1, b - 1)) * torch.randn_like(latent)
    return torch.clamp(mixed + noise, latent.amin(0), latent.amax(0))


def _interval(b: int, side: int, device: torch.device) -> Tensor:
    """``(B, side)``: true on a random interval of each row."""
    start = torch.rand(b, 1, device=device) * side * 9 / 14
    length = (4 + 7 * torch.rand(b, 1, device=device)) * side / 14
    position = torch.arange(side, device=device)
    return (position >= start) & (position < start + length)
