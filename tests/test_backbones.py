"""Backbones: weights from a file, of the whole net or of its convolutions, and the mean of a grid of means."""

import pickle
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from common.backbones import Frozen, split
from common.classical import fit_and_score
from common.data import OneClassDataModule, datasets
from common.deploy.export import export
from common.deploy.load import load_detector
from common.errors import InputError, WeightsMissingError
from common.estimator import OneClassEstimator
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.identity import config_digest
from common.experiment.run import finished, run
from ocnn import OCCNN
from ocnn.losses import instance_norm

pytestmark = pytest.mark.usefixtures("blank_figures")

X = torch.rand(3, 3, 40, 40)
GET_MODEL = torchvision.models.get_model
NORMAL = [0.485, 0.456, 0.406]


class SmallNet(nn.Module):
    """AlexNet's layout in small, with random weights that are others each time."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, 4), nn.BatchNorm2d(6), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(24, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The small net under the name of AlexNet."""
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: SmallNet())
    yield
    datasets._load.cache_clear()


@pytest.fixture
def _real(monkeypatch, _small):
    """Torchvision's own nets."""
    monkeypatch.setattr(torchvision.models, "get_model", GET_MODEL)


def save(path, state):
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return str(path)


def without(net, *prefixes):
    """A net's state dict less some of its entries."""
    return {key: value for key, value in net.state_dict().items() if not key.startswith(prefixes)}


@pytest.fixture
def net():
    return SmallNet().eval()


@pytest.fixture
def whole(net, tmp_path):
    return save(tmp_path / "whole.pth", net.state_dict())


@pytest.fixture
def convolutions(net, tmp_path):
    return save(tmp_path / "convolutions.pth", without(net, "classifier"))


@pytest.fixture
def photographs(tmp_path):
    """A root with a few bright cats and dark dogs."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, low in (("cat", 120), ("dog", 0)):
            (tmp_path / "root" / "cats_dogs" / part / name).mkdir(parents=True)
            for i in range(8):
                image = Image.fromarray(random.integers(low, low + 120, (40, 40, 3), dtype=np.uint8))
                image.save(tmp_path / "root" / "cats_dogs" / part / name / f"{i}.png")
    return tmp_path / "root"


def test_a_whole_nets_file_gives_its_features_with_its_normalisation(net, whole):
    normalised = (X - torch.tensor(NORMAL).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        flat = net.avgpool(net.features(normalised)).flatten(1)
        torch.testing.assert_close(split("alexnet", whole)[0](X), flat)
        torch.testing.assert_close(split("alexnet", whole, 1)[0](X), net.classifier[1](flat))
        frozen, head = split("alexnet", whole, 2, fine_tuned=True)
        torch.testing.assert_close(head.eval()(frozen(X)), net.classifier(flat))


def test_a_file_of_convolutions_gives_all_up_to_the_last_feature_map(whole, convolutions):
    for options in ({}, {"head_layers": [0]}, {"pooling": "avg"}):
        (one, _), (other, _) = (split("alexnet", path, **options) for path in (whole, convolutions))
        assert torch.equal(one(X), other(X))
        assert one.key() == other.key()


@pytest.mark.parametrize(
    "options", [{"head_layers": 1}, {"head_layers": [0, 1]}, {"head_layers": 1, "fine_tuned": True}], ids=str
)
def test_a_linear_layer_that_is_not_in_the_file_is_refused(options, convolutions):
    with pytest.raises(InputError, match=r"convolutions.pth lacks linear layers of 'alexnet': give fewer") as error:
        split("alexnet", convolutions, **options)
    assert "\n" not in str(error.value)


def test_linear_layers_are_had_as_far_as_the_file_has_them(net, tmp_path):
    path = save(tmp_path / "fc6.pth", without(net, "classifier.4"))
    assert split("alexnet", path, [0, 1])[0](X).shape == (3, 24 + 16)
    with pytest.raises(InputError, match="lacks linear layers"):
        split("alexnet", path, 2)


@pytest.mark.usefixtures("_real")
def test_squeezenets_convolutional_class_layer_may_be_missing_too(tmp_path):
    whole = torchvision.models.squeezenet1_0(weights=None)
    path = save(tmp_path / "squeezenet.pth", without(whole, "classifier"))
    assert split("squeezenet1_0", path)[0](X).shape == (3, 512)
    with pytest.raises(InputError, match="lacks linear layers of 'squeezenet1_0'"):
        split("squeezenet1_0", path, [0, 1])


def test_halves_become_floats(net, tmp_path):
    halves = deepcopy(net).half().state_dict()
    frozen, _ = split("alexnet", save(tmp_path / "half.pth", halves))
    assert frozen(X).dtype == torch.float32
    assert torch.equal(frozen.net.features[0].weight, net.features[0].weight.half().float())


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda net: {"state_dict": net.state_dict()}, "is not a state dict"),
        (lambda net: [1, 2], "is not a state dict"),
        (lambda net: {}, "is not a state dict"),
        (lambda net: without(net, "features.0"), r"lacks features.0.weight, one of 2 missing weights of 'alexnet'"),
        (lambda net: net.state_dict() | {"layer4.weight": X}, r"no weights of 'alexnet', which has no layer4.weight"),
        (lambda net: net.state_dict() | {"features.0.weight": X}, r"no features.0.weight of shape \(3, 3, 40, 40\)"),
        (lambda net: net, "cannot read the weights"),
    ],
    ids=["nested", "list", "empty", "incomplete", "another net's", "wrong shape", "pickled module"],
)
def test_a_foreign_file_is_refused_in_one_line(state, says, net, tmp_path):
    path = save(tmp_path / "foreign.pth", state(net))
    with pytest.raises(InputError, match=says) as error:
        split("alexnet", path)
    assert "\n" not in str(error.value)
    assert path in str(error.value)


def test_a_damaged_file_is_refused_in_one_line(whole):
    Path(whole).write_bytes(Path(whole).read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot read the weights") as error:
        split("alexnet", whole)
    assert "\n" not in str(error.value)


def test_a_file_is_looked_for_where_it_is_named_and_then_beside_torchvisions(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints" / "mine.pth"
    with pytest.raises(WeightsMissingError, match="no weights of 'alexnet'") as error:
        split("alexnet", "mine.pth")
    assert "\n" not in str(error.value)
    assert str(place) in str(error.value)
    place.parent.mkdir(parents=True)
    save(place, net.state_dict())
    assert torch.equal(split("alexnet", "mine.pth")[0].net.features[0].weight, net.features[0].weight)
    save(tmp_path / "mine.pth", SmallNet().state_dict())
    assert not torch.equal(split("alexnet", "mine.pth")[0].net.features[0].weight, net.features[0].weight)


# The mean of a grid


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize(("name", "flat", "mean"), [("alexnet", 9216, 256), ("vgg16", 25088, 512)])
def test_a_grid_of_means_or_the_mean_of_the_map(name, flat, mean, monkeypatch):
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)  # its 100 million numbers play no part
    quick = {"init_weights": False} if name == "vgg16" else {}
    one = getattr(torchvision.models, name)(weights=None, **quick).eval()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: one)
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = one.features((x - 0.5) / 0.25)
    assert split(name, None)[0](x).shape == (2, flat)
    pooled, head = split(name, None, pooling="avg")
    torch.testing.assert_close(pooled(x), expected.mean((2, 3)), rtol=1e-4, atol=1e-6)
    assert pooled(x).shape == (2, mean)
    assert len(head) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head_layers": 1}, "give head_layers 0"),
        ({"head_layers": [0]}, "give head_layers 0"),
        ({"head_layers": 1, "fine_tuned": True}, "give head_layers 0"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
    ],
    ids=str,
)
def test_what_pooling_refuses(options, says):
    with pytest.raises(InputError, match=says) as error:
        split("alexnet", None, **{"pooling": "avg"} | options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_real")
def test_a_net_without_a_grid_is_not_pooled_again():
    with pytest.raises(InputError, match="'squeezenet1_0' has no grid of means"):
        split("squeezenet1_0", None, pooling="avg")
    assert torch.equal(*(split("resnet18", None, pooling=pooling)[0].net.avgpool(X) for pooling in (None, "avg")))


# Features, records and checkpoints


def options(path):
    return f"backbone=alexnet,weights={path},head_layers=0"


def cell(path, preset="ocnn-tuned"):
    size = "image_size=40" if preset.startswith("classical") else "data.image_size=40"
    return Cell(f"{preset},{options(path)},{size}", "cats_dogs", "standard", "cat", 0)


def test_kept_features_go_by_the_files_content(net, tmp_path, photographs):
    def kept(path):
        data = OneClassDataModule("cats_dogs", root=str(photographs), batch_size=4, image_size=40)
        data.extractor, _ = split("alexnet", path)
        data.setup()
        return {file.name for file in (photographs / "features").glob("*.npy")}

    first = kept(save(tmp_path / "a.pth", net.state_dict()))
    assert len(first) == 1
    assert kept(save(tmp_path / "elsewhere" / "b.pth", net.state_dict())) == first
    changed = net.state_dict() | {"features.0.bias": torch.zeros(6)}
    assert len(kept(save(tmp_path / "a.pth", changed))) == 2


@pytest.mark.parametrize("preset", ["ocnn-tuned", "classical-knn"])
def test_a_records_identity_has_the_files_content_and_not_its_place(preset, net, tmp_path):
    def digest(path):
        return config_digest(cell(path, preset).config())

    path = save(tmp_path / "a" / "net.pth", net.state_dict())
    first, missing = digest(path), digest(tmp_path / "nowhere" / "net.pth")
    assert digest(save(tmp_path / "b" / "net.pth", net.state_dict())) == first
    assert missing != first
    save(tmp_path / "a" / "net.pth", net.state_dict() | {"features.0.bias": torch.zeros(6)})
    assert digest(path) not in {first, missing}
    assert cell(path, preset).config() != cell(tmp_path / "b" / "net.pth", preset).config(), "the configuration names the file"


def test_a_row_has_the_files_name_and_is_a_preset_itself(whole, tmp_path, monkeypatch):
    named = cell(whole)
    assert named.name == "ocnn-tuned,backbone=alexnet,weights=whole.pth,head_layers=0,data.image_size=40"
    assert named.directory(tmp_path).relative_to(tmp_path).parts[0] == named.name
    assert whole in named.command()
    monkeypatch.chdir(tmp_path)
    row = replace(named, preset=named.name)
    assert row.name == named.name
    assert config_digest(row.config()) == config_digest(named.config())


def test_another_content_makes_a_record_stale(convolutions, photographs, tmp_path):
    settings, row = Settings(root=photographs, runs=tmp_path / "runs", threads=1), cell(convolutions, "classical-knn")
    assert run(row, settings)["metrics"]["knn"]["n_anomalous"] == 8
    assert finished(row, settings)["stale"] == ""
    torch.save(without(SmallNet(), "classifier"), convolutions)
    assert finished(row, settings)["stale"] == "the configuration differs"


def test_a_checkpoint_needs_no_file(convolutions, photographs, tmp_path):
    settings = Settings(root=photographs, runs=tmp_path / "runs", device="cpu", threads=1)
    run(cell(convolutions), settings)
    checkpoint = cell(convolutions).directory(settings.runs) / "checkpoints" / "last.ckpt"
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    before = load_detector(checkpoint)
    expected = split("alexnet", convolutions)[0](before.preprocessing(images))
    Path(convolutions).unlink()
    detector = load_detector(checkpoint)
    torch.testing.assert_close(detector.module.extractor(detector.preprocessing(images)), expected)
    assert torch.equal(detector.scores(images), before.scores(images))
    assert export(checkpoint, "torch", tmp_path / "detector.pt2").is_file()


def test_an_estimator_keeps_its_weights(convolutions):
    images = np.random.default_rng(0).random((12, 3, 40, 40))
    options = {"backbone": "alexnet", "weights": convolutions, "head_layers": 0, "iterations": 1}
    detector = OneClassEstimator("ocnn", "tuned", random_state=0, max_epochs=1, **options).fit(images)
    Path(convolutions).unlink()
    copy = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(copy.score_samples(images), detector.score_samples(images))


def test_rows_whose_file_is_missing_are_not_run_and_the_others_are(convolutions, photographs, tmp_path, capsys):
    rows = [f"classical-knn,{options(path)},image_size=40" for path in (convolutions, tmp_path / "none.pth")]
    experiment = Experiment(name="trial", title="A trial", main=Grid(tuple(rows), ("cats_dogs",)), seeds=(0,))
    flags = ["--root", str(photographs), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--normal", "cat"]
    with pytest.raises(SystemExit):
        run_experiment(experiment, flags)
    output = capsys.readouterr().out
    assert "weights=convolutions.pth" in output.replace("\n", "")
    assert f"no weights of 'alexnet': there is no {tmp_path / 'none.pth'}" in output.replace("\n", "")


def test_occnn_takes_the_pooled_map(convolutions):
    arguments = {"backbone": "alexnet", "weights": convolutions, "classifier_widths": [4]}
    sizes = [OCCNN(shape=(3, 40, 40), pooling=pooling, **arguments).coef.numel() for pooling in (None, "avg")]
    assert sizes == [24, 6]


def test_a_detector_sees_standardised_features_where_it_is_asked(tmp_path):
    """Distances of instance-normalised features, by hand."""
    options = {"name": "squeezenet1_0", "weights": None, "head_layers": 0}
    data = OneClassDataModule("digits", root=tmp_path, normal="3", image_size=40, channels=3, protocol="no_split,limit=12")
    torch.manual_seed(0)
    scored, _ = fit_and_score("knn", data, 0, options | {"instance_norm": True})
    features = instance_norm(data.inputs(np.arange(1797)).double(), ())
    distances = torch.cdist(features[scored.index], features[data.splits.train]).sort(1).values[:, :2].mean(1)
    np.testing.assert_allclose(scored.scores["knn"], distances, rtol=1e-3)  # layer norm adds an epsilon
    torch.manual_seed(0)
    raw, _ = fit_and_score("knn", data, 0, options)
    assert not np.allclose(raw.scores["knn"], scored.scores["knn"], rtol=0.1)


def test_features_are_kept_by_layers_and_normalisation_too():
    """The same weights after other layers, or on images normalised otherwise, make other features."""
    net = nn.Conv2d(3, 4, 3)
    plain = Frozen(net, [0.5] * 3, [0.25] * 3)
    others = [
        Frozen(nn.Sequential(net, nn.ReLU()), [0.5] * 3, [0.25] * 3),
        Frozen(nn.Sequential(net, nn.Tanh()), [0.5] * 3, [0.25] * 3),
        Frozen(net, [0.4] * 3, [0.25] * 3),
        Frozen(net, [0.5] * 3, [0.2] * 3),
    ]
    assert len({frozen.key() for frozen in (plain, *others)}) == 5
    assert Frozen(net, [0.5] * 3, [0.25] * 3).key() == plain.key()
