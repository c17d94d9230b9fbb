"""ALOCC's mechanics: which net moves when, what each loss is, what the scores and the stopping rule look at."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from alocc import ALOCC
from alocc.losses import adversarial_loss, cross_entropy_to_noisy, discriminator_loss, good_and_bad_loss
from alocc.networks import reconstructor
from alocc.pseudo import crossed, pasted
from common.data import OneClassDataModule
from common.errors import InputError
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.run import run
from common.networks import discriminator
from common.testing import fit, optimizer_steps, toy_samples, trained
from common.testing.checks import check_orientation

CONFIGS = Path(__file__).parents[1] / "alocc" / "configs"


def preset(name, **changes):
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    return lambda shape=(1, 16, 16): ALOCC(shape=shape, **arguments | changes)


def narrow(name, **changes):
    """A preset with nets that train in a second."""
    widths = {"encoder_widths": [8, 16], "decoder_widths": [8], "discriminator_widths": [8, 16]}
    return preset(name, **widths, **changes)


def state(net):
    return [p.detach().clone() for p in net.parameters()]


def moved(net, before):
    return not all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(("name", "steps"), [("paper", ["D", "R"]), ("official", ["D", "R", "R"]), ("stable", ["D", "R"])])
def test_d_first_then_r_twice_in_the_official_code(name, steps):
    assert optimizer_steps(narrow(name)(), batches=2) == 2 * steps


@pytest.mark.parametrize("name", ["paper", "official", "stable"])
def test_each_step_moves_its_own_net(name, monkeypatch):
    module, seen = narrow(name)(), []
    descend = ALOCC.descend

    def watched(self, name, loss):
        before = state(self.discriminator), state(self.reconstructor)
        other = {"D": self.reconstructor, "R": self.discriminator}[name]
        others_grad = [p.grad is None or not p.requires_grad for p in other.parameters()]
        descend(self, name, loss)
        seen.append((moved(self.discriminator, before[0]), moved(self.reconstructor, before[1]), all(others_grad)))

    monkeypatch.setattr(ALOCC, "descend", watched)
    optimizer_steps(module, batches=1)
    assert seen[0] == (True, False, True)
    assert all(step == (False, True, True) for step in seen[1:])


@pytest.mark.parametrize(("name", "passes"), [("paper", 1), ("official", 2), ("stable", 2)])
def test_no_reconstruction_is_computed_twice(name, passes):
    """One pass for R's each step, which D's step shares; the stable preset has one more for its good and bad images."""
    module, count = narrow(name)(), []
    first = module.reconstructor.encoder[0]
    first.register_forward_hook(lambda *_: count.append(1))
    optimizer_steps(module, batches=3)
    assert len(count) == 3 * passes


def test_r_is_judged_by_d_after_its_step(monkeypatch):
    module, logits = narrow("paper")(), []
    module.discriminator.register_forward_hook(lambda net, inputs, out: logits.append((inputs[0].detach(), out.detach())))
    optimizer_steps(module, batches=1)
    real, fake, again = logits
    assert torch.equal(fake[0], again[0])
    assert not torch.equal(fake[1], again[1])
    assert not torch.equal(real[0], fake[0])


def test_noise_is_fresh_and_of_the_stated_strength():
    module, image = preset("official", clip=None)(), torch.zeros(2000, 1, 4, 4)
    first, second = module.noisy(image), module.noisy(image)
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.155, rel=0.02)
    clipped = preset("official")().noisy(image)
    assert clipped.min() == 0
    assert clipped.max() <= 1
    drawn = preset("stable")().noisy(image).flatten(1).std(1)
    assert drawn.min() < 0.1
    assert 0.4 < drawn.max() < 0.9


def test_losses_by_hand():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])
    sigmoid = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0, -1.0, 1.0)]
    expected = -(math.log(sigmoid[0]) + math.log(sigmoid[1])) / 2 - (math.log(1 - sigmoid[2]) + math.log(1 - sigmoid[3])) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)
    minimax = (math.log(1 - sigmoid[2]) + math.log(1 - sigmoid[3])) / 2
    assert adversarial_loss(fake, "minimax").item() == pytest.approx(minimax)
    saturating = -(math.log(sigmoid[2]) + math.log(sigmoid[3])) / 2
    assert adversarial_loss(fake, "non_saturating").item() == pytest.approx(saturating)
    error = cross_entropy_to_noisy(torch.tensor([[0.5, -0.5]]), torch.tensor([[0.2, 1.1]])).item()
    by_hand = [-(t * math.log(1 / (1 + math.exp(-x))) + (1 - t) * math.log(1 - 1 / (1 + math.exp(-x)))) for x, t in
               ((0.5, 0.2), (-0.5, 1.1))]  # fmt: skip
    assert error == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    module = preset("paper")()
    assert module.reconstruction_loss(torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0), torch.zeros(0)) == 9


def test_good_and_bad_loss_is_eq_3_without_its_shares_and_weighs_them_otherwise():
    kinds = torch.tensor([0.3]), torch.tensor([-0.4]), torch.tensor([1.2]), torch.tensor([-2.0])
    assert torch.equal(good_and_bad_loss(*kinds, alpha=0, beta=0), discriminator_loss(kinds[0], kinds[2]))
    softplus = [math.log1p(math.exp(x)) for x in (-0.3, 0.4, 1.2, -2.0)]
    expected = 0.75 * softplus[0] + 0.25 * softplus[1] + 0.1 * softplus[2] + 0.9 * softplus[3]
    assert good_and_bad_loss(*kinds, alpha=0.25, beta=0.9).item() == pytest.approx(expected)


def test_both_forms_push_r_the_same_way():
    gradients = []
    for form in ("minimax", "non_saturating"):
        fake = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
        adversarial_loss(fake, form).backward()
        gradients.append(fake.grad)
    assert (gradients[0] < 0).all()
    assert (gradients[1] < 0).all()
    assert gradients[0][0].abs() < gradients[1][0].abs(), "the literal form saturates where D is sure of a fake"


@pytest.mark.parametrize("size", [(28, 28), (45, 45), (33, 47)])
def test_official_nets_have_the_published_sizes(size):
    r, d = reconstructor((1, *size), (32, 64, 128), (32, 16)), discriminator((1, *size), (16, 32, 64, 128))
    x = torch.rand(2, 1, *size)
    assert sum(p.numel() for p in r.parameters()) == 373_217
    assert r(x).shape == x.shape
    assert d(x).shape == (2,)
    published = {(28, 28): (4, 270_401), (45, 45): (6, 271_041)}
    if size in published:
        assert r.encoder(x).shape[-2:] == (published[size][0],) * 2
        assert sum(p.numel() for p in d.parameters()) == published[size][1]


def test_paper_nets_have_the_published_sizes():
    module = preset("paper")((3, 64, 64))
    weights = [
        layer.weight.numel() for layer in module.reconstructor.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert sum(weights) == 8_606_400 + 4_800
    weights = [layer.weight.numel() for layer in module.discriminator.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(weights) == 4_305_600
    assert all(layer.eps == 1e-6 for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one entry less"):
        ALOCC(shape=(1, 8, 8), encoder_widths=[8, 16], decoder_widths=[8, 8])
    with pytest.raises(InputError, match=r"\(C, H, W\) or \(F,\)"):
        ALOCC(shape=(8, 8))


def test_scores_are_logits_turned_round_and_the_error():
    module = trained(narrow("paper"))
    x = toy_samples(8).image
    with torch.no_grad():
        scores, r = module.scores(x), module.reconstructor(x)
        assert torch.equal(scores["discriminator"], -module.discriminator(x))
        assert torch.equal(scores["discriminator_reconstruction"], -module.discriminator(r))
        torch.testing.assert_close(scores["reconstruction"], (r - x).square().mean((1, 2, 3)))


def test_batch_statistics_make_scores_depend_on_their_batch():
    x, others = toy_samples(8).image, toy_samples(24, anomalous=True).image
    for switch in (False, True):
        module = trained(narrow("official", batch_statistics=switch))
        with torch.no_grad():
            alone = module(x)
            together = module(torch.cat([x, others]))[:8]
        assert torch.allclose(alone, together, rtol=1e-3, atol=1e-5) != switch


def test_batch_statistics_do_not_change_training():
    nets = [trained(narrow("official", batch_statistics=switch)) for switch in (False, True)]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


def test_averaged_weights_are_the_exponential_average_and_make_the_scores(tmp_path):
    module = narrow("stable", averaging=0.3, schedule="constant")()
    history = []
    update = module.averaged.update_parameters
    module.averaged.update_parameters = lambda nets: (update(nets), history.append(state(nets)))
    fit(module, 1, tmp_path)
    expected = history[0]
    for n, later in enumerate(history[1:], 1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, later, strict=True)]
    for ours, by_hand in zip(module.averaged.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, by_hand)
    x = toy_samples(4).image
    with torch.no_grad():
        before = module.eval()(x)
        for net in (module.discriminator, module.reconstructor):
            for p in net.parameters():
                p.zero_()
        assert torch.equal(module(x), before)


def test_cosine_schedule_ends_at_zero(tmp_path):
    module = narrow("stable")()
    trainer = fit(module, 2, tmp_path)
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0, 0], abs=1e-12)


def test_pasted_pixels_come_from_one_rectangle_of_another_image():
    image = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 1, 28, 28).contiguous()
    mixed = pasted(image)
    foreign = mixed != image
    assert 0.05 < foreign.float().mean() < 0.6
    for before, after, mask in zip(image, mixed, foreign, strict=True):
        assert len(after[mask].unique()) <= 1
        rows, columns = mask[0].any(1), mask[0].any(0)
        assert torch.equal(mask[0], rows[:, None] & columns[None, :])
        assert set(after.unique().tolist()) <= {*before.unique().tolist(), *after[mask].unique().tolist()}
    assert not torch.equal(pasted(image), mixed)


def test_pasted_vectors_take_features_from_one_other():
    image = torch.arange(8.0)[:, None].expand(8, 40).contiguous()
    mixed = pasted(image)
    assert all(len(row.unique()) <= 2 for row in mixed)
    assert not torch.equal(mixed, image)


@pytest.mark.parametrize("shape", [(32, 5), (32, 3, 4, 4)])
def test_crossed_codes_stay_in_the_range_of_their_batch(shape):
    latent = torch.randn(shape)
    new = crossed(latent)
    assert new.shape == latent.shape
    assert (new <= latent.amax(0)).all()
    assert (new >= latent.amin(0)).all()
    assert (new != latent).float().mean() > 0.5


def test_pseudo_anomalies_are_only_made_for_the_preset_that_wants_them(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr("alocc.module.pasted", fail)
    optimizer_steps(narrow("paper")(), batches=1)
    with pytest.raises(AssertionError):
        optimizer_steps(narrow("stable")(), batches=1)


def test_d_of_the_stable_preset_is_shown_the_four_kinds_in_their_places(monkeypatch):
    """Clean, repaired clean, repaired noisy, repaired pseudo-anomalies; R repairs the second and fourth in eval mode."""
    module, seen = narrow("stable")(), []
    monkeypatch.setattr("alocc.module.pasted", lambda image: image * 0 + 3)
    monkeypatch.setattr("alocc.module.crossed", lambda latent: latent * 0)
    module.discriminator.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach().clone()))
    image, noisy = toy_samples(6).image, torch.rand(6, 1, 16, 16)
    with torch.no_grad():
        module.discriminator_loss(image, noisy)
        expected = module.reconstructor.eval()(image)
        pseudo = module.reconstructor(torch.full_like(image[:3], 3))
        from_code = module.reconstructor.decoder(torch.zeros(3, 32))
    torch.testing.assert_close(seen[0], torch.cat([image, expected, noisy, pseudo, from_code]))


def test_only_noisy_images_move_the_batch_statistics_of_r():
    module = narrow("stable")()
    optimizer_steps(module, batches=3)
    counters = [layer.num_batches_tracked for layer in module.reconstructor.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [int(count) for count in counters] == [3] * len(counters)
    assert all(net.training for net in module.reconstructor.modules())


def test_stable_preset_learns_to_tell_good_reconstructions_from_bad(tmp_path):
    """And is oriented by it: noise scores above waves, which the published labels do not promise."""
    factory = narrow("stable", latent=8)
    check_orientation(factory)
    module = trained(factory, epochs=20)
    image = toy_samples(64, seed=9).image
    with torch.no_grad():
        good, bad = (module.scores(x)["discriminator_reconstruction"].mean() for x in (image, pasted(image)))
    assert good < bad


def test_noise_may_be_no_float():
    image = torch.rand(2, 1, 4, 4)
    assert torch.equal(preset("paper", sigma=0)().noisy(image), image)


def cell_with(monkeypatch, rule, rho, **data):
    config = Cell.config

    def changed(cell, settings):
        made = config(cell, settings)
        made["model"]["init_args"]["rho"] = rho
        return {**made, "rule": rule, "data": {**made["data"], **data}}

    monkeypatch.setattr(Cell, "config", changed)
    return Cell("alocc-smoke", "digits", "standard", "3", 0)


def curve_of(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [point.value for point in events.Scalars(tag)] for tag in events.Tags()["scalars"] if tag.startswith("val/")}


def test_rho_rule_takes_the_first_epoch_below_and_logs_it(tmp_path, monkeypatch):
    cell = cell_with(monkeypatch, "rho", 1e9)
    curve = curve_of_run(cell, tmp_path / "first")["val/reconstruction"]
    rho = sorted(curve)[2]
    cell = cell_with(monkeypatch, "rho", rho)
    record = run(cell, Settings(runs=tmp_path / "second", threads=1, max_epochs=6))
    first = next(epoch for epoch, value in enumerate(curve, 1) if value < rho)
    assert record["selected_epoch"] == first
    assert record["reached"]
    assert record["rules"]["last"]["selected_epoch"] == record["epochs"] == 6
    logged = curve_of(cell.directory(tmp_path / "second"))
    assert logged["val/below_rho"] == [float(value < rho) for value in curve]
    assert logged["val/rho"] == pytest.approx([rho] * 6)


def curve_of_run(cell, runs):
    run(cell, Settings(runs=runs, threads=1, max_epochs=6))
    return curve_of(cell.directory(runs))


def test_rho_that_is_never_reached_leaves_the_last_epoch(tmp_path, monkeypatch):
    record = run(cell_with(monkeypatch, "rho", 1e-9), Settings(runs=tmp_path, threads=1))
    assert record["selected_epoch"] == record["epochs"]
    assert not record["reached"]


def test_rho_rule_never_sees_an_anomaly(tmp_path, monkeypatch):
    """The held-out samples are normal even where training is contaminated, and other test images change no choice."""
    cell = cell_with(monkeypatch, "rho", 0.2, contamination=0.2)
    data = OneClassDataModule("digits", normal=3, contamination=0.2)
    assert set(data.data.targets[data.splits.val]) == {3}
    first = run(cell, Settings(runs=tmp_path / "one", threads=1, max_epochs=6))
    scores, images = ALOCC.scores, []

    def watch(self, x):
        images.append(x.clone())
        return scores(self, x)

    setup = OneClassDataModule.setup

    def with_other_test_images(self, stage=None):
        is_first = not self._loaders
        setup(self, stage)
        if is_first:
            self._loaders["test"]._channels_last = 1 - self._loaders["test"]._channels_last

    monkeypatch.setattr(ALOCC, "scores", watch)
    monkeypatch.setattr(OneClassDataModule, "setup", with_other_test_images)
    second = run(cell, Settings(runs=tmp_path / "two", threads=1, max_epochs=6))
    assert second["selected_epoch"] == first["selected_epoch"]
    assert second["metrics"] != first["metrics"]
    normal = data.images(data.splits.val)
    for seen in images[:6]:
        assert torch.equal(seen, normal)


def test_oracle_is_recorded_and_changes_nothing(tmp_path):
    cell = Cell("alocc-smoke", "digits", "standard", "3", 0)
    plain, with_oracle = (
        run(cell, Settings(runs=tmp_path / str(flag), threads=1, max_epochs=5, oracle=flag)) for flag in (False, True)
    )
    assert plain["metrics"] == with_oracle["metrics"]
    scores = [(cell.directory(tmp_path / str(flag)) / "scores.csv").read_text() for flag in (False, True)]
    assert scores[0] == scores[1]
    oracle = json.loads((cell.directory(tmp_path / "True") / "metrics.json").read_text())["rules"]["oracle"]
    for name, metrics in with_oracle["metrics"].items():
        curve = oracle["curve"][name]
        assert len(curve) == len(oracle["monitored"]) == 5
        assert curve[-1] == pytest.approx(metrics["auroc"], abs=1e-6)
        best = oracle["metrics"][name]
        assert best["auroc"] == max(curve)
        assert curve[best["epoch"] - 1] == max(curve)
        assert best["auroc_spread"] == pytest.approx(max(curve) - min(curve))
    with pytest.raises(InputError, match="made without --oracle"):
        run(cell, Settings(runs=tmp_path / "False", threads=1, max_epochs=5, oracle=True))


def test_oracle_of_a_resumed_run_has_the_whole_curve(tmp_path, monkeypatch):
    cell = Cell("alocc-smoke", "digits", "standard", "3", 0)
    whole = run(cell, Settings(runs=tmp_path / "whole", threads=1, max_epochs=4, oracle=True))
    settings, start = Settings(runs=tmp_path / "stopped", threads=1, max_epochs=4, oracle=True), ALOCC.on_train_epoch_start

    def stop(module):
        if module.current_epoch == 2:
            raise OSError("power cut")
        start(module)

    with monkeypatch.context() as patch:
        patch.setattr(ALOCC, "on_train_epoch_start", stop)
        with pytest.raises(OSError, match="power cut"):
            run(cell, settings)
    assert run(cell, settings)["rules"] == whole["rules"]


def test_presets_of_the_papers_say_what_they_are():
    paper, official = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("paper", "official"))
    assert paper["model"]["init_args"]["lambda_r"] == 0.4
    assert paper["rule"] == "rho"
    arguments = official["model"]["init_args"]
    assert (arguments["optimizer"], arguments["lr_d"], arguments["r_steps"], arguments["lambda_r"]) == ("rmsprop", 2e-3, 2, 0.2)
    optimizers = preset("official")().named_optimizers()
    assert all(optimizer.defaults["alpha"] == 0.9 for optimizer in optimizers.values())


def test_a_code_without_another_to_cross_with_stays_as_it_is():
    latent = torch.randn(1, 5)
    assert torch.equal(crossed(latent), latent)
