"""Networks that several papers use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from common.errors import InputError

Norm = Callable[[int], nn.Module]
"""A function from a number of channels to a normalisation layer."""


def is_flat(shape: Sequence[int]) -> bool:
    """Whether a shape is ``(F,)`` rather than ``(C, H, W)``; raises InputError for any other length.

    Example:
        >>> is_flat((30,)), is_flat((1, 28, 28))
        (True, False)
    """
    if len(shape) not in {1, 3}:
        raise InputError(f"shape must be (C, H, W) or (F,), not {tuple(shape)}")
    return len(shape) == 1


def check_sizes(**sizes: int | Sequence[int] | None) -> None:
    """Raises InputError for a width or a latent size below 1, which PyTorch accepts or refuses in words of its own.

    Example:
        >>> check_sizes(widths=(32, 64), latent=None)
    """
    for name, size in sizes.items():
        each = [size] if isinstance(size, int) else size or []
        if min(each, default=1) < 1:
            raise InputError(f"{name} must be at least 1, not {size if isinstance(size, int) else list(each)}")


def halvings(size: Sequence[int], n: int) -> list[tuple[int, int]]:
    """The sizes of feature maps: ``(height, width)``, then after each of ``n`` stride-2 convolutions half of both, rounded up.

    Example:
        >>> halvings((33, 28), 3)
        [(33, 28), (17, 14), (9, 7), (5, 4)]
    """
    height, width = size
    sizes = [(height, width)]
    for _ in range(n):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def upsampling(inputs: int, outputs: int, kernel: int, size: tuple[int, int], bias: bool) -> nn.ConvTranspose2d:
    """The stride-2 transposed convolution that undoes one halving of an image.

    Args:
        inputs: Channels of the halved image.
        outputs: Channels of the result.
        kernel: Height and width of the kernel, odd.
        size: ``(height, width)`` of the result; the halved image has half of both, rounded up.
        bias: Whether it has a bias.

    Example:
        >>> upsampling(4, 2, kernel=5, size=(7, 8), bias=True)(torch.rand(1, 4, 4, 4)).shape
        torch.Size([1, 2, 7, 8])
    """
    padding = (1 - size[0] % 2, 1 - size[1] % 2)
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, output_padding=padding, bias=bias)


def bounded_encoder(shape: Sequence[int], width: int, latent: int) -> nn.Sequential:
    """OCGAN's encoder (Perera et al., CVPR 2019): an image to a latent vector in (-1, 1)^d.

    Three 5x5 stride-2 convolutions of ``width``, doubling, each with batch norm and LeakyReLU 0.2, then a linear layer,
    batch norm and tanh as in the authors' working scripts.

    Args:
        shape: ``(C, H, W)`` of an image, any size.
        width: Channels of the first convolution, 64 in the paper.
        latent: ``d``.

    Example:
        >>> bounded_encoder((1, 28, 28), width=8, latent=16)(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 16])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], width, 2 * width, 4 * width]):
        convolution = nn.Conv2d(inputs, outputs, 5, 2, 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]
    features = 4 * width * prod(halvings(shape[1:], 3)[-1])
    last = [nn.Flatten(), nn.Linear(features, latent, bias=False), nn.BatchNorm1d(latent), nn.Tanh()]
    return nn.Sequential(*layers, *last).apply(normal_start)


def bounded_decoder(shape: Sequence[int], width: int, latent: int) -> nn.Sequential:
    """OCGAN's decoder, which mirrors :func:`bounded_encoder`: ``(B, d)`` to ``(B, C, H, W)`` in (-1, 1).

    Args:
        shape: ``(C, H, W)`` of an image, any size.
        width: Channels before the last layer, those of the encoder's first convolution.
        latent: ``d``.

    Example:
        >>> bounded_decoder((3, 33, 47), width=8, latent=16)(torch.rand(4, 16)).shape
        torch.Size([4, 3, 33, 47])
    """
    sizes = halvings(shape[1:], 3)
    grid = (4 * width, *sizes[3])
    layers: list[nn.Module] = [nn.Linear(latent, prod(grid), bias=False), nn.Unflatten(1, grid), ChannelsLast()]
    layers += [nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs, size in ((4 * width, 2 * width, sizes[2]), (2 * width, width, sizes[1])):
        layers += [upsampling(inputs, outputs, 5, size, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]
    last = upsampling(width, shape[0], 5, sizes[0], bias=True)
    return nn.Sequential(*layers, last, nn.Tanh()).apply(normal_start)


def normal_start(layer: nn.Module) -> None:
    """Sets DCGAN's initial weights, as OCGAN's code does: N(0, 0.02²), batch-norm gains N(1, 0.02²), zero biases.

    Other layers keep their weights.

    Example:
        >>> layer = nn.Linear(100, 100)
        >>> normal_start(layer)
        >>> bool((layer.weight.std() - 0.02).abs() < 1e-3), layer.bias.abs().max().item()
        (True, 0.0)
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)


def discriminator(shape: Sequence[int], widths: Sequence[int], norm: Norm | None = nn.BatchNorm2d) -> nn.Sequential:
    """A discriminator: 5x5 stride-2 convolutions with LeakyReLU 0.2, ``norm`` on all but the first, and one linear logit.

    Inputs ``(B, *shape)`` become ``(B,)`` logits of being a clean normal image. For flat vectors the layers are linear.

    Args:
        shape: ``(C, H, W)`` of an image, any size, or ``(F,)``.
        widths: Channels of the convolutions, or sizes of the hidden layers.
        norm: Makes the layer that follows a convolution; None for no such layers. Flat vectors have none.

    Raises:
        InputError: The shape has another length, a width is below 1, or images get no convolution.

    Example:
        >>> sum(p.numel() for p in discriminator((1, 28, 28), (16, 32, 64, 128)).parameters())
        270401
    """
    check_sizes(discriminator_widths=widths)
    if is_flat(shape):
        return dense([*shape, *widths, 1], nn.Flatten(0))
    if not widths:
        raise InputError("discriminator_widths must have an entry: images need at least one convolution")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 5, 2, 2), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, outputs in pairwise(widths):
        normalized = [norm(outputs)] if norm else []
        layers += [nn.Conv2d(inputs, outputs, 5, 2, 2), *normalized, nn.LeakyReLU(0.2, inplace=True)]
    features = widths[-1] * prod(halvings(shape[1:], len(widths))[-1])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1), nn.Flatten(0))


def dense(sizes: Sequence[int], last: nn.Module | None = None) -> nn.Sequential:
    """A dense net for flat vectors: linear layers with LeakyReLU 0.2 between them, then ``last`` if given.

    Args:
        sizes: Number of inputs, sizes of the hidden layers, number of outputs.
        last: A layer that follows the last linear one.

    Example:
        >>> dense([10, 8, 2])(torch.rand(4, 10)).shape
        torch.Size([4, 2])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1], *([last] if last is not None else []))


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Context in eval mode and without gradients; afterwards every layer is in its former mode.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(net):
        ...     [layer.training for layer in net]
        [False, False]
        >>> [layer.training for layer in net]
        [True, False]
    """
    modes = [(layer, layer.training) for net in nets for layer in net.modules()]
    for net in nets:
        net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode


class ChannelsLast(nn.Module):
    """Converts ``(B, C, H, W)`` to channels-last memory, which ``nn.Unflatten`` does not.

    Example:
        >>> ChannelsLast()(torch.zeros(2, 3, 4, 5)).stride()
        (60, 1, 15, 3)
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same values."""
        return x.contiguous(memory_format=torch.channels_last)
