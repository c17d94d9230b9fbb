"""The reconstructor R and the discriminator D, for images of any size and for flat vectors."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from common.errors import InputError
from common.networks import ChannelsLast, dense, halvings, upsampling

Norm = Callable[[int], nn.Module]
"""From a number of channels to a normalisation layer."""


class Reconstructor(nn.Module):
    """R, an ``encoder`` to a code and a ``decoder`` back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """``(B, *shape)`` to ``(B, *shape)``."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction


def reconstructor(
    shape: Sequence[int],
    encoder_widths: Sequence[int],
    decoder_widths: Sequence[int],
    latent: int | None = None,
    norm: Norm = nn.BatchNorm2d,
) -> Reconstructor:
    """R: 5x5 stride-2 convolutions down and as many transposed ones up, tanh at the end.

    ``norm`` after every convolution but the last; LeakyReLU 0.2 on the way down, ReLU on the way up. For flat vectors the
    layers are linear, and so is the output.

    Args:
        shape: ``(C, H, W)``, any size, or ``(F,)``.
        encoder_widths: Channels of the convolutions, ``n`` of them.
        decoder_widths: Channels of all but the last of the transposed ones, ``n - 1`` of them.
        latent: Size of a dense bottleneck between the two halves, with tanh; None, as published, for none.
        norm: What follows a convolution.

    Raises:
        InputError: Numbers of layers that do not fit, or a shape of another length.

    Example:
        >>> net = reconstructor((1, 28, 28), (32, 64, 128), (32, 16))
        >>> sum(p.numel() for p in net.parameters())
        373217
    """
    if len(decoder_widths) != len(encoder_widths) - 1:
        raise InputError("decoder_widths has one entry less than encoder_widths: the last layer's channels are the image's")
    if _is_flat(shape):
        to_code = [*shape, *encoder_widths, *([] if latent is None else [latent])]
        return Reconstructor(dense(to_code), dense([to_code[-1], *decoder_widths, *shape]))
    channels, height, width = shape
    n = len(encoder_widths)
    sizes = list(zip(halvings(height, n), halvings(width, n), strict=True))
    encoder: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *encoder_widths]):
        encoder += [nn.Conv2d(inputs, outputs, 5, 2, 2), norm(outputs), nn.LeakyReLU(0.2, inplace=True)]
    decoder: list[nn.Module] = []
    if latent is not None:
        grid = (encoder_widths[-1], *sizes[-1])
        encoder += [nn.Flatten(), nn.Linear(prod(grid), latent), nn.Tanh()]
        decoder += [nn.Linear(latent, prod(grid)), nn.ReLU(inplace=True), nn.Unflatten(1, grid), ChannelsLast()]
    for (inputs, outputs), size in zip(pairwise([encoder_widths[-1], *decoder_widths]), sizes[-2::-1], strict=False):
        decoder += [upsampling(inputs, outputs, 5, size, bias=True), norm(outputs), nn.ReLU(inplace=True)]
    decoder += [upsampling([encoder_widths[-1], *decoder_widths][-1], channels, 5, sizes[0], bias=True), nn.Tanh()]
    return Reconstructor(nn.Sequential(*encoder), nn.Sequential(*decoder))


def discriminator(shape: Sequence[int], widths: Sequence[int], norm: Norm | None = nn.BatchNorm2d) -> nn.Sequential:
    """D: 5x5 stride-2 convolutions with LeakyReLU 0.2, ``norm`` on all but the first, and one linear logit.

    For flat vectors the layers are linear.

    Returns:
        ``(B, *shape)`` to ``(B,)`` logits of being a clean normal image; no sigmoid.

    Raises:
        InputError: A shape that is neither ``(C, H, W)`` nor ``(F,)``.

    Example:
        >>> sum(p.numel() for p in discriminator((1, 28, 28), (16, 32, 64, 128)).parameters())
        270401
    """
    if _is_flat(shape):
        return dense([*shape, *widths, 1], nn.Flatten(0))
    channels, height, width = shape
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 5, 2, 2), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in pairwise(widths):
        normalized = [norm(outputs)] if norm else []
        layers += [nn.Conv2d(inputs, outputs, 5, 2, 2), *normalized, nn.LeakyReLU(0.2, inplace=True)]
    features = widths[-1] * halvings(height, len(widths))[-1] * halvings(width, len(widths))[-1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1), nn.Flatten(0))


def _is_flat(shape: Sequence[int]) -> bool:
    if len(shape) not in {1, 3}:
        raise InputError(f"shape is (C, H, W) or (F,), not {tuple(shape)}")
    return len(shape) == 1


def normal_start(layer: nn.Module) -> None:
    """The official code's initial weights, in place: deviation 0.02, in convolutions truncated at two; zero biases."""
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(layer, nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
