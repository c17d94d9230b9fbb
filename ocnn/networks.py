"""OC-CNN's nets: the feature extractor and the classifier."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from torch import nn

from common.backbones import Frozen, split
from common.errors import InputError
from common.networks import check_sizes, halvings, is_flat


def extractor(
    shape: Sequence[int],
    backbone: str,
    weights: str | None,
    head_layers: int | Sequence[int],
    fine_tuned: bool,
    pooling: Literal["avg"] | None = None,
) -> tuple[Frozen | None, nn.Sequential]:
    """Builds the feature extractor: a frozen part, if any, and the layers that are trained, if any.

    Args:
        shape: ``(C, H, W)`` or ``(F,)``.
        backbone: A net of torchvision; or ``none``, which uses flat vectors as features and trains a small net on images.
        weights: See :func:`common.backbones.split`, also for the next three; unused for ``none``.
        head_layers: Number of linear layers of the classifier that are kept; several numbers concatenate features.
        fine_tuned: Whether these layers are trained.
        pooling: ``avg`` for the mean of the last feature map.

    Raises:
        InputError: The inputs are not RGB images, or :func:`common.backbones.split` refuses the arguments.

    Example:
        >>> frozen, trained = extractor((1, 28, 28), "none", None, 0, False)
        >>> frozen, sum(p.numel() for p in trained.parameters())
        (None, 88720)
    """
    if backbone == "none":
        return None, nn.Sequential() if is_flat(shape) else small_net(shape)
    if is_flat(shape) or shape[0] != 3:
        raise InputError(f"backbone '{backbone}' takes RGB images, not {tuple(shape)}: give data.channels 3, or backbone none")
    return split(backbone, weights, head_layers, fine_tuned, pooling)


def small_net(shape: Sequence[int]) -> nn.Sequential:
    """A small net: three 3x3 stride-2 convolutions with 16, 32 and 64 channels, LeakyReLU 0.2, and a linear layer.

    It has no biases and Kaiming's initial weights, so that the features of different images differ from the beginning.

    Args:
        shape: ``(C, H, W)`` of an image, any size.

    Returns:
        A net from ``(B, C, H, W)`` to ``(B, 64)`` features.

    Example:
        >>> import torch
        >>> small_net((3, 33, 47))(torch.rand(4, 3, 33, 47)).shape
        torch.Size([4, 64])
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], 16, 32, 64]):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * prod(halvings(shape[1:], 3)[-1]), 64, bias=False))
    for parameter in net.parameters():
        nn.init.kaiming_normal_(parameter, 0.2)
    return net


def classifier(features: int, widths: Sequence[int]) -> nn.Sequential:
    """The classifier: ReLU before each linear layer, hidden layers and two logits.

    Args:
        features: Size of a feature vector.
        widths: Sizes of the hidden layers; empty for a single linear layer.

    Returns:
        A net from ``(B, features)`` to ``(B, 2)`` logits: of the target class, then of noise.

    Example:
        >>> [str(layer) for layer in classifier(8, [4])][:2]
        ['ReLU()', 'Linear(in_features=8, out_features=4, bias=True)']
    """
    check_sizes(classifier_widths=widths)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([features, *widths, 2]):
        layers += [nn.ReLU(), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)
