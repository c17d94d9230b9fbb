"""What TensorBoard and other loggers show of runs, and where the files of a run go."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from autoencoder import Autoencoder
from common.cli import main
from common.data import OneClassDataModule
from common.errors import InputError
from common.module import OneClassModule
from common.scoring import Scored
from common.training import tensorboard
from common.training.checkpoints import CHOSEN, EpochCheckpoint, FirstBelow, checkpointing, run_folder
from common.training.lightning import Predictions
from common.training.tensorboard import COMPARED, Figures, _extremes, write_summary_runs
from common.training.watcher import Watcher

CELL = {"method": "ae,latent=4", "dataset": "digits", "protocol": "standard", "normal": "three", "seed": "7"}
SMOKE = Path(__file__).parents[1] / "autoencoder" / "configs" / "smoke.yaml"
DRAWN = {"reconstructions", "score_histogram", "roc", "precision_recall", "extremes", "flagged"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def module(**changes):
    return Autoencoder(**{"shape": (1, 8, 8), "widths": (4, 8), "latent": 4, **changes})


def trained(callbacks, max_epochs=1, ckpt_path=None, **options):
    """A trainer after a training and a test of one class of the digits, and its module."""
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    own, data = module(), OneClassDataModule("digits", normal=3, batch_size=32)
    trainer.fit(own, data, ckpt_path=ckpt_path, weights_only=True)
    trainer.test(own, data, verbose=False)
    return trainer, own


def row(folder):
    """Columns and metrics of a run under HPARAMS."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    columns = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    plain = {name: value.string_value or value.number_value for name, value in columns.items()}
    scalars = events.Tags()["scalars"]
    return plain, {tag: events.Scalars(tag)[-1].value for tag in scalars if tag.startswith("compare/")}


def tensorboard_logger(folder):
    return TensorBoardLogger(folder, "", "", default_hp_metric=False)


def test_a_row_begins_with_the_cell_and_has_only_what_was_overridden(tmp_path):
    overrides = {"latent": 4, "trainer.max_epochs": 1, "widths": [4, 8]}
    _, own = trained([Figures(CELL, overrides)], default_root_dir=tmp_path, logger=tensorboard_logger(tmp_path))
    columns, metrics = row(tmp_path)
    assert sorted(columns)[:5] == [f"cell/{name}" for name in sorted(CELL)]
    assert {name.removeprefix("cell/"): columns[name] for name in sorted(columns)[:5]} == CELL
    assert {name: columns[name] for name in sorted(columns)[5:]} == {
        "model.latent": 4,
        "model.widths": "[4, 8]",
        "trainer.max_epochs": 1,
    }
    measured = own.test_metrics()["reconstruction"]
    assert metrics == {f"compare/{name}": pytest.approx(measured[name]) for name in COMPARED}


def test_a_row_without_a_cell_is_told_by_its_data(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    trained([Figures()], default_root_dir=tmp_path, logger=tensorboard_logger(tmp_path))
    columns, _ = row(tmp_path)
    assert columns == {"cell/method": "Autoencoder", "cell/dataset": "digits", "cell/normal": "3", "cell/seed": "5"}


class Remembering(Logger):
    """A logger that is none of Lightning's."""

    name, version = "own", 0

    def __init__(self):
        super().__init__()
        self.columns, self.metrics = {}, {}

    def log_hyperparams(self, params, *args, **kwargs):
        self.columns |= params

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: False,
        lambda folder: CSVLogger(folder, "csv"),
        lambda folder: Remembering(),
        lambda folder: [Remembering(), tensorboard_logger(folder)],
        lambda folder: [CSVLogger(folder, "csv"), tensorboard_logger(folder)],
    ],
    ids=["none", "csv", "own", "own and tensorboard", "csv and tensorboard"],
)
def test_any_logger(make, tmp_path):
    """The run's folder has the same files whatever the logger is; each logger gets what it can take."""
    logger, folder = make(tmp_path), tmp_path / "run"
    own = module()
    callbacks = [Watcher(), Figures(CELL), Predictions(), *checkpointing(own, True, "validation")]
    trainer, _ = trained(callbacks, default_root_dir=folder, logger=logger)
    trainer.predict(own, trainer.datamodule)
    assert {path.stem for path in (folder / "figures").iterdir()} >= DRAWN - {"flagged"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (folder / "predictions.csv").is_file()
    expected = {f"cell/{name}": value for name, value in CELL.items()}
    for one in trainer.loggers:
        if isinstance(one, Remembering):
            assert one.columns == expected
            assert {"train/loss", "test/auroc", "train/images_per_s"} <= set(one.metrics)
        elif isinstance(one, CSVLogger):
            assert "cell/method: ae,latent=4" in Path(one.log_dir, "hparams.yaml").read_text()
            assert "test/auroc" in Path(one.log_dir, "metrics.csv").read_text()
        else:
            assert row(tmp_path)[0] == expected
            assert {f"figures/{name}" for name in DRAWN - {"flagged"}} <= set(
                EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
            )


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (["--trainer.logger=false"], "."),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv"], "csv/fit/version_0"),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", "--trainer.default_root_dir=mine"], "mine"),
        ([], "runs/fit/version_0"),
        (["--trainer.default_root_dir=mine"], "mine"),
    ],
    ids=["none", "csv", "csv, folder given", "tensorboard", "tensorboard, folder given"],
)
def test_the_command_takes_any_logger(flags, folder):
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    main(["fit", "--config", str(SMOKE), *quiet, *flags])
    assert Path(folder, "checkpoints", "last.ckpt").is_file()
    assert Path(folder, "figures", "reconstructions.png").is_file()


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [0, 1, 2]), (1e9, [2])])
def test_figures_are_drawn_now_and_then_and_at_the_end(seconds, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "DRAW_EVERY_S", seconds)
    trained([Figures()], max_epochs=3, num_sanity_val_steps=0, logger=TensorBoardLogger(tmp_path, name="", version=""))
    images = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Images("figures/reconstructions")
    assert [image.step for image in images] == steps


def test_figures_of_random_latents_change_no_later_random_number(monkeypatch):
    monkeypatch.setattr(tensorboard, "DRAW_EVERY_S", 0.0)
    later = []

    def random_figures(self, x):
        torch.rand(())
        return {}

    for figures in (Autoencoder.figures, random_figures):
        monkeypatch.setattr(Autoencoder, "figures", figures)
        torch.manual_seed(0)
        trained([Figures()], max_epochs=2, logger=False, val_check_interval=1)
        later.append(torch.rand(()).item())
    assert later[0] == later[1]


def test_the_folder_of_an_unknown_logger_is_its_own():
    trainer = Trainer(logger=Remembering(), accelerator="cpu", enable_checkpointing=False)
    assert run_folder(trainer) == Path.cwd() / "own" / "0"


class Table(OneClassDataModule):
    """The digits as rows of a table."""

    shape = (64,)

    def images(self, indices):
        return super().images(indices).flatten(1)

    inputs = images


def test_a_table_has_the_figures_of_its_scores_alone(tmp_path):
    data, own = Table("digits", normal=3), module(shape=(64,))
    index = data.splits.test[:50]
    target = data.data.targets[index]
    own.scored = Scored(index, target, (target != 3).astype(int), {"reconstruction": np.arange(50.0)})
    own.threshold.fill_(25.0)
    own._metrics = own.metrics_of(own.scored)
    trainer = Trainer(default_root_dir=tmp_path, logger=tensorboard_logger(tmp_path), enable_checkpointing=False)
    trainer.datamodule = data
    Figures().on_test_end(trainer, own.eval())
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"score_histogram", "roc", "precision_recall"}
    assert list(tmp_path.glob("*/latent/tensors.tsv")), "the projector shows points without pictures"
    assert not list(tmp_path.rglob("sprite.png"))


def test_extremes_are_the_worst_mistakes(tmp_path):
    """The figure of a split in which the scores are the positions, so that the first anomalies and last normals err most."""
    data, own = OneClassDataModule("digits", normal=3), module()
    index = data.splits.test
    target = data.data.targets[index]
    own.scored = Scored(index, target, (target != 3).astype(int), {"reconstruction": np.arange(float(len(index)))})
    texts = _extremes(data, own.scored, own.scored.scores["reconstruction"]).axes[0].texts
    normal, anomalous = (np.flatnonzero((target != 3) == kind) for kind in (False, True))
    assert [text.get_text() for text in texts] == [
        "normal", *map(str, normal[:-9:-1]), "anomalous", *map(str, anomalous[:8])
    ]  # fmt: skip


def frame(values):
    """Rows of long form, of cells (name, normal, seed) and their AUROC."""
    rows = []
    for (name, normal, seed), auroc in values.items():
        common = {"name": name, "dataset": "my/data", "protocol": "standard", "normal": normal, "seed": seed}
        for score, metric, value in (("a", "auroc", auroc), ("a", "f1_max", 0.1), ("b", "auroc", 0.0)):
            rows.append({**common, "score": score, "rule": "last", "metric": metric, "value": value, "chosen": score == "a"})
    return pd.DataFrame(rows)


def test_summary_runs_hold_means_over_classes_and_seeds(tmp_path):
    values = {("ae", "0", 0): 0.6, ("ae", "0", 1): 0.8, ("ae", "1", 0): 0.9, ("pca", "0", 0): 0.5}
    write_summary_runs(frame(values), tmp_path)
    runs = tmp_path / "summary"
    assert {path.name for path in runs.iterdir()} == {"ae my_data standard", "pca my_data standard"}
    columns, metrics = row(runs / "ae my_data standard")
    assert columns == {
        "cell/method": "ae",
        "cell/dataset": "my/data",
        "cell/protocol": "standard",
        "cell/normal": "mean of 2",
        "cell/seed": "mean of 2",
    }
    assert metrics == {"compare/auroc": pytest.approx(0.8)}, "each class counts the same"
    columns, metrics = row(runs / "pca my_data standard")
    assert (columns["cell/normal"], columns["cell/seed"]) == ("0", "0")
    assert metrics == {"compare/auroc": pytest.approx(0.5)}


def test_a_summary_run_replaces_its_own_and_no_other(tmp_path):
    write_summary_runs(frame({("ae", "0", 0): 0.6, ("pca", "0", 0): 0.5}), tmp_path)
    write_summary_runs(frame({("ae", "0", 0): 0.7}), tmp_path)
    assert row(tmp_path / "summary" / "ae my_data standard")[1] == {"compare/auroc": pytest.approx(0.7)}
    assert len(list((tmp_path / "summary" / "ae my_data standard").glob("events.*"))) == 1
    assert row(tmp_path / "summary" / "pca my_data standard")[1] == {"compare/auroc": pytest.approx(0.5)}


def test_a_class_that_was_not_measured_does_not_count(tmp_path):
    write_summary_runs(frame({("ae", "0", 0): 0.6, ("ae", "1", 0): np.nan}), tmp_path)
    assert row(tmp_path / "summary" / "ae my_data standard")[1] == {"compare/auroc": pytest.approx(0.6)}


def test_each_rule_has_its_checkpoint():
    own = module()
    assert [type(callback) for callback in checkpointing(own, False, "last")] == [EpochCheckpoint]
    best, last = checkpointing(own, True, "validation")
    assert (best.monitor, best.mode, last.monitor) == ("val/reconstruction", "min", None)
    assert {f"{best.filename}.ckpt", f"{last.filename}.ckpt"} == {CHOSEN["validation"], CHOSEN["last"]}
    own.hparams["rho"] = 0.5
    assert [type(callback) for callback in checkpointing(own, True, "rho")] == [FirstBelow, EpochCheckpoint]
    for held_out, rule in ((False, "validation"), (False, "rho")):
        with pytest.raises(InputError, match=f"rule '{rule}' needs held-out"):
            checkpointing(own, held_out, rule)
    with pytest.raises(InputError, match="rule 'rho' needs its bound"):
        checkpointing(module(), True, "rho")


def test_a_run_that_was_moved_keeps_its_best_epoch(tmp_path, monkeypatch):
    """The later epochs are made worse: the best one before the move stays the best."""
    before, after = tmp_path / "before", tmp_path / "after"
    trained(checkpointing(module(), True, "validation"), 2, default_root_dir=before, logger=False)
    shutil.move(before, after)
    best = torch.load(after / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    monkeypatch.setattr(Autoencoder, "scores", lambda self, x: {"reconstruction": 1e6 + x.flatten(1).sum(1)})
    last = str(after / "checkpoints" / "last.ckpt")
    trained(checkpointing(module(), True, "validation"), 3, ckpt_path=last, default_root_dir=after, logger=False)
    kept = torch.load(after / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], best[name]) for name in best)
    assert torch.load(last, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize(("draws", "asked"), [(True, 1), (False, 0)])
def test_no_image_is_read_while_training_for_a_method_that_draws_nothing(draws, asked, monkeypatch):
    """Photographs would be decoded for it."""
    data, own = OneClassDataModule("digits", normal=3, batch_size=32), module()
    if not draws:
        monkeypatch.setattr(Autoencoder, "reconstruct", OneClassModule.reconstruct)
        monkeypatch.setattr(Autoencoder, "training_step", lambda self, batch, batch_idx: {"loss": torch.zeros(())})
        monkeypatch.setattr(Autoencoder, "scores", lambda self, x: {"reconstruction": x.flatten(1).mean(1)})
    calls, images = [], data.images
    monkeypatch.setattr(data, "images", lambda indices: calls.append(len(indices)) or images(indices))
    trainer = Trainer(
        max_epochs=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[Figures()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(own, data)
    assert len(calls) == asked
