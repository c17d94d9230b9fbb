"""Every package that defines a module keeps the contract, and the contract's checks catch what they are there for."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml

from autoencoder import Autoencoder
from common.module import OneClassModule
from common.testing import CHECKS, optimizer_steps, toy_samples, trained
from common.testing import check_batch_independence as batch_independence
from common.testing import check_export as export
from common.testing import check_optimizers_in_declared_order as declared_order
from common.testing import check_optimizers_move_their_own as move_their_own
from common.testing import check_orientation as orientation
from common.testing import check_resume as resume
from common.testing import check_scores as scores

ROOT = Path(__file__).parents[1]


def smoke_factories():
    """From the smoke preset of every top-level package whose ``__init__`` exports a module."""
    for file in sorted(ROOT.glob("*/configs/smoke.yaml")):
        package = importlib.import_module(file.parents[1].name)
        modules = [m for _, m in inspect.getmembers(package, inspect.isclass) if issubclass(m, OneClassModule)]
        arguments = yaml.safe_load(file.read_text())["model"]["init_args"]
        for module in modules:
            yield pytest.param(lambda shape, m=module, a=arguments: m(shape=shape, **a), id=module.__name__.lower())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("factory", smoke_factories())
def test_contract(factory, check):
    check(factory)


def test_every_paper_is_found():
    packages = {file.parent.name for file in ROOT.glob("*/module.py")} - {"common"}
    exported = {file.parents[1].name for file in ROOT.glob("*/configs/smoke.yaml")}
    assert packages
    assert packages == exported


class Tiny(OneClassModule):
    """A two-net module whose faults are planted by subclasses."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__()
        self.save_hyperparameters(logger=False)
        n = torch.Size(shape).numel()
        self.encoder, self.decoder = torch.nn.Linear(n, 4), torch.nn.Linear(4, n)

    def configure_optimizers(self):
        """Two optimisers, one for each net."""
        return [torch.optim.Adam(net.parameters(), 1e-2) for net in (self.encoder, self.decoder)]

    def training_step(self, batch, batch_idx):
        """Both nets, one after the other."""
        losses = {}
        for name, optimizer in zip(("loss_e", "loss_d"), self.optimizers(), strict=True):
            losses[name] = self.loss(batch.image)
            with self.toggled_optimizer(optimizer):
                self.descend(optimizer, self.loss(batch.image))
        return losses

    def loss(self, x):
        return self.error(x).mean()

    def error(self, x):
        flat = x.flatten(1)
        return (self.decoder(self.encoder(flat)) - flat).square().mean(1)

    def scores(self, x):
        """The squared error."""
        return {"reconstruction": self.error(x)}


class NoBackward(Tiny):
    def descend(self, optimizer, loss):
        optimizer.zero_grad()
        optimizer.step()


class OthersParameters(Tiny):
    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters(), 1e-2), torch.optim.Adam(self.decoder.parameters(), 1e-2)]


class MovesByHand(Tiny):
    """An exponential average written into the other net between two steps."""

    def training_step(self, batch, batch_idx):
        losses = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self.encoder.weight.mul_(0.99)
        return losses


class MovesInHook(Tiny):
    def configure_optimizers(self):
        first, second = super().configure_optimizers()
        first.register_step_post_hook(lambda *_: self.decoder.bias.data.add_(1))
        return [first, second]


class Orphan(Tiny):
    def configure_optimizers(self):
        return [torch.optim.Adam(self.encoder.parameters(), 1e-2)]

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image)
        self.descend(self.optimizers(), loss)
        return {"loss": loss}


class WrongOrder(Tiny):
    def training_step(self, batch, batch_idx):
        for optimizer in reversed(self.optimizers()):
            loss = self.loss(batch.image)
            self.descend(optimizer, loss)
        return {"loss": loss}


class EverySecondBatch(Tiny):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image)
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            self.descend(optimizer, self.loss(batch.image))
        return {"loss": loss}


class BatchMates(Tiny):
    def scores(self, x):
        error = self.error(x)
        return {"reconstruction": error - error.mean()}


class BatchStatistics(Tiny):
    """Batch norm that never uses its running statistics."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.norm = torch.nn.BatchNorm1d(torch.Size(shape).numel(), affine=False, track_running_stats=False)

    def error(self, x):
        return super().error(self.norm(x.flatten(1)))


class Collapsed(Tiny):
    def scores(self, x):
        return {"reconstruction": 0 * self.error(x) + 1}


class AlmostCollapsed(Tiny):
    def scores(self, x):
        return {"reconstruction": 1000 + 1e-3 * self.error(x)}


class Inverted(Tiny):
    def scores(self, x):
        return {"reconstruction": -self.error(x)}


class NotANumber(Tiny):
    def scores(self, x):
        return {"reconstruction": self.error(x).log().sqrt()}


class Unnamed(Tiny):
    def scores(self, x):
        return {"error": self.error(x)}


class LooksAtValues(Tiny):
    def scores(self, x):
        error = self.error(x)
        return {"reconstruction": error if error.max() > 0 else -error}


class Forgetful(Tiny):
    """Noise from a generator of its own, whose state no checkpoint keeps."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.random = torch.Generator().manual_seed(0)

    def loss(self, x):
        return self.error(x + 0.5 * torch.randn(x.shape, generator=self.random)).mean()


def test_a_sound_module_passes():
    for check in CHECKS:
        check(Tiny)


@pytest.mark.parametrize(
    ("check", "fault", "says"),
    [
        (move_their_own, NoBackward, "never move"),
        (move_their_own, OthersParameters, "share parameters"),
        (move_their_own, MovesByHand, "something else than an optimiser"),
        (move_their_own, MovesInHook, "not its own"),
        (move_their_own, Orphan, "no optimiser has"),
        (declared_order, WrongOrder, "not as they are declared"),
        (declared_order, EverySecondBatch, "differ from batch to batch"),
        (batch_independence, BatchMates, "depends on the other images"),
        (batch_independence, BatchStatistics, r"depends on the other images|Expected more than 1 value"),
        (scores, Collapsed, "collapsed"),
        (scores, AlmostCollapsed, "collapsed"),
        (scores, Unnamed, "reconstruction"),
        (orientation, Inverted, "higher must mean more anomalous"),
        (export, LooksAtValues, "cannot be exported"),
        (resume, Forgetful, "resumed"),
    ],
)
def test_planted_faults_are_caught(check, fault, says):
    with pytest.raises((AssertionError, ValueError, KeyError), match=says):
        check(fault)


def test_scores_that_are_not_finite_are_caught():
    with pytest.raises(ValueError, match=r"finite|NaN|nan"):
        scores(NotANumber)


def test_optimizer_steps_counts():
    assert optimizer_steps(Tiny((1, 4, 4)), batches=2) == [0, 1, 0, 1]
    assert optimizer_steps(Autoencoder((1, 8, 8), widths=(4, 8), latent=4), batches=3) == [0, 0, 0]


def test_threshold_is_the_quantile_of_the_held_out_scores():
    module = trained(lambda shape: Autoencoder(shape, widths=(4, 8), latent=4, threshold_quantile=0.5))
    with torch.no_grad():
        held_out = module(toy_samples(seed=1).image)
    assert module.threshold.item() == pytest.approx(held_out.double().quantile(0.5).item(), rel=1e-6)
