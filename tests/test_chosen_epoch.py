"""Whichever epoch a rule chooses, every figure that is reported for it is made with that epoch's weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.svm import OneClassSVM

from autoencoder import Autoencoder
from common.data import OneClassDataModule
from common.deploy.load import load_checkpoint, load_detector
from common.evaluation import evaluate, quantile_threshold
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.run import run
from common.module import OneClassModule
from common.training.checkpoints import EpochCheckpoint, FirstBelow, Oracle, checkpointing

pytestmark = pytest.mark.usefixtures("blank_figures")

CURVE, RHO = (4.0, 2.0, 3.0, 1.0, 5.0), 2.5
"""What the monitored key is made to be in each epoch: below the bound in the second, best in the fourth, of five."""
EPOCH = {"rho": 2, "validation": 4, "last": 5}
FIXED = {"logit_difference": 0.0, "ocsvm": 0.0}
"""Where OC-CNN's scores say by their meaning that a sample is none of the class."""


CHANGES = {"alocc": {"rho": RHO}, "ocnn": {"lr": 1e-2, "score": "ocsvm"}}
"""OC-CNN's score that counts is not the first of its scores."""


class Run(NamedTuple):
    """A finished cell, and its weights after each epoch as a test of ours saw them."""

    rule: str
    folder: Path
    record: Mapping[str, Any]
    weights: list[dict[str, torch.Tensor]]
    module: OneClassModule
    data: OneClassDataModule

    def scores(self, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        """By the weights after an epoch, from 1."""
        self.module.load_state_dict(self.weights[epoch - 1])
        with torch.no_grad():
            scores = self.module.eval().scores(self.data.images(indices))
        return {name: values.double().numpy() for name, values in scores.items()}

    def metrics(self, epoch: int) -> dict[str, dict[str, float]]:
        """Of every score, with the threshold of the epoch's own held-out scores for the one that counts."""
        label = (self.data.data.targets[self.data.splits.test] != 3).astype(int)
        chosen = self.module.hparams["score"]
        threshold = quantile_threshold(self.scores(epoch, self.data.splits.val)[chosen], 0.95)
        metrics = {}
        for name, values in self.scores(epoch, self.data.splits.test).items():
            own = threshold if name == chosen else None
            metrics[name] = evaluate(values, label, own, FIXED.get(name))
        return metrics


def finished(method: str, rule: str, folder: Path) -> Run:
    """Five epochs on digits, with a monitored curve of ours: no epoch but the chosen one gives its numbers."""
    weights, modules = [], []
    validated, config = OneClassModule.on_validation_epoch_end, Cell.config

    def watch(module):
        validated(module)
        modules.append(module)
        weights.append({name: value.clone() for name, value in module.state_dict().items()})

    def with_rule(cell, settings):
        made = config(cell, settings)
        made["model"]["init_args"] |= CHANGES[method]
        return {**made, "rule": rule}

    cell = Cell(f"{method}-smoke", "digits", "standard", "3", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OneClassModule, "_criterion", lambda module, scores: CURVE[module.current_epoch])
        patch.setattr(OneClassModule, "on_validation_epoch_end", watch)
        patch.setattr(Cell, "config", with_rule)
        record = run(cell, Settings(runs=folder, threads=1, max_epochs=len(CURVE), oracle=rule == "validation"))
    data = OneClassDataModule(**config(cell, Settings())["data"])
    data.setup()
    return Run(rule, cell.directory(folder), record, weights, modules[-1], data)


RUNS = [("alocc", "rho"), ("alocc", "validation"), ("alocc", "last"), ("ocnn", "validation")]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def tested(request, tmp_path_factory):
    return finished(*request.param, tmp_path_factory.mktemp("runs"))


def differ(one, other):
    return not np.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_scores_csv_holds_the_chosen_epochs_scores_and_no_others(tested):
    table = pd.read_csv(tested.folder / "scores.csv")
    assert table["index"].tolist() == tested.data.splits.test.tolist()
    by_epoch = [tested.scores(epoch, tested.data.splits.test) for epoch in range(1, 6)]
    for name, values in by_epoch[EPOCH[tested.rule] - 1].items():
        np.testing.assert_allclose(table[name], values, rtol=1e-4, atol=1e-5)
        assert all(differ(table[name], other[name]) for n, other in enumerate(by_epoch, 1) if n != EPOCH[tested.rule])


def test_the_record_holds_the_chosen_epochs_metrics_and_threshold(tested):
    record, epoch = tested.record, EPOCH[tested.rule]
    assert (record["rule"], record["selected_epoch"], record["reached"]) == (tested.rule, epoch, True)
    expected = tested.metrics(epoch)
    for name, metrics in expected.items():
        assert record["metrics"][name] == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert record["threshold"] == pytest.approx(expected[record["score"]]["threshold"], rel=1e-4)
    written = json.loads((tested.folder / "metrics.json").read_text())
    assert written["metrics"] == record["metrics"]


def test_each_other_rules_metrics_are_those_of_its_own_epoch(tested):
    others = {rule: row for rule, row in tested.record["rules"].items() if rule != "oracle"}
    with_rho = {"rho"} if "rho" in tested.module.hparams else set()
    assert set(others) == ({"last"} | with_rho) - {tested.rule}
    for rule, row in others.items():
        assert row["selected_epoch"] == EPOCH[rule]
        expected, chosen = tested.metrics(EPOCH[rule]), tested.metrics(EPOCH[tested.rule])
        for name, metrics in row["metrics"].items():
            assert metrics == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
            assert metrics["auroc"] != chosen[name]["auroc"]


def test_checkpoints_are_those_of_their_rules_epochs(tested):
    files = {"last": "last.ckpt", "validation": "best.ckpt", "rho": "rho.ckpt"}
    for rule in {tested.rule, *tested.record["rules"]} - {"oracle"}:
        path, weights = tested.folder / "checkpoints" / files[rule], tested.weights[EPOCH[rule] - 1]
        contents = load_checkpoint(path)
        assert all(torch.equal(value, weights[name]) for name, value in contents["state_dict"].items())
        score = tested.module.hparams["score"]
        held_out = np.sort(tested.scores(EPOCH[rule], tested.data.splits.val)[score])
        np.testing.assert_allclose(contents["calibration"], held_out, rtol=1e-4, atol=1e-5)
        index = tested.data.splits.test[:50]
        stored = tested.data.data.images[torch.from_numpy(index)]
        expected = tested.scores(EPOCH[rule], index)[score]
        np.testing.assert_allclose(load_detector(path).scores(stored), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tested", RUNS[1:2], ids="-".join, indirect=True)
def test_the_oracle_looks_at_every_epoch_by_its_own_weights(tested):
    oracle = tested.record["rules"]["oracle"]
    by_epoch = [tested.metrics(epoch) for epoch in range(1, 6)]
    assert oracle["monitored"] == list(CURVE)
    for name, curve in oracle["curve"].items():
        aurocs = [metrics[name]["auroc"] for metrics in by_epoch]
        assert curve == pytest.approx(aurocs, abs=1e-4)
        best = dict(oracle["metrics"][name])
        assert best.pop("epoch") == 1 + int(np.argmax(curve))
        assert best.pop("auroc_spread") == pytest.approx(np.ptp(curve))
        assert best == pytest.approx(by_epoch[int(np.argmax(curve))][name], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("tested", RUNS[-1:], ids="-".join, indirect=True)
def test_an_epochs_svm_is_fitted_to_that_epochs_features(tested):
    for weights in tested.weights:
        tested.module.load_state_dict(weights)
        with torch.no_grad():
            features = tested.module.features(tested.data.images(tested.data.splits.train)).relu().double().numpy()
        svm = OneClassSVM(kernel="linear", nu=0.5).fit(features)
        np.testing.assert_allclose(weights["coef"], svm.coef_[0], rtol=1e-3, atol=1e-3 * np.abs(svm.coef_).max())


class Judged(Autoencoder):
    """Its AUROC and its monitored key are made to be what a test says."""

    monitor = "val/another"
    curve = (0.1, 0.95, 0.6, 0.95, 0.7, 0.8, 0.75, 0.8, 0.7, 0.65, 0.9, 0.85)

    def __init__(self):
        super().__init__((1, 8, 8), widths=(4, 8), latent=4)
        self.epoch, self.logged = 0, []

    def score(self, batches):
        return None

    def metrics_of(self, scored):
        return {"reconstruction": {"auroc": self.curve[self.epoch], "eer": self.epoch / 100}}

    def log(self, name, value):
        self.logged.append((name, value))

    def log_dict(self, values):
        self.logged.append(values)


def epochs_of(callback, module, monitored):
    """Calls a callback after epochs with these monitored values; returns the files that it has saved."""
    saved = []
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(test_dataloader=lambda: []),
        default_root_dir="runs",
        logger=None,
        save_checkpoint=saved.append,
    )
    for epoch, value in enumerate(monitored):
        module.epoch = trainer.current_epoch = epoch
        trainer.callback_metrics = {"val/another": torch.tensor(value), "val/reconstruction": torch.tensor(-1.0)}
        before = len(saved)
        callback.on_train_epoch_end(trainer, module)
        saved[before:] = [(epoch + 1, Path(path).name) for path in saved[before:]]
    return saved


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_epoch_is_at_the_end_of_the_curve_that_the_module_says(mode, monkeypatch):
    monkeypatch.setattr(Judged, "mode", mode)
    best, _ = checkpointing(Judged(), held_out=True, rule="validation")
    assert (best.filename, best.monitor, best.mode) == ("best", "val/another", mode)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_bound_is_watched_where_samples_are_held_out(held_out):
    module = Judged()
    module.hparams["rho"] = 0.5
    kinds = [type(callback) for callback in checkpointing(module, held_out, "last")]
    assert kinds == [*[FirstBelow] * held_out, EpochCheckpoint]


def test_the_oracle_keeps_the_first_best_epoch_and_the_spread_of_the_last_ten():
    module, oracle = Judged(), Oracle()
    monitored = [float(epoch) for epoch in range(12)]
    epochs_of(oracle, module, monitored)
    assert oracle.curve == {"reconstruction": list(Judged.curve)}
    assert oracle.monitored == monitored, "the module's own key"
    (results,) = oracle.results().values()
    assert results == pytest.approx({"auroc": 0.95, "eer": 0.01, "epoch": 2, "auroc_spread": 0.95 - 0.6})
    assert oracle.results(last=3)["reconstruction"]["auroc_spread"] == pytest.approx(0.9 - 0.65)


def test_the_bound_is_to_be_undercut_and_its_first_epoch_stays_after_a_resumption():
    first = FirstBelow("val/another", 0.5)
    assert epochs_of(first, Judged(), [0.7, 0.5, 0.4, 0.6, 0.3]) == [(3, "rho.ckpt")], "0.5 is not below 0.5"
    resumed = FirstBelow("val/another", 0.5)
    resumed.load_state_dict(first.state_dict())
    module = Judged()
    assert epochs_of(resumed, module, [0.6, 0.2]) == []
    assert module.logged == [{"val/rho": 0.5, "val/below_rho": 0.0}, {"val/rho": 0.5, "val/below_rho": 1.0}]
