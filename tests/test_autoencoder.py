"""The autoencoder's mechanics: what its loss, its score, its optimiser and its nets are."""

import math
from pathlib import Path

import pytest
import torch
from stated import assert_states
from torch import nn
from torch.nn import functional
from watched import Watched

from autoencoder import Autoencoder
from autoencoder.networks import build
from common.networks import bounded_decoder, bounded_encoder
from common.testing import fit, toy_samples, trained

CONFIGS = Path(__file__).parents[1] / "autoencoder" / "configs"
ERROR = {"mean": lambda x: x.square().mean((1, 2, 3)), "sum": lambda x: x.square().sum((1, 2, 3))}


def small(shape=(1, 16, 16), **changes):
    return Autoencoder(shape, **{"widths": (4, 8), "latent": 4} | changes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_noisy_image_is_reconstructed_to_the_clean_one(reduction):
    """The loss of two steps by hand, from what the nets are given and return."""
    module = small(noise_std=0.4, reduction=reduction)
    seen = Watched(module, {"encoder": module.encoder, "decoder": module.decoder}, batches=2)
    noises = []
    for image, step in enumerate(seen.images):
        noises.append(seen.inputs("encoder")[image] - step)
        error = ERROR[reduction](seen.outputs("decoder")[image] - step).mean().item()
        assert seen.losses[image] == pytest.approx({"loss": error})
        assert seen.totals["autoencoder"][image] == pytest.approx(error)
    assert torch.equal(seen.inputs("decoder")[0], seen.outputs("encoder")[0])
    for noise in noises:
        assert noise.std().item() == pytest.approx(0.4, rel=0.04)
        assert noise.std(0).mean().item() == pytest.approx(0.4, rel=0.06), "each image has its own"
    assert not torch.equal(*noises)


def test_without_noise_the_image_itself_is_encoded():
    module = small()
    seen = Watched(module, {"encoder": module.encoder})
    assert torch.equal(seen.inputs("encoder")[0], seen.images[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scores_are_of_the_clean_image(reduction):
    module = trained(lambda shape: small(shape, noise_std=0.4, reduction=reduction))
    x = toy_samples(8).image
    with torch.no_grad():
        code = module.encoder(x)
        reconstruction = module.decoder(code)
        torch.testing.assert_close(module.scores(x)["reconstruction"], ERROR[reduction](reconstruction - x))
        assert torch.equal(module.embed(x), code)
        assert torch.equal(module.reconstruct(x), reconstruction)


def test_adam_has_the_stated_rate_betas_and_weight_decay():
    module = small(lr=3e-3, betas=(0.8, 0.9), weight_decay=0.07)
    (optimizer,) = module.named_optimizers().values()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-3, (0.8, 0.9), 0.07)
    assert group["params"] == list(module.parameters())


def test_weight_decay_is_adams_l2_penalty(tmp_path):
    """One step by hand: the penalty is part of the gradient, whose sign is all that Adam's first step keeps."""
    module = small(lr=1e-3, weight_decay=1e6)
    before = module.encoder[0].weight.detach().clone()
    fit(module, 1, tmp_path, limit_train_batches=1)
    torch.testing.assert_close(before - module.encoder[0].weight, 1e-3 * before.sign())


def kinds(net):
    return [type(layer).__name__ for layer in net]


def test_layers_of_the_published_mnist_recipe():
    """Activation before batch norm with Keras's constants, a linear code, a sigmoid at the end, Glorot's uniform start."""
    encoder, decoder = build("strided", (1, 28, 28), (32, 64), 16)
    assert kinds(encoder) == [*["Conv2d", "LeakyReLU", "BatchNorm2d"] * 2, "Flatten", "Linear"]
    up = ["ConvTranspose2d", "LeakyReLU", "BatchNorm2d"]
    assert kinds(decoder) == ["Linear", "Unflatten", "ChannelsLast", *up * 2, "ConvTranspose2d", "Sigmoid"]
    for layer in (*encoder, *decoder):
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum, layer.affine) == (1e-3, 0.01, True)
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("widths", "latent", "shape"), [((8, 4), 32, (1, 28, 28)), ((32, 64, 128), 128, (3, 32, 32))])
def test_layers_of_deep_svdds_autoencoder(widths, latent, shape, training):
    """Ruff et al.'s nets by hand, in their order: activation before pooling, upsampling before convolution."""
    encoder, decoder = (net.train(training) for net in build("lenet", shape, widths, latent))
    layers = [layer for layer in (*encoder, *decoder) if list(layer.parameters())]
    norms = [layer for layer in (*encoder, *decoder) if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        assert (norm.eps, norm.affine) == (1e-4, False)
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
    assert all(layer.bias is None for layer in layers)
    image = torch.rand(8, *shape)
    weights, remaining = iter(layer.weight for layer in layers), iter(norms)
    x = image
    for _ in widths:
        x = functional.leaky_relu(next(remaining)(functional.conv2d(x, next(weights), padding=2)), 0.01)
        x = functional.max_pool2d(x, 2)
    code = x.flatten(1) @ next(weights).T
    if len(widths) == 3:
        code = next(remaining)(code)
    torch.testing.assert_close(encoder(image), code, rtol=1e-3, atol=1e-4)
    x = functional.leaky_relu(code.view(8, -1, 4, 4), 0.01)
    pads = {2: (2, 3, 2), 3: (2, 2, 2, 2)}[len(widths)]
    for left, padding in enumerate(pads, -len(pads)):
        if left >= -3:
            x = functional.interpolate(x, scale_factor=2)
        x = functional.conv_transpose2d(x, next(weights), padding=padding)
        if left < -1:
            x = functional.leaky_relu(next(remaining)(x), 0.01)
    torch.testing.assert_close(decoder(code), x.sigmoid(), rtol=1e-3, atol=1e-4)


def test_deep_svdds_cifar_nets_start_from_leaky_xavier_weights():
    encoder, decoder = build("lenet", (3, 32, 32), (32, 64, 128), 128)
    gain = nn.init.calculate_gain("leaky_relu")
    for layer in (*encoder, *decoder):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = gain * math.sqrt(6 / (fan_in + fan_out))
            assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_ae_only_has_ocgans_nets():
    nets = build("bounded", (1, 28, 28), (8, 99), 6)
    expected = bounded_encoder((1, 28, 28), 8, 6), bounded_decoder((1, 28, 28), 8, 6)
    assert [str(net) for net in nets] == [str(net) for net in expected]


@pytest.mark.parametrize("network", ["strided", "lenet", "bounded"])
def test_vectors_have_dense_nets_without_bounds_whatever_the_name(network):
    encoder, decoder = build(network, (30,), (16, 8), 4)
    assert kinds(encoder) == kinds(decoder) == [*["Linear", "LeakyReLU"] * 2, "Linear"]
    assert [layer.out_features for layer in (*encoder, *decoder) if isinstance(layer, nn.Linear)] == [16, 8, 4, 8, 16, 30]


def test_presets_of_the_papers_say_what_they_are():
    settings = {
        "network": "strided",
        "widths": [32, 64],
        "latent": 16,
        "lr": 1e-3,
        "schedule": "inverse_time",
        "lr_decay": 5e-5,
    }
    training = {"batch_size": 32, "val_fraction": 0.2, "max_epochs": 20, "threshold_quantile": 0.999, "rule": "last"}
    assert_states(CONFIGS / "paper.yaml", **settings, **training)
    dcae = {"network": "lenet", "reduction": "sum", "lr": 1e-4, "batch_size": 200, "normalization": "gcn", "rule": "last"}
    digits = {"widths": [8, 4], "latent": 32, "lr_milestones": [50], "weight_decay": 5e-4, "max_epochs": 150}
    assert_states(CONFIGS / "dcae.yaml", **dcae, **digits)
    colours = {"widths": [32, 64, 128], "latent": 128, "lr_milestones": [250], "weight_decay": 5e-7, "max_epochs": 350}
    assert_states(CONFIGS / "dcae.cifar10.yaml", **dcae, **colours)
    noise_std = round(math.sqrt(0.2), 4)
    bounded = {"network": "bounded", "noise_std": noise_std, "latent": 16, "normalization": "symmetric", "rule": "validation"}
    assert_states(CONFIGS / "denoising.yaml", **bounded)
