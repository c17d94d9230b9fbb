"""The check of the optimisers' steps: what they move, in which batches, in which order."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from common.data import Sample
from common.module import OneClassModule
from common.testing.toys import Factory, new, watch_steps

BATCHES = 4
"""Batches of an epoch while optimisers are watched."""


def check_optimizers(factory: Factory) -> None:
    """Optimisers move all of their own parameters and nothing else does, in each batch or every k-th, in declared order.

    In a method with several phases optimisers may share parameters. ``prepare`` and ``after_epoch`` may set some. What an
    optimiser has moved may be clipped, as a Wasserstein critic's weights are.
    """
    module = new(factory)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    own = _owned(module, parameters)
    before: dict[str, Tensor] = {}
    moved: set[str] = set()
    steps: dict[int, list[list[str]]] = {}

    def snapshot() -> None:
        before.update({name: parameter.detach().clone() for name, parameter in parameters.items()})

    def changes() -> set[str]:
        return {name for name, value in parameters.items() if not value.allclose(before[name], 0, 0, equal_nan=True)}

    def clipped() -> set[str]:
        return {name for name in moved if _is_clipped(parameters[name], before[name])}

    def nothing_else(_: str = "") -> None:
        others = sorted(changes() - clipped())
        assert not others, f"these parameters are moved by something else than an optimiser: {others}"

    def stepped(name: str) -> None:
        others = sorted(changes() - own[name] - clipped())
        assert not others, f"a step of optimiser '{name}' moved parameters that are not its own: {others}"
        moved.update(changes())
        batches = steps.setdefault(module.current_epoch, [[] for _ in range(BATCHES)])
        batches[module.trainer.fit_loop.batch_idx].append(name)
        snapshot()

    def setting(hook: Callable[[Iterable[Sample]], None], batches: Iterable[Sample]) -> None:
        nothing_else()
        hook(batches)
        snapshot()

    for hook in ("prepare", "after_epoch"):
        setattr(module, hook, partial(setting, getattr(module, hook)))
    snapshot()
    watch_steps(module, BATCHES, stepped, nothing_else)
    nothing_else()
    still = sorted(parameters.keys() - moved)
    assert not still, f"these parameters do not move in {BATCHES} batches, is their loss back-propagated? {still}"
    assert steps, "training_step takes no optimiser step"
    for batches in steps.values():
        _check_order(batches, list(own))


def _check_order(batches: list[list[str]], declared: list[str]) -> None:
    """Of the optimisers' steps in each batch of an epoch."""
    for steps in batches:
        used = list(dict.fromkeys(steps))
        expected = [name for name in declared if name in used]
        assert used == expected, f"optimisers are used in the order {used}, not as they are declared: {expected}"
    for name in declared:
        times = [steps.count(name) for steps in batches]
        there = [batch for batch, n in enumerate(times) if n]
        assert not there or every_kth(there, len(batches)), f"steps of '{name}' differ from batch to batch: {times}"
        assert len(set(times) - {0}) <= 1, f"steps of '{name}' differ from batch to batch: {times}"


def every_kth(batches: list[int], n: int) -> bool:
    """Whether these are every k-th of ``n`` batches, as far as ``n`` tells."""
    every = [range(start, n, k) for k in range(1, n + 1) for start in range(k)]
    return any(batches == list(one) for one in every)


def _is_clipped(value: Tensor, before: Tensor) -> bool:
    """Whether what has changed lies at one bound, and lay beyond it."""
    size, changed = value.abs(), value != before
    return bool(((size == size.max()) & (size < before.abs()))[changed].all())


def _owned(module: OneClassModule, parameters: dict[str, Any]) -> dict[str, set[str]]:
    """The names of each optimiser's parameters."""
    names = {parameter: name for name, parameter in parameters.items()}
    own: dict[str, set[str]] = {}
    for name, optimizer in module.named_optimizers().items():
        mine = {names[p] for group in optimizer.param_groups for p in group["params"] if p in names}
        for other, theirs in own.items():
            common = sorted(mine & theirs)
            shared = len(module.phases) > 1 or not common
            assert shared, f"optimisers '{other}' and '{name}' share parameters outside of phases: {common}"
        own[name] = mine
    orphans = sorted(parameters.keys() - set().union(*own.values()))
    assert not orphans, f"no optimiser has these trainable parameters: {orphans}"
    return own
