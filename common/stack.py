"""Several modules that take the same steps, trained as one: for nets that leave a GPU idle one by one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from common.data import Sample
from common.errors import InputError
from common.module import OneClassModule
from common.networks import ChannelsLast

Generators = Mapping[str, torch.Generator]
"""A module's sources of randomness by the type of device: ``cpu``, and ``cuda`` where it trains on one."""


class Stack:
    """The parameters of ``M`` modules side by side, ``(M, ...)`` each, and one training step for all of them.

    The module's own ``training_step`` is run once under :func:`torch.vmap`: each operation works on all modules. What a module
    draws at random comes from generators of its own. So the step is that of each module by itself, up to rounding.

    Args:
        members: Modules of one class and configuration, each with its trainer; their steps see batches of one size.
    """

    def __init__(self, members: Sequence[OneClassModule]) -> None:
        self.members = list(members)
        if any(isinstance(layer, nn.Dropout) for layer in members[0].modules()):
            raise InputError("nets with dropout cannot be stacked: leave out --stack")
        self.module = _copy(members[0])
        for name, parameter in self.module.named_parameters():
            parameter.data = torch.stack([member.get_parameter(name).detach() for member in members])
        self._tensors: dict[str, Tensor] = {f"module.{name}": p for name, p in self.module.named_parameters()}
        self._buffers = {name for name, b in members[0].named_buffers() if b.is_floating_point() and b.ndim}
        for name in self._buffers:
            self._tensors[f"module.{name}"] = torch.stack([member.get_buffer(name) for member in members])
        self.module.descend = self._descend  # type: ignore[method-assign]
        self._step = _Step(self.module)
        self._taken: list[int] = []
        of_members = [_optimizers(member) for member in members]
        self._optimizers = [self._stacked(optimizers) for optimizers in zip(*of_members, strict=True)]
        self.module.optimizers = lambda: self._optimizers if len(self._optimizers) > 1 else self._optimizers[0]  # type: ignore

    def training_step(
        self, batches: Sequence[Sample], batch_idx: int, generators: Sequence[Generators]
    ) -> list[dict[str, Tensor]]:
        """One iteration of each module's algorithm on its batch; the losses of each, as its own step returns them."""
        trainer = self.members[0].trainer
        self.module.trainer = SimpleNamespace(  # type: ignore[assignment]
            optimizers=self._optimizers, current_epoch=trainer.current_epoch, max_epochs=trainer.max_epochs
        )
        for ours, theirs in zip(self._optimizers, _optimizers(self.members[0]), strict=True):
            for group, of_member in zip(ours.param_groups, theirs.param_groups, strict=True):
                group["lr"] = of_member["lr"]
        image = torch.stack([batch.image.movedim(1, -1) for batch in batches]).movedim(-1, 2)
        rest = (torch.stack(values) for values in list(zip(*batches, strict=True))[1:])

        def step(tensors: dict[str, Tensor], batch: Sample) -> dict[str, Tensor]:
            with _Draws(generators, batch.image):
                losses: dict[str, Tensor] = functional_call(self._step, tensors, (batch, batch_idx))
            return losses

        self._taken.clear()
        losses = torch.vmap(step, randomness="error")(self._tensors, Sample(image, *rest))
        for member in self.members:
            own = member.optimizers()
            for position in self._taken:
                (own if isinstance(own, list) else [own])[position].step()
        return [{name: values[i] for name, values in losses.items()} for i in range(len(self.members))]

    @torch.no_grad()
    def hand_back(self) -> None:
        """Gives each module its parameters, buffers and optimisers' states."""
        for i, member in enumerate(self.members):
            own = dict(member.named_parameters()) | dict(member.named_buffers())
            ours = dict(self.module.named_buffers()) | {n.removeprefix("module."): t[i] for n, t in self._tensors.items()}
            for name, tensor in own.items():
                if name != "threshold":
                    tensor.copy_(ours[name])
            for stacked, optimizer in zip(self._optimizers, _optimizers(member), strict=True):
                for ours_p, p in zip(_parameters(stacked), _parameters(optimizer), strict=True):
                    optimizer.state[p] = {
                        key: value[i].clone() if value.shape == ours_p.shape else value.clone()
                        for key, value in stacked.state[ours_p].items()
                    }

    def _stacked(self, optimizers: Sequence[Optimizer]) -> Optimizer:
        first = optimizers[0]
        names = {parameter: name for name, parameter in self.members[0].named_parameters()}
        groups = [
            {**group, "params": [self.module.get_parameter(names[p]) for p in group["params"]]} for group in first.param_groups
        ]
        stacked = type(first)(groups, **first.defaults)
        for ours, *theirs in zip(_parameters(stacked), *map(_parameters, optimizers), strict=True):
            states = [optimizer.state.get(p, {}) for optimizer, p in zip(optimizers, theirs, strict=True)]
            for key, value in states[0].items():
                same = value.shape == theirs[0].shape
                stacked.state[ours][key] = torch.stack([state[key] for state in states]) if same else value.clone()
        return stacked

    def _descend(self, optimizer: Any, loss: Tensor) -> None:
        optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        self._taken += [self._optimizers.index(one) for one in optimizers]

        def descend(losses: Tensor) -> Tensor:
            for one in optimizers:
                one.zero_grad()
            losses.sum().backward()
            for one in optimizers:
                one.step()
            return losses.detach()

        _Stacked.apply(descend, loss)


class _Step(nn.Module):
    def __init__(self, module: OneClassModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Sample, batch_idx: int) -> Any:
        return type(self.module).training_step(self.module, batch, batch_idx)


class _Stacked(torch.autograd.Function):
    """A function of what all modules have together, ``(M, ...)``, called where :func:`torch.vmap` shows what one has."""

    @staticmethod
    def forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        raise RuntimeError("there is nothing stacked outside of torch.vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[None, int], function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
        return function(x.movedim(in_dims[1], 0)), 0


class _Draws(TorchFunctionMode):
    """Random numbers of each module from its own generators, as it would draw them by itself."""

    def __init__(self, generators: Sequence[Generators], anchor: Tensor) -> None:
        super().__init__()
        self.generators, self.anchor = generators, anchor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LIKE:
            draw = _LIKE[func]
            x, *rest = args

            def like(stacked: Tensor) -> Tensor:
                device = stacked.device.type
                draws = [draw(one, g[device], *rest, **kwargs) for one, g in zip(stacked, self.generators, strict=True)]
                return torch.stack(draws)

            return _Stacked.apply(like, x)
        if func in _PLAIN:
            device = torch.device(kwargs.get("device") or "cpu").type

            def plain(_: Tensor) -> Tensor:
                return torch.stack([func(*args, generator=g[device], **kwargs) for g in self.generators])

            return _Stacked.apply(plain, self.anchor)
        return func(*args, **kwargs)


_LIKE: dict[Any, Callable[..., Tensor]] = {
    torch.rand_like: lambda x, generator: torch.empty_like(x).uniform_(generator=generator),
    torch.randn_like: lambda x, generator: torch.empty_like(x).normal_(generator=generator),
}
_PLAIN = {torch.rand, torch.randn, torch.randint, torch.randperm}


def _copy(module: OneClassModule) -> OneClassModule:
    trainer, module._trainer = module._trainer, None
    try:
        copied = copy.deepcopy(module)
    finally:
        module._trainer = trainer
    for parent in copied.modules():
        for name, child in parent.named_children():
            if isinstance(child, ChannelsLast):
                setattr(parent, name, nn.Identity())
    return copied


def _optimizers(module: OneClassModule) -> list[Optimizer]:
    optimizers: list[Optimizer] = module.trainer.optimizers
    return optimizers


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
