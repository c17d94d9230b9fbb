"""Pseudo-anomalies made of normal samples, for the discriminator to reject."""

import torch
from torch import Tensor


def pasted(image: Tensor) -> Tensor:
    """Pastes a random rectangle of another image of the batch, from another place, into each image.

    The sides of the rectangle are 2/7 to 11/14 of the image. The other image is shifted cyclically by up to a third. Flat
    vectors get a random share of the features of another one.

    Args:
        image: ``(B, C, H, W)`` or ``(B, F)``.

    Returns:
        A tensor of the same shape; every call draws anew.

    Example:
        >>> image = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 1, 28, 28)
        >>> mixed = pasted(image)
        >>> mixed.shape, bool((mixed != image).any())
        (torch.Size([40, 1, 28, 28]), True)
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
    """Replaces a random share of each code by entries of another one, and adds Gaussian noise of random strength.

    The strength is uniform between 0 and 3 standard deviations of each entry over the batch. The result is clamped to the
    range of the batch.

    Args:
        latent: ``(B, ...)`` codes of normal samples.

    Returns:
        A tensor of the same shape; every call draws anew.

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
