"""The checks of the contract. Each takes a factory and raises AssertionError that says what is wrong."""

import inspect
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from sklearn.metrics import roc_auc_score
from torch import Tensor

from common.data import Sample
from common.deploy.export import ChosenScore, program
from common.errors import InputError
from common.module import OneClassModule
from common.testing.steps import every_kth
from common.testing.toys import Factory, N, fit, new, scores_of, toy_samples, trained

ODD_SHAPES: tuple[tuple[int, ...], ...] = ((1, 28, 28), (1, 45, 45), (3, 33, 47), (30,))


def check_docstrings(factory: Factory) -> None:
    """The class and its three overridden methods say what they do."""
    cls = type(new(factory))
    members = [(cls.__name__, cls, OneClassModule)]
    for name in ("scores", "training_step", "named_optimizers"):
        members.append((f"{cls.__name__}.{name}", getattr(cls, name), getattr(OneClassModule, name)))
    for name, own, base in members:
        # not the base class's own, which getdoc finds too
        assert inspect.getdoc(own) not in {None, inspect.getdoc(base)}, f"{name} has no docstring"


def check_returns(factory: Factory) -> None:
    """``training_step`` returns scalar losses by name, which are logged; ``phases`` ascend; figures get what they need."""
    module = new(factory)
    phases = list(module.phases)
    assert [0, *sorted(set(phases) - {0})] == phases, f"phases must ascend from 0, not {phases}"
    step, names = module.training_step, dict[int, list[set[str]]]()

    def watched(batch: Sample, batch_idx: int) -> Any:
        losses = step(batch, batch_idx)
        named = isinstance(losses, Mapping) and len(losses) > 0
        assert named, f"training_step must return its losses by name, not {type(losses).__name__}"
        for name, loss in losses.items():
            is_scalar = isinstance(loss, Tensor) and loss.ndim == 0
            assert is_scalar, f"loss '{name}' of training_step must be a scalar tensor"
            assert loss.isfinite(), f"loss '{name}' of training_step is {loss.item()}"
        names.setdefault(module.current_epoch, []).append(set(losses))
        return losses

    module.training_step = watched  # type: ignore[method-assign]
    logged = fit(module, phases[-1] + 1).callback_metrics
    for of_batches in names.values():
        for name in set().union(*of_batches):
            there = [batch for batch, losses in enumerate(of_batches) if name in losses]
            assert every_kth(there, len(of_batches)), f"loss '{name}' comes in the batches {there}, not in every k-th"
    unlogged = sorted(name for name in set().union(*names[phases[-1]]) if f"train/{name}" not in logged)
    assert not unlogged, f"the losses {unlogged} are not logged: do the hooks on_train_… call super()?"
    x = toy_samples(16).image
    with torch.no_grad():
        reconstruction, latent, figures = module.eval().reconstruct(x), module.embed(x), module.figures(x)
    for name, values, expected in (("reconstruct", reconstruction, x.ndim), ("embed", latent, 2)):
        if values is not None:
            right = values.ndim == expected and (values.shape == x.shape if name == "reconstruct" else len(values) == len(x))
            assert right, f"{name} returns the shape {tuple(values.shape)} for inputs {tuple(x.shape)}"
    drawn = isinstance(figures, Mapping) and all(isinstance(figure, Figure) for figure in figures.values())
    assert drawn, "figures must return matplotlib's figures by name"


def check_shapes(factory: Factory) -> None:
    """Images of odd sizes and channels, and flat vectors, can be trained on and scored, unless an InputError refuses them."""
    for shape in ODD_SHAPES:
        try:
            module = new(factory, shape)
        except InputError:
            continue
        fit(module, module.phases[-1] + 1, limit_train_batches=1, limit_val_batches=1)
        for name, values in scores_of(module.eval(), toy_samples(16, shape).image).items():
            assert values.shape == (16,), f"score '{name}' has the shape {values.shape} for inputs {shape}"
            assert np.isfinite(values).all(), f"score '{name}' is not finite for inputs {shape}"


def check_scores(factory: Factory) -> None:
    """Scores are ``(B,)``, finite and spread out, depend on their own input alone, and can be exported with ``forward``."""
    module = trained(factory)
    x = torch.cat([toy_samples(16, seed=2).image, toy_samples(16, seed=2, anomalous=True).image])
    scores, chosen = scores_of(module, x), module.hparams["score"]
    assert chosen in scores, f"score '{chosen}' is not among {sorted(scores)}"
    for name, values in scores.items():
        assert values.shape == (32,), f"score '{name}' has the shape {values.shape}, not (32,)"
        assert np.isfinite(values).all(), f"score '{name}' is not finite"
        spread = values.std() / max(np.abs(values).mean(), 1e-12)
        distinct = len(np.unique(values))
        collapsed = spread <= 1e-4 or distinct <= 16
        assert not collapsed, f"score '{name}' has collapsed: {distinct} values, spread {spread:.1e}"
    with torch.no_grad():
        assert np.array_equal(module(x).double().numpy(), scores[chosen]), "forward is not the chosen score"
    _check_independence(module, x[8:24])
    _check_export(module, x[:9])


def _check_independence(module: OneClassModule, x: Tensor) -> None:
    """In eval mode a score depends on its own input alone, and scoring changes nothing in the module."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    together, again, order = scores_of(module, x), scores_of(module, x), torch.randperm(len(x))
    shuffled = scores_of(module, x[order])
    alone = [scores_of(module, one[None]) for one in x]
    for name, values in together.items():
        assert np.array_equal(values, again[name]), f"score '{name}' differs when it is computed twice"
        one_by_one = np.array([one[name][0] for one in alone])
        for others, expected in ((shuffled[name], values[order]), (one_by_one, values)):
            apart = f"by up to {np.abs(others - expected).max():.1e} of {np.abs(expected).max():.1e}"
            assert _alike(others, expected, 1e-3), f"score '{name}' depends on the other images of the batch, {apart}"
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]) or value.isnan().all(), f"scoring changed '{name}'"


def _check_export(module: OneClassModule, x: Tensor) -> None:
    """``torch.export`` traces ``forward`` to a program that scores alike, whatever the batch size."""
    net = ChosenScore(module).eval()
    try:
        exported = program(net, x[:2]).module()
    except Exception as error:
        raise AssertionError(f"forward cannot be exported: {error}") from error
    with torch.no_grad():
        for n in (1, len(x)):
            first, second = net(x[:n]), exported(x[:n])
            same = torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(first.abs().max()))
            assert same, f"an exported program scores a batch of {n} differently"


def check_orientation(factory: Factory) -> None:
    """After training on waves, noise scores higher: the AUROC of the chosen score is above 0.75."""
    module = trained(factory, epochs=20)
    normal, noise = (scores_of(module, toy_samples(seed=3, anomalous=kind).image) for kind in (False, True))
    name = module.hparams["score"]
    auroc = roc_auc_score([0] * N + [1] * N, np.concatenate([normal[name], noise[name]]))
    told = f"score '{name}' has an AUROC of {auroc:.3f} on noise against waves after 20 epochs"
    assert auroc > 0.75, f"higher must mean more anomalous, or the method needs other arguments to train: {told}"


def check_checkpoints(factory: Factory) -> None:
    """``monitor`` is logged in every epoch; the last and its best epoch's checkpoints load, score and have the threshold."""
    x = toy_samples(seed=6).image
    module = new(factory)
    module.every_epoch_counts = True
    curve: list[float] = []

    def follow(trainer: Trainer, _: Any) -> None:
        logged = trainer.callback_metrics
        assert module.monitor in logged, f"monitor '{module.monitor}' is not logged: choose from {', '.join(sorted(logged))}"
        curve.append(float(logged[module.monitor]))

    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, "best", monitor=module.monitor, mode=module.mode, save_on_train_epoch_end=True)
        fit(module, module.phases[-1] + 3, Path(folder), callbacks=[LambdaCallback(on_train_epoch_end=follow), best])
        assert Path(best.best_model_path).is_file(), f"'{module.monitor}' has chosen no epoch"
        of_best, of_last = _loaded(module, best.best_model_path), _loaded(module, f"{folder}/last.ckpt")
    last_phase = curve[module.phases[-1] :]
    assert np.isfinite(last_phase).all(), f"monitor '{module.monitor}' is not finite: {last_phase}"
    assert module.threshold.isfinite(), "the threshold is not set after a validation"
    assert of_last.threshold == module.threshold, "the threshold does not travel with the checkpoint"
    assert of_best.threshold.isfinite(), "the best epoch's checkpoint has no threshold"
    first, second = scores_of(module.eval(), x), scores_of(of_last, x)
    for name, values in first.items():
        assert _alike(second[name], values, 1e-4), f"score '{name}' changed on the way through a checkpoint"
    for name, values in scores_of(of_best, x).items():
        collapsed = not np.isfinite(values).all() or values.std() == 0
        assert not collapsed, f"score '{name}' of the best epoch's checkpoint is not usable: is it set in the last epoch only?"


def check_resume(factory: Factory) -> None:
    """One seed gives one state bit for bit, also if the run stops and resumes; ``prepare`` runs once for each phase."""
    uninterrupted = new(factory)
    last = uninterrupted.phases[-1]
    fit(uninterrupted, last + 4)
    for stop in {last + 2, last} - {0}:
        stopped, resumed = new(factory), new(factory)
        calls, again = _watch_prepare(stopped), _watch_prepare(resumed)
        with tempfile.TemporaryDirectory() as folder:
            fit(stopped, last + 4, Path(folder), stop_after=stop)
            torch.rand(1)
            fit(resumed, last + 4, Path(folder), resume=True)
        _check_prepared(resumed, calls, again, stop)
        state = resumed.state_dict()
        differ = [name for name, value in uninterrupted.state_dict().items() if not torch.equal(value, state[name])]
        hint = "each epoch PyTorch's global generator is seeded; other random numbers and counters must travel in buffers"
        assert not differ, f"a resumed run differs from an uninterrupted one in {', '.join(reversed(differ))}: {hint}"


def _check_prepared(module: OneClassModule, calls: list[set[str]], again: list[set[str]], stop: int) -> None:
    """Of ``prepare``, what it has set before and after a stop."""
    begun, phases = bisect_left(module.phases, stop), len(module.phases)
    assert len(calls) == begun, f"prepare ran {len(calls)} times in {begun} phases"
    assert len(again) == phases - begun, "prepare ran again when the run was resumed: does on_load_checkpoint call super()?"
    overridden = type(module).prepare is not OneClassModule.prepare
    assert not overridden or any([*calls, *again]), "prepare has set no buffer and no parameter: what it computes would be lost"
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            assert buffer.isfinite().all(), f"buffer '{name}' is not finite after training: is it never set?"
            assert buffer.any(), f"buffer '{name}' is zero after training: is it never set?"


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


def _alike(values: Any, expected: Any, tolerance: float) -> bool:
    """Whether scores are equal but for rounding."""
    return bool(np.allclose(values, expected, rtol=tolerance, atol=1e-5 * np.abs(expected).max()))


def _loaded(module: OneClassModule, path: str) -> OneClassModule:
    loaded = type(module).load_from_checkpoint(path, weights_only=True, map_location="cpu", **module.offline_kwargs)
    return loaded.eval()
