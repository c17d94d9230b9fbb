"""ALOCC's reconstructor R, for images of any size and for flat vectors, and its initial weights."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from common.errors import InputError
from common.networks import ChannelsLast, Norm, check_sizes, dense, halvings, is_flat, upsampling


class Reconstructor(nn.Module):
    """The reconstructor R: an ``encoder`` to a code and a ``decoder`` back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs ``(B, *shape)``."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction


def reconstructor(
    shape: Sequence[int],
    encoder_widths: Sequence[int],
    decoder_widths: Sequence[int],
    latent: int | None = None,
    norm: Norm = nn.BatchNorm2d,
) -> Reconstructor:
    """Builds the reconstructor: 5x5 stride-2 convolutions, then as many transposed ones, then tanh.

    ``norm`` follows every convolution except the last. The encoder has LeakyReLU 0.2, the decoder ReLU. For flat vectors
    the layers are dense and the output is linear.

    Args:
        shape: ``(C, H, W)``, any size, or ``(F,)``.
        encoder_widths: Channels of the ``n`` convolutions.
        decoder_widths: Channels of the transposed convolutions except the last, ``n - 1`` of them.
        latent: Size of a dense bottleneck with tanh between the two; None, as published, for no bottleneck.
        norm: Makes the layer that follows a convolution.

    Raises:
        InputError: The numbers of layers do not match, the shape has another length, or a size is below 1.

    Example:
        >>> net = reconstructor((1, 28, 28), (32, 64, 128), (32, 16))
        >>> sum(p.numel() for p in net.parameters())
        373217
    """
    if len(decoder_widths) != len(encoder_widths) - 1:
        raise InputError("decoder_widths must have one entry less than encoder_widths: the last layer makes the image")
    check_sizes(encoder_widths=encoder_widths, decoder_widths=decoder_widths, latent=latent)
    if is_flat(shape):
        to_code = [*shape, *encoder_widths, *([] if latent is None else [latent])]
        return Reconstructor(dense(to_code), dense([to_code[-1], *decoder_widths, *shape]))
    channels, sizes = shape[0], halvings(shape[1:], len(encoder_widths))
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


def normal_start(layer: nn.Module) -> None:
    """Sets the official code's initial weights: N(0, 0.02²), truncated at two deviations in convolutions; zero biases.

    Layers other than convolutions, transposed ones and linear layers keep their weights.

    Example:
        >>> layer = nn.Conv2d(1, 8, 5)
        >>> normal_start(layer)
        >>> bool(layer.weight.abs().max() <= 0.04), layer.bias.abs().max().item()
        (True, 0.0)
    """
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    elif isinstance(layer, nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
