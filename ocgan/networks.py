"""OCGAN's encoder, decoder and critics, for images of any size and flat vectors, and those of the code for 61x61."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, NamedTuple

from torch import nn

from common.errors import InputError
from common.networks import bounded_decoder, bounded_encoder, check_sizes, dense, discriminator, is_flat, normal_start

Network = Literal["padded", "released"]
"""``padded``: three 5x5 stride-2 convolutions, as in the text, for any size; ``released``: four without padding, as in the
code, for 61x61 only. Flat vectors have dense nets with either."""


class Nets(NamedTuple):
    """An ``encoder`` from ``(B, *shape)`` to ``(B, d)`` in (-1, 1), and a ``decoder`` back."""

    encoder: nn.Module
    decoder: nn.Module


def build(network: Network, shape: Sequence[int], width: int, latent: int) -> Nets:
    """Builds encoder and decoder.

    Args:
        network: See :data:`Network`.
        shape: ``(C, H, W)`` or ``(F,)``.
        width: Channels of the encoder's first convolution.
        latent: ``d``.

    Raises:
        InputError: The shape has another length, ``released`` is used for another size, or a width or ``d`` is below 1.

    Example:
        >>> [sum(p.numel() for p in net.parameters()) for net in build("released", (3, 61, 61), 64, 16)]
        [1132064, 1132099]
    """
    check_sizes(width=width, latent=latent)
    if is_flat(shape):
        widths = (*shape, 4 * width, 2 * width)
        return Nets(dense([*widths, latent], nn.Tanh()), dense([latent, *widths[::-1]]))
    if network == "padded":
        return Nets(bounded_encoder(shape, width, latent), bounded_decoder(shape, width, latent))
    if tuple(shape[1:]) != (61, 61):
        raise InputError(f"the released nets are for 61x61 images, not {shape[1]}x{shape[2]}: give image_size 61")
    return Nets(*_released(shape[0], width, latent))


def image_critic(network: Network, shape: Sequence[int], width: int) -> nn.Sequential:
    """The visual discriminator or the classifier: three 5x5 stride-2 convolutions of ``width``, doubling, and one logit.

    Args:
        network: See :data:`Network`; ``padded`` has PyTorch's initial weights, ``released`` the code's.
        shape: ``(C, H, W)`` or ``(F,)``.
        width: Channels of the first convolution.

    Returns:
        A net from ``(B, *shape)`` to ``(B,)`` logits.

    Raises:
        InputError: The shape has another length, or ``width`` is below 1.

    Example:
        >>> sum(p.numel() for p in image_critic("released", (3, 61, 61), 12).parameters())
        38257
    """
    check_sizes(**{"visual_width and classifier_width": width})
    widths = (width, 2 * width, 4 * width)
    if network == "padded" or is_flat(shape):
        return discriminator(shape, widths)
    layers = _released_convolutions([shape[0], *widths])
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 5, 2), nn.Flatten(0)).apply(normal_start)


def latent_critic(network: Network, latent: int) -> nn.Sequential:
    """The latent discriminator: a dense net with 128, 64, 32 and 16 units as in the paper, and one logit.

    Args:
        network: ``padded`` has LeakyReLU 0.2 and PyTorch's initial weights; ``released`` has the code's ReLU and initial
            weights and biases, N(0, 0.02²).
        latent: ``d``, the size of the codes.

    Returns:
        A net from ``(B, d)`` codes to ``(B,)`` logits.

    Example:
        >>> import torch
        >>> latent_critic("padded", 16)(torch.zeros(4, 16)).shape
        torch.Size([4])
    """
    sizes = [latent, 128, 64, 32, 16, 1]
    if network == "padded":
        return dense(sizes, nn.Flatten(0))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        for values in layers[-2].parameters():
            nn.init.normal_(values, 0.0, 0.02)
    return nn.Sequential(*layers[:-1], nn.Flatten(0))


@contextmanager
def kept_statistics(*nets: nn.Module) -> Iterator[None]:
    """Context in which batch norm does not update its running statistics; in training mode it uses those of the batch.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.BatchNorm1d(2))
        >>> with kept_statistics(net):
        ...     outputs = net(torch.rand(4, 2) + 5)
        >>> outputs.mean().abs().item() < 1e-5, net[0].running_mean.tolist()
        (True, [0.0, 0.0])
    """
    norms = [layer for net in nets for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm as in the code: MXNet's momentum of 0.1 is 0.9 in PyTorch."""
    return nn.BatchNorm2d(channels, momentum=0.9)


def _released_convolutions(widths: Sequence[int]) -> list[nn.Module]:
    """Convolutions of the code from ``widths[0]`` channels; the first has a bias in place of batch norm."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        norm = [_norm(outputs)] if place else []
        layers += [nn.Conv2d(inputs, outputs, 5, 2, bias=not place), *norm, nn.LeakyReLU(0.2, inplace=True)]
    return layers


def _released(channels: int, width: int, latent: int) -> tuple[nn.Module, nn.Module]:
    widths = [channels, width, 2 * width, 4 * width]
    encoder = _released_convolutions(widths)
    encoder += [nn.Conv2d(widths[-1], latent, 5, 2, bias=False), _norm(latent), nn.Tanh(), nn.Flatten()]
    decoder: list[nn.Module] = [nn.Unflatten(1, (latent, 1, 1))]
    for inputs, outputs in pairwise([latent, *widths[:0:-1]]):
        dropout = [nn.Dropout(0.5)] if outputs == width else []
        convolution = nn.ConvTranspose2d(inputs, outputs, 5, 2, bias=False)
        decoder += [convolution, _norm(outputs), *dropout, nn.ReLU(inplace=True)]
    decoder += [nn.ConvTranspose2d(width, channels, 5, 2), nn.Tanh()]
    return nn.Sequential(*encoder).apply(normal_start), nn.Sequential(*decoder).apply(normal_start)
