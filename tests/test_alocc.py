"""ALOCC's mechanics: which net moves when, what each loss is, what the scores and the stopping rule look at."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score
from stated import assert_states
from torch import nn
from torch.nn import functional
from watched import Watched

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

pytestmark = pytest.mark.usefixtures("blank_figures")

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


def watched(module, batches):
    nets = {"R": module.reconstructor, "D": module.discriminator}
    if module.hparams.averaging:
        nets |= dict(zip(("averaged R", "averaged D"), module.averaged.module, strict=True))
    return Watched(module, nets, batches)


ADVERSARIAL = {
    "minimax": lambda logit: -functional.softplus(logit).mean(),
    "non_saturating": lambda logit: functional.softplus(-logit).mean(),
}
RECONSTRUCTION = {
    "clean": lambda x, image, noisy: (x - image).square().mean(),
    "noisy_cross_entropy": lambda x, image, noisy: (functional.softplus(x) - noisy * x).mean(),
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper", {}),
        ("official", {"adversarial": "minimax"}),
        ("official", {"r_steps": 3, "lambda_r": 0.7}),
        ("stable", {"alpha": 0, "beta": 0}),
    ],
    ids=str,
)
def test_losses_of_two_steps_by_hand(name, changes):
    """From what the nets say, as they are now: D is shown the clean image and R the noisy one, the same in all its steps."""
    module = narrow(name, **changes)()
    seen, h = watched(module, batches=2), module.hparams
    adversarial, reconstruction = ADVERSARIAL[h.adversarial], RECONSTRUCTION[h.reconstruction_loss]
    for batch, (image, losses) in enumerate(zip(seen.images, seen.losses, strict=True)):
        r = seen.calls["R"][batch * h.r_steps :][: h.r_steps]
        real, fake, *judged = seen.calls["D"][batch * (2 + h.r_steps) :][: 2 + h.r_steps]
        noisy = r[0].x
        assert 0.05 < (noisy - image).std() < 0.5
        assert torch.equal(real.x, image)
        assert torch.equal(fake.x, r[0].y)
        assert losses["loss_d"] == pytest.approx((functional.softplus(-real.y) + functional.softplus(fake.y)).mean().item())
        totals = []
        for repaired, verdict in zip(r, judged, strict=True):
            assert torch.equal(repaired.x, noisy)
            assert torch.equal(verdict.x, repaired.y)
            terms = adversarial(verdict.y).item(), reconstruction(repaired.y, image, noisy).item()
            totals.append(terms[0] + h.lambda_r * terms[1])
        assert seen.totals["R"][batch * h.r_steps :][: h.r_steps] == pytest.approx(totals)
        assert (losses["loss_adversarial"], losses["loss_reconstruction"]) == pytest.approx(terms)
        assert not torch.equal(judged[0].y, fake.y), "R is judged by D as it is after its step"
    assert seen.totals["D"] == pytest.approx([one["loss_d"] for one in seen.losses]), "D descends"
    assert not any(seen.calls[net] for net in seen.calls if net.startswith("averaged"))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_each_net_has_an_optimiser_and_a_rate_of_its_own(name):
    module = narrow("paper", optimizer=name, lr_d=2e-3, lr_r=3e-3)()
    expected = {"D": (module.discriminator, 2e-3), "R": (module.reconstructor, 3e-3)}
    for key, optimizer in module.named_optimizers().items():
        net, rate = expected[key]
        assert optimizer.param_groups[0]["params"] == list(net.parameters())
        assert optimizer.defaults["lr"] == rate
        settings = {"betas": (0.5, 0.999)} if name == "adam" else {"alpha": 0.9, "momentum": 0}
        assert {key: optimizer.defaults[key] for key in settings} == settings


def test_rmsprop_starts_from_ones_as_tensorflows_does():
    module = narrow("official")()
    optimizer, weights = module.named_optimizers()["D"], module.discriminator[0].weight
    before, average = weights.detach().clone(), 1.0
    for gradient in (0.5, -2.0):
        weights.grad = torch.full_like(weights, gradient)
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient**2
        before -= module.hparams.lr_d * gradient / math.sqrt(average)
        torch.testing.assert_close(weights.detach(), before)


def test_noise_is_fresh_and_of_the_stated_strength():
    module, image = preset("official", clip=None)(), torch.zeros(2000, 1, 4, 4)
    first, second = module.noisy(image), module.noisy(image)
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.155, rel=0.02)
    clipped = preset("official")().noisy
    assert clipped(image).min() == 0
    assert clipped(image + 1).max() == 1
    assert first.std(0).mean().item() == pytest.approx(0.155, rel=0.02), "each image has its own"
    assert first.mean().abs() < 0.01


def test_noise_of_a_range_has_a_strength_for_each_image():
    noisy = preset("stable", sigma=[0.2, 0.6])().noisy(torch.zeros(500, 1, 20, 20)).flatten(1)
    strength = noisy.std(1)
    assert 0.16 < strength.min() < 0.24
    assert 0.55 < strength.max() < 0.7
    assert strength.mean().item() == pytest.approx(0.4, rel=0.05)


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


def kinds(net):
    return [type(layer).__name__ for layer in net]


@pytest.mark.parametrize("latent", [None, 4])
def test_layers_of_r_and_d(latent):
    module = narrow("official", latent=latent)()
    down, up = ["Conv2d", "BatchNorm2d", "LeakyReLU"], ["ConvTranspose2d", "BatchNorm2d", "ReLU"]
    to_code = [] if latent is None else ["Flatten", "Linear", "Tanh"]
    from_code = [] if latent is None else ["Linear", "ReLU", "Unflatten", "ChannelsLast"]
    assert kinds(module.reconstructor.encoder) == [*down * 2, *to_code]
    assert kinds(module.reconstructor.decoder) == [*from_code, *up, "ConvTranspose2d", "Tanh"]
    first, last = ["Conv2d", "LeakyReLU"], ["Flatten", "Linear", "Flatten"]
    assert kinds(module.discriminator) == [*first, *down, *last]
    assert kinds(narrow("official", discriminator_norm="none")().discriminator) == [*first * 2, *last]
    assert {layer.negative_slope for layer in module.modules() if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert module.reconstruct(100 * torch.randn(4, 1, 16, 16)).abs().max() <= 1


def test_vectors_are_repaired_to_any_range():
    module = narrow("official")((30,))
    assert module.reconstruct(1e6 * torch.randn(8, 30)).abs().max() > 1


def test_initial_weights_are_the_official_codes():
    """A deviation of 0.02, in convolutions cut at two deviations, and no biases."""
    module = preset("official")()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            cut = isinstance(layer, nn.Conv2d)
            assert layer.weight.std().item() == pytest.approx(0.0176 if cut else 0.02, rel=0.15)
            assert (layer.weight.abs().max() <= 0.04) == cut
            assert not layer.bias.any()
    default = preset("official", initial_weights="default")()
    assert default.reconstructor.encoder[0].bias.any()
    assert default.discriminator[0].weight.abs().max() > 0.04


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
    module = narrow("stable", averaging=0.3, schedule="constant", r_steps=2)()
    history = []
    update = module.averaged.update_parameters

    def floats(nets):
        return {name: value.clone() for name, value in nets.state_dict().items() if value.is_floating_point()}

    module.averaged.update_parameters = lambda nets: (update(nets), history.append(floats(nets)))
    fit(module, 1, tmp_path)
    expected = history[0]
    assert len(history) == module.trainer.num_training_batches, "once for each batch"
    assert any("running_mean" in name for name in expected)
    for n, later in enumerate(history[1:], 1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = {name: decay * old + (1 - decay) * later[name] for name, old in expected.items()}
    torch.testing.assert_close(floats(module.averaged.module), expected)
    x = toy_samples(4).image
    with torch.no_grad():
        before = [*module.eval().scores(x).values(), module.embed(x), module.reconstruct(x)]
        for net in (module.discriminator, module.reconstructor):
            for p in net.parameters():
                p.zero_()
        after = [*module.scores(x).values(), module.embed(x), module.reconstruct(x)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_average_follows_the_steps_of_both_nets_and_their_statistics():
    """With hardly any memory it is what they are after the last step, counters and running statistics too."""
    module = narrow("stable", averaging=1e-9, discriminator_norm="batch")()
    optimizer_steps(module, batches=3)
    for averaged, net in zip(module.averaged.module, (module.reconstructor, module.discriminator), strict=True):
        torch.testing.assert_close(averaged.state_dict(), net.state_dict())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_cosine_schedule_ends_at_zero(schedule, tmp_path):
    trainer = fit(narrow("stable", schedule=schedule)(), 2, tmp_path)
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 2e-3] if schedule == "constant" else [0, 0], abs=1e-12)


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


def test_pasted_rectangles_are_of_the_stated_size_and_come_from_another_place():
    """Every pixel's value says whose it is and where it was."""
    b, side = 64, 28
    image = torch.arange(b * side * side, dtype=torch.float32).view(b, 1, side, side)
    shifts, others, heights = set(), set(), []
    for _ in range(10):
        source = pasted(image).long()
        owner = source.div(side * side, rounding_mode="floor")
        foreign = owner != torch.arange(b).view(b, 1, 1, 1)
        down = (torch.arange(side).view(side, 1) - source % (side * side) // side).remainder(side)
        across = (torch.arange(side) - source % side).remainder(side)
        assert len(down[foreign].unique()) == len(across[foreign].unique()) == 1, "one shift for the whole batch"
        shifts |= {(int(down[foreign][0]), int(across[foreign][0]))}
        others |= {tuple(owner.amax((1, 2, 3)).tolist())}
        heights += [int(mask[0].any(1).sum()) for mask in foreign if mask.any()]
    assert len(others) == 10
    assert len({down for down, _ in shifts}) > 3
    assert len({across for _, across in shifts}) > 3
    assert {axis for shift in shifts for axis in shift} <= {*range(10), *range(19, 28)}, "up to a third, around the edges"
    assert min(heights) == 8
    assert 20 <= max(heights) <= 22


def test_pasted_rectangles_lie_anywhere():
    """Their first row and column are uniform over the first 9/14 of the image; none is nearer to one corner."""
    torch.manual_seed(0)
    image = torch.arange(1500.0).view(1500, 1, 1, 1).expand(1500, 1, 28, 28).contiguous()
    foreign = (pasted(image) != image)[:, 0]
    for axis in (1, 2):
        first = foreign.any(axis).float().argmax(1)[foreign.any((1, 2))]
        assert (first.min().item(), first.max().item()) == (1, 18)
        assert first.float().mean().item() == pytest.approx(9.5, abs=0.6)


def test_the_other_image_is_shifted_both_ways_by_up_to_a_third():
    """Six pixels a side: by -2 to 2, each as likely. Every pixel's value says where it was."""
    torch.manual_seed(0)
    image = torch.arange(36.0).view(1, 1, 6, 6) + 100 * torch.arange(8.0).view(8, 1, 1, 1)
    shifts = [[], []]
    for _ in range(500):
        source = pasted(image).long()
        foreign = source.div(100, rounding_mode="floor") != torch.arange(8).view(8, 1, 1, 1)
        down = (torch.arange(6).view(6, 1) - source % 100 // 6 + 2).remainder(6) - 2
        across = (torch.arange(6) - source % 100 % 6 + 2).remainder(6) - 2
        for found, shift in zip(shifts, (down, across), strict=True):
            found += shift[foreign][:1].tolist()
    for found in shifts:
        counts = [found.count(shift) / len(found) for shift in range(-2, 3)]
        assert counts == pytest.approx([0.2] * 5, abs=0.08)


def test_pasted_vectors_take_a_share_of_features_from_one_other():
    image = torch.arange(256.0)[:, None].expand(256, 200).contiguous()
    mixed = pasted(image)
    assert all(len(row.unique()) <= 2 for row in mixed)
    share = (mixed != image).float().mean(1)
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert ((share > 0.25) & (share < 0.75)).float().mean() > 0.35, "a share of each row, not whole rows"


def test_crossed_codes_have_a_share_of_their_own_from_one_other(monkeypatch):
    """Without their noise, which has a test of its own."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    latent = torch.arange(256.0)[:, None].expand(256, 200).contiguous()
    mixed = crossed(latent)
    assert all(len(row.unique()) <= 2 for row in mixed)
    share = (mixed != latent).float().mean(1)
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert ((share > 0.25) & (share < 0.75)).float().mean() > 0.35, "a share of each code, not whole codes"
    assert not torch.equal(crossed(latent)[:, 0], mixed[:, 0])


def test_noise_of_crossed_codes_is_of_up_to_three_deviations_of_each_entry():
    """Of codes that are all but two the same there is nothing to see but noise, and no clamping."""
    torch.manual_seed(0)
    latent = torch.zeros(800, 2000)
    latent[0], latent[1] = torch.linspace(1, 100, 2000), -torch.linspace(1, 100, 2000)
    noise = crossed(latent) / latent.std(0)
    strength = noise[noise.abs().amax(1) < 15].square().mean(1).sqrt()
    assert len(strength) > 700
    assert strength.min() < 0.1
    assert strength.mean().item() == pytest.approx(1.5, rel=0.1)
    assert strength.max().item() == pytest.approx(3, rel=0.1)
    assert noise.median(0).values.abs().max() < 0.4


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


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.8), (0.3, 0), (0, 0.8)])
def test_d_is_shown_the_four_kinds_in_their_places(alpha, beta, monkeypatch):
    """Clean, repaired clean, repaired noisy, repaired pseudo-anomalies; R repairs the second and fourth in eval mode."""
    module, shown, made = narrow("stable", alpha=alpha, beta=beta)(), [], {}

    def watch(make):
        def watched(x):
            made[make] = x.clone(), make(x)
            return made[make][1]

        monkeypatch.setattr(f"alocc.module.{make.__name__}", watched)

    watch(pasted)
    watch(crossed)
    module.discriminator.register_forward_hook(lambda net, x, logits: shown.append((x[0].detach().clone(), logits)))
    image, repaired_noisy = toy_samples(7).image, torch.rand(7, 1, 16, 16)
    loss = module.discriminator_loss(image, repaired_noisy)
    assert all(net.training for net in module.modules())
    r = module.reconstructor.eval()
    with torch.no_grad():
        latent = r.encoder(image)
        pseudo = torch.cat([r(made[pasted][1]), r.decoder(made[crossed][1])])
        expected = torch.cat([image, r(image), repaired_noisy, pseudo])
    assert torch.equal(made[pasted][0], image[:3])
    torch.testing.assert_close(made[crossed][0], latent[3:])
    ((x, logits),) = shown
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(loss, good_and_bad_loss(*logits.chunk(4), alpha, beta))
    loss.backward()
    assert all(p.grad is None for p in r.parameters()), "R is fixed"


def test_only_noisy_images_move_the_batch_statistics_of_r():
    module = narrow("stable")()
    optimizer_steps(module, batches=3)
    counters = [layer.num_batches_tracked for layer in module.reconstructor.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [int(count) for count in counters] == [3] * len(counters)
    assert all(net.training for net in module.reconstructor.modules())


def test_stable_preset_learns_to_tell_good_reconstructions_from_bad(tmp_path):
    """And is oriented by it: noise scores above waves, which the published labels do not promise."""
    module = trained(narrow("stable", latent=8), epochs=20)
    image, noise = toy_samples(64, seed=9).image, 2 * torch.rand(64, 1, 16, 16) - 1
    with torch.no_grad():
        good, bad, worst = (module.scores(x)["discriminator_reconstruction"] for x in (image, pasted(image), noise))
    assert good.mean() < bad.mean()
    assert roc_auc_score([0] * 64 + [1] * 64, torch.cat([good, worst])) > 0.75


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
    four = [64, 128, 256, 512]
    nets = {"encoder_widths": four, "decoder_widths": [256, 128, 64], "discriminator_widths": four, "norm_eps": 1e-6}
    assert_states(CONFIGS / "paper.yaml", **nets, lambda_r=0.4, reconstruction_loss="clean", adversarial="minimax", rule="rho")
    nets = {
        "encoder_widths": [32, 64, 128],
        "decoder_widths": [32, 16],
        "discriminator_widths": [16, 32, 64, 128],
        "norm_eps": 1e-5,
    }
    losses = {"lambda_r": 0.2, "reconstruction_loss": "noisy_cross_entropy", "adversarial": "non_saturating", "r_steps": 2}
    training = {"optimizer": "rmsprop", "lr_d": 2e-3, "lr_r": 2e-3, "batch_size": 128, "max_epochs": 40}
    images = {"sigma": 0.155, "clip": [0, 1], "normalization": "unit"}
    assert_states(CONFIGS / "official.yaml", **nets, **losses, **training, **images)
    optimizers = preset("official")().named_optimizers()
    assert all(optimizer.defaults["alpha"] == 0.9 for optimizer in optimizers.values())


def test_a_code_without_another_to_cross_with_stays_as_it_is():
    latent = torch.randn(1, 5)
    assert torch.equal(crossed(latent), latent)
