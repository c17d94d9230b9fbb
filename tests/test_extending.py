"""What is built outside of the packages: Deep SVDD as one file, OCGAN with one more loss term."""

from pathlib import Path

import pytest
import torch
import yaml
from watched import Watched

from common.deploy.load import load_detector
from common.testing import CHECKS, fit, optimizer_steps, toy_samples
from common.training.lightning import assemble

FOLDER = Path(__file__).parents[1] / "experiments" / "extending"
SMALL = {
    "deep_svdd": {"widths": [8, 4], "latent": 8, "lr": 3e-3, "pretrain_epochs": 2},
    "l1_ocgan": {"width": 8, "latent": 6, "visual_width": 4, "classifier_width": 4, "mining_start": 0.0},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def config(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def method(name):
    module, _, cls = config(name)["model"]["class_path"].partition(".")
    return getattr(__import__(module), cls)


def small(name, **changes):
    arguments = config(name)["model"]["init_args"] | SMALL[name] | changes
    return lambda shape=(1, 16, 16): method(name)(shape=shape, **arguments)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SMALL)
def test_contract(name, check):
    check(small(name))


def test_deep_svdd_without_pretraining_keeps_the_contract_of_its_first_pass():
    factory = small("deep_svdd", pretrain_epochs=0)
    assert optimizer_steps(factory(), batches=2) == ["training", "training"]
    for check in CHECKS:
        if check.__name__ == "check_resume":
            check(factory)


@pytest.mark.parametrize("name", SMALL)
def test_one_smoke_epoch_of_the_yaml_through_the_command(name, tmp_path):
    made = config(name)
    made["model"]["init_args"] |= SMALL[name]
    made["data"] |= {"dataset": "digits", "normal": 3}
    made["trainer"] |= {"max_epochs": 3, "accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False,
                        "enable_progress_bar": False}  # fmt: skip
    cli = assemble(made)
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert cli.model.test_metrics()[cli.model.hparams.score]["auroc"] > 0.5
    path = Path(cli.trainer.checkpoint_callbacks[-1].best_model_path)
    for loaded in (method(name).load_from_checkpoint(path, weights_only=True), load_detector(path).module):
        assert {key: loaded.hparams[key] for key in SMALL[name]} == SMALL[name]


def test_no_longer_than_promised():
    lines = {path.name: len(path.read_text().splitlines()) for path in FOLDER.glob("*.py")}
    assert lines["deep_svdd.py"] <= 150
    assert lines["l1_ocgan.py"] < 25


def test_the_net_of_mnist_is_the_authors():
    net = method("deep_svdd")((1, 28, 28)).net
    assert sum(p.numel() for p in net.parameters()) == 8 * 25 + 8 * 4 * 25 + 4 * 49 * 32
    assert not [name for name, _ in net.named_parameters() if "bias" in name]
    assert not torch.equal(net(torch.rand(2, 1, 28, 28)), torch.zeros(2, 32))
    for shape in ((1, 28, 28), (30,)):
        assert method("deep_svdd")(shape).net.eval()(torch.zeros(1, *shape)).eq(0).all(), "0 stays 0 without biases"


def test_the_centre_is_the_mean_code_before_training_and_away_from_0(tmp_path):
    module = small("deep_svdd", pretrain_epochs=0)()
    module.eval()
    with torch.no_grad():
        mean = module.net(toy_samples().image).mean(0)
    eps = module.hparams.eps = mean.abs().median().item() + 1e-6
    fit(module, 2, tmp_path)
    near = mean.abs() < eps
    assert near.sum() == 4
    torch.testing.assert_close(module.centre[~near], mean[~near])
    torch.testing.assert_close(module.centre[near].abs(), torch.full((4,), eps))
    assert torch.equal(module.centre[near].sign(), mean[near].sign())


def test_the_centre_is_computed_again_after_pretraining(tmp_path):
    module, centres = small("deep_svdd")(), []
    prepare = module.prepare
    module.prepare = lambda batches: (prepare(batches), centres.append((module.current_epoch, module.centre.clone())))
    fit(module, 4, tmp_path)
    (first, before), (second, after) = centres
    assert (first, second) == (0, 2)
    assert not torch.allclose(before, after)
    assert torch.equal(module.centre, after)


def test_losses_and_score_of_deep_svdd_by_hand():
    """In the pretraining the summed error, then the mean squared distance from the centre, which is the score."""
    module = small("deep_svdd")()
    seen = Watched(module, {"net": module.net, "decoder": module.decoder}, batches=2)
    *pretraining, third, fourth = seen.losses
    errors = [
        (y - x).square().sum((1, 2, 3)).mean().item() for x, y in zip(seen.images[:4], seen.outputs("decoder"), strict=True)
    ]
    assert [one["loss_reconstruction"] for one in pretraining] == seen.totals["pretraining"] == pytest.approx(errors)
    expected = [(code - module.centre).square().sum(1).mean().item() for code in seen.outputs("net")[-2:]]
    assert [third["loss_distance"], fourth["loss_distance"]] == seen.totals["training"] == pytest.approx(expected)
    x = toy_samples(4).image
    code = module.eval().net(x)
    torch.testing.assert_close(module.scores(x), {"distance": (code - module.centre).square().sum(1)})


def test_each_phase_has_its_own_milestones(tmp_path):
    module, rates = small("deep_svdd", lr=1.0e-2, lr_milestones=[1])(), []
    start = module.on_train_epoch_start

    def watched():
        start()
        rates.append([round(module.optimizer(name).param_groups[0]["lr"], 9) for name in ("pretraining", "training")])

    module.on_train_epoch_start = watched
    fit(module, 4, tmp_path)
    assert rates == [[1e-2, 1e-2], [1e-3, 1e-2], [1e-3, 1e-2], [1e-3, 1e-3]]


def test_one_more_loss_term_makes_codes_smaller(tmp_path):
    codes = []
    for weight in (0.0, 100.0):
        module = small("l1_ocgan", lambda_l1=weight)()
        fit(module, 5, tmp_path / str(weight))
        codes.append(module.eval().embed(toy_samples().image).abs().mean().item())
    assert codes[1] < 0.9 * codes[0]


def test_the_reported_row_is_there():
    import pandas as pd

    rows = pd.read_csv(FOLDER.parent / "reported" / "autoencoder.csv")
    row = rows[(rows.method == "DSVDD") & (rows.dataset == "mnist") & (rows.metric == "auroc")]
    assert len(row) == 10
    assert row.value.mean() == pytest.approx(0.948, abs=1e-3)
