"""What a training does, call by call: for tests that compute an iteration by hand."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from common.module import OneClassModule
from common.testing import optimizer_steps


class Call(NamedTuple):
    """What a net is given and returns, and whether it is in training mode."""

    x: Tensor
    y: Tensor
    training: bool


class Watched:
    """Some batches of training, with what the named nets see.

    Attributes:
        images: Every batch's clean images.
        calls: For every net its calls, in order.
        totals: For every optimiser what it descends, in order.
        learning: For every step the optimiser and the nets whose parameters may receive gradients.
        losses: What every training step returns.
    """

    def __init__(self, module: OneClassModule, nets: Mapping[str, nn.Module], batches: int = 1) -> None:
        self.images: list[Tensor] = []
        self.calls: dict[str, list[Call]] = {name: [] for name in nets}
        self.totals: dict[str, list[float]] = {}
        self.learning: list[tuple[str, set[str]]] = []
        self.losses: list[dict[str, float]] = []
        step, descend = module.training_step, module.descend

        def watched_step(batch, batch_idx):
            self.images.append(batch.image.clone())
            losses = step(batch, batch_idx)
            self.losses.append({name: loss.item() for name, loss in losses.items()})
            return losses

        def watched_descend(name, loss):
            self.totals.setdefault(str(name), []).append(loss.item())
            self.learning.append((name, {net for net in nets if all(p.requires_grad for p in nets[net].parameters())}))
            descend(name, loss)

        for name, net in nets.items():
            net.register_forward_hook(lambda net, x, y, name=name: self._note(name, net, x[0], y))
        module.training_step, module.descend = watched_step, watched_descend
        optimizer_steps(module, batches)

    def inputs(self, name: str) -> list[Tensor]:
        """Of a net, in order."""
        return [call.x for call in self.calls[name]]

    def outputs(self, name: str) -> list[Tensor]:
        """Of a net, in order."""
        return [call.y for call in self.calls[name]]

    def _note(self, name: str, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.calls[name].append(Call(x.detach().clone(), y.detach().clone(), net.training))
