"""Preprocessing of whole tensors, so that a data set is transformed once and not in every epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from common.data.images import IMAGES_PER_PART, ImageFiles, Images, Size, is_table
from common.errors import InputError

Normalization = Literal["unit", "symmetric", "gcn"]

IMAGES_PER_CHECK = 16
FURTHEST = 1e9
"""Scaled values of tables and float images are clipped to ± this value, to stay finite in single precision."""


def resize(images: Tensor, size: Size) -> Tensor:
    """Resizes images, bilinear and antialiased; the type is kept.

    Args:
        images: ``(B, C, H, W)``, ``uint8`` or float.
        size: ``(height, width)``.

    Example:
        >>> resize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), (4, 6)).shape
        torch.Size([2, 3, 4, 6])
    """
    return images if tuple(images.shape[-2:]) == size else tv.resize(images, list(size), antialias=True)


def height_and_width(size: int | Sequence[int]) -> Size:
    """Reads an ``image_size``: one number for both, or height and width; raises InputError for anything else.

    Example:
        >>> height_and_width(8), height_and_width([8, 12])
        ((8, 8), (8, 12))
    """
    sizes = [size, size] if isinstance(size, int) else size
    if len(sizes) != 2 or min(sizes) < 1:
        raise InputError(f"image_size must be one positive number or [height, width], not {size}")
    return sizes[0], sizes[1]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Converts RGB to grey (ITU-R 601 luma) or grey to three equal channels.

    Args:
        images: ``(B, C, H, W)`` with C = 1 or 3.
        channels: 1 or 3. Three channels that are made of one share its memory.

    Returns:
        ``(B, channels, H, W)``.

    Raises:
        InputError: Another conversion.

    Example:
        >>> to_channels(torch.zeros(2, 1, 4, 4), 3).shape, to_channels(torch.ones(2, 3, 4, 4), 1).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 1, 4, 4]))
    """
    own = images.shape[1]
    if own == channels:
        return images
    if (own, channels) not in {(1, 3), (3, 1)}:
        raise InputError(f"images of {own} channels cannot be converted to {channels}: give images of 1 or 3 channels")
    return tv.rgb_to_grayscale(images) if channels == 1 else images.expand(-1, channels, -1, -1)


def global_contrast_normalization(images: Tensor) -> Tensor:
    """Subtracts each sample's own mean and divides by its own mean absolute deviation.

    Both are taken over all pixels and channels of an image ``(B, C, H, W)``, or all columns of a row ``(B, F)``: the L1
    variant that Deep SVDD (Ruff et al., ICML 2018) applies. A constant sample becomes zeros.

    Example:
        >>> out = global_contrast_normalization(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]))
        >>> out.flatten().tolist()
        [-1.5, -0.5, 0.5, 1.5]
    """
    dims = tuple(range(1, images.ndim))
    # In float32 the mean of a constant image can be off by one bit, which the division would turn into 1.
    mean = images.mean(dim=dims, keepdim=True, dtype=torch.float64)
    centred = images - mean.to(images.dtype)
    scale = centred.abs().mean(dim=dims, keepdim=True)
    return centred / scale.clamp_min(torch.finfo(images.dtype).eps)


@dataclass(frozen=True)
class Preprocessing:
    """Converts stored samples to the inputs of a net; everything it learns comes from training samples alone.

    First, samples are scaled to [0, 1]: ``uint8`` images by 255, float images (and 16-bit files) by the range of all training
    pixels, tables by the range of each training column. New samples may lie outside of [0, 1]. Then ``unit`` changes
    nothing and ``symmetric`` maps [0, 1] to [-1, 1]. ``gcn`` is Deep SVDD's: global contrast normalisation, then min-max
    scaling by the extremes of the training samples. With ``class_mean``, the mean training sample is subtracted last
    (OCGAN's CIFAR-10 experiments).

    Attributes:
        size: ``(height, width)`` to which images are resized; tables ignore it.
        channels: 1 or 3, to which images are converted; tables ignore it.
        low: The smallest value after global contrast normalisation; ``high`` is the largest.
        mean: The mean training sample.
        minimum: The smallest stored value, ``()`` of float images or ``(F,)`` of a table; None for ``uint8`` images.
        span: The largest stored value minus the smallest; 1 where they are equal.

    Example:
        >>> images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
        >>> fitted = Preprocessing("gcn", class_mean=True).fit(images)
        >>> bool(fitted(images).mean(0).abs().max() < 1e-5)
        True
    """

    normalization: Normalization = "unit"
    class_mean: bool = False
    size: Size | None = None
    channels: int | None = None
    low: float = 0.0
    high: float = 1.0
    mean: Tensor | None = None
    minimum: Tensor | None = None
    span: Tensor | None = None

    def same_as(self, other: "Preprocessing") -> bool:
        """Whether both convert samples alike, to the last digit."""
        for own, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            if isinstance(own, Tensor) and isinstance(theirs, Tensor):
                equal = torch.equal(own, theirs)
            else:
                equal = own is theirs or own == theirs
            if not equal:
                return False
        return True

    def fit(self, images: Images, indices: Tensor | None = None) -> "Preprocessing":
        """Returns a copy that is fitted to the training samples: those at ``indices``, or all.

        Samples are read in parts, and only if there is something to fit.

        Raises:
            InputError: Image files cannot be read, or all have the same constant value; or a range overflows.
        """
        chosen = torch.arange(images.shape[0]) if indices is None else indices
        if isinstance(images, ImageFiles):
            _check_contrast(images, chosen)
        parts = chosen.split(IMAGES_PER_PART)
        fitted = replace(self, minimum=None, span=None)
        if is_table(images) or images.dtype.is_floating_point:
            fitted = fitted._fit_range(images[part] for part in parts)
        if self.normalization == "gcn" or self.class_mean:
            fitted = fitted._fit_statistics(images[part] for part in parts)
        return fitted

    def __call__(self, images: Tensor) -> Tensor:
        """Converts ``(B, C, H, W)`` or ``(B, F)`` stored samples to float32 inputs."""
        images = self._normalize(images)
        if self.normalization == "gcn":
            images = (images - self.low) / ((self.high - self.low) or 1.0)
        return images if self.mean is None else images - self.mean

    def _fit_range(self, batches: Iterator[Tensor]) -> "Preprocessing":
        lowest, highest = [], []
        for batch in batches:
            dims = (0,) if batch.ndim == 2 else (0, 1, 2, 3)
            lowest.append(batch.amin(dims).double())
            highest.append(batch.amax(dims).double())
        minimum = torch.stack(lowest).amin(0)
        span = torch.stack(highest).amax(0) - minimum
        too_wide = (~span.isfinite()).nonzero()
        if len(too_wide):
            column = f" of column {too_wide[0].item()}" if span.ndim else ""
            raise InputError(f"the range of the training values{column} is too wide for a float: divide them by 2 or more")
        return replace(self, minimum=minimum, span=torch.where(span > 0, span, 1.0))

    def _fit_statistics(self, batches: Iterator[Tensor]) -> "Preprocessing":
        low, high, total, n = torch.inf, -torch.inf, torch.zeros(()), 0
        for batch in batches:
            images = self._normalize(batch)
            low, high = min(low, images.min().item()), max(high, images.max().item())
            total, n = total + images.sum(0, dtype=torch.float64), n + len(images)
        if self.normalization != "gcn":
            low, high = 0.0, 1.0
        mean = ((total / n - low) / ((high - low) or 1.0)).float() if self.class_mean else None
        return replace(self, low=low, high=high, mean=mean)

    def _normalize(self, images: Tensor) -> Tensor:
        if self.minimum is not None and self.span is not None:
            scaled = (images.double() - self.minimum) / self.span
            images = self._shaped(scaled.clamp_(-FURTHEST, FURTHEST).float())
        else:
            images = self._shaped(images).float().div_(255)
        if self.normalization == "symmetric":
            return images.mul(2).sub_(1)  # not in place: the three channels of a grey image share memory
        return global_contrast_normalization(images) if self.normalization == "gcn" else images

    def _shaped(self, images: Tensor) -> Tensor:
        if images.ndim == 2:
            return images
        if self.channels is not None:
            images = to_channels(images, self.channels)
        return images if self.size is None else resize(images, self.size)


def _check_contrast(images: ImageFiles, indices: Tensor) -> None:
    """Refuses images that hold a single value, or in 8 bits two adjacent ones; mostly the first few images decide."""
    low, high = torch.inf, -torch.inf
    least = int(images.dtype == torch.uint8)
    for part in indices.split(IMAGES_PER_CHECK):
        pixels = images[part]
        low, high = min(low, pixels.min().item()), max(high, pixels.max().item())
        if high - low > least:
            return
    found = f"all pixels of the {len(indices)} training images lie between {low:g} and {high:g}"
    raise InputError(f"{found}: scale the files to their full range, which is 0 to 255 for 8 bits")
