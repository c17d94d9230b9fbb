"""Pretrained nets of torchvision, split into frozen layers and layers that may be trained on top."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from common.errors import InputError, WeightsMissingError


class Frozen(nn.Module):
    """Frozen layers: no gradients and always in eval mode, so that their features can be cached.

    Args:
        net: A net from normalised images to features of any shape.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        sizes: Sizes of the parts of the features, if they come from several layers.

    Example:
        >>> frozen = Frozen(nn.AvgPool2d(4), mean=[0.5], std=[0.25]).train()
        >>> frozen(torch.ones(2, 1, 4, 4)).tolist(), frozen.training
        ([[2.0], [2.0]], False)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self.net = net
        self.sizes = tuple(sizes)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Keeps all layers in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Computes features: ``(B, C, H, W)`` in [0, 1] to ``(B, F)``."""
        features: Tensor = self.net((images - self.mean) / self.std)
        return features.flatten(1)

    def key(self) -> str:
        """A hash of the layers, their weights and the normalisation."""
        digest = hashlib.sha256(repr(self).encode())
        for value in self.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Beside(nn.Module):
    """A chain of stages whose outputs ``(B, F)`` are concatenated."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``(B, D)``, where D is the sum of all F."""
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x.clone())  # the next stage may work in place
        return torch.cat(outputs, 1)


def split(
    name: str,
    weights: str | None = "DEFAULT",
    head_layers: int | Sequence[int] = 0,
    fine_tuned: bool = False,
    pooling: Literal["avg"] | None = None,
) -> tuple[Frozen, nn.Sequential]:
    """Splits a classifier of torchvision into a frozen part and layers that are trained.

    Everything below the linear layers of the classifier is frozen. SqueezeNet's classifier is a 1x1 convolution and a
    mean, which commute without the ReLU between them: it is cut after the mean of its last feature map.

    Args:
        name: A model name of :func:`torchvision.models.get_model`.
        weights: A member of the net's weights in torchvision; a file of weights (see :func:`weights_file`) of the whole net
            or of its convolutions; None for random weights.
        head_layers: Number of linear layers of the classifier that are kept; nothing follows the last of them. Several
            numbers, ascending, concatenate the outputs after each of them, frozen.
        fine_tuned: Whether the kept layers are trained; otherwise they are frozen too.
        pooling: ``avg`` averages the whole last feature map, if the net has a grid of means (VGG: 7 x 7, AlexNet: 6 x 6).

    Returns:
        The frozen part, from images in [0, 1] ``(B, 3, H, W)`` to ``(B, F)``, and the trained layers, from ``(B, F)`` to
        ``(B, D)``, which may be empty.

    Raises:
        InputError: The net or the weights are unknown, the file belongs to another net, there are fewer layers, there is
            nothing to train, or nothing to pool.
        WeightsMissingError: The weights are missing and cannot be downloaded.

    Example:
        >>> frozen, head = split("alexnet", weights=None, head_layers=2, fine_tuned=True)
        >>> [type(layer).__name__ for layer in head], head[-1].out_features
        (['Dropout', 'Linear', 'ReLU', 'Dropout', 'Linear'], 4096)
    """
    net, mean, std = _load(name, weights)
    place = next((place for place in ("classifier", "fc", "head", "heads") if hasattr(net, place)), None)
    if place is None:
        raise InputError(f"backbone '{name}' has no classifier to remove: choose another one")
    classifier = getattr(net, place)
    layers = [_as_linear(layer) for layer in (classifier if isinstance(classifier, nn.Sequential) else [classifier])]
    ends = [0, *(position + 1 for position, layer in enumerate(layers) if isinstance(layer, nn.Linear))]
    kept = _checked(name, head_layers, fine_tuned, len(ends) - 1)
    pooled = isinstance(classifier, nn.Sequential) and any(isinstance(layer, nn.Conv2d) for layer in classifier)
    setattr(net, place, nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity())
    _refuse_missing(name, weights, net, layers[: ends[kept[-1]]])
    if pooling is not None:
        _pool(name, net, head_layers, pooling)
    if fine_tuned:
        return Frozen(net, mean, std), nn.Sequential(*layers[: ends[kept[0]]])
    if head_layers == 0:
        return Frozen(net, mean, std), nn.Sequential()
    chain = [net, nn.Flatten(), *layers]
    stages = [nn.Sequential(*chain[start:end]) for start, end in pairwise([0, *(2 + ends[count] for count in kept)])]
    if isinstance(head_layers, int):
        return Frozen(stages[0], mean, std), nn.Sequential()
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
    return Frozen(Beside(stages), mean, std, [sizes[count] for count in kept]), nn.Sequential()


def weights_file(weights: object) -> Path | None:
    """The file that ``weights`` names, if it ends in ``.pth``; else None.

    If the path does not exist, the file is expected in torchvision's folder, ``$TORCH_HOME/hub/checkpoints``.

    Example:
        >>> weights_file("DEFAULT"), weights_file("/data/vgg16_features.pth").as_posix()
        (None, '/data/vgg16_features.pth')
    """
    if not isinstance(weights, str) or not weights.endswith(".pth"):
        return None
    path = Path(weights).expanduser()
    return path if path.is_file() else Path(torch.hub.get_dir(), "checkpoints", path)


def _checked(name: str, head_layers: int | Sequence[int], fine_tuned: bool, available: int) -> list[int]:
    """Checks ``head_layers`` and returns it as a list."""
    kept = [head_layers] if isinstance(head_layers, int) else list(head_layers)
    for count in kept:
        if not 0 <= count <= available:
            raise InputError(f"head_layers of '{name}' must be between 0 and {available}, not {count}")
    if kept != sorted(set(kept)) or not kept:
        raise InputError(f"head_layers must be one number, or several in ascending order, not {kept}")
    if fine_tuned and not head_layers:
        raise InputError("without head_layers there is nothing to fine-tune: give head_layers or fine_tuned: false")
    if fine_tuned and not isinstance(head_layers, int):
        raise InputError(f"several head_layers are always frozen: give one number, not {kept}, or fine_tuned: false")
    return kept


def _load(name: str, weights: str | None) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(f"unknown backbone '{name}': give none, or a net of torchvision, such as alexnet, vgg16 or resnet18")
    if weights is None:
        return torchvision.models.get_model(name, weights=None), (0.5,) * 3, (0.25,) * 3
    members = torchvision.models.get_model_weights(name)
    if (path := weights_file(weights)) is not None:
        preset = members.DEFAULT.transforms()
        return _load_file(name, path), preset.mean, preset.std
    if weights not in members.__members__:
        raise InputError(
            f"unknown weights '{weights}' of '{name}': choose from {', '.join(members.__members__)}, or give a .pth file"
        )
    chosen = members[weights]
    try:
        net = torchvision.models.get_model(name, weights=chosen)
    except (OSError, RuntimeError, EOFError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(chosen.url).name)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsMissingError(
            f"no weights of '{name}': {file} is missing or damaged, and cannot be downloaded ({reason}); download {chosen.url} "
            f"to this place, or set TORCH_HOME to the folder that holds hub/checkpoints/{file.name}"
        ) from error
    preset = chosen.transforms()
    return net, preset.mean, preset.std


def _load_file(name: str, path: Path) -> nn.Module:
    """Loads a file of weights into the net; layers that the file lacks are moved to the device ``meta``, without values."""
    state = _read_state(name, path)
    net = torchvision.models.get_model(name, weights=None)
    expected = net.state_dict()
    for key, value in state.items():
        if key not in expected or value.shape != expected[key].shape:
            shape = tuple(value.shape)
            raise InputError(f"{path} holds no weights of '{name}', which has no {key} of shape {shape}: give another file")
    for key in net.load_state_dict(state, strict=False).missing_keys:
        net.get_submodule(key.rpartition(".")[0]).to("meta")
    return net


def _read_state(name: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsMissingError(f"no weights of '{name}': there is no {path}; put the file there, or give its path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways
        reason = [*str(error).splitlines(), type(error).__name__][0]
        raise InputError(f"cannot read the weights {path}: {reason}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict: save only the net's state_dict()")
    return state


def _refuse_missing(name: str, weights: str | None, net: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Raises InputError if a file lacks weights of the layers that are kept, below or in the classifier."""
    missing = [key for key, value in net.state_dict().items() if value.is_meta]
    if missing:
        raise InputError(f"{weights} lacks {missing[0]}, one of {len(missing)} missing weights of '{name}': give another file")
    if any(parameter.is_meta for layer in layers for parameter in layer.parameters()):
        raise InputError(f"{weights} lacks linear layers of '{name}': give fewer head_layers, or a file that has them")


def _pool(name: str, net: nn.Module, head_layers: int | Sequence[int], pooling: str) -> None:
    """Replaces the net's grid of means by one mean, in place."""
    if pooling != "avg":
        raise InputError(f"unknown pooling '{pooling}': give avg, or leave it out")
    if head_layers != 0:
        raise InputError("pooling makes the last feature map too small for linear layers: give head_layers 0, or no pooling")
    if not isinstance(getattr(net, "avgpool", None), nn.AdaptiveAvgPool2d):
        raise InputError(f"'{name}' has no grid of means to pool, unlike vgg16 and alexnet: leave pooling out")
    net.avgpool = nn.AdaptiveAvgPool2d(1)


def _as_linear(layer: nn.Module) -> nn.Module:
    """Converts a 1x1 convolution to the equivalent linear layer; returns any other layer unchanged."""
    if not isinstance(layer, nn.Conv2d):
        return layer
    linear = nn.Linear(layer.in_channels, layer.out_channels, device=layer.weight.device)
    linear.load_state_dict({"weight": layer.weight.flatten(1), "bias": layer.bias})
    return linear
