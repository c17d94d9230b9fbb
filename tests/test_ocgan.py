"""OCGAN's mechanics: Algorithm 1 step by step, what mining does and does not touch, the nets, the scores, the figures."""

import math
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from scipy.stats import kstest, uniform
from stated import assert_states
from torch import nn
from torch.nn import functional
from watched import Watched

from common.data.loaders import ResidentLoader
from common.errors import InputError
from common.testing import fit, optimizer_steps, toy_samples, trained
from ocgan import OCGAN
from ocgan.losses import critic_loss, fooling_loss, relative_error
from ocgan.mining import mine
from ocgan.networks import build, image_critic, kept_statistics, latent_critic

CONFIGS = Path(__file__).parents[1] / "ocgan" / "configs"
NARROW = {"width": 8, "latent": 6, "visual_width": 4, "classifier_width": 4, "network": "padded"}


def preset(name, **changes):
    arguments = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]
    return lambda shape=(1, 16, 16): OCGAN(shape=shape, **arguments | changes)


def narrow(name="paper", **changes):
    """A preset with nets that train in a second, mining from the first epoch on."""
    return preset(name, **NARROW | {"mining_start": 0.0} | changes)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items() if not name.endswith(("tracked", "threshold"))}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def watched(module, batches=1):
    return Watched(module, {"encoder": module.encoder, "decoder": module.decoder, **module.critics}, batches)


CLASSIFIER, LATENT, VISUAL = "classifier", "latent_discriminator", "visual_discriminator"


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [CLASSIFIER, LATENT, VISUAL, "generator"]),
        ({"mining_steps": 0}, [CLASSIFIER, LATENT, VISUAL, "generator"]),
        ({"mining_steps": None}, [LATENT, VISUAL, "generator"]),
        ({"weight_visual": 0}, [LATENT, "generator"]),
        ({"weight_visual": 0, "weight_latent": 0}, ["generator"]),
    ],
)
def test_one_step_of_each_optimiser_in_the_order_of_algorithm_1(changes, steps):
    module = narrow(**changes)()
    assert optimizer_steps(module, batches=2) == 2 * steps
    owners = {id(p): name for name, net in module.critics.items() for p in net.parameters()}
    for name, optimizer in module.named_optimizers().items():
        assert {owners.get(id(p), "generator") for group in optimizer.param_groups for p in group["params"]} == {name}


def test_a_new_term_of_the_generators_loss_is_added_and_logged(monkeypatch):
    class OneMore(OCGAN):
        def generator_losses(self, image, latent, reconstruction, fake):
            terms = super().generator_losses(image, latent, reconstruction, fake)
            return terms | {"loss_l1": latent.abs().mean()}

    totals, outputs = [], []
    descend, step = OCGAN.descend, OCGAN.training_step
    monkeypatch.setattr(OCGAN, "descend", lambda self, n, loss: (totals.append(loss.item()), descend(self, n, loss))[1])
    monkeypatch.setattr(OCGAN, "training_step", lambda self, *a: (outputs.append(step(self, *a)), outputs[-1])[1])
    optimizer_steps(OneMore((1, 16, 16), **NARROW, mining_steps=None), batches=1)
    out = {name: value.item() for name, value in outputs[0].items()}
    expected = 10 * out["loss_reconstruction"] + out["loss_latent"] + out["loss_visual"] + out["loss_l1"]
    assert totals[-1] == pytest.approx(expected)


def test_each_net_is_shown_what_algorithm_1_says():
    seen = watched(narrow(mining_steps=2)())
    ((noisy, code, _),) = seen.calls["encoder"]
    noise = noisy - seen.images[0]
    assert noise.std().item() == pytest.approx(0.4472, rel=0.03)
    assert noise.std(0).mean().item() == pytest.approx(0.4472, rel=0.05), "each image has its own"
    (trained_code, reconstruction, _), (random, fake, _), *mining, (mined, mined_image, _) = seen.calls["decoder"]
    assert torch.equal(trained_code, code)
    assert len(mining) == 2
    c_real, c_fake, *_ = seen.inputs(CLASSIFIER)
    assert torch.equal(c_real, reconstruction)
    assert torch.equal(c_fake, fake)
    (l_real, _, _), (l_fake, before, _), (l_again, after, _) = seen.calls[LATENT]
    assert torch.equal(l_real, random)
    assert torch.equal(l_fake, code)
    assert torch.equal(l_again, code)
    assert not torch.equal(after, before), "the encoder is judged by the latent discriminator as it is after its step"
    v_real, v_fake, v_again = seen.inputs(VISUAL)
    assert torch.equal(v_real, seen.images[0])
    assert torch.equal(v_fake, fake)
    assert torch.equal(v_again, mined_image)
    assert not torch.equal(mined, random)


@pytest.mark.parametrize(("steps", "reduction"), [(0, "sum"), (2, "sum"), (2, "mean")])
def test_losses_of_a_step_by_hand(steps, reduction):
    """From what the nets say, with noise, with and without mining, each term under a weight of its own."""
    weights = {"lambda_mse": 3.0, "weight_latent": 5.0, "weight_visual": 7.0}
    seen = watched(narrow(mining_steps=steps, random_share=0.5, reduction=reduction, **weights)())
    (losses,), error = seen.losses, seen.outputs("decoder")[0] - seen.images[0]
    for name in (CLASSIFIER, LATENT, VISUAL):
        real, fake = seen.outputs(name)[:2]
        expected = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        assert losses[f"loss_{name}"] == pytest.approx(expected.item())
        assert seen.totals[name] == pytest.approx([losses[f"loss_{name}"]]), "critics descend"
    of_an_image = getattr(error.square().flatten(1), reduction)(1)
    assert losses["loss_reconstruction"] == pytest.approx(of_an_image.mean().item())
    for name, critic in (("loss_latent", LATENT), ("loss_visual", VISUAL)):
        assert losses[name] == pytest.approx(functional.softplus(-seen.outputs(critic)[2]).mean().item())
    total = 3 * losses["loss_reconstruction"] + 5 * losses["loss_latent"] + 7 * losses["loss_visual"]
    assert seen.totals["generator"] == pytest.approx([total])


def test_each_step_gives_gradients_to_its_own_nets_alone():
    for name, nets in watched(narrow()()).learning:
        assert nets == ({"encoder", "decoder"} if name == "generator" else {name})


def test_random_latents_are_uniform_and_fresh():
    random = torch.cat(watched(narrow(latent=64)(), batches=4).inputs(LATENT)[::3])
    assert kstest(random.flatten().numpy(), uniform(-1, 2).cdf).pvalue > 0.01
    assert len(random.unique(dim=0)) == len(random) == 64


def test_the_generator_sees_other_images_where_mining_is_on():
    images = {}
    for steps in (0, 5):
        torch.manual_seed(0)
        seen = watched(narrow(mining_steps=steps)())
        images[steps] = (seen.outputs("decoder")[1], seen.inputs(VISUAL)[-1])
    assert torch.equal(images[0][0], images[0][1]), "unmined, the discriminators' image is the generator's"
    assert torch.equal(images[0][0], images[5][0]), "the discriminators see random latents, mined or not"
    assert not torch.allclose(images[5][0], images[5][1], atol=1e-3)


def test_mining_after_a_share_of_the_epochs_needs_their_number():
    module = narrow(mining_start=0.5)()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    endless = Trainer(max_epochs=-1, max_steps=8, accelerator="cpu", **options)
    with pytest.raises(InputError, match=r"mining_start is a share of the epochs: give trainer\.max_epochs"):
        endless.fit(module, ResidentLoader(toy_samples(16), batch_size=16, shuffle=False))


def test_mining_waits_for_its_epoch(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(OCGAN, "mined", lambda self, latent: (begun.append(self.current_epoch), latent)[1])
    fit(narrow(mining_start=0.5)(), 4, tmp_path)
    assert set(begun) == {2, 3}


@pytest.mark.parametrize(("steps", "passes"), [(None, 2), (0, 2), (1, 4), (5, 8)])
def test_no_forward_pass_is_made_twice(steps, passes):
    """One reconstruction and one decoding of random latents for all steps; mining adds its own and the mined latents'."""
    seen = watched(narrow(mining_steps=steps)(), batches=3)
    assert len(seen.calls["encoder"]) == 3
    assert len(seen.calls["decoder"]) == 3 * passes


@pytest.mark.parametrize(("share", "n"), [(0.25, 4), (0.22, 4), (0.01, 2)])
def test_a_share_of_random_latents_is_decoded_and_mined(share, n, monkeypatch):
    """From where they are, by the classifier, in steps of the stated number and size."""
    mined = []

    def watch(*arguments):
        end = mine(*arguments)
        mined.append((*arguments, end))
        return end

    monkeypatch.setattr("ocgan.module.mine", watch)
    module = narrow(random_share=share, mining_steps=3, mining_step_size=0.7)()
    seen = watched(module)
    ((decoder, classifier, start, *how, end),) = mined
    assert decoder is module.decoder
    assert classifier is module.critics["classifier"]
    assert how == [3, 0.7]
    decoded = seen.inputs("decoder")
    assert torch.equal(start, decoded[1])
    assert torch.equal(end, decoded[-1])
    assert torch.equal(start, seen.inputs(LATENT)[0][:n])
    assert [len(latent) for latent in seen.inputs(LATENT)] == [16, 16, 16]
    assert [len(image) for image in seen.inputs(VISUAL)] == [16, n, n]


def test_mining_lowers_the_belief_that_decoded_latents_are_normal(tmp_path):
    module = narrow("smoke", noise_std=0.1)()
    fit(module, 10, tmp_path)
    module.eval()
    decoder, classifier = module.decoder, module.critics["classifier"]
    start = torch.rand(64, 6) * 2 - 1
    before = state(module)
    beliefs = []
    for steps in range(6):
        latent = mine(decoder, classifier, start, steps, step_size=2.0)
        assert latent.is_leaf
        assert not latent.requires_grad
        assert latent.abs().max() < 1
        with torch.no_grad():
            beliefs.append(classifier(decoder(latent)))
    assert (beliefs[5] < beliefs[0]).float().mean() > 0.9
    assert all(later.mean() < earlier.mean() for earlier, later in pairwise(beliefs))
    assert same(before, state(module))
    assert start.abs().max() < 1


def test_mining_leaves_no_gradient_and_no_statistics(monkeypatch):
    module, seen = narrow()(), []
    mined = OCGAN.mined

    def watch(self, latent):
        for net in (self.encoder, self.decoder, *self.critics.values()):
            net.zero_grad()
        before = state(self)
        out = mined(self, latent)
        seen.append(same(before, state(self)) and all(p.grad is None for p in self.parameters()))
        return out

    monkeypatch.setattr(OCGAN, "mined", watch)
    optimizer_steps(module, batches=2)
    assert seen == [True, True]


def test_mining_from_the_edge_of_the_cube_is_finite():
    latent = mine(nn.Identity(), lambda x: 1e6 * x.sum(1), torch.tensor([[-1.0, 1.0, 0.0]]), steps=3, step_size=10.0)
    assert latent.isfinite().all()
    assert latent.abs().max() < 1


def test_mining_descends_by_hand():
    """Each latent by itself: the step of one does not depend on how many there are."""
    start, weight, size = torch.tensor([[0.2, -0.4], [-0.5, 0.3]]), torch.tensor([1.5, -0.5]), 0.7
    m = start.atanh()
    for _ in range(2):
        belief = torch.sigmoid((m.tanh() * weight).sum(1, keepdim=True))
        m = m - size * belief * weight * (1 - m.tanh() ** 2)
    torch.testing.assert_close(mine(nn.Identity(), lambda x: (x * weight).sum(1), start, 2, size), m.tanh())


def test_a_classifier_that_nothing_asks_changes_nothing(tmp_path):
    """The ablation row "classifier without mining" is "+ visual" by construction."""
    with_one, without = narrow(mining_steps=0)(), narrow(mining_steps=None)()
    without.load_state_dict({name: value for name, value in with_one.state_dict().items() if "classifier" not in name})
    for name, module in (("with", with_one), ("without", without)):
        fit(module, 2, tmp_path / name)
    for net in ("encoder", "decoder"):
        assert same(state(getattr(with_one, net)), state(getattr(without, net)))


def test_running_statistics_are_those_of_encodings():
    module = narrow(mining_steps=2)()
    optimizer_steps(module, batches=3)
    assert all(layer.track_running_stats for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d))
    module, expected = narrow(mining_steps=2)(), []
    norm = module.decoder[3]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.register_forward_pre_hook(
        lambda layer, x: expected.append(x[0].mean((0, 2, 3))) if layer.track_running_stats else None
    )
    optimizer_steps(module, batches=3)
    assert len(expected) == 3
    running = torch.zeros(32)
    for mean in expected:
        running = 0.9 * running + 0.1 * mean
    torch.testing.assert_close(norm.running_mean, running)


def test_kept_statistics_are_restored_after_an_error():
    norm = nn.BatchNorm2d(2)
    with pytest.raises(ValueError, match="4D input"), kept_statistics(norm):
        norm(norm(torch.rand(4, 2, 3, 3)).flatten())
    assert norm.track_running_stats
    assert not norm.running_mean.any()
    without = nn.BatchNorm2d(2, track_running_stats=False)
    with kept_statistics(without):
        pass
    assert not without.track_running_stats


def test_inference_codes_are_for_the_critics_alone():
    """They come from the statistics of earlier batches; both passes see the same noisy images; the nets go on training."""
    module = narrow(inference_codes=True, mining_steps=0)()
    untrained = deepcopy(module.encoder).eval()
    seen = watched(module, batches=2)
    assert [call.training for call in seen.calls["encoder"]] == 2 * [False, True]
    assert [call.training for call in seen.calls["decoder"]] == 2 * [False, True, True]
    noisy, again = seen.inputs("encoder")[:2]
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, seen.images[0])
    inferred, trained_code = seen.outputs("encoder")[:2]
    torch.testing.assert_close(inferred, untrained(noisy))
    _, on_inferred, on_trained = seen.inputs(LATENT)[:3]
    assert torch.equal(on_inferred, inferred)
    assert torch.equal(on_trained, trained_code)
    assert not torch.allclose(trained_code, inferred)
    inferred_image, trained_image = seen.outputs("decoder")[:2]
    assert torch.equal(seen.inputs(CLASSIFIER)[0], inferred_image)
    error = (trained_image - seen.images[0]).square().sum((1, 2, 3)).mean().item()
    assert seen.losses[0]["loss_reconstruction"] == pytest.approx(error)


def test_losses_by_hand():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0])
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    expected = -(log_sigmoid(0) + log_sigmoid(2)) / 2 - log_sigmoid(1)
    assert critic_loss(real, fake).item() == pytest.approx(expected)
    assert fooling_loss(real).item() == pytest.approx(-(log_sigmoid(0) + log_sigmoid(2)) / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_and_betas_of_generator_and_critics(schedule, tmp_path):
    module = narrow(lr=3e-3, lr_critics=2e-3, schedule=schedule)()
    optimizers = module.named_optimizers()
    rates = {name: optimizer.defaults["lr"] for name, optimizer in optimizers.items()}
    assert rates == {CLASSIFIER: 2e-3, LATENT: 2e-3, VISUAL: 2e-3, "generator": 3e-3}
    assert {optimizer.defaults["betas"] for optimizer in optimizers.values()} == {(0.5, 0.999)}
    last = [optimizer.param_groups[0]["lr"] for optimizer in fit(module, 2, tmp_path).optimizers]
    assert last == pytest.approx(list(rates.values()) if schedule == "constant" else [0] * 4, abs=1e-12)


def test_critics_have_widths_of_their_own():
    module = narrow(visual_width=3, classifier_width=5)()
    widths = {
        name: [layer.out_channels for layer in module.critics[name] if isinstance(layer, nn.Conv2d)]
        for name in (VISUAL, CLASSIFIER)
    }
    assert widths == {VISUAL: [3, 6, 12], CLASSIFIER: [5, 10, 20]}


def test_relative_error_knows_neither_brightness_nor_offset():
    image, reconstruction = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8)
    error = relative_error(reconstruction, image)
    torch.testing.assert_close(relative_error(reconstruction + 3, image + 3), error)
    for contrast in (2, 0.01):
        torch.testing.assert_close(relative_error(contrast * reconstruction, contrast * image), contrast * error)
    assert relative_error(torch.zeros(1, 4), torch.zeros(1, 4)).isfinite()


def test_latent_discriminator_ends_in_one_logit_without_a_sigmoid():
    net = narrow(latent=16)().critics[LATENT]
    assert [layer.out_features for layer in net if isinstance(layer, nn.Linear)] == [128, 64, 32, 16, 1]
    assert not any(isinstance(layer, nn.Sigmoid) for layer in net)
    assert isinstance(net[-2], nn.Linear)


def kinds(net):
    return [type(layer).__name__ for layer in net]


def convolutions(net):
    return [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in net if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]  # fmt: skip


def test_layers_of_the_padded_nets():
    """With DCGAN's start: weights N(0, 0.02²), batch norm's gains N(1, 0.02²), no biases."""
    module = OCGAN((1, 28, 28))
    block = ["BatchNorm2d", "LeakyReLU"]
    assert kinds(module.encoder) == [*["Conv2d", *block] * 3, "Flatten", "Linear", "BatchNorm1d", "Tanh"]
    up = ["Linear", "Unflatten", "ChannelsLast", *block, *["ConvTranspose2d", *block] * 2, "ConvTranspose2d", "Tanh"]
    assert kinds(module.decoder) == up
    critic = ["Conv2d", "LeakyReLU", *["Conv2d", *block] * 2, "Flatten", "Linear", "Flatten"]
    assert kinds(module.critics[VISUAL]) == kinds(module.critics[CLASSIFIER]) == critic
    assert convolutions(module.encoder) == [(1, 64, 5, 2), (64, 128, 5, 2), (128, 256, 5, 2)]
    assert convolutions(module.decoder) == [(256, 128, 5, 2), (128, 64, 5, 2), (64, 1, 5, 2)]
    assert convolutions(module.critics[VISUAL]) == [(1, 12, 5, 2), (12, 24, 5, 2), (24, 48, 5, 2)]
    assert convolutions(module.critics[CLASSIFIER]) == [(1, 64, 5, 2), (64, 128, 5, 2), (128, 256, 5, 2)]
    for layer in module.modules():
        if isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
    for layer in (*module.encoder, *module.decoder):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.03)
            assert 0.005 < layer.weight.std() < 0.04
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize(("channels", "width"), [(3, 3), (1, 1), (3, 8)])
def test_only_the_last_layer_of_the_padded_decoder_has_a_bias_and_no_batch_norm(channels, width):
    """However many channels the layers before it have."""
    decoder = OCGAN((channels, 8, 8), width=width, latent=4).decoder
    assert kinds(decoder).count("BatchNorm2d") == 3
    biases = [layer.bias is not None for layer in decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert biases == [False, False, True]


def test_released_nets():
    nets = build("released", (3, 61, 61), 64, 16)
    image = torch.rand(2, 3, 61, 61)
    assert [layer(image).shape for layer in (nets.encoder, nn.Sequential(*nets))] == [(2, 16), (2, 3, 61, 61)]
    critic = image_critic("released", (3, 61, 61), 12)
    assert critic(image).shape == (2,)
    down = ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2]
    up = ["ConvTranspose2d", "BatchNorm2d"]
    assert kinds(nets.encoder) == [*down, "Conv2d", "BatchNorm2d", "Tanh", "Flatten"]
    assert kinds(nets.decoder) == ["Unflatten", *[*up, "ReLU"] * 2, *up, "Dropout", "ReLU", "ConvTranspose2d", "Tanh"]
    assert kinds(critic) == [*down, "Conv2d", "Flatten"]
    layers = [layer for net in (*nets, critic) for layer in net]
    assert {layer.momentum for layer in layers if isinstance(layer, nn.BatchNorm2d)} == {0.9}
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.5}
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    critic = latent_critic("released", 16)
    assert kinds(critic) == [*["Linear", "ReLU"] * 4, "Linear", "Flatten"]
    assert [layer.out_features for layer in critic if isinstance(layer, nn.Linear)] == [128, 64, 32, 16, 1]
    for values in (critic[0].weight, critic[2].weight, critic[0].bias):
        assert values.std().item() == pytest.approx(0.02, rel=0.2)
    with pytest.raises(InputError, match="61x61 images, not 28x28: give image_size 61"):
        build("released", (1, 28, 28), 64, 16)
    with pytest.raises(InputError, match=r"\(C, H, W\) or \(F,\)"):
        build("padded", (28, 28), 64, 16)


@pytest.mark.parametrize(("network", "size"), [("padded", (28, 28)), ("padded", (33, 47)), ("released", (61, 61))])
def test_codes_lie_in_the_cube_and_images_in_range(network, size):
    """However large what goes in, at both ends of both."""
    module = narrow(network=network)((3, *size)).eval()
    code = module.embed(1e6 * torch.randn(8, 3, *size))
    image = module.decoder(1e6 * torch.randn(8, 6))
    assert code.shape == (8, 6)
    for values in (code, image):
        assert (values.min().item(), values.max().item()) == pytest.approx((-1, 1), abs=1e-3)


def test_vectors_have_codes_in_the_cube_and_any_range():
    module = narrow()((30,)).eval()
    widths = [layer.out_features for net in (module.encoder, module.decoder) for layer in net if isinstance(layer, nn.Linear)]
    assert widths == [32, 16, 6, 16, 32, 30]
    assert module.embed(1e6 * torch.randn(8, 30)).abs().max() == 1
    assert module.decoder(1e6 * torch.randn(8, 6)).abs().max() > 1


def test_scores_are_of_the_clean_image():
    """The reconstruction's is the mean over pixels, also where the loss is a sum."""
    module = trained(narrow())
    x = toy_samples(8).image
    with torch.no_grad():
        scores, reconstruction = module.scores(x), module.decoder(module.encoder(x))
    error = (reconstruction - x).square().mean((1, 2, 3))
    contrast = (x - x.amin((1, 2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(scores["reconstruction"], error)
    torch.testing.assert_close(scores["relative_reconstruction"], error / contrast)
    torch.testing.assert_close(scores["discriminator"], -module.critics["visual_discriminator"](x).detach())
    assert set(trained(narrow(weight_visual=0)).scores(x)) == {"reconstruction", "relative_reconstruction"}


@pytest.mark.parametrize("steps", [5, 0, None])
def test_figures_in_a_validation_loop_leave_training_alone(steps):
    module = trained(narrow("smoke", mining_steps=steps))
    before, random = state(module), torch.get_rng_state()
    with torch.inference_mode():
        figures = module.figures(toy_samples(32).image)
    assert torch.equal(random, torch.get_rng_state())
    assert same(before, state(module))
    assert set(figures) == {"latent_histogram", "random_latents"}
    texts = [text.get_text() for axes in figures["random_latents"].axes for text in axes.texts]
    assert len([text for text in texts if text.startswith(("0.", "1."))]) == (0 if steps is None else 16)
    assert set(narrow("smoke")((30,)).figures(torch.rand(4, 30))) == {"latent_histogram"}


def test_figures_show_the_whole_cube_before_and_after_mining(monkeypatch):
    drawn, x = {}, toy_samples(32).image
    for name in ("mining_grid", "latent_histogram"):
        monkeypatch.setattr(f"ocgan.module.{name}", lambda *arguments, name=name: drawn.update({name: arguments}))
    module = trained(narrow())
    latents = []
    module.decoder.register_forward_pre_hook(lambda net, inputs: latents.append(inputs[0]))
    module.figures(x)
    random, *_, mined = latents
    assert random.min() < -0.9
    assert random.max() > 0.9
    images, logits = drawn["mining_grid"]
    torch.testing.assert_close(mined, mine(module.decoder, module.critics[CLASSIFIER], random, 5, 2.0))
    with torch.no_grad():
        assert torch.equal(drawn["latent_histogram"][0], module.encoder(x))
        for name, latent in (("random", random), ("mined", mined)):
            assert torch.equal(images[name], module.decoder(latent))
            assert torch.equal(logits[name], module.critics[CLASSIFIER](images[name]))


def test_presets_of_the_papers_say_what_they_are():
    code = {"latent": 16, "visual_width": 12, "classifier_width": 64, "lr": 2e-4, "lr_critics": 2e-4, "mining_step_size": 2.0}
    both = code | {"width": 64, "mining_start": 0.75, "normalization": "symmetric", "rule": "validation"}
    noise_std = round(math.sqrt(0.2), 4)
    assert_states(
        CONFIGS / "paper.yaml", **both, network="padded", noise_std=noise_std, lambda_mse=10, reduction="sum", mining_steps=5
    )
    hparams = preset("paper")().hparams
    assert (hparams.weight_latent, hparams.weight_visual, hparams.random_share, hparams.score) == (1, 1, 1, "reconstruction")
    terms = {
        "noise_std": 0.2,
        "lambda_mse": 5,
        "reduction": "mean",
        "weight_latent": 10,
        "mining_steps": 1,
        "inference_codes": True,
    }
    sizes = {"batch_size": 512, "max_epochs": 200, "image_size": 61, "channels": 3}
    assert_states(CONFIGS / "official.yaml", **both, **terms, **sizes, network="released")
    for optimizer in preset("official")((3, 61, 61)).named_optimizers().values():
        assert optimizer.param_groups[0]["lr"] == 2e-4
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def moved(module):
    before = {name: state(getattr(module, name)) for name in ("encoder", "decoder")}
    optimizer_steps(module, batches=1)
    return {
        name for name, old in before.items()
        if not all(torch.equal(p, old[key]) for key, p in getattr(module, name).named_parameters())
    }  # fmt: skip


@pytest.mark.parametrize("steps", [None, 0, 3])
def test_each_adversary_alone_moves_the_net_it_is_there_for(steps):
    """D_v's verdict reaches the decoder, mined or not, and nothing else; D_l's reaches the encoder and nothing else."""
    assert moved(narrow(lambda_mse=0, weight_latent=0, mining_steps=steps)()) == {"decoder"}
    assert moved(narrow(lambda_mse=0, weight_visual=0, mining_steps=steps)()) == {"encoder"}


def test_adversaries_are_fought_and_not_followed(tmp_path):
    """A step of the generator raises what D_l and D_v, as they are, take for the real thing."""
    for weights, score in (({"weight_visual": 0}, "loss_latent"), ({"weight_latent": 0, "mining_steps": None}, "loss_visual")):
        module, seen = narrow(lambda_mse=0, noise_std=0, lr_critics=0, lr=1e-3, **weights)(), []
        step = module.training_step

        def repeated(batch, i, step=step, seen=seen, score=score):
            torch.manual_seed(0)
            out = step(batch, 0)
            seen.append(out[score].item())
            return out

        module.training_step = repeated
        train_on_one_batch(module, tmp_path)
        assert seen[-1] < seen[0]


def train_on_one_batch(module, folder):
    """Ten epochs of one and the same batch."""
    loader = ResidentLoader(toy_samples(16), batch_size=16, shuffle=False)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": folder}
    Trainer(max_epochs=10, accelerator="cpu", enable_model_summary=False, **options).fit(module, loader)
