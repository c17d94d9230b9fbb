"""Pairs of encoder and decoder; each function builds one kind from shape, widths and latent size."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.networks import ChannelsLast, bounded_decoder, bounded_encoder, check_sizes, dense, halvings, is_flat, upsampling


class Nets(NamedTuple):
    """An ``encoder`` from ``(B, *shape)`` to ``(B, D)`` and a ``decoder`` back."""

    encoder: nn.Module
    decoder: nn.Module


def strided(shape: Sequence[int], widths: Sequence[int], latent: int) -> Nets:
    """The nets of the published MNIST recipe: 3x3 stride-2 convolutions, LeakyReLU 0.2, batch norm and a linear code.

    Reconstructions lie in (0, 1).

    Batch norm has Keras's constants (epsilon 1e-3, momentum 0.99), and weights are initialised Glorot-uniform. The decoder
    mirrors the encoder and ends in a stride-1 convolution and a sigmoid.

    Args:
        shape: ``(C, H, W)`` of an image, any size.
        widths: Channels of the encoder's convolutions.
        latent: Size of the code.

    Example:
        >>> nets = strided((1, 28, 28), widths=(32, 64), latent=16)
        >>> sum(p.numel() for net in nets for p in net.parameters())
        178385
    """
    channels, sizes = shape[0], halvings(shape[1:], len(widths))
    grid = (widths[-1], *sizes[-1])
    encoder: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *widths]):
        encoder += [nn.Conv2d(inputs, outputs, 3, 2, 1), *_activation_then_norm(outputs)]
    decoder: list[nn.Module] = [nn.Linear(latent, prod(grid)), nn.Unflatten(1, grid), ChannelsLast()]
    for inputs, outputs, size in zip([widths[-1], *widths[::-1]], widths[::-1], sizes[-2::-1], strict=False):
        decoder += [upsampling(inputs, outputs, 3, size, bias=True), *_activation_then_norm(outputs)]
    decoder += [nn.ConvTranspose2d(widths[0], channels, 3, 1, 1), nn.Sigmoid()]
    nets = Nets(nn.Sequential(*encoder, nn.Flatten(), nn.Linear(prod(grid), latent)), nn.Sequential(*decoder))
    for net in nets:
        net.apply(_glorot)
    return nets


def lenet(shape: Sequence[int], widths: Sequence[int], latent: int) -> Nets:
    """The LeNet-type autoencoder (DCAE) that Deep SVDD compares with: Ruff et al., ICML 2018, as in their PyTorch code.

    Encoder: 5x5 convolutions without bias, batch norm without affine part, LeakyReLU 0.01, 2x2 max-pooling, a linear
    layer. Decoder: the code, reshaped to a small grid and upsampled three times, with 5x5 transposed convolutions and a
    sigmoid, so reconstructions lie in (0, 1). Widths (8, 4) and 32 latents on 28x28 give their MNIST net; (32, 64, 128) and
    128 on 32x32 give their CIFAR-10 net, which also normalises the code. For other sizes an additional linear layer fits the
    code to the grid. Two operations are reordered to save time, with the same result: pooling comes before the (monotone)
    activation, and upsampling is part of the next convolution.

    Args:
        shape: ``(C, H, W)`` of an image, any size.
        widths: Channels of the encoder's convolutions, two or more.
        latent: Size of the code.

    Raises:
        InputError: There is one width only, whose two transposed convolutions cannot upsample three times.

    Example:
        >>> nets = lenet((1, 28, 28), widths=(8, 4), latent=32)
        >>> sum(p.numel() for net in nets for p in net.parameters())
        8472
    """
    if len(widths) < 2:
        raise InputError("widths must have two entries or more: the decoder of lenet upsamples three times")
    channels, halves = shape[0], halvings(shape[1:], 3)
    grid = (max(1, latent // prod(halves[3])), *halves[3])
    encoder: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *widths]):
        norm, activation = _norm_then_activation(outputs)
        encoder += [nn.Conv2d(inputs, outputs, 5, padding=2, bias=False), norm, nn.MaxPool2d(2, ceil_mode=True), activation]
    features = widths[-1] * prod(halvings(shape[1:], len(widths))[-1])
    encoder += [nn.Flatten(), nn.Linear(features, latent, bias=False)]
    if len(widths) == 3:
        encoder += [nn.BatchNorm1d(latent, eps=1e-4, affine=False)]
    decoder: list[nn.Module] = [] if prod(grid) == latent else [nn.Linear(latent, prod(grid), bias=False)]
    decoder += [nn.Unflatten(1, grid), ChannelsLast(), nn.LeakyReLU()]
    outputs_of = [*widths[::-1], channels]
    for left, (inputs, outputs) in enumerate(zip([grid[0], *outputs_of], outputs_of, strict=False), -len(widths)):
        if left > -3:
            decoder += [UpsampledConvTranspose2d(inputs, outputs)]
        else:
            decoder += [nn.ConvTranspose2d(inputs, outputs, 5, padding=2, bias=False)]
        if left == -1:
            decoder += [CentreCrop(*halves[1])]
        decoder += _norm_then_activation(outputs) if left else [CentreCrop(*halves[0]), nn.Sigmoid()]
    nets = Nets(nn.Sequential(*encoder), nn.Sequential(*decoder))
    if len(widths) == 3:
        for net in nets:
            net.apply(_leaky_xavier)
    return nets


def bounded(shape: Sequence[int], widths: Sequence[int], latent: int) -> Nets:
    """OCGAN's encoder and decoder, with a tanh code, for its ablation row "AE only". Reconstructions lie in (-1, 1).

    Args:
        shape: ``(C, H, W)`` of an image, any size.
        widths: Its first entry is the channels of the encoder's first convolution.
        latent: Size of the code, in (-1, 1).

    Example:
        >>> nets = bounded((1, 28, 28), widths=(16,), latent=16)
        >>> nets.decoder(nets.encoder(torch.rand(4, 1, 28, 28))).shape
        torch.Size([4, 1, 28, 28])
    """
    return Nets(bounded_encoder(shape, widths[0], latent), bounded_decoder(shape, widths[0], latent))


def vector(shape: Sequence[int], widths: Sequence[int], latent: int) -> Nets:
    """Dense nets for flat vectors, with linear output.

    Args:
        shape: ``(F,)``.
        widths: Sizes of the encoder's hidden layers; the decoder has them in reverse.
        latent: Size of the code.

    Example:
        >>> nets = vector((30,), widths=(64, 32), latent=8)
        >>> nets.encoder(torch.rand(4, 30)).shape
        torch.Size([4, 8])
    """
    sizes = [shape[0], *widths, latent]
    return Nets(dense(sizes), dense(sizes[::-1]))


NETWORKS: dict[str, Callable[[Sequence[int], Sequence[int], int], Nets]] = {
    build.__name__: build for build in (strided, lenet, bounded)
}


def build(network: str, shape: Sequence[int], widths: Sequence[int], latent: int) -> Nets:
    """Builds the named pair of nets for images, or :func:`vector` with any name for flat vectors.

    Args:
        network: A key of :data:`NETWORKS`.
        shape: ``(C, H, W)`` or ``(F,)``.
        widths: Channels of the encoder's convolutions, or sizes of its hidden layers.
        latent: Size of the code.

    Raises:
        InputError: The name is unknown, the shape has another length, or a size is below 1.

    Example:
        >>> build("bounded", (30,), widths=(64, 32), latent=8).decoder(torch.rand(4, 8)).shape
        torch.Size([4, 30])
    """
    if network not in NETWORKS:
        raise InputError(f"unknown network '{network}': choose from {', '.join(NETWORKS)}")
    check_sizes(widths=widths, latent=latent)
    if is_flat(shape):
        return vector(shape, widths, latent)
    if not widths:
        raise InputError("widths must have an entry: images need at least one convolution")
    return NETWORKS[network](shape, widths, latent)


class UpsampledConvTranspose2d(nn.ConvTranspose2d):
    """Nearest-neighbour upsampling by 2 and a 5x5 transposed convolution (stride 1, padding 2), computed at the small size.

    On the upsampled image a 5x5 kernel covers only 3x3 pixels of the small image. So a 3x3 convolution with four output
    channels computes the four pixels that replace one, and a pixel shuffle puts them into place: 36 products, not 100.

    Example:
        >>> import torch
        >>> layer, x = UpsampledConvTranspose2d(3, 2), torch.rand(1, 3, 6, 7)
        >>> expected = F.conv_transpose2d(F.interpolate(x, scale_factor=2), layer.weight, padding=2)
        >>> torch.allclose(layer(x), expected, atol=1e-6)
        True
    """

    taps: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2, bias=False)
        even = [[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
        odd = [[1.0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
        self.register_buffer("taps", torch.tensor([even, odd]), persistent=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, 2 H, 2 W)``."""
        kernel = torch.einsum("apu,bqv,iouv->oabipq", self.taps, self.taps, self.weight.flip(2, 3))
        kernel = kernel.reshape(4 * self.out_channels, self.in_channels, 3, 3)
        return F.pixel_shuffle(F.conv2d(x, kernel, padding=1), 2)


class CentreCrop(nn.Module):
    """Crops ``(B, C, H, W)`` to the central ``height x width``.

    Example:
        >>> CentreCrop(2, 3)(torch.arange(20.0).view(1, 1, 4, 5))[0, 0].tolist()
        [[6.0, 7.0, 8.0], [11.0, 12.0, 13.0]]
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """Crops to the centre."""
        top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
        if x.shape[-2:] == (self.height, self.width):
            return x
        right, bottom = x.shape[-1] - self.width - left, x.shape[-2] - self.height - top
        return F.pad(x, (-left, -right, -top, -bottom))  # a slice is not contiguous, so what follows would be slower


def _activation_then_norm(channels: int) -> list[nn.Module]:
    return [nn.LeakyReLU(0.2, inplace=True), nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)]


def _norm_then_activation(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, eps=1e-4, affine=False), nn.LeakyReLU(inplace=True)]


def _glorot(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _leaky_xavier(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("leaky_relu"))
