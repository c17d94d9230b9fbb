"""OC-CNN's mechanics: noise and normalisation, what is frozen and what moves, kept features, scores, data sets, detectors."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from pytorch_lightning import Trainer
from sklearn.svm import SVC, OneClassSVM
from stated import assert_states
from torch import nn
from torch.nn import functional
from watched import Watched

from common import backbones
from common.backbones import split
from common.data import OneClassDataModule, datasets, load
from common.data import features as kept
from common.data.loaders import ResidentLoader
from common.deploy.load import load_checkpoint
from common.errors import DataMissingError, InputError
from common.experiment import Experiment, Grid, run_experiment
from common.shallow import SVDD, MinimaxProbabilityMachine, NoiseSVM
from common.testing import fit, optimizer_steps, toy_samples
from common.training.lightning import assemble
from ocnn import OCCNN, losses
from ocnn.networks import classifier

pytestmark = pytest.mark.usefixtures("blank_figures")

CONFIGS = Path(__file__).parents[1] / "ocnn" / "configs"
RANDOM = np.random.default_rng(0)
RGB = (3, 40, 40)


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    datasets._load.cache_clear()


class TinyNet(nn.Module):
    """A net with batch norm and a classifier of two linear layers, in place of a large one of torchvision."""

    def __init__(self, **_):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(24, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.fixture
def tiny(monkeypatch):
    """Under the name of AlexNet."""
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: TinyNet())


def tiny_module(shape=RGB, **changes):
    arguments = {"backbone": "alexnet", "weights": None, "head_layers": 1, "fine_tuned": True, "sigma": 0.5, "lr": 1e-3}
    return OCCNN(shape=shape, **arguments | changes)


def preset(name, **changes):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"] | changes


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photographs(root, classes=("cat", "dog"), n=12, parts=("train", "test")):
    """Bright ones of the first class, dark ones of the second, of several sizes."""
    for part in parts:
        for k, name in enumerate(classes):
            for i in range(n):
                pixels = RANDOM.integers(120 * (1 - k), 120 * (1 - k) + 120, (40 + i, 50, 3), dtype=np.uint8)
                save(root / part / name / f"{i:02}.png", pixels)
    return root


def watched(module, batches=1):
    """What the classifier is given, batch by batch, as real rows and noise rows."""
    seen = []
    module.classifier.register_forward_hook(lambda _, x, y: seen.append(x[0].detach().chunk(2)))
    optimizer_steps(module, batches)
    return seen


def test_noise_is_fresh_at_each_step_and_not_normalised():
    (_, first), (_, second) = watched(tiny_like_none(sigma=0.25), batches=2)
    assert not torch.equal(first, second)
    noise = torch.cat([first, second])
    assert noise.std().item() == pytest.approx(0.25, rel=0.1)
    assert noise.mean(1).abs().max() > 1e-3, "rows of noise keep their own mean"
    assert noise.mean().abs() < 0.02
    assert len(noise.unique(dim=0)) == len(noise), "each row is drawn by itself"


@pytest.mark.usefixtures("tiny")
def test_a_step_by_hand():
    """With dropout in the trained layers: B normalised features over B rows of noise, and the loss that both nets descend."""
    module = tiny_module(head_layers=2, sigma=0.5)
    seen = Watched(module, {"head": module.head, "classifier": module.classifier})
    head, classifier = seen.calls["head"][0], seen.calls["classifier"][0]
    assert head.training
    with torch.no_grad():
        torch.testing.assert_close(head.x, module.extractor(seen.images[0]))
    real, noise = classifier.x.chunk(2)
    torch.testing.assert_close(real, losses.instance_norm(head.y))
    assert noise.std().item() == pytest.approx(0.5, rel=0.15)
    classes = torch.tensor([losses.TARGET] * 16 + [losses.NOISE] * 16)
    loss = -classifier.y.log_softmax(1)[torch.arange(32), classes].mean().item()
    assert seen.losses[0] == pytest.approx({"loss": loss})
    assert seen.totals == {"['backbone', 'classifier']": [pytest.approx(loss)]}


@pytest.mark.usefixtures("tiny")
def test_only_weights_are_drawn_when_a_module_is_made():
    """And no dropout masks: the classifier starts as it does right after the backbone."""
    TinyNet()  # seeds itself
    expected = classifier(10, ())
    assert same(state(expected), state(tiny_module(head_layers=2).classifier))


@pytest.mark.usefixtures("tiny")
def test_both_optimisers_are_adam_at_the_stated_rate():
    for optimizer in tiny_module(lr=3e-3).named_optimizers().values():
        assert type(optimizer) is torch.optim.Adam
        settings = {"lr": 3e-3, "betas": (0.9, 0.999), "weight_decay": 0}
        assert {name: optimizer.defaults[name] for name in settings} == settings


def kinds(net):
    return [type(layer).__name__ for layer in net]


def test_layers_of_the_small_net_and_of_the_classifier():
    module = OCCNN(shape=(1, 16, 16), backbone="none", classifier_widths=(8, 6))
    assert kinds(module.head) == [*["Conv2d", "LeakyReLU"] * 3, "Flatten", "Linear"]
    assert kinds(module.classifier) == ["ReLU", "Linear"] * 3
    assert {layer.negative_slope for layer in module.head if isinstance(layer, nn.LeakyReLU)} == {0.2}
    for name, weight in module.head.named_parameters():
        assert name.endswith("weight")
        gain = nn.init.calculate_gain("leaky_relu", 0.2)
        assert weight.std().item() == pytest.approx(gain / weight[0].numel() ** 0.5, rel=0.15)


def tiny_like_none(**changes):
    return OCCNN(shape=(1, 16, 16), backbone="none", **changes)


@pytest.mark.parametrize("on", [True, False])
def test_real_rows_are_normalised_one_by_one(on):
    ((real, noise),) = watched(tiny_like_none(instance_norm=on))
    assert real.shape == noise.shape
    normalised = real.mean(1).abs().max() < 1e-5 and (real.std(1, correction=0) - 1).abs().max() < 1e-2
    assert bool(normalised) == on


def test_instance_norm_is_the_layer_of_the_published_code():
    features = torch.randn(5, 30) * 3 + 1
    layer = nn.InstanceNorm1d(1, affine=False)
    torch.testing.assert_close(losses.instance_norm(features), layer(features.unsqueeze(1)).squeeze(1))


def test_instance_norm_of_parts_is_that_of_each():
    one, other = torch.randn(5, 30) * 3 + 1, torch.randn(5, 20) * 50
    expected = torch.cat([losses.instance_norm(one), losses.instance_norm(other)], 1)
    torch.testing.assert_close(losses.instance_norm(torch.cat([one, other], 1), [30, 20]), expected)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.5, 0.0]])
    p = [1 / (1 + np.exp(-2)), 0.5, 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(0.5))]
    assert losses.cross_entropy(logits).item() == pytest.approx(-np.mean(np.log(p)))
    assert losses.logit_difference(logits).tolist() == [-2.0, 0.0, 3.0, -0.5]


@pytest.mark.usefixtures("tiny")
def test_two_optimisers_backbone_first_and_one_where_it_is_frozen():
    module = tiny_module()
    nets = {"backbone": module.head, "classifier": module.classifier}
    for name, optimizer in module.named_optimizers().items():
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in nets[name].parameters()}
    assert optimizer_steps(module, batches=2) == ["backbone", "classifier"] * 2
    assert optimizer_steps(tiny_module(fine_tuned=False), batches=2) == ["classifier"] * 2


@pytest.mark.usefixtures("tiny")
def test_frozen_layers_and_their_batch_statistics_do_not_move(tmp_path):
    module = tiny_module()
    frozen, head, top = state(module.extractor), state(module.head), state(module.classifier)
    assert any("running_mean" in name for name in frozen)
    loader = ResidentLoader(toy_samples(32, RGB), batch_size=16, shuffle=True)
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, loader)
    assert same(frozen, module.extractor.state_dict())
    assert not any(net.training for net in module.extractor.modules())
    assert not any(p.requires_grad for p in module.extractor.parameters())
    assert not same(head, module.head.state_dict())
    assert not same(top, module.classifier.state_dict())


@pytest.mark.usefixtures("tiny")
def test_dropout_is_live_in_training_alone():
    module = tiny_module()
    x = torch.rand(4, *RGB)
    assert not torch.equal(module.features(x), module.features(x))
    module.eval()
    assert torch.equal(module.features(x), module.features(x))


def test_orientation_on_an_easy_pair(tmp_path):
    module = OCCNN(shape=(30,), backbone="none", instance_norm=False, sigma=0.5, lr=1e-2)
    pattern = torch.linspace(-2, 2, 30)
    normals, strangers = (sign * pattern + 0.3 * torch.randn(64, 30) for sign in (1, -1))
    loader = ResidentLoader(toy_samples(shape=(30,))._replace(image=normals), batch_size=16, shuffle=True)
    trainer = Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, loader)
    for name, scores in module.eval().scores(torch.cat([normals, strangers])).items():
        assert scores[:64].max() < scores[64:].min(), name


def test_the_epoch_is_chosen_by_the_papers_own_score():
    assert (OCCNN.monitor, OCCNN.mode) == ("val/logit_difference", "min")
    assert OCCNN.fixed_thresholds == {"logit_difference": 0, "ocsvm": 0}


def test_flat_vectors_are_their_own_features(tmp_path):
    module = OCCNN(shape=(30,), backbone="none", sigma=1.0, lr=1e-2)
    x = toy_samples(shape=(30,)).image
    assert len(module.head) == 0
    torch.testing.assert_close(module.features(x), functional.layer_norm(x, (30,)))


def test_the_svm_is_scikit_learns(tmp_path):
    module = OCCNN(shape=(1, 16, 16), **preset("smoke", nu=0.2))
    assert module.scores(toy_samples().image)["ocsvm"].eq(0).all(), "before the last epoch there is none"
    fit(module, 2, tmp_path)
    module.eval()
    with torch.no_grad():
        training, others = (module.features(toy_samples(seed=s).image).relu().double().numpy() for s in (0, 2))
        scores = module.scores(toy_samples(seed=2).image)["ocsvm"].numpy()
    svm = OneClassSVM(kernel="linear", nu=0.2).fit(training)
    np.testing.assert_allclose(scores, -svm.decision_function(others), rtol=1e-3, atol=1e-2)
    assert (training > 0).mean() < 0.9, "after ReLU"


def test_the_svm_is_fitted_to_all_processes_features_unrounded(monkeypatch):
    """As two processes gather them in double precision."""
    module, samples, fitted = tiny_like_none().double().eval(), toy_samples(), []
    image = samples.image.double()
    monkeypatch.setattr(OCCNN, "all_gather", lambda self, x: torch.stack([x, 2 * x]))
    monkeypatch.setattr(OneClassSVM, "fit", lambda self, X, fit=OneClassSVM.fit: (fitted.append(X), fit(self, X))[1])
    with torch.no_grad():
        module.after_epoch([samples._replace(image=image)])
        features = module.features(image).relu()
    np.testing.assert_array_equal(fitted[0], torch.cat([features, 2 * features]))


def test_the_svm_travels_with_the_checkpoint(tmp_path):
    module = OCCNN(shape=(1, 16, 16), **preset("smoke", score="ocsvm"))
    fit(module, 2, tmp_path)
    loaded = OCCNN.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, map_location="cpu")
    assert torch.equal(loaded.coef, module.coef)
    assert loaded.coef.abs().sum() > 0
    assert torch.equal(loaded.intercept, module.intercept)
    assert loaded.threshold == module.threshold


@pytest.mark.parametrize("flags", [{"rule": "validation"}, {"oracle": True}], ids=str)
def test_an_epoch_that_may_be_tested_has_its_own_svm(flags, tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(OneClassSVM, "fit", lambda self, X, fit=OneClassSVM.fit: (fitted.append(fit(self, X)), self)[1])
    config = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    config["model"]["init_args"]["score"] = "ocsvm"
    config["data"] |= {"dataset": "digits", "normal": 3}
    config["trainer"] |= {"max_epochs": 3, "accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False,
                          "enable_progress_bar": False}  # fmt: skip
    cli = assemble(config | flags)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert len(fitted) == 3
    if cli.oracle:
        assert 0.5 not in cli.oracle.curve["ocsvm"]
    else:
        best = next(c for c in cli.trainer.checkpoint_callbacks if c.monitor)
        assert load_checkpoint(Path(best.best_model_path))["state_dict"]["coef"].abs().sum() > 0


def test_iterations_end_with_the_epoch_they_are_reached_in(tmp_path):
    module = OCCNN(shape=(1, 16, 16), **preset("smoke", iterations=9))
    trainer = fit(module, 100, tmp_path)
    assert trainer.current_epoch == 3, "four batches each"
    assert module.coef.abs().sum() > 0
    assert fit(OCCNN(shape=(1, 16, 16), **preset("smoke", iterations=9)), 2, tmp_path / "2").current_epoch == 2


# Backbones


@pytest.mark.parametrize(
    ("name", "layers", "frozen", "size"),
    [
        ("squeezenet1_0", 0, 512, 512),
        ("squeezenet1_0", 1, 512, 1000),
        ("resnet18", 0, 512, 512),
        ("resnet18", 1, 512, 1000),
    ],
)
def test_features_of_torchvisions_nets(name, layers, frozen, size):
    extractor, head = split(name, None, layers, fine_tuned=bool(layers))
    features = extractor(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, frozen)
    assert head(features).shape == (2, size)
    if layers:
        whole, nothing = split(name, None, layers)
        assert len(nothing) == 0
        assert whole(torch.rand(2, 3, 64, 64)).shape == (2, size)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("layers", [[1], [0, 2], [0, 1, 2]], ids=str)
def test_layers_side_by_side_are_each_as_alone(layers):
    x = torch.rand(3, *RGB)
    alone = [split("alexnet", None, count)[0](x) for count in layers]
    frozen, nothing = split("alexnet", None, layers)
    torch.testing.assert_close(frozen(x), torch.cat(alone, 1))
    assert list(frozen.sizes) == [features.shape[1] for features in alone]
    assert len(nothing) == 0
    assert not any(p.requires_grad for p in frozen.parameters())
    module = tiny_module(head_layers=layers, fine_tuned=False).eval()
    torch.testing.assert_close(module.features(x), torch.cat([losses.instance_norm(part) for part in alone], 1))
    bare = tiny_module(head_layers=layers, fine_tuned=False, instance_norm=False).eval()
    torch.testing.assert_close(bare.features(x), torch.cat(alone, 1))


def test_tuned_sees_the_last_feature_map_and_the_class_logits():
    module = OCCNN(shape=RGB, **preset("tuned", weights=None))
    assert module.extractor.sizes == (512, 1000)
    assert module.embed(torch.rand(2, *RGB)).shape == (2, 512 + 1000)


def test_squeezenets_class_layer_commutes_with_the_mean():
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_0(weights=None).eval()
    x = torch.rand(2, 3, 64, 64)
    frozen, head = backbones.Frozen(nn.Identity(), [0.0] * 3, [1.0] * 3), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "get_model", lambda name, weights: net)
        expected = net.classifier[1](net.features((x - 0.5) / 0.25)).mean((2, 3))
        frozen, head = split("squeezenet1_0", None, 1, fine_tuned=True)
    with torch.no_grad():
        torch.testing.assert_close(head.eval()(frozen(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"backbone": "squeezenet9"}, "unknown backbone 'squeezenet9'"),
        ({"weights": "IMAGENET21K"}, "unknown weights 'IMAGENET21K'.*IMAGENET1K_V1"),
        ({"weights": None, "head_layers": 7}, "head_layers of 'squeezenet1_0' must be between 0 and 1"),
        ({"weights": None, "head_layers": [0, 2]}, "head_layers of 'squeezenet1_0' must be between 0 and 1, not 2"),
        ({"weights": None, "head_layers": [1, 0]}, "one number, or several in ascending order"),
        ({"weights": None, "head_layers": []}, "one number, or several in ascending order"),
        ({"weights": None, "head_layers": [0, 1], "fine_tuned": True}, "several head_layers are always frozen"),
        ({"weights": None, "fine_tuned": True}, "nothing to fine-tune"),
        ({"weights": None, "shape": (1, 28, 28)}, "takes RGB images"),
        ({"weights": None, "shape": (30,)}, "takes RGB images"),
    ],
)
def test_what_a_backbone_refuses(arguments, says):
    with pytest.raises(InputError, match=says) as error:
        OCCNN(**{"shape": RGB} | arguments)
    assert "\n" not in str(error.value)


def test_missing_weights_are_one_line_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*arguments, **options):
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match="no weights of 'squeezenet1_0'") as error:
        OCCNN(shape=RGB)
    says = str(error.value)
    assert "\n" not in says
    assert str(tmp_path / "hub" / "checkpoints" / "squeezenet1_0-b66bff10.pth") in says
    assert "https://" in says


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("weights", ["DEFAULT", None])
def test_frozen_layers_see_images_normalised_as_their_weights_want(weights):
    frozen, _ = split("alexnet", weights)
    mean, std = (0.5, 0.25)
    if weights:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = torch.rand(2, *RGB)
    expected = TinyNet().eval().features((x - mean) / std).flatten(1)
    torch.testing.assert_close(frozen(x), expected)


@pytest.mark.usefixtures("tiny")
def test_other_weights_have_another_key():
    one, other = (split("alexnet", None)[0] for _ in range(2))
    assert one.key() == other.key()
    other.net.features[0].weight[0, 0, 0, 0] += 1
    assert one.key() != other.key()


HAS_SQUEEZENET = (
    Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser() / "hub/checkpoints/squeezenet1_0-b66bff10.pth"
)


@pytest.mark.skipif(not HAS_SQUEEZENET.is_file(), reason="SqueezeNet's weights are not in TORCH_HOME/hub/checkpoints")
def test_the_weights_own_normalisation():
    frozen, _ = split("squeezenet1_0")
    assert frozen.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    weights = torchvision.models.SqueezeNet1_0_Weights.DEFAULT
    net = torchvision.models.squeezenet1_0(weights=weights).eval()
    image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    preset = weights.transforms(crop_size=256, resize_size=256)
    with torch.no_grad():
        expected = net.features(preset(image).unsqueeze(0)).mean((2, 3))
        torch.testing.assert_close(frozen(image.unsqueeze(0) / 255), expected, rtol=1e-4, atol=1e-4)


# Kept features


def training(module, data, folder):
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder,
                      enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)  # fmt: skip
    data.extractor = module.frozen()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    return module


@pytest.fixture
def counted(monkeypatch):
    """How many images have gone through the frozen layers."""
    seen = []
    forward = backbones.Frozen.forward
    monkeypatch.setattr(backbones.Frozen, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    return seen


@pytest.mark.usefixtures("tiny")
def test_kept_features_equal_fresh_ones(tmp_path, counted):
    root = photographs(tmp_path / "cats_dogs").parent
    data = OneClassDataModule("cats_dogs", root=str(root), batch_size=4, image_size=40)
    module = tiny_module()
    counted.clear()
    training(module, data, tmp_path)
    assert sum(counted) == 48, "every image once, in training and test together"
    batch = next(iter(data.test_dataloader()))
    assert batch.image.shape == (24, 24)
    with torch.no_grad():
        fresh = module.extractor(data.images(batch.index))
        torch.testing.assert_close(batch.image, fresh, rtol=1e-4, atol=1e-5)
        module.eval()
        torch.testing.assert_close(module(batch.image), module(data.images(batch.index)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.embed(data.inputs(batch.index)), module.embed(data.images(batch.index)))


@pytest.mark.usefixtures("tiny")
def test_features_are_computed_once_for_all_classes_and_again_for_other_weights_or_sizes(tmp_path, counted):
    root = photographs(tmp_path / "cats_dogs").parent
    files = []
    for normal, size, fine_tuned in ((0, 40, True), (1, 40, True), (0, 36, True), (0, 40, False)):
        data = OneClassDataModule("cats_dogs", root=str(root), normal=normal, batch_size=4, image_size=size)
        module = tiny_module((3, size, size), fine_tuned=fine_tuned)
        counted.clear()
        training(module, data, tmp_path)
        files.append((sum(counted), len(list((root / "features").glob("*.npy")))))
    assert files == [(48, 1), (0, 1), (48, 2), (48, 3)]
    save(root / "cats_dogs" / "train" / "cat" / "00.png", np.zeros((50, 50, 3), np.uint8))
    datasets._load.cache_clear()
    training(tiny_module(), OneClassDataModule("cats_dogs", root=str(root), image_size=40), tmp_path)
    assert len(list((root / "features").glob("*.npy"))) == 4, "another image is another data set"
    assert not list((root / "features").glob("*.tmp"))


@pytest.mark.usefixtures("tiny")
def test_a_streamed_set_reads_kept_features(tmp_path):
    root = photographs(tmp_path / "cats_dogs").parent
    batches = []
    for memory in (4.0, 0.0):
        data = OneClassDataModule("cats_dogs", root=str(root), batch_size=4, image_size=40, memory_gib=memory, workers=0)
        module = training(tiny_module(), data, tmp_path)
        assert module.coef.abs().sum() > 0
        batches.append(list(data.train_dataloader()))
    assert type(data.train_dataloader()).__name__ == "StreamedLoader"
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.index, other.index)


def test_a_folder_of_images_gets_no_files_of_ours(tmp_path):
    assert kept.writable_folder(tmp_path, "folder", Path("cache")) == Path("cache/features")
    assert kept.writable_folder(tmp_path, "cats_dogs", Path("cache")) == tmp_path / "features"


@pytest.mark.usefixtures("tiny")
def test_unreadable_images_are_all_named(tmp_path):
    root = photographs(tmp_path / "cats_dogs")
    bad = [root / "train" / "cat" / "03.png", root / "test" / "dog" / "07.png"]
    for path in bad:
        path.write_bytes(b"no image")
    data = OneClassDataModule("cats_dogs", root=str(tmp_path), image_size=40)
    with pytest.raises(InputError, match="cannot read 2 images") as error:
        training(tiny_module(), data, tmp_path)
    says = str(error.value)
    assert "\n" not in says
    assert all(str(path) in says for path in bad)
    assert not list((tmp_path / "features").glob("*.npy"))


# Compared methods


def test_minimax_probability_machine_is_the_direction_of_least_variance_for_its_mean():
    X = RANDOM.normal([3.0, 1.0], [2.0, 0.1], (2000, 2))
    machine = MinimaxProbabilityMachine(ridge=0).fit(X)
    expected = np.linalg.solve(np.cov(X.T), X.mean(0))
    np.testing.assert_allclose(machine.w_, expected, rtol=1e-6)
    assert machine.score_samples(np.array([[3.0, 1.0], [0.0, 0.0]])).argmax() == 0


def test_the_ridge_is_a_share_of_the_mean_variance():
    X = RANDOM.normal([3.0, 1.0], [2.0, 0.5], (200, 2))
    covariance = np.cov(X.T)
    expected = np.linalg.solve(covariance + 0.5 * np.trace(covariance) / 2 * np.eye(2), X.mean(0))
    np.testing.assert_allclose(MinimaxProbabilityMachine(ridge=0.5).fit(X).w_, expected, rtol=1e-6)


def test_svdd_is_the_smallest_ball():
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [1.0, 0.5]])
    svdd = SVDD(nu=0.01).fit(corners)
    np.testing.assert_allclose(svdd.centre_, [1, 1], atol=1e-2)
    np.testing.assert_allclose(svdd.score_samples(corners[:1]), [-2], atol=0.05)


def test_svdds_centre_is_that_of_the_ball_and_no_mean():
    """Around a triangle of unequal sides it is the circumcentre; a point inside does not count."""
    X = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0], [2.5, 0.5]])
    svdd = SVDD(nu=0.01).fit(X)
    np.testing.assert_allclose(svdd.centre_, [2, 1], atol=0.01)
    np.testing.assert_allclose(svdd.score_samples(X[:3]), [-5] * 3, rtol=0.02)


def test_svdd_leaves_out_the_stated_share():
    """In the dual a sample weighs at most 1 / (ν N): one outlier of 21 is held by ν = 0.01, not by ν = 0.2."""
    X = np.append(RANDOM.normal(0, 1, (20, 2)), [[30.0, 0.0]], 0)
    assert SVDD(nu=0.01).fit(X).centre_[0] > 10
    assert SVDD(nu=0.2).fit(X).centre_[0] < 10


def test_noise_svm_by_hand():
    X = RANDOM.normal(0.3, 0.2, (50, 3))
    rows = np.append(X, np.random.RandomState(1).normal(0, 0.3, X.shape), 0)
    expected = SVC(kernel="linear", C=0.05).fit(rows, np.arange(100) < 50)
    svm = NoiseSVM(0.3, 0.05, random_state=1).fit(X)
    np.testing.assert_allclose(svm.score_samples(X), expected.decision_function(X))


def test_noise_svm_takes_the_datas_side():
    X = RANDOM.normal(3, 1, (200, 5))
    svm = NoiseSVM(random_state=0).fit(X)
    assert (svm.score_samples(X) > svm.score_samples(np.zeros((1, 5)))).all()


@pytest.mark.usefixtures("tiny")
def test_the_experiment_compares_detectors_on_the_same_features(tmp_path, capsys):
    photographs(tmp_path / "cats_dogs")
    options = "backbone=alexnet,weights=null,head_layers=1,image_size=40"
    experiment = Experiment(
        name="ocnn",
        title="OC-CNN",
        main=Grid(
            (
                "small,backbone=alexnet,weights=null,iterations=6",
                *(f"classical-{name},{options}" for name in ("ocsvm_linear", "bsvm", "mpm", "svdd")),
            ),
            ("cats_dogs",),
            metrics=("auroc", "balanced_accuracy_threshold", "accuracy_fixed"),
        ),
        also=(Grid(("small",), ("founder200", "umdaa02", "abnormality1001")),),
        seeds=(0,),
    )
    flags = ["--root", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--device", "cpu", "--image-size", "40"]
    run_experiment(experiment, flags)
    table = pd.read_csv(tmp_path / "runs" / "ocnn.csv", keep_default_na=False)
    means = table[(table["normal"] == "mean") & (table["metric"] == "auroc")]
    assert len(means) == 6, "two scores of ours and four detectors"
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2, "for the detectors' frozen layer and below the trained one"
    output = capsys.readouterr().out
    for missing in ("founder200", "umdaa02", "abnormality1001"):
        assert re.search(f"not run: .*{missing}", output)


# The paper's data sets


VOC = """<annotation><object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>11</xmin><ymin>6</ymin>
<xmax>30</xmax><ymax>35</ymax></bndbox></object><object><name>person</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>
<ymax>9</ymax></bndbox></object></annotation>"""
NAMES = ("aeroplane", "boat", "car", "chair", "motorbike", "sofa")


@pytest.fixture
def abnormality(tmp_path):
    """Ten normal objects of each class, white where the box is, one of them difficult, and three abnormal images."""
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    (voc / "Annotations").mkdir(parents=True)
    image = np.zeros((40, 50, 3), np.uint8)
    image[5:35, 10:30] = 255
    for k, name in enumerate(NAMES):
        for i in range(10):
            save(voc / "JPEGImages" / f"{k}_{i}.jpg", image)
            (voc / "Annotations" / f"{k}_{i}.xml").write_text(VOC.format(name=name, difficult=int(i == 9)))
        for i in range(3):
            folder = {"aeroplane": "Airplane"}.get(name, name.title())
            save(tmp_path / "abnormality1001" / folder / f"{i}.png", np.full((30, 30, 3), 60, np.uint8))
    return tmp_path


def test_abnormality1001(abnormality):
    data = load("abnormality1001", abnormality, (16, 16))
    assert data.classes == ("airplane", *NAMES[1:], "abnormal airplane", *(f"abnormal {name}" for name in NAMES[1:]))
    assert data.images.shape == (6 * 9 + 6 * 3, 3, 16, 16)
    pixels = data.images[torch.arange(data.images.shape[0])].float().mean((1, 2, 3))
    assert pixels[data.targets < 6].min() > 200, "objects are cut out along their boxes"
    module = OneClassDataModule("abnormality1001", root=str(abnormality), normal=2, anomalous=[8], image_size=16)
    tested = data.targets[module.splits.test]
    assert np.unique(tested, return_counts=True)[1].tolist() == [3, 3], "all the abnormal, and as many normal"
    assert len(module.splits.train) + len(module.splits.val) == 6


def test_umdaa02(tmp_path):
    for user in range(3):
        for i in range(10):
            save(tmp_path / "umdaa02" / f"user{user}" / f"{i}.png", np.zeros((20, 20, 3), np.uint8))
    module = OneClassDataModule("umdaa02", root=str(tmp_path), normal=1, val_fraction=0.25)
    assert [len(part) for part in module.splits] == [6, 2, 6]
    assert (module.data.targets[module.splits.test] == 1).sum() == 2


def test_founder200(tmp_path):
    for font in range(6):
        for i in range(52 if font == 5 else 8):
            save(tmp_path / "founder200" / f"font{font}" / f"{i:02}.png", np.zeros((12, 12), np.uint8))
    data = load("founder200", tmp_path, (8, 8))
    assert data.classes == ("font0", "font1", "font2", "novel")
    module = OneClassDataModule("founder200", root=str(tmp_path), normal=1, anomalous=[3], image_size=8, val_fraction=0.25)
    assert [len(part) for part in module.splits] == [3, 1, 4 + 8 + 8 + 50]


@pytest.mark.parametrize("name", ["cats_dogs", "abnormality1001", "umdaa02", "founder200"])
def test_data_that_must_be_fetched_by_hand(tmp_path, name):
    with pytest.raises(DataMissingError, match=name) as error:
        load(name, tmp_path)
    assert "\n" not in str(error.value)


def test_presets_of_the_papers_say_what_they_are():
    """Batches and images too; what a backbone's head layers are is tested with the backbones."""
    both = {"backbone": "alexnet", "head_layers": 2, "fine_tuned": True, "instance_norm": True, "sigma": 0.01, "lr": 1e-4}
    images = {"batch_size": 64, "image_size": 224, "channels": 3, "iterations": 1000, "rule": "last"}
    assert_states(CONFIGS / "paper.yaml", **both, **images, classifier_widths=[4096])
    assert_states(CONFIGS / "official.yaml", **both, **images, classifier_widths=[])
    tutorial = {"backbone": "vgg16", "head_layers": 1, "fine_tuned": False, "instance_norm": False, "sigma": 0.1, "lr": 1e-4}
    sizes = {"classifier_widths": [512, 128], "iterations": 320, "batch_size": 256, "image_size": 224, "channels": 3}
    assert_states(CONFIGS / "keras.yaml", **tutorial, **sizes)
    assert OCCNN((1, 8, 8), backbone="none").hparams.nu == 0.5
