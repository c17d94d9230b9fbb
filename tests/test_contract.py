"""Every package that defines a module keeps the contract, and the contract's checks catch what they are there for."""

import importlib
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from torch.nn import functional

from autoencoder import Autoencoder
from common.errors import InputError
from common.module import OneClassModule
from common.testing import CHECKS, check_module, main, optimizer_steps, toy_samples, trained
from common.testing.checks import (
    check_checkpoints,
    check_docstrings,
    check_orientation,
    check_resume,
    check_returns,
    check_scores,
    check_shapes,
)
from common.testing.steps import check_optimizers

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

    def named_optimizers(self):
        """Two optimisers, one for each net."""
        return {name: torch.optim.Adam(getattr(self, name).parameters(), 1e-2) for name in ("encoder", "decoder")}

    def training_step(self, batch, batch_idx):
        """Both nets, one after the other."""
        losses = {}
        for name in ("encoder", "decoder"):
            with self.toggled(name):
                losses[f"loss_{name}"] = self.loss(batch.image)
                self.descend(name, losses[f"loss_{name}"])
        return losses

    def loss(self, x):
        return self.error(x).mean()

    def error(self, x):
        flat = x.flatten(1)
        return (self.decoder(self.encoder(flat)) - flat).square().mean(1)

    def scores(self, x):
        """The squared error."""
        return {"reconstruction": self.error(x)}


class Whitened(Tiny):
    """With a first pass that sets a buffer: the mean of the training images, which is subtracted."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.register_buffer("centre", torch.zeros(torch.Size(shape).numel()))

    def prepare(self, batches):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.centre.copy_(torch.cat([batch.image.flatten(1) for batch in batches]).mean(0))

    def error(self, x):
        return super().error(x.flatten(1) - self.centre)


class TwoPhases(Whitened):
    """The encoder with a throw-away decoder first, then both; the first pass is repeated by the second phase."""

    phases = (0, 2)

    def named_optimizers(self):
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        return {"pretraining": torch.optim.Adam(both, 1e-2), "training": torch.optim.Adam(both, 1e-2)}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image)
        self.descend(("pretraining", "training")[self.phase], loss)
        return {"loss": loss}


class NoBackward(Tiny):
    def descend(self, names, loss):
        self.optimizer(names).zero_grad()
        self.optimizer(names).step()


class OthersParameters(Tiny):
    def named_optimizers(self):
        return super().named_optimizers() | {"encoder": torch.optim.Adam(self.parameters(), 1e-2)}


class MovesByHand(Tiny):
    """An exponential average written into the other net between two steps."""

    def training_step(self, batch, batch_idx):
        losses = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self.encoder.weight.mul_(0.99)
        return losses


class Clips(Tiny):
    """The bounds of a Wasserstein critic's weights, after its step."""

    def training_step(self, batch, batch_idx):
        """Both nets, then the clipping."""
        losses = super().training_step(batch, batch_idx)
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.clamp_(-0.05, 0.05)
        return losses


class MovesOneNumber(Tiny):
    """A parameter of one element, which always lies at its own bound."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.decoder.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))

    def training_step(self, batch, batch_idx):
        losses = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self.decoder.scale.add_(0.1)
        return losses

    def error(self, x):
        return super().error(x) * self.decoder.scale.square()


class ClipsFirst(Clips):
    """Weights that no optimiser has moved yet."""

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.decoder.weight.clamp_(-0.05, 0.05)
        return super().training_step(batch, batch_idx)


class MovesInHook(Tiny):
    def named_optimizers(self):
        optimizers = super().named_optimizers()
        optimizers["encoder"].register_step_post_hook(lambda *_: self.decoder.bias.data.add_(1))
        return optimizers


class Orphan(Tiny):
    def named_optimizers(self):
        return {"encoder": torch.optim.Adam(self.encoder.parameters(), 1e-2)}

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image)
        self.descend("encoder", loss)
        return {"loss": loss}


class WrongOrder(Tiny):
    def training_step(self, batch, batch_idx):
        for name in ("decoder", "encoder"):
            loss = self.loss(batch.image)
            self.descend(name, loss)
        return {"loss": loss}


class EverySecondBatch(Tiny):
    """Steps its decoder, and has its loss, in every second batch."""

    def training_step(self, batch, batch_idx):
        losses = {}
        for name in ("encoder", "decoder")[: 1 + batch_idx % 2]:
            losses[name] = self.loss(batch.image)
            self.descend(name, losses[name])
        return losses


class SkipsTheFirstBatch(Tiny):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image)
        for name in ("encoder", "decoder")[: 1 + (batch_idx > 0)]:
            self.descend(name, self.loss(batch.image))
        return {"loss": loss}


class StepsTwiceInTheLastBatch(Tiny):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            self.descend("encoder", self.loss(batch.image))
        return super().training_step(batch, batch_idx)


class NeverSet(Whitened):
    def prepare(self, batches):
        self.mean = torch.cat([batch.image.flatten(1) for batch in batches]).mean(0)


class Forgotten(Whitened):
    def prepare(self, batches):
        self.threshold.fill_(1)


class NotFinite(Whitened):
    def prepare(self, batches):
        self.centre.fill_(math.nan)

    def error(self, x):
        return Tiny.error(self, x)


class PreparedAgain(Whitened):
    """Forgets on resumption that it has been prepared."""

    def on_load_checkpoint(self, checkpoint):
        self.calibration = checkpoint["calibration"]


class RecomputedOnResume(Tiny):
    """A centre of the codes, computed by a hook of Lightning's in place of ``prepare``."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.register_buffer("centre", torch.zeros(4))

    def on_fit_start(self):
        with torch.no_grad():
            self.centre.copy_(self.encoder(toy_samples().image.flatten(1)).mean(0))


class WrongMonitor(Tiny):
    monitor = "val/rec"


class MonitorOfSomeEpochs(Tiny):
    monitor = "val/mean"

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if self.current_epoch == 0:
            self.log("val/mean", float("nan"))


class LastEpochOnly(Whitened):
    """A score that is made in the last epoch, whatever epoch is tested."""

    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.register_buffer("scale", torch.tensor(0.0))

    def scores(self, x):
        return {"reconstruction": self.error(x), "scaled": self.scale * self.error(x)}

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        if self.current_epoch + 1 == self.trainer.max_epochs and self.current_epoch > 1:
            self.scale.fill_(1)

    def on_validation_epoch_end(self):
        """Lower is better, but here the first epoch is the best."""
        super().on_validation_epoch_end()
        self.log("val/reconstruction", float(self.current_epoch))


class SharedOutsideOfPhases(TwoPhases):
    phases = (0,)


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


class LiveDropout(Tiny):
    def scores(self, x):
        error = self.error(x)
        return {"reconstruction": error, "noisy": error * functional.dropout(torch.ones_like(error), 0.1, training=True)}


class Counts(Tiny):
    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.register_buffer("seen", torch.ones(()))

    def scores(self, x):
        self.seen += len(x)
        return super().scores(x)


class OwnForward(Tiny):
    def forward(self, x):
        return -self.error(x)


class EvenWidths(Tiny):
    """One of its scores is infinite for images of an odd width."""

    def scores(self, x):
        error = self.error(x)
        return {"reconstruction": error, "scaled": error / (1 - x.shape[-1] % 2)}


class NoBuffer(Tiny):
    """A scale of the scores that no checkpoint holds."""

    scale = 1.0

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.scale = 3.0

    def scores(self, x):
        return {"reconstruction": self.scale * self.error(x)}


class OwnValidation(Tiny):
    def on_validation_epoch_end(self):
        self.log("val/reconstruction", float(self._split().scores["reconstruction"].mean()))


class ReturnsALoss(Tiny):
    """As with automatic optimisation."""

    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(batch.image)}


class HidesAMethod(Tiny):
    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.score = score


class HidesAMethodWithANet(Tiny):
    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__(shape)
        self.frozen = torch.nn.Linear(2, 2)


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


class LacksArguments(Tiny):
    """It takes nothing but the shape."""

    def __init__(self, shape):
        super(Tiny, self).__init__()
        self.save_hyperparameters(logger=False)


class ReturnsNothing(Tiny):
    def training_step(self, batch, batch_idx):
        """No losses."""
        super().training_step(batch, batch_idx)


class ReturnsRows(Tiny):
    def training_step(self, batch, batch_idx):
        """A loss for each image."""
        return super().training_step(batch, batch_idx) | {"loss_rows": self.error(batch.image)}


class ReturnsOtherNames(Tiny):
    def training_step(self, batch, batch_idx):
        """One more loss in the second batch."""
        losses = super().training_step(batch, batch_idx)
        return losses | ({"loss_more": losses["loss_decoder"]} if batch_idx else {})


class ReturnsNaN(Tiny):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch.image) * math.nan
        self.descend(("encoder", "decoder"), loss)
        return {"loss": loss}


class LogsNothing(Tiny):
    def on_train_epoch_end(self):
        """Without super()."""


class Undocumented(OneClassModule):
    def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
        super().__init__()
        self.save_hyperparameters(logger=False)

    def named_optimizers(self):
        return {}

    def training_step(self, batch, batch_idx):
        return {}

    def scores(self, x):
        return {}


class HalfDocumented(Undocumented):
    """A class with methods that say nothing."""


class LatePhases(Tiny):
    phases = (1,)


class FlatImages(Tiny):
    def reconstruct(self, x):
        return self.decoder(self.encoder(x.flatten(1)))


class EmbedsImages(Tiny):
    def embed(self, x):
        return x


class ListsFigures(Tiny):
    def figures(self, x):
        return [Figure()]


@pytest.mark.parametrize("module", [Tiny, Whitened, TwoPhases, Clips, EverySecondBatch])
def test_a_sound_module_passes(module):
    check_module(module)


def test_a_function_from_a_shape_passes_too():
    check_module(lambda size, score: Tiny(size, score), score="reconstruction")


@pytest.mark.parametrize(
    ("check", "fault", "says"),
    [
        (check_docstrings, Undocumented, "Undocumented has no docstring"),
        (check_docstrings, HalfDocumented, "HalfDocumented.scores has no docstring"),
        (check_returns, ReturnsNothing, "must return its losses by name, not NoneType"),
        (check_returns, ReturnsRows, "loss 'loss_rows' of training_step must be a scalar tensor"),
        (check_returns, ReturnsOtherNames, r"loss 'loss_more' comes in the batches \[1, 2, 3\], not in every k-th"),
        (check_returns, ReturnsNaN, "loss 'loss' of training_step is nan"),
        (check_returns, LogsNothing, r"are not logged: do the hooks on_train_… call super\(\)"),
        (check_returns, LatePhases, r"phases must ascend from 0, not \[1\]"),
        (check_returns, FlatImages, r"reconstruct returns the shape \(16, 256\) for inputs \(16, 1, 16, 16\)"),
        (check_returns, EmbedsImages, r"embed returns the shape \(16, 1, 16, 16\)"),
        (check_returns, ListsFigures, "must return matplotlib's figures by name"),
        (check_optimizers, NoBackward, "do not move in 4 batches"),
        (check_optimizers, OthersParameters, "share parameters"),
        (check_optimizers, SharedOutsideOfPhases, "share parameters outside of phases"),
        (check_optimizers, MovesByHand, "something else than an optimiser"),
        (check_optimizers, MovesOneNumber, "something else than an optimiser"),
        (check_optimizers, ClipsFirst, "something else than an optimiser"),
        (check_optimizers, MovesInHook, "not its own"),
        (check_optimizers, Orphan, "no optimiser has"),
        (check_optimizers, WrongOrder, "not as they are declared"),
        (check_optimizers, SkipsTheFirstBatch, r"steps of 'decoder' differ from batch to batch: \[0, 1, 1, 1\]"),
        (check_optimizers, StepsTwiceInTheLastBatch, r"steps of 'encoder' differ from batch to batch: \[1, 1, 1, 2\]"),
        (check_resume, NeverSet, "prepare has set no buffer"),
        (check_resume, Forgotten, "buffer 'centre' is zero after training"),
        (check_resume, NotFinite, "buffer 'centre' is not finite"),
        (check_resume, PreparedAgain, "prepare ran again when the run was resumed"),
        (check_resume, RecomputedOnResume, "a resumed run differs from an uninterrupted one in centre: "),
        (check_checkpoints, WrongMonitor, "monitor 'val/rec' is not logged: choose from .*val/reconstruction"),
        (check_checkpoints, MonitorOfSomeEpochs, "monitor 'val/mean' is not finite"),
        (check_checkpoints, LastEpochOnly, "score 'scaled' of the best epoch's checkpoint"),
        (check_checkpoints, NoBuffer, "score 'reconstruction' changed on the way through a checkpoint"),
        (check_checkpoints, OwnValidation, "the threshold is not set after a validation"),
        (check_optimizers, ReturnsALoss, "do not move in 4 batches|no optimiser step"),
        (check_scores, LiveDropout, "score 'noisy' differs when it is computed twice"),
        (check_scores, Counts, "scoring changed 'seen'"),
        (check_scores, OwnForward, "forward is not the chosen score"),
        (check_shapes, EvenWidths, "score 'scaled' is not finite"),
        (check_shapes, HidesAMethod, "the attributes score hide methods: read self.hparams"),
        (check_shapes, HidesAMethodWithANet, "the attributes frozen hide methods"),
        (check_scores, BatchMates, "depends on the other images"),
        (check_scores, BatchStatistics, r"depends on the other images|Expected more than 1 value"),
        (check_scores, Collapsed, "collapsed"),
        (check_scores, AlmostCollapsed, "collapsed"),
        (check_scores, Unnamed, "reconstruction"),
        (check_orientation, Inverted, "higher must mean more anomalous"),
        (check_scores, LooksAtValues, "cannot be exported"),
        (check_resume, Forgetful, "resumed"),
        (check_shapes, LacksArguments, r"must take score, threshold_quantile and call self.save_hyperparameters\(\)"),
    ],
)
def test_planted_faults_are_caught(check, fault, says):
    with pytest.raises((AssertionError, ValueError, KeyError), match=says):
        check(fault)


def test_scores_that_are_not_finite_are_caught():
    with pytest.raises(ValueError, match=r"finite|NaN|nan"):
        check_scores(NotANumber)


def test_optimizer_steps_counts():
    assert optimizer_steps(Tiny((1, 4, 4)), batches=2) == ["encoder", "decoder"] * 2
    assert optimizer_steps(Autoencoder((1, 8, 8), widths=(4, 8), latent=4), batches=3) == 3 * ["autoencoder"]
    assert optimizer_steps(TwoPhases((1, 4, 4)), batches=1) == ["pretraining", "pretraining", "training"]


def test_a_shape_that_a_module_refuses_is_not_checked():
    class ImagesOnly(Tiny):
        def __init__(self, shape, score="reconstruction", threshold_quantile=0.95):
            if len(shape) != 3:
                raise InputError("images only")
            super().__init__(shape)

    check_shapes(ImagesOnly)


OUTSIDE = """
import torch
from common.errors import InputError
from common.module import OneClassModule
from autoencoder import Autoencoder

class Sound(Autoencoder):
    def __init__(self, weight: float = 1.0, **autoencoder):
        super().__init__(**autoencoder)
        self.weight = weight

class Faulty(Sound):
    monitor = "val/nothing"

class Unfinished(OneClassModule):
    pass

other = 3
"""


@pytest.fixture
def _outside(tmp_path, monkeypatch):
    (tmp_path / "my_idea.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_idea", None)


ARGUMENTS = ["--widths=[8, 16]", "--latent", "8", "--lr=3e-3", "--weight", "2"]


@pytest.mark.usefixtures("_outside")
def test_the_command_checks_a_class_of_the_current_folder(capsys):
    main(["my_idea.Sound", *ARGUMENTS])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS)
    assert all(line.startswith("ok ") for line in lines)


@pytest.mark.usefixtures("_outside")
def test_the_command_fails_with_what_is_wrong(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["my_idea.Faulty", *ARGUMENTS])
    assert exit_.value.code == 1
    (wrong,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert "monitor 'val/nothing' is not logged" in wrong


@pytest.mark.usefixtures("_outside")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.Method"], "cannot import 'nowhere.Method'"),
        (["my_idea.Missing"], "cannot import 'my_idea.Missing'"),
        (["my_idea.other"], "not a class derived from"),
        (["my_idea.Unfinished"], "lacks named_optimizers, scores, training_step"),
        (["my_idea.Sound", "--depth", "3"], "depth"),
        (["my_idea.Sound", "--latent", "many"], "latent"),
    ],
)
def test_the_commands_mistakes_are_one_line(words, says):
    with pytest.raises(InputError, match=says) as error:
        main(words)
    assert "\n" not in str(error.value)


def test_threshold_is_the_quantile_of_the_held_out_scores():
    module = trained(lambda shape: Autoencoder(shape, widths=(4, 8), latent=4, threshold_quantile=0.5))
    with torch.no_grad():
        held_out = module(toy_samples(seed=1).image)
    assert module.threshold.item() == pytest.approx(held_out.double().quantile(0.5).item(), rel=1e-6)
