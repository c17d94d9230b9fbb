import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from alocc import ALOCC
from autoencoder import Autoencoder
from common import scoring
from common.data import OneClassDataModule
from common.deploy.load import load_detector
from common.errors import InputError
from common.module import Cosine, OneClassModule
from common.scoring import Scored
from common.training.seeding import epoch_seed, isolated
from common.training.watcher import NonFiniteLossError, Watcher
from ocgan import OCGAN


def module(**changes):
    arguments = {"shape": (1, 8, 8), "widths": (4, 8), "latent": 4} | changes
    return Autoencoder(**arguments)


def trainer(tmp_path, callbacks=(), **changes):
    options = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False} | changes
    return Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@pytest.fixture
def data():
    return OneClassDataModule("digits", normal=3, batch_size=32)


def test_a_module_without_scores_cannot_be_made():
    class Unfinished(OneClassModule):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def test_test_metrics_are_those_of_all_samples_scored_alone(tmp_path, data):
    own, run = module(), trainer(tmp_path)
    run.fit(own, data)
    run.test(own, data, verbose=False)
    batch = next(iter(data.test_dataloader()))
    with torch.no_grad():
        scores = own.eval()(batch.image).double().numpy()
    assert np.array_equal(own.scored.index, data.splits.test)
    np.testing.assert_allclose(own.scored.scores["reconstruction"], scores, rtol=1e-6)
    assert run.callback_metrics["test/auroc"].item() == pytest.approx(own.test_metrics()["reconstruction"]["auroc"])
    assert own.test_metrics()["reconstruction"]["n_normal"] == (data.data.targets[data.splits.test] == 3).sum()


def test_validation_logs_the_normal_only_criterion(tmp_path, data):
    own, run = module(), trainer(tmp_path)
    run.fit(own, data)
    own.eval()
    with torch.no_grad():
        expected = own(next(iter(data.val_dataloader())).image).mean().item()
    assert run.callback_metrics[own.monitor].item() == pytest.approx(expected, rel=1e-5)
    assert (data.data.targets[data.splits.val] == 3).all()


def test_held_out_scores_travel_with_the_checkpoint(tmp_path, data):
    own, run = module(), trainer(tmp_path)
    run.fit(own, data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    with torch.no_grad():
        expected = own.eval()(next(iter(data.val_dataloader())).image).double().sort().values
    torch.testing.assert_close(own.calibration, expected, rtol=1e-5, atol=1e-8)
    loaded = Autoencoder.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert torch.equal(loaded.calibration, own.calibration)
    assert not len(module().calibration)


def test_metrics_of_a_test_are_computed_once(tmp_path, data, monkeypatch):
    own, run, calls = module(), trainer(tmp_path), []
    run.fit(own, data)
    monkeypatch.setattr("common.scoring.evaluate", lambda *a, f=scoring.evaluate: (calls.append(1), f(*a))[1])
    run.test(own, data, verbose=False)
    assert own.test_metrics() is own.test_metrics()
    assert len(calls) == 1


class Passes(Autoencoder):
    """Notes what its two passes over the training data see."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.prepared, self.followed, self.trained_on = [], [], []

    def prepare(self, batches):
        assert not self.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        self.prepared.append(torch.cat([batch.index for batch in batches]).tolist())

    def after_epoch(self, batches):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.followed.append((self.current_epoch, torch.cat([batch.index for batch in batches]).tolist()))

    def training_step(self, batch, batch_idx):
        self.trained_on += [(self.current_epoch, index) for index in batch.index.tolist()]
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_passes_over_the_training_data(tmp_path, every, streamed):
    data = OneClassDataModule("digits", normal=3, batch_size=32, memory_gib=0 if streamed else 4, workers=1)
    own = Passes(shape=(1, 8, 8), widths=(4, 8), latent=4, noise_std=0.1)
    own.every_epoch_counts = every
    trainer(tmp_path).fit(own, data)
    assert own.prepared == [data.splits.train.tolist()], "once, the whole set, in its own order"
    assert [epoch for epoch, _ in own.followed] == ([0, 1] if every else [1])
    for epoch, seen in own.followed:
        assert seen == [index for e, index in own.trained_on if e == epoch], "the epoch's own order"
    assert all(net.training for net in own.modules())
    plain = Autoencoder(shape=(1, 8, 8), widths=(4, 8), latent=4, noise_std=0.1)
    plain.load_state_dict(own.state_dict())


def test_passes_leave_the_random_numbers_of_training_alone(tmp_path, data):
    states = []
    for cls in (Autoencoder, Passes):
        torch.manual_seed(0)
        own = cls(shape=(1, 8, 8), widths=(4, 8), latent=4, noise_std=0.1)
        trainer(tmp_path).fit(own, data)
        states.append(own.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


class Phased(Passes):
    phases = (0, 2)


def test_each_phase_is_prepared_once_and_only_the_last_can_be_chosen(tmp_path, data):
    own, curve = Phased(shape=(1, 8, 8), widths=(4, 8), latent=4), []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, module):
            curve.append(float(trainer.callback_metrics["val/reconstruction"]))

    best = ModelCheckpoint(tmp_path, "best", monitor=own.monitor, save_on_train_epoch_end=True)
    trainer(tmp_path, [Watch(), best], max_epochs=3, enable_checkpointing=True).fit(own, data)
    assert len(own.prepared) == 2
    assert np.isnan(curve).tolist() == [True, True, False]
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 2


def test_a_training_without_its_last_phase_is_refused(tmp_path, data):
    with pytest.raises(InputError, match="max_epochs 2 ends before the last phase begins, in epoch 2"):
        trainer(tmp_path).fit(Phased(shape=(1, 8, 8), widths=(4, 8), latent=4), data)


def test_a_training_that_ended_before_its_last_phase_is_not_tested(tmp_path, data):
    """By early stopping, a number of steps or a time; it may go on."""
    own = Phased(shape=(1, 8, 8), widths=(4, 8), latent=4)
    early = trainer(tmp_path, max_epochs=3, max_steps=1)
    early.fit(own, data)
    with pytest.raises(InputError, match="has ended in 1 of 2 phases, the last from epoch 2: let it go on"):
        early.test(own, data, verbose=False)
    with pytest.raises(InputError, match="1 of 2 phases"):
        early.predict(own, data)
    path = tmp_path / "early.ckpt"
    early.save_checkpoint(path)
    with pytest.raises(InputError, match="1 of 2 phases"):
        load_detector(path)


class Stop(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == 6


@pytest.mark.parametrize(
    "limits",
    [{"max_steps": 6}, {"max_epochs": -1, "max_steps": 6}, {"callbacks": [Stop()]}],
    ids=["steps", "steps alone", "callback"],
)
def test_after_epoch_sees_the_last_weights_where_an_epoch_is_cut_short(tmp_path, data, limits):
    """After the sixth of eight batches, as with ``max_time`` too, whose callback stops the training like this one."""
    own = Passes(shape=(1, 8, 8), widths=(4, 8), latent=4)
    run = trainer(tmp_path, **{"max_epochs": 5} | limits)
    run.fit(own, data)
    assert run.global_step == 6
    assert [epoch for epoch, _ in own.followed] == [1]
    assert sorted(own.followed[0][1]) == data.splits.train.tolist()
    run.test(own, data, verbose=False)


def test_a_wish_to_stop_before_min_epochs_does_not_repeat_after_epoch(tmp_path, data):
    class StopAtOnce(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            trainer.should_stop = True

    own = Passes(shape=(1, 8, 8), widths=(4, 8), latent=4)
    trainer(tmp_path, [StopAtOnce()], max_epochs=3, min_epochs=2).fit(own, data)
    assert [epoch for epoch, _ in own.followed] == [0, 1]


def test_a_training_that_ended_before_after_epoch_is_not_scored(tmp_path, data):
    class StopEpoch(Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    own, run = Passes(shape=(1, 8, 8), widths=(4, 8), latent=4), trainer(tmp_path, [StopEpoch()])
    run.fit(own, data)
    run.save_checkpoint(tmp_path / "early.ckpt")
    for score in (lambda: run.test(own, data, verbose=False), lambda: load_detector(tmp_path / "early.ckpt")):
        with pytest.raises(InputError, match="ended before after_epoch"):
            score()


class Returns(Autoencoder):
    def scores(self, x):
        return self.answer(super().scores(x)["reconstruction"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda values: values, "must return tensors by name, such as {'reconstruction': tensor}"),
        (lambda values: {"reconstruction": values.numpy()}, "must return tensors by name"),
        (
            lambda values: {"reconstruction": values.mean()},
            r"gives 'reconstruction' the shape \(\): give one number per sample",
        ),
        (lambda values: {"reconstruction": values[:, None]}, r"the shape \(\d+, 1\)"),
        (lambda values: {"error": values}, "has no score 'reconstruction': choose from error"),
    ],
)
def test_what_scores_returns_is_checked(tmp_path, data, answer, message):
    own = Returns(shape=(1, 8, 8), widths=(4, 8), latent=4)
    own.answer = answer
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(own, data)


def test_an_interrupted_split_leaves_nothing_to_the_next(tmp_path, data):
    """Neither to a test nor to a split that is scored by hand."""
    data.setup()
    own, whole = Autoencoder(shape=(1, 8, 8), widths=(4, 8), latent=4).eval(), len(data.splits.test)
    first = next(iter(data.test_dataloader()))
    for follow in (lambda: trainer(tmp_path).test(own, data, verbose=False), lambda: own.score(data.test_dataloader())):
        own.validation_step(first, 0)
        scored = follow()
        assert len((own.scored if isinstance(scored, list) else scored).index) == whole


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: ALOCC((1, 8, 8), optimizer="sgd"), "optimizer must be adam or rmsprop, not sgd"),
        (lambda: ALOCC((1, 8, 8), adversarial="maximin"), "adversarial must be minimax or non_saturating, not maximin"),
        (
            lambda: Autoencoder((1, 8, 8), schedule="linear"),
            "schedule must be milestones .* cosine, not linear",
        ),
        (lambda: Autoencoder((1, 8, 8), score="error"), "score must be reconstruction, not error"),
        (lambda: OCGAN((1, 8, 8), reduction="max"), "reduction must be mean or sum, not max"),
    ],
)
def test_a_value_that_is_no_choice_is_not_taken_for_another(tmp_path, data, module, says):
    with pytest.raises(InputError, match=f"^{says}$"):
        trainer(tmp_path).fit(module(), data)


def test_an_optimiser_that_is_not_there_is_named(tmp_path, data):
    class Misspelt(Autoencoder):
        def descend(self, names, loss):
            super().descend("autoencodr", loss)

    with pytest.raises(InputError, match="no optimiser 'autoencodr': named_optimizers returns autoencoder"):
        trainer(tmp_path).fit(Misspelt(shape=(1, 8, 8), widths=(4, 8), latent=4), data)


def test_arguments_of_a_class_that_passes_them_on():
    class More(Autoencoder):
        def __init__(self, weight=1.0, **autoencoder):
            super().__init__(**autoencoder)

    assert More.arguments().keys() == Autoencoder.arguments().keys() | {"weight"}
    assert {"shape", "latent", "score"} <= Autoencoder.arguments().keys()


def test_metrics_before_a_test_are_refused():
    with pytest.raises(InputError, match="nothing has been tested"):
        module().test_metrics()


def test_predict_names_what_reaches_the_threshold(tmp_path, data):
    own, run = module(), trainer(tmp_path)
    run.fit(own, data)
    (batch,) = run.predict(own, data)
    assert set(batch) == {"index", "reconstruction", "anomalous"}
    assert torch.equal(batch["anomalous"], batch["reconstruction"] >= own.threshold)
    own.threshold.fill_(batch["reconstruction"][7])
    (batch,) = run.predict(own, data)
    assert batch["anomalous"][7], "a score that is the threshold reaches it"


def test_logged_loss_is_the_mean_over_images(tmp_path, data):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append((outputs["loss"].item(), len(batch.image)))

    run = trainer(tmp_path, [Watch()], max_epochs=1)
    run.fit(module(), data)
    losses, sizes = zip(*seen, strict=True)
    assert len(set(sizes)) == 2
    assert run.callback_metrics["train/loss"].item() == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)


def test_a_loss_of_some_batches_is_the_mean_over_those(tmp_path, data):
    class Rare(Autoencoder):
        def training_step(self, batch, batch_idx):
            losses = super().training_step(batch, batch_idx)
            return losses | ({"loss_rare": torch.tensor(2.0 + batch_idx)} if batch_idx % 2 else {})

    run = trainer(tmp_path, [Watcher()], max_epochs=1, limit_train_batches=4)
    run.fit(Rare((1, 8, 8), widths=(4, 8), latent=4), OneClassDataModule("digits", normal=3, batch_size=16))
    assert run.callback_metrics["train/loss_rare"].item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "inverse_time", "lr_decay": 0.5}, lambda t, epoch, n: 1 / (1 + 0.5 * t)),
        ({"schedule": "milestones", "lr_milestones": [1]}, lambda t, epoch, n: 0.1 ** (epoch >= 1)),
        ({"schedule": "cosine"}, lambda t, epoch, n: 0.5 * (1 + math.cos(math.pi * t / n))),
    ],
    ids=["inverse_time", "milestones", "cosine"],
)
def test_learning_rate_of_every_iteration(tmp_path, data, changes, expected):
    rates = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append((trainer.current_epoch, optimizer.param_groups[0]["lr"]))

    trainer(tmp_path, [Watch()], max_epochs=3).fit(module(lr=0.01, **changes), data)
    assert len(rates) == 3 * len(data.train_dataloader())
    for t, (epoch, rate) in enumerate(rates):
        assert rate == pytest.approx(0.01 * expected(t, epoch, len(rates)), abs=1e-9)


class Explodes(Autoencoder):
    def training_step(self, batch, batch_idx):
        losses = super().training_step(batch, batch_idx)
        bad = self.current_epoch == 1 and batch_idx == 2
        return losses | {"loss_other": losses["loss"] / (0 if bad else 1)}


@pytest.mark.parametrize(("every", "steps"), [(1, -1), (50, -1), (50, 7)], ids=str)
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data, every, steps, monkeypatch):
    """Also in an epoch of four batches that is cut short after three."""
    monkeypatch.setattr("common.training.watcher.CHECKED_BATCHES", every)
    with pytest.raises(NonFiniteLossError, match=r"loss_other is inf in epoch 1, batch 2"):
        trainer(tmp_path, [Watcher()], max_epochs=3, max_steps=steps).fit(Explodes((1, 8, 8), widths=(4, 8)), data)


def test_throughput_counts_every_training_image(tmp_path, data, monkeypatch):
    count = Watcher()
    trainer(tmp_path, [count], max_epochs=3).fit(module(), data)
    assert count.images == 3 * len(data.splits.train)
    assert count.images_per_s > 0
    resumed = Watcher()
    resumed.load_state_dict(count.state_dict())
    assert resumed.images_per_s == count.images_per_s
    monkeypatch.setattr("common.training.watcher.CHECKED_BATCHES", 2)
    short = Watcher()
    trainer(tmp_path, [short], max_steps=2).fit(module(), data)
    assert short.images == 2 * 32
    assert short.images_per_s > 0


def watch_epochs(count, epochs, **trainer):
    """Gives a watcher the losses of whole epochs, of four images a batch; NaN is where an epoch is interrupted."""
    module = SimpleNamespace(device=torch.device("cpu"), log=lambda name, value: None)
    for losses in epochs:
        run = SimpleNamespace(**{"current_epoch": 0, "world_size": 1} | trainer)
        count.on_train_epoch_start(run, module)
        for i, loss in enumerate(losses):
            run.is_last_batch = i == len(losses) - 1 and not math.isnan(loss)
            count.on_train_batch_end(run, module, {"loss": torch.tensor(loss)}, SimpleNamespace(image=torch.zeros(4, 1)), i)
        if run.is_last_batch:
            count.on_train_epoch_end(run, module)


def test_speed_is_that_of_all_epochs_and_processes(monkeypatch):
    """Of two epochs of 5 and 3 seconds, with a validation of 100 between them."""
    clock = iter([10.0, 15.0, 115.0, 118.0])
    monkeypatch.setattr("common.training.watcher.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    count = Watcher()
    watch_epochs(count, [[1.0, 1.0], [1.0]], world_size=2)
    assert (count.images, count.seconds, count.images_per_s) == (3 * 4 * 2, 8.0, 3.0)


def test_losses_of_an_interrupted_training_do_not_stop_the_next():
    count = Watcher()
    watch_epochs(count, [[1.0, math.nan], [1.0, 1.0]])
    with pytest.raises(NonFiniteLossError, match="loss is inf in epoch 0, batch 1"):
        watch_epochs(count, [[1.0, math.inf]])


def test_checkpoint_of_another_method_is_refused(tmp_path, data):
    run = trainer(tmp_path)
    run.fit(module(), data)
    run.save_checkpoint(tmp_path / "one.ckpt")

    class Another(Autoencoder):
        pass

    with pytest.raises(InputError, match=r"is one of Autoencoder, not of .*Another"):
        Another.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)


def test_hyperparameters_are_plain(tmp_path, data):
    run = trainer(tmp_path)
    run.fit(module(), data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    contents = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert contents["hyper_parameters"]["shape"] == (1, 8, 8)
    assert isinstance(Autoencoder.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True), LightningModule)


@pytest.mark.parametrize("length", [10, 20])
def test_a_resumed_cosine_ends_with_the_training_as_it_is_now(length):
    """A rate that was to end after ten iterations would rise again in a training of twenty."""

    def cosine(iterations):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return optimizer, Cosine(optimizer, iterations)

    def steps(optimizer, schedule, n):
        rates = []
        for _ in range(n):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    whole = steps(*cosine(length), length)
    (before, began), (optimizer, schedule) = cosine(10), cosine(length)
    steps(before, began, 5)
    optimizer.load_state_dict(before.state_dict())
    schedule.load_state_dict(began.state_dict())
    resumed = steps(optimizer, schedule, length - 5)
    assert resumed == (whole[5:] if length == 10 else pytest.approx(whole[5:]))
    assert resumed[-1] == pytest.approx(0)


def test_no_epoch_of_a_run_repeats_one_of_another_seed(monkeypatch):
    """Epoch 1 of seed 0 is not epoch 0 of seed 1: else the seeds of a table were not independent."""
    seeds = set()
    for run in range(5):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(run))
        seeds |= {epoch_seed(epoch) for epoch in range(5)}
    assert len(seeds) == 25


def test_an_isolated_block_draws_by_its_own_seed_whatever_the_state_around_it(monkeypatch):
    drawn = []
    for around, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(around)
        monkeypatch.setenv("PL_GLOBAL_SEED", str(around))
        with isolated(seed):
            drawn.append((torch.rand(3).tolist(), epoch_seed(0)))
    assert drawn[0] == drawn[1]
    assert drawn[1][0] != drawn[2][0]
    assert drawn[1][1] != drawn[2][1]


@pytest.mark.parametrize("before", ["9", None])
def test_an_isolated_block_gives_the_seed_back(monkeypatch, before):
    """After an error too."""

    def stopped():
        with isolated(5):
            assert os.environ["PL_GLOBAL_SEED"] == "5"
            torch.rand(7)
            raise OSError("power cut")

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if before is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", before)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(OSError, match="power cut"):
        stopped()
    assert os.environ.get("PL_GLOBAL_SEED") == before
    assert torch.equal(torch.rand(2), expected)


def test_the_threshold_is_in_double_precision_as_scores_are():
    """In single precision the score that is the threshold may lie below it."""
    one, other = module(), module()
    one.threshold.fill_(0.1)
    other.load_state_dict(one.state_dict())
    assert float(other.threshold) == 0.1


def test_a_split_is_scored_in_eval_mode_without_gradients_and_every_net_keeps_its_mode(tmp_path, data):
    noted = []

    class Notes(Autoencoder):
        def scores(self, x):
            noted.append((any(net.training for net in self.modules()), torch.is_grad_enabled()))
            return super().scores(x)

    own = Notes(shape=(1, 8, 8), widths=(4, 8), latent=4).train()
    own.decoder.eval()
    own.trainer = trainer(tmp_path)
    before = [net.training for net in own.modules()]
    data.setup()
    own.score(data.val_dataloader())
    assert noted == [(False, False)]
    assert [net.training for net in own.modules()] == before


def test_each_score_is_judged_by_its_own_thresholds_alone(monkeypatch):
    """The quantile is one of the chosen score; a fixed threshold belongs to the score whose meaning it is."""
    own = module()
    own.threshold.fill_(0.5)
    monkeypatch.setattr(Autoencoder, "fixed_thresholds", {"other": 2.0})
    values = {"reconstruction": np.array([0.1, 0.6, 0.7, 0.8]), "other": np.array([1.0, 1.5, 1.8, 3.0])}
    metrics = own.metrics_of(Scored(np.arange(4), np.zeros(4, int), np.array([0, 0, 1, 1]), values))
    assert metrics["reconstruction"]["false_alarm_rate"] == 0.5
    assert "accuracy_fixed" not in metrics["reconstruction"]
    assert metrics["other"]["accuracy_fixed"] == 0.75
    assert "false_alarm_rate" not in metrics["other"]


class PhasedRates(Autoencoder):
    """Two phases with an optimiser each; both rates fall as 1, 1/2, 1/3, ... with every step of their schedule."""

    phases = (0, 2)
    interval = "epoch"

    def named_optimizers(self):
        return {name: torch.optim.SGD(self.parameters(), lr=1.0) for name in ("first", "second")}

    def scheduler(self, name, optimizer):
        return {"scheduler": LambdaLR(optimizer, lambda t: 1 / (1 + t)), "interval": self.interval}

    def training_step(self, batch, batch_idx):
        loss = self.reconstruction_loss(self.reconstruct(batch.image), batch.image)
        self.descend(("first", "second")[self.phase], 1e-3 * loss)
        return {"loss": loss}


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_each_phase_has_a_schedule_that_only_its_own_steps_move(tmp_path, data, interval):
    """The second's rate starts in full after two epochs of the first, and the first's falls no further."""
    rates = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    own = PhasedRates(shape=(1, 8, 8), widths=(4, 8), latent=4)
    own.interval = interval
    run = trainer(tmp_path, [Watch()], max_epochs=4, limit_train_batches=3, limit_val_batches=0)
    run.fit(own, data)
    steps = range(6) if interval == "step" else [0] * 3 + [1] * 3
    assert rates == pytest.approx(2 * [1 / (1 + t) for t in steps])
    last = 1 / 7 if interval == "step" else 1 / 3
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == pytest.approx([last, last])


def test_the_cosine_of_a_phase_ends_with_it(tmp_path, data):
    class Cosines(PhasedRates):
        def scheduler(self, name, optimizer):
            return self.cosine(optimizer, epochs={"first": 2, "second": 1}[name])

    run = trainer(tmp_path, max_epochs=3, limit_train_batches=3, limit_val_batches=0)
    run.fit(Cosines(shape=(1, 8, 8), widths=(4, 8), latent=4), data)
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == pytest.approx([0, 0])


def test_a_step_outside_of_descend_moves_the_schedule_too(tmp_path, data):
    class Own(PhasedRates):
        interval = "step"

        def descend(self, name, loss):
            self.optimizer(name).zero_grad()
            self.manual_backward(loss)
            self.optimizer(name).step()

    run = trainer(tmp_path, max_epochs=1, limit_train_batches=3)
    run.fit(type("Whole", (Own,), {"phases": (0,)})(shape=(1, 8, 8), widths=(4, 8), latent=4), data)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    "schedule",
    [ReduceLROnPlateau, lambda optimizer: {"scheduler": LambdaLR(optimizer, lambda t: 1.0), "frequency": 5}],
    ids=["metric", "frequency"],
)
def test_a_schedule_that_is_not_to_be_had_is_refused(tmp_path, data, schedule):
    own = PhasedRates(shape=(1, 8, 8), widths=(4, 8), latent=4)
    own.scheduler = lambda name, optimizer: schedule(optimizer)
    with pytest.raises(InputError, match="the schedule of 'first' must be a schedule by iteration or epoch"):
        trainer(tmp_path, max_epochs=3).fit(own, data)


def test_what_prepare_draws_depends_on_seed_and_epoch_alone(tmp_path, data):
    drawn = []

    class Draws(Autoencoder):
        def prepare(self, batches):
            drawn.append(torch.rand(3).tolist())

    for around in (1, 2):
        torch.manual_seed(around)
        run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        run.fit(Draws(shape=(1, 8, 8), widths=(4, 8), latent=4), data)
    assert drawn[0] == drawn[1]


def test_each_process_of_a_run_draws_noise_of_its_own():
    drawn = []
    for rank in (0, 1, 0):
        own = module()
        own._prepared_phases = 1
        own.trainer = SimpleNamespace(current_epoch=0, global_rank=rank, train_dataloader=None)
        own.on_train_epoch_start()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


class BySteps(Autoencoder):
    """Encoder and decoder with an optimiser each; notes how far a step moves their weights from plain descent."""

    def named_optimizers(self):
        return {name: torch.optim.SGD(getattr(self, name).parameters(), lr=0.1) for name in ("encoder", "decoder")}

    def training_step(self, batch, batch_idx):
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        before = [p.detach().clone() for p in parameters]
        loss = self.reconstruction_loss(self.reconstruct(batch.image), batch.image)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        self.descend(["encoder", "decoder"], loss)
        for old, gradient, p in zip(before, gradients, parameters, strict=True):
            torch.testing.assert_close(p.detach(), old - 0.1 * gradient)
        return {"loss": loss}


def test_a_step_descends_the_gradient_of_its_own_loss_with_all_its_optimisers(tmp_path, data):
    """No gradient is left over from the step before."""
    own = BySteps(shape=(1, 8, 8), widths=(4, 8), latent=4)
    trainer(tmp_path, max_epochs=1, limit_train_batches=3, limit_val_batches=0).fit(own, data)


def test_the_criterion_is_of_samples_and_the_threshold_of_groups(monkeypatch):
    """Six held-out samples in three groups: the mean of all six, and the quantile of the three maxima."""
    own, logged = module(threshold_quantile=0.5), {}
    values = {"reconstruction": np.array([1.0, 2.0, 30.0, 4.0, 5.0, 6.0])}
    own.groups, own._prepared_phases = np.array([7, 7, 8, 8, 9, 9]), 1
    monkeypatch.setattr(own, "_split", lambda: Scored(np.arange(6), np.zeros(6, int), np.zeros(6, int), values))
    monkeypatch.setattr(own, "log_dict", logged.update)
    monkeypatch.setattr(own, "log", lambda *_: None)
    own.on_validation_epoch_end()
    assert logged == {"val/reconstruction": 8.0}
    assert own.calibration.tolist() == [2.0, 6.0, 30.0]
    assert float(own.threshold) == 6.0


def test_a_sample_that_two_processes_have_counts_once(monkeypatch):
    own = module()
    own.trainer = SimpleNamespace(world_size=2)
    of_both = {"index": torch.tensor([[2, 0], [1, 2]]), "error": torch.tensor([[0.2, 0.0], [0.1, 0.2]])}
    monkeypatch.setattr(own, "all_gather", lambda name: of_both[name])
    gathered = own.gathered({name: name for name in of_both})
    assert gathered["index"].tolist() == [0, 1, 2]
    torch.testing.assert_close(gathered["error"], torch.tensor([0.0, 0.1, 0.2]))
