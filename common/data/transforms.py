"""Image preprocessing on whole tensors: a data set is transformed once, not image by image in every epoch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

Normalization = Literal["unit", "symmetric", "gcn"]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased resize of ``(B, C, H, W)`` images to ``size = (height, width)``; the type is kept.

    Example:
        >>> resize(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (28, 20)).shape
        torch.Size([2, 1, 28, 20])
    """
    return images if tuple(images.shape[-2:]) == size else tv.resize(images, list(size), antialias=True)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Grey from RGB (ITU-R 601 luma), or three equal channels from grey; ``(B, C, H, W)`` in, ``(B, channels, H, W)`` out.

    Example:
        >>> to_channels(torch.ones(2, 3, 4, 4, dtype=torch.uint8), 1).shape
        torch.Size([2, 1, 4, 4])
    """
    if images.shape[1] == channels:
        return images
    return tv.rgb_to_grayscale(images) if channels == 1 else images.expand(-1, channels, -1, -1)


def global_contrast_normalization(images: Tensor) -> Tensor:
    """Each image minus its own mean, divided by its own mean absolute deviation.

    The statistics run over all pixels and channels of an image together, the L1 variant that Deep SVDD (Ruff et al., ICML
    2018) applies; a constant image becomes zeros.

    Args:
        images: ``(B, C, H, W)`` float.

    Example:
        >>> out = global_contrast_normalization(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
        >>> out.flatten().tolist()
        [-1.5, -0.5, 0.5, 1.5]
    """
    # in float32 a constant image's mean is off by its last bit, which the division would blow up to 1
    mean = images.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    centred = images - mean.to(images.dtype)
    scale = centred.abs().mean(dim=(1, 2, 3), keepdim=True)
    return centred / scale.clamp_min(torch.finfo(images.dtype).eps)


@dataclass(frozen=True)
class Preprocessing:
    """From stored ``uint8`` images to what a net sees; whatever is fitted is fitted on training images alone.

    ``unit`` scales to [0, 1] and ``symmetric`` to [-1, 1]. ``gcn`` is Deep SVDD's: global contrast normalisation, then
    min-max with the training images' smallest and largest value, so that test images may leave [0, 1]. With
    ``class_mean`` the mean training image is subtracted last (OCGAN's CIFAR-10 experiments).

    Example:
        >>> images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
        >>> fitted = Preprocessing("gcn", class_mean=True).fit([images])
        >>> bool(fitted(images).mean(0).abs().max() < 1e-5)
        True
    """

    normalization: Normalization = "unit"
    class_mean: bool = False
    size: tuple[int, int] | None = None
    channels: int | None = None
    low: float = 0.0
    high: float = 1.0
    mean: Tensor | None = None

    def fit(self, batches: Iterable[Tensor]) -> "Preprocessing":
        """A copy that has seen the training images, given as an iterable of ``(B, C, H, W)`` uint8 batches."""
        if self.normalization != "gcn" and not self.class_mean:
            return self
        low, high, total, n = torch.inf, -torch.inf, torch.zeros(()), 0
        for batch in batches:
            images = self._normalize(batch)
            low, high = min(low, images.min().item()), max(high, images.max().item())
            total, n = total + images.sum(0, dtype=torch.float64), n + len(images)
        if self.normalization != "gcn":
            low, high = 0.0, 1.0
        mean = ((total / n - low) / ((high - low) or 1.0)).float() if self.class_mean else None
        return replace(self, low=low, high=high, mean=mean)

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 to float32 of the wanted size, channels and range."""
        images = self._normalize(images)
        if self.normalization == "gcn":
            images = (images - self.low) / ((self.high - self.low) or 1.0)
        return images if self.mean is None else images - self.mean

    def _normalize(self, images: Tensor) -> Tensor:
        if self.channels is not None:
            images = to_channels(images, self.channels)
        if self.size is not None:
            images = resize(images, self.size)
        images = images.float().div_(255)
        if self.normalization == "symmetric":
            return images.mul_(2).sub_(1)
        return global_contrast_normalization(images) if self.normalization == "gcn" else images
