"""Cells, records, grids and what the command line says about them."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
from forks import run_module
from pytorch_lightning.strategies import SingleDeviceStrategy

from common.classical import DETECTORS
from common.errors import InputError
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.command import _parser
from common.experiment.plan import narrowed
from common.experiment.run import finished, run
from common.experiment.table import COLUMNS
from common.module import OneClassModule
from experiments import alocc

pytestmark = pytest.mark.usefixtures("runs", "blank_figures_from_here")

CELL = Cell("autoencoder-smoke", "digits", "standard", "3", 0)
EXPERIMENT = Experiment(
    name="autoencoder",
    title="A trial",
    main=Grid(presets=("smoke", "classical-ocsvm"), datasets=("digits",)),
    also=(Grid(("smoke",), ("digits",), ("in_sample,contamination=0.05,anomalous=3",), ("1",), ("auroc", "flagged")),),
    seeds=(0,),
)


@pytest.fixture
def command(fork):
    """``python -m experiments.autoencoder``, of one method on the digits."""
    flags = ["--datasets", "digits", "--presets", "smoke", "--seeds", "0"]
    return lambda *words, **options: fork(run_module, "experiments.autoencoder", *flags, *words, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run(CELL, Settings(runs=folder, threads=1))
    return folder


def test_record_holds_what_the_format_promises(runs):
    directory = CELL.directory(runs)
    record = json.loads((directory / "metrics.json").read_text())
    assert record["cell"] == {
        "preset": "autoencoder-smoke", "dataset": "digits", "protocol": "standard", "normal": "3", "seed": 0
    }  # fmt: skip
    assert set(record) >= {
        "name", "base", "classes", "n_classes", "command", "rule", "rules", "score", "metrics", "selected_epoch", "epochs",
        "train_images_per_s", "wall_s", "parameters", "class_path", "identity", "git", "versions", "device",
    }  # fmt: skip
    assert record["selected_epoch"] == record["epochs"] == 2
    assert (directory / "config.yaml").is_file()
    assert (directory / "checkpoints" / "last.ckpt").is_file()
    assert list(directory.glob("events.out.tfevents.*"))
    drawn = {path.stem for path in (directory / "figures").iterdir()}
    assert drawn >= {"reconstructions", "score_histogram", "roc", "precision_recall", "extremes"}
    scores = pd.read_csv(directory / "scores.csv")
    assert list(scores) == ["index", "target", "label", "reconstruction"]
    assert len(scores) == record["metrics"]["reconstruction"]["n_normal"] + record["metrics"]["reconstruction"]["n_anomalous"]
    assert not list(directory.rglob("*.tmp"))


def test_every_rule_is_scored_on_the_trainers_device_and_the_record_names_it(tmp_path, monkeypatch):
    """``cpu:0`` is the CPU by a name that the trainer does not leave a module on."""
    devices = []
    score = OneClassModule.score
    monkeypatch.setattr(OneClassModule, "score", lambda module, x: devices.append(str(module.device)) or score(module, x))
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cpu", 0))
    cell = Cell("alocc-smoke,rule=rho", "digits", "standard", "3", 0)
    record = run(cell, Settings(runs=tmp_path, max_epochs=1))
    assert record["device"] == "cpu:0"
    assert "last" in record["rules"]
    assert set(devices) == {"cpu:0"}


def test_a_record_is_not_made_twice(runs):
    before = (CELL.directory(runs) / "metrics.json").stat().st_mtime_ns
    run(CELL, Settings(runs=runs, threads=1))
    assert (CELL.directory(runs) / "metrics.json").stat().st_mtime_ns == before


def test_a_record_of_another_configuration_is_stale(runs):
    assert finished(CELL, Settings(runs=runs))["stale"] == ""
    assert finished(CELL, Settings(runs=runs, max_epochs=3))["stale"] == "the configuration differs"
    assert finished(CELL, Settings(runs=runs, max_epochs=3, force=True)) is None


def test_a_damaged_record_is_named(tmp_path):
    directory = CELL.directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / "metrics.json").write_text('{"cell": ')
    with pytest.raises(InputError, match=r"metrics\.json is not a record"):
        finished(CELL, Settings(runs=tmp_path))


def test_a_data_set_has_its_own_preset_file_where_there_is_one():
    paper = Cell("autoencoder-dcae", "mnist", "standard", "0", 0).config(Settings())
    own = Cell("autoencoder-dcae", "cifar10", "standard", "0", 0).config(Settings())
    assert paper["model"]["init_args"]["widths"] == [8, 4]
    assert own["model"]["init_args"]["widths"] == [32, 64, 128]
    with pytest.raises(InputError, match=r"choose from dcae, denoising, paper, small, smoke"):
        Cell("autoencoder-nope", "mnist", "standard", "0", 0).config(Settings())


def test_several_normal_classes(tmp_path):
    record = run(Cell("autoencoder-smoke", "digits", "standard", "0+1", 0), Settings(runs=tmp_path, threads=1))
    scores = pd.read_csv(tmp_path / "autoencoder-smoke/digits/standard/normal=0+1/seed=0/scores.csv")
    assert set(scores.target[scores.label == 0]) == {0, 1}
    assert record["metrics"]["reconstruction"]["n_normal"] == (scores.label == 0).sum()


def test_same_seed_same_scores_and_another_seed_others(runs, tmp_path):
    run(CELL, Settings(runs=tmp_path, threads=1))
    other = Cell("autoencoder-smoke", "digits", "standard", "3", 1)
    run(other, Settings(runs=tmp_path, threads=1))
    first = (CELL.directory(runs) / "scores.csv").read_text()
    assert (CELL.directory(tmp_path) / "scores.csv").read_text() == first
    assert (other.directory(tmp_path) / "scores.csv").read_text() != first


@pytest.mark.parametrize("rule", ["last", "validation"])
def test_selected_epoch_is_chosen_without_the_test_set(rule, tmp_path, monkeypatch):
    config = Cell.config
    monkeypatch.setattr(Cell, "config", lambda cell, settings: {**config(cell, settings), "rule": rule})
    record = run(CELL, Settings(runs=tmp_path, threads=1, max_epochs=6))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(CELL.directory(tmp_path)), size_guidance={"scalars": 0}).Reload()
    curve = events.Scalars("val/reconstruction")
    assert [point.step for point in curve] == list(range(6))
    best = int(np.argmin([point.value for point in curve])) + 1
    assert record["selected_epoch"] == (6 if rule == "last" else best)


def test_tensorboard_holds_every_kind_of_thing(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(CELL.directory(runs)), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= {"train/loss", "val/reconstruction", "test/auroc", "compare/auroc", "train/images_per_s"}
    drawn = {"reconstructions", "score_histogram", "roc", "precision_recall", "extremes"}
    assert set(tags["images"]) >= {f"figures/{name}" for name in drawn}
    assert {tag.partition("/")[0] for tag in tags["images"]} == {"figures"}
    assert {f"scores/anomalous {k}" for k in range(10) if k != 3} | {"scores/normal 3"} <= set(tags["distributions"])
    assert any("pr_curve" in str(events.SummaryMetadata(tag).plugin_data.plugin_name) for tag in tags["tensors"])
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert list(CELL.directory(runs).glob("**/projector_config.pbtxt"))


def test_killed_and_resumed_equals_uninterrupted(command, tmp_path):
    """kill -9 in mid-run, of the grid alone and of all its processes, then to the end: the scores of an undisturbed run."""
    flags = ["--normal", "3", "4", "--max-epochs", "30", "--jobs", "2", "--runs", tmp_path / "killed"]
    for normal in "34":
        run(replace(CELL, normal=normal), Settings(runs=tmp_path / "whole", threads=1, max_epochs=30))
    directory = CELL.directory(tmp_path / "killed")
    for kill in (os.kill, os.killpg):
        before = _mtime(directory / "checkpoints" / "last.ckpt")
        process = command(*flags, forked_workers=True)
        deadline = time.monotonic() + 180
        while _mtime(directory / "checkpoints" / "last.ckpt") == before and time.monotonic() < deadline:
            time.sleep(0.01)
        kill(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for_the_end_of(process.pid)
        assert not (directory / "metrics.json").exists()
    last = command(*flags, forked_workers=True)
    assert last.wait() == 0, last.output
    for normal in "34":
        ours = [CELL.directory(tmp_path / name).parents[1] / f"normal={normal}" / "seed=0" for name in ("whole", "killed")]
        assert (ours[0] / "scores.csv").read_text() == (ours[1] / "scores.csv").read_text()
        metrics = [json.loads((directory / "metrics.json").read_text()) for directory in ours]
        assert metrics[0]["metrics"] == metrics[1]["metrics"]
        assert metrics[0]["selected_epoch"] == metrics[1]["selected_epoch"] == 30


@pytest.mark.parametrize(("rule", "stopped_at"), [("last", 1), ("validation", 4)])
def test_resumed_run_goes_on_and_chooses_the_same_epoch(rule, stopped_at, tmp_path, monkeypatch):
    config, start = Cell.config, OneClassModule.on_train_epoch_start
    monkeypatch.setattr(Cell, "config", lambda cell, settings: {**config(cell, settings), "rule": rule})
    whole = run(CELL, Settings(runs=tmp_path / "whole", threads=1, max_epochs=6))

    def stop(module):
        if module.current_epoch == stopped_at:
            raise OSError("power cut")
        start(module)

    stopped = Settings(runs=tmp_path / "stopped", threads=1, max_epochs=6)
    with monkeypatch.context() as patch:
        patch.setattr(OneClassModule, "on_train_epoch_start", stop)
        with pytest.raises(OSError, match="power cut"):
            run(CELL, stopped)
    assert not list((tmp_path / "stopped").rglob("metrics.json"))
    epochs = []

    def note(module):
        epochs.append(module.current_epoch)
        start(module)

    monkeypatch.setattr(OneClassModule, "on_train_epoch_start", note)
    resumed = run(CELL, stopped)
    assert epochs == list(range(stopped_at, 6))
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["selected_epoch"] == whole["selected_epoch"]
    scores = [(CELL.directory(tmp_path / name) / "scores.csv").read_text() for name in ("whole", "stopped")]
    assert scores[0] == scores[1]


def test_a_checkpoint_of_something_else_is_not_gone_on_from(runs, tmp_path):
    settings = Settings(runs=tmp_path, threads=1)
    directory = CELL.directory(tmp_path)
    shutil.copytree(CELL.directory(runs), directory)
    (directory / "metrics.json").unlink()
    note = json.loads((directory / ".identity").read_text())
    (directory / ".identity").write_text(json.dumps({**note, "config": "another"}))
    with pytest.raises(InputError, match="was begun with something else \\(the configuration differs\\): give --force"):
        run(CELL, settings)
    assert run(CELL, replace(settings, force=True))["selected_epoch"] == 2


def test_a_folder_without_a_checkpoint_is_begun_anew(tmp_path):
    directory = CELL.directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / ".identity").write_text('{"config": "a", "data": "b", "source": "c"}')
    assert run(CELL, Settings(runs=tmp_path, threads=1))["selected_epoch"] == 2


def test_a_killed_grid_takes_workers_along_that_have_not_begun(command, tmp_path):
    process = command("--normal", "3", "4", "--max-epochs", "10000", "--jobs", "2", "--runs", tmp_path)
    workers = ["pgrep", "-g", str(process.pid), "-c", "-f", "forkserver|popen_loky"]
    started = 1 + (3 if sys.platform == "linux" else 2)  # the grid, the workers and the process whose copies they are
    deadline = time.monotonic() + 180
    while (found := int(subprocess.run(workers, capture_output=True).stdout)) < started and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert found >= started
    process.wait()
    _wait_for_the_end_of(process.pid)


def _wait_for_the_end_of(group):
    deadline = time.monotonic() + 120
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        pytest.fail("the workers outlive their grid")


def _mtime(path):
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.parametrize("normal", [["3"], ["3", "4", "5"]], ids=["single cell", "grid"])
def test_ctrl_c_ends_in_one_line_and_loses_nothing(normal, command, tmp_path):
    process = command("--normal", *normal, "--max-epochs", "300", "--jobs", "2", "--runs", tmp_path, forked_workers=True)
    checkpoint = CELL.directory(tmp_path) / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 180
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.output
    assert "interrupted: give the same command again to go on" in process.output
    assert "Traceback" not in process.output
    assert not (CELL.directory(tmp_path) / "metrics.json").exists()
    assert checkpoint.exists()


def test_experiment_prints_and_writes_its_tables(tmp_path, capsys):
    run_experiment(EXPERIMENT, ["--normal", "1", "3", "--runs", str(tmp_path), "--jobs", "1"])
    output = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "autoencoder.csv", dtype={"normal": str})
    assert list(table) == list(COLUMNS)
    assert set(table.protocol) == {"standard"}
    assert set(table.normal) == {"1", "3", "mean of 1, 3"}
    assert set(table.name) == {"autoencoder-smoke", "classical-ocsvm"}
    assert "tensorboard --logdir" in output
    page = (tmp_path / "autoencoder.md").read_text()
    assert "--presets autoencoder-smoke classical-ocsvm --datasets digits --protocols standard --normal 1 3 --seeds 0" in page
    assert max(map(len, output.splitlines()[-30:])) <= 200
    run_experiment(EXPERIMENT, ["--normal", "1", "3", "--runs", str(tmp_path), "--dry-run"])
    assert "to do" not in capsys.readouterr().out


def listed(capsys, tmp_path, *flags):
    """The folder of each cell that a dry run lists, and ``classical`` for a classical detector's."""
    run_experiment(EXPERIMENT, [*flags, "--runs", str(tmp_path), "--dry-run"])
    cells = []
    for line in capsys.readouterr().out.splitlines():
        _, is_fit, folder = line.partition(f"--directory={tmp_path}/")
        cells.append(folder.partition("  #")[0] if is_fit else "classical")
    return cells


def test_flags_run_only_what_they_name(tmp_path, capsys):
    further = "in_sample,contamination=0.05,anomalous=3"
    assert len(listed(capsys, tmp_path)) == 21
    assert listed(capsys, tmp_path, "--normal", "3") == ["autoencoder-smoke/digits/standard/normal=3/seed=0", "classical"]
    assert listed(capsys, tmp_path, "--datasets", "digits", "--presets", "smoke", "--normal", "1", "2") == [
        f"autoencoder-smoke/digits/standard/normal={k}/seed=0" for k in (1, 2)
    ]
    assert listed(capsys, tmp_path, "--protocols", further) == [f"autoencoder-smoke/digits/{further}/normal=1/seed=0"]


def chosen_grids(*flags):
    return narrowed(alocc.EXPERIMENT, _parser(alocc.EXPERIMENT).parse_args(flags))


def test_a_data_set_is_run_with_all_normal_classes_that_are_declared_for_it():
    """ALOCC's Table 1 is three grids: one, three and five categories."""
    grids = chosen_grids("--datasets", "caltech101", "--presets", "stable")
    assert [len(normal.split("+")) for grid in grids for normal in grid.normal] == [1] * 3 + [3] * 3 + [5] * 3
    assert {(grid.presets, grid.protocols) for grid in grids} == {
        (("alocc-stable",), ("no_split,share=0.5,limit=150,anomalous=BACKGROUND_Google",))
    }
    assert [grid.normal for grid in chosen_grids("--datasets", "caltech101", "--normal", "7")] == [("7",)]


@pytest.mark.parametrize("flags", [(), ("--presets", "stable"), ("--protocols", "standard,n_train=5")])
def test_a_data_set_keeps_its_protocols_and_its_normal_class(flags):
    grids = chosen_grids("--datasets", "ucsd_ped2", *flags)
    given = ["standard,n_train=5"] if "--protocols" in flags else ["standard,n_train=600", "standard,n_train=60"]
    assert [protocol for grid in grids for protocol in grid.protocols] == given
    assert {(grid.normal, grid.metrics) for grid in grids} == {(("0",), ("eer", "auroc"))}


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        (
            "ocgan",
            ["ocgan-smoke", "classical-ocsvm", "classical-hog_ocsvm", "classical-lof", "classical-knn", "classical-pca"],
        ),
        ("alocc_ablation", ["alocc-smoke"]),
        ("classical", [f"classical-{preset}" for preset in DETECTORS]),
    ],
)
def test_smoke_is_every_method_on_two_digits(name, presets, tmp_path, capsys):
    experiment = import_module(f"experiments.{name}").EXPERIMENT
    run_experiment(experiment, ["--smoke", "--runs", str(tmp_path), "--dry-run"])
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    named = []
    for command in commands:
        flag = "--presets" if command[0] == "python" else "--config"
        named.append(command[command.index(flag) + 1])
    assert list(dict.fromkeys(named)) == presets
    assert len(commands) == 2 * len(presets)
    assert all(any("digits" in word for word in command) for command in commands)


def test_a_failed_cell_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    from autoencoder import Autoencoder

    step = Autoencoder.training_step
    monkeypatch.setattr(Autoencoder, "training_step", lambda self, batch, i: {"loss": step(self, batch, i)["loss"] / 0})
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, ["--normal", "3", "--runs", str(tmp_path), "--jobs", "1"])
    output = capsys.readouterr().out
    assert ended.value.code == 1
    assert "failed autoencoder-smoke" in output
    assert "loss is inf in epoch 0, batch 0" in output
    assert "classical-ocsvm digits" in output
    assert "Traceback" in (CELL.directory(tmp_path) / "error.txt").read_text()


BROKEN = """
from autoencoder import Autoencoder

class Broken(Autoencoder):
    def __init__(self, shape):
        super().__init__(shape=shape, widths=(4, 8), latent=self.width)
"""


def test_a_class_that_fails_when_it_is_made_fails_its_cell_and_says_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_idea.py").write_text(BROKEN)
    (tmp_path / "broken.yaml").write_text("model: {class_path: broken_idea.Broken}\ntrainer: {max_epochs: 1}\nrule: last\n")
    flags = ["--presets", "broken.yaml", "smoke", "--datasets", "digits", "--normal", "3", "--seeds", "0", "--jobs", "1"]
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, flags)
    output = capsys.readouterr().out
    assert ended.value.code == 1
    assert "AttributeError: 'Broken' object has no attribute 'width' (broken_idea.py, line 6)" in output
    assert "autoencoder-smoke digits standard normal=3 seed=0: AUROC" in output


def test_a_cell_that_cannot_be_run_is_named(tmp_path, capsys):
    few = ["--presets", "smoke,rule=validation,data.val_fraction=0", "--normal", "3", "--runs", str(tmp_path), "--jobs", "1"]
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, few)
    assert ended.value.code == 2
    assert "digits standard normal=3 seed=0: rule 'validation' needs held-out normal samples" in capsys.readouterr().err


def test_a_preset_with_options_is_a_cell_of_its_own(tmp_path):
    cell = Cell("autoencoder-smoke,latent=4,lr=1e-2", "digits", "standard", "3", 0)
    arguments = cell.config(Settings())["model"]["init_args"]
    plain = CELL.config(Settings())["model"]["init_args"]
    assert {key for key in arguments if arguments[key] != plain.get(key)} == {"latent", "lr"}
    assert arguments["latent"] == 4
    record = run(cell, Settings(runs=tmp_path, threads=1))
    assert record["parameters"] < run(CELL, Settings(runs=tmp_path, threads=1))["parameters"]
    assert cell.directory(tmp_path).parts[-5] == "autoencoder-smoke,latent=4,lr=1e-2"
    assert (record["name"], record["base"]) == ("autoencoder-smoke,latent=4,lr=1e-2", "autoencoder-smoke")


@pytest.mark.parametrize(("preset", "says"), [("smoke,latnt=4", "latnt"), ("smoke,latent", "give key=value")])
def test_an_option_that_is_none_is_refused(preset, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, ["--presets", preset, "--normal", "3", "--runs", str(tmp_path), "--jobs", "1"])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
