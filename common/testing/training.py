"""Checks of the contract that watch a module train: optimisers, passes over the data, checkpoints, resumption."""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from common.data import Sample
from common.module import OneClassModule
from common.testing.toys import Factory, fit, new, scores_of, toy_samples, trained, watch_steps


def check_optimizers_move_their_own(factory: Factory) -> None:
    """Every trainable parameter belongs to an optimiser, is moved by its steps, and by nothing else.

    In a method with several phases optimisers may share parameters. ``prepare`` and ``after_epoch`` may set some.
    """
    module = new(factory)
    names = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
    before: dict[str, Tensor] = {}
    moved: set[str] = set()
    own: dict[str, set[str]] = {}

    def snapshot() -> None:
        before.update({name: parameter.detach().clone() for parameter, name in names.items()})

    def changes() -> set[str]:
        return {name for parameter, name in names.items() if not torch.equal(parameter, before[name])}

    def before_step(name: str) -> None:
        assert not changes(), f"these parameters are moved by something else than an optimiser: {sorted(changes())}"

    def after_step(name: str) -> None:
        others = sorted(changes() - own[name])
        assert not others, f"a step of optimiser '{name}' moved parameters that are not its own: {others}"
        moved.update(changes())
        snapshot()

    def begin(optimizers: dict[str, Optimizer]) -> None:
        own.update(_owned(optimizers, names, shared=len(module.phases) > 1))
        snapshot()

    def setting(hook: Callable[[Iterable[Sample]], None], batches: Iterable[Sample]) -> None:
        before_step("")
        hook(batches)
        snapshot()

    for hook in ("prepare", "after_epoch"):
        setattr(module, hook, partial(setting, getattr(module, hook)))
    watch_steps(module, 4, after_step, begin, before_step)
    before_step("")
    still = sorted(set(names.values()) - moved)
    assert not still, f"these parameters never move, is their loss back-propagated? {still}"


def _owned(optimizers: dict[str, Optimizer], names: dict[Any, str], shared: bool) -> dict[str, set[str]]:
    """The names of each optimiser's parameters."""
    own: dict[str, set[str]] = {}
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        mine = {names[parameter] for parameter in parameters if parameter in names}
        for other, theirs in own.items():
            common = sorted(mine & theirs)
            assert shared or not common, f"optimisers '{other}' and '{name}' share parameters outside of phases: {common}"
        own[name] = mine
    orphans = sorted(set(names.values()) - set().union(*own.values()))
    assert not orphans, f"no optimiser has these trainable parameters: {orphans}"
    return own


def check_optimizers_in_declared_order(factory: Factory) -> None:
    """All batches of a phase use the same optimisers, and first uses come in the order of declaration."""
    declared: list[str] = []
    one, three = (_steps_of_epochs(new(factory), batches, declared) for batches in (1, 3))
    used = list(dict.fromkeys(chain(*one)))
    expected = [name for name in dict.fromkeys(declared) if name in used]
    assert used, "training_step takes no optimiser step"
    assert used == expected, f"optimisers are first used in the order {used}, not as they are declared: {expected}"
    for steps, repeated in zip(one, three, strict=True):
        assert repeated == 3 * steps, f"steps differ from batch to batch: {repeated}"


def _steps_of_epochs(module: OneClassModule, batches: int, declared: list[str]) -> list[list[str]]:
    epochs: list[list[str]] = [[] for _ in range(module.phases[-1] + 1)]
    watch_steps(module, batches, lambda name: epochs[module.current_epoch].append(name), declared.extend)
    return epochs


def check_first_pass(factory: Factory) -> None:
    """``prepare`` runs once for each phase, sets what it is there for, and does not run again when a run resumes."""
    module, resumed = new(factory), new(factory)
    epochs = module.phases[-1] + 2
    calls, again = _watch_prepare(module), _watch_prepare(resumed)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, epochs, Path(folder), stop_after=epochs - 1)
        fit(resumed, epochs, Path(folder), resume=True)
    assert len(calls) == len(module.phases), f"prepare ran {len(calls)} times in {len(module.phases)} phases"
    assert not again, "prepare ran again when the run was resumed: does on_load_checkpoint call super()?"
    overridden = type(module).prepare is not OneClassModule.prepare
    assert not overridden or any(calls), "prepare has set no buffer and no parameter: what it computes would be lost"
    for name, buffer in resumed.named_buffers(recurse=False):
        if buffer.is_floating_point():
            assert buffer.isfinite().all(), f"buffer '{name}' is not finite after training: is it never set?"
            assert buffer.any(), f"buffer '{name}' is zero after training: is it never set?"


def check_same_seed_same_scores(factory: Factory) -> None:
    """Two trainings from one seed end in the same scores."""
    x = toy_samples(seed=5).image
    first, second = (scores_of(trained(factory), x) for _ in range(2))
    for name, values in first.items():
        assert np.array_equal(values, second[name]), f"the same seed gives another '{name}'"


def check_checkpoint(factory: Factory) -> None:
    """A checkpoint loads with ``weights_only=True``, and brings the same scores and the threshold."""
    x = toy_samples(seed=6).image
    module = new(factory)
    with tempfile.TemporaryDirectory() as name:
        fit(module, module.phases[-1] + 2, Path(name))
        loaded = _loaded(module, Path(name, "last.ckpt"))
    assert module.threshold.isfinite(), "the threshold is not set after a validation"
    assert loaded.threshold == module.threshold, "the threshold does not travel with the checkpoint"
    first, second = scores_of(module.eval(), x), scores_of(loaded, x)
    for score, values in first.items():
        same = np.allclose(values, second[score], rtol=1e-4, atol=1e-5 * np.abs(values).max())
        assert same, f"score '{score}' changed on the way through a checkpoint"


def check_rule_validation(factory: Factory) -> None:
    """``monitor`` is logged in every epoch, and the checkpoint of its best epoch loads and scores."""
    module = new(factory)
    module.every_epoch_counts = True
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, "best", monitor=module.monitor, mode=module.mode, save_on_train_epoch_end=True)
        curve = _Curve(module.monitor)
        fit(module, module.phases[-1] + 3, Path(folder), callbacks=[curve, best])
        assert Path(best.best_model_path).is_file(), f"'{module.monitor}' has chosen no epoch"
        loaded = _loaded(module, Path(best.best_model_path))
    last_phase = curve.values[module.phases[-1] :]
    assert np.isfinite(last_phase).all(), f"monitor '{module.monitor}' is not finite: {last_phase}"
    assert loaded.threshold.isfinite(), "the best epoch's checkpoint has no threshold"
    for name, values in scores_of(loaded, toy_samples(seed=8).image).items():
        collapsed = not np.isfinite(values).all() or values.std() == 0
        assert not collapsed, f"score '{name}' of the best epoch's checkpoint is not usable: is it set in the last epoch only?"


def check_resume(factory: Factory) -> None:
    """A run that stops, within a phase or between two, resumes to the uninterrupted run's state, bit for bit."""
    uninterrupted = new(factory)
    last = uninterrupted.phases[-1]
    with tempfile.TemporaryDirectory() as folder:
        fit(uninterrupted, last + 4, Path(folder))
    for stop in {last + 2, last} - {0}:
        stopped, resumed = new(factory), new(factory)
        with tempfile.TemporaryDirectory() as folder:
            fit(stopped, last + 4, Path(folder), stop_after=stop)
            torch.rand(1)
            fit(resumed, last + 4, Path(folder), resume=True)
        state = resumed.state_dict()
        for name, value in uninterrupted.state_dict().items():
            assert torch.equal(value, state[name]), f"'{name}' differs between a resumed and an uninterrupted run"


class _Curve(Callback):
    """The monitored value after each epoch."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics
        assert self.monitor in logged, f"monitor '{self.monitor}' is not logged: choose from {', '.join(sorted(logged))}"
        self.values.append(float(logged[self.monitor]))


def _watch_prepare(module: OneClassModule) -> list[set[str]]:
    """For each later call of ``prepare``, the names of the buffers and parameters that it has changed."""
    calls: list[set[str]] = []

    def watched(batches: Iterable[Sample]) -> None:
        before = {name: value.clone() for name, value in module.state_dict().items()}
        prepare(batches)
        after = module.state_dict().items()
        calls.append({name for name, value in after if not value.allclose(before[name], 0, 0, equal_nan=True)})

    prepare = module.prepare
    module.prepare = watched  # type: ignore[method-assign]
    return calls


def _loaded(module: OneClassModule, path: Path) -> OneClassModule:
    loaded = type(module).load_from_checkpoint(path, weights_only=True, map_location="cpu", **module.offline_kwargs)
    return loaded.eval()
