"""Looks into finished runs: how strongly each term of OCGAN's objective pulls, and a run's curves by epoch."""

import pytest
import torch
from fake_records import record

from common.errors import InputError
from common.experiment.records import publish
from common.losses import add_noise
from experiments import curves
from experiments.ocgan_balance import balance, gradient_norm
from ocgan import OCGAN


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return OCGAN(shape=(1, 8, 8), width=8, latent=4, visual_width=4, classifier_width=4).train()


def test_a_gradient_has_the_norm_of_all_its_entries():
    net = torch.nn.Linear(2, 1, bias=False)
    x = torch.tensor([3.0, 4.0])
    assert gradient_norm(2 * net(x).sum(), net) == pytest.approx(10)
    assert gradient_norm(torch.zeros((), requires_grad=True) * 1, net) == 0


def test_pulls_grow_with_their_weights_and_with_no_others(module):
    image = torch.rand(8, 1, 8, 8)
    torch.manual_seed(1)
    before = balance(module, image)
    module.hparams["weight_latent"] = 3.0
    torch.manual_seed(1)
    after = balance(module, image)
    module.hparams["weight_latent"] = 1.0
    ratios = {name: after[name] / before[name] for name in before if before[name]}
    assert ratios.pop("En D_l") == pytest.approx(3, rel=1e-3)
    assert all(ratio == pytest.approx(1, rel=1e-3) for ratio in ratios.values())


def test_accuracies_of_the_critics_by_hand(module):
    """Real things count as right above 0, false ones below."""
    image = torch.rand(8, 1, 8, 8)
    torch.manual_seed(1)
    row = balance(module, image)
    torch.manual_seed(1)
    code = module.encoder(add_noise(image, module.hparams.noise_std))
    random = 2 * torch.rand_like(code) - 1
    decoded, fake = module.decoder(code), module.decoder(random)
    pairs = {"latent_discriminator": (random, code), "visual_discriminator": (image, fake), "classifier": (decoded, fake)}
    logits = [[module.critics[name](x) for x in pair] for name, pair in pairs.items()]
    expected = [((real > 0).float().mean() + (false < 0).float().mean()).item() / 2 for real, false in logits]
    assert [row[f"acc {critic}"] for critic in ("D_l", "D_v", "C")] == pytest.approx(expected)


def with_oracle(normal, curve, monitored, name="ocgan-paper", **more):
    oracle = {"metrics": {}, "curve": {"reconstruction": curve}, "monitored": monitored}
    return record(normal, 0, max(curve), name, selected_epoch=2, rules={"oracle": oracle}, **more)


@pytest.fixture
def published(tmp_path, monkeypatch):
    eight = with_oracle("8", [0.5, 0.7, 0.6], [3.0, 1.0, 2.0], n_classes=2)
    two = with_oracle("2", [0.9, 0.9, 0.8], [1.0, 1.0, 1.0], n_classes=2)
    publish([eight, two, record("8", 0, 0.6, "ocgan-tuned")], tmp_path / "ocgan.jsonl")
    monkeypatch.setattr(curves, "RESULTS", tmp_path)
    return eight, two


def test_every_row_has_its_curves_however_many_there_are(published):
    top, bottom = curves.draw([curves.curves(published[:1], "paper")] * 6).axes
    assert len(top.lines) == len(bottom.lines) == 2 * 6


def test_curves_mark_the_chosen_epoch(published, tmp_path):
    curves.main(["ocgan-paper", "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    top, bottom = curves.draw([curves.curves(published[:1], "paper")]).axes
    for axes, values in ((top, [3.0, 1.0, 2.0]), (bottom, [0.5, 0.7, 0.6])):
        line, point = axes.lines
        assert list(line.get_ydata()) == values
        assert (list(point.get_xdata()), list(point.get_ydata())) == ([2], [values[1]])


def test_curves_of_all_classes_are_their_means_without_a_chosen_epoch(published, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda lines: drawn.extend(lines) or curves.Figure())
    curves.main(["ocgan-paper", "--normal", "mean", "--out", str(tmp_path / "means.png")])
    (each,) = drawn
    assert each.label == "ocgan-paper"
    assert each.error == pytest.approx([2.0, 1.0, 1.5])
    assert each.auroc == pytest.approx([0.7, 0.8, 0.7])
    assert each.chosen is None


def test_a_mean_needs_the_records_of_all_classes(published):
    with pytest.raises(InputError, match="ocgan-paper has records of 1 of 2 classes on mnist: choose one with --normal"):
        curves.found(published[:1], "ocgan-paper", "mnist", "mean", 0)


def test_curves_of_two_protocols_are_not_mixed(published):
    balanced = with_oracle("8", [0.1], [1.0])
    balanced["cell"] = balanced["cell"] | {"protocol": "balanced"}
    records = [*published, balanced]
    with pytest.raises(InputError, match="standard, balanced on mnist: choose one with --protocol"):
        curves.found(records, "ocgan-paper", "mnist", "8", 0)
    assert curves.found(records, "ocgan-paper", "mnist", "8", 0, "balanced") == [balanced]


@pytest.mark.parametrize(("row", "says"), [("ocgan-tuned", "made without --oracle"), ("ocgan-nope", "no published record")])
def test_curves_that_are_not_there(row, says, published, capsys):
    with pytest.raises(SystemExit) as ended:
        curves.main([row])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
