"""What a stopped run goes on from, and which files of a folder a run may replace."""

import errno
import io
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoencoder import Autoencoder
from common.cli import main
from common.deploy.load import load_checkpoint
from common.errors import InputError, WeightsMissingError
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.experiment.cell import Settings
from common.experiment.run import run, run_command
from common.module import OneClassModule
from common.training import checkpoints
from common.training.checkpoints import SAVE_EVERY_S, WholeCheckpoints

pytestmark = pytest.mark.usefixtures("blank_figures")

CELL = Cell("autoencoder-smoke,rule=validation", "digits", "standard", "3", 0)
FIT = ["--config", "autoencoder-smoke", "--data.normal=3", "--trainer.max_epochs=3"]
THREE = Settings(runs=Path("runs"), threads=1, max_epochs=3)


def stopped(before_epoch):
    """A context in which training ends, as in a power cut, before an epoch, from 0."""
    start = OneClassModule.on_train_epoch_start

    def stop(module):
        if module.current_epoch == before_epoch:
            raise OSError("power cut")
        start(module)

    patch = pytest.MonkeyPatch()
    patch.setattr(OneClassModule, "on_train_epoch_start", stop)
    return patch


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with ``runs``, begun by its relative path and stopped after two of three epochs, and the undisturbed record."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        whole = run(CELL, replace(THREE, runs=Path("whole")))
        stop = stopped(2)
        with pytest.raises(OSError, match="power cut"):
            run(CELL, THREE)
        stop.undo()
    return folder, whole


@pytest.fixture(autouse=True)
def _folder(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun[0] / "runs", "runs")


SPELLINGS = {
    "the same": lambda: Path("runs"),
    "absolute": lambda: Path("runs").absolute(),
    "roundabout": lambda: Path("..", Path.cwd().name, "runs"),
    "moved": lambda: Path("runs").rename("elsewhere"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_better_epoch_replaces_the_best_one_by_any_spelling(spelling, begun):
    record = run(CELL, replace(THREE, runs=SPELLINGS[spelling]()))
    assert (record["selected_epoch"], record["reached"]) == (3, True)
    assert record["metrics"] == begun[1]["metrics"]
    folder = next(Path.cwd().rglob("checkpoints"))
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert best_score(folder) == best_score(next(begun[0].glob("whole/**/checkpoints")))


def best_score(checkpoints):
    """The lowest value so far of what is monitored."""
    states = load_checkpoint(checkpoints / "best.ckpt")["callbacks"].values()
    return next(state["best_model_score"].item() for state in states if state.get("monitor"))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_best_epoch_so_far_stays_by_any_spelling(spelling, monkeypatch):
    best = next(Path("runs").rglob("best.ckpt")).read_bytes()
    monkeypatch.setattr(Autoencoder, "scores", lambda self, x: {"reconstruction": 1e6 + x.flatten(1).sum(1)})
    record = run(CELL, replace(THREE, runs=SPELLINGS[spelling]()))
    assert (record["selected_epoch"], record["reached"]) == (2, True)
    assert next(Path.cwd().rglob("best.ckpt")).read_bytes() == best


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_begins_the_cell_anew(name, content, begun, capsys):
    path = next(Path("runs").rglob(name))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    record = run(CELL, THREE)
    assert record["metrics"] == begun[1]["metrics"]
    said = capsys.readouterr().err
    assert said.startswith(f"begun anew: {path} is not a readable checkpoint")
    assert said.count("\n") == 1


def test_a_checkpoint_does_not_pass_through_the_folder_for_temporary_files(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert run(CELL, THREE)["selected_epoch"] == 3


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(begun, monkeypatch):
    last, save = next(Path("runs").rglob("last.ckpt")), torch.save
    before = last.read_bytes()

    class Full(io.FileIO):
        def write(self, content):
            super().write(bytes(content)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda state, stream: save(state, Full(stream.name, "w")))
        with pytest.raises(InputError, match=r"cannot write .*\.ckpt: No space left on device"):
            run(CELL, THREE)
    assert last.read_bytes() == before
    assert not list(Path("runs").rglob(".*.tmp"))
    (last.parent / ".last.ckpt.1.tmp").write_bytes(b"of a process that was killed")
    assert run(CELL, THREE)["metrics"] == begun[1]["metrics"]
    assert not list(Path("runs").rglob(".*.tmp"))


@pytest.fixture
def clock(monkeypatch):
    """The time as checkpoints see it, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    return now


def written(folder):
    """The epoch that each file of a folder holds."""
    return {path.name: torch.load(path)["weights"].item() for path in sorted(folder.iterdir())}


def test_checkpoints_wait_in_memory_until_they_are_due(tmp_path, clock):
    writer, folder, weights, curve = WholeCheckpoints(), tmp_path / "checkpoints", torch.zeros(1), []

    def epoch(number, *names):
        weights.fill_(number)
        curve.append(number)
        for name in names:
            writer.save_checkpoint({"weights": weights, "curve": curve}, folder / name)

    epoch(1, "best.ckpt", "last.ckpt")
    assert written(folder) == {"best.ckpt": 1, "last.ckpt": 1}
    clock[0] += SAVE_EVERY_S / 2
    epoch(2, "best.ckpt", "last.ckpt")
    epoch(3, "last.ckpt", "rho.ckpt")
    assert written(folder) == {"best.ckpt": 1, "last.ckpt": 1, "rho.ckpt": 3}
    clock[0] += SAVE_EVERY_S / 2
    epoch(4, "last.ckpt")
    assert written(folder) == {"best.ckpt": 2, "last.ckpt": 4, "rho.ckpt": 3}
    epoch(5, "best.ckpt", "last.ckpt")
    assert writer.load_checkpoint(folder / "best.ckpt")["weights"].item() == 5
    epoch(6, "best.ckpt", "last.ckpt")
    epoch(7)
    assert written(folder) == {"best.ckpt": 5, "last.ckpt": 5, "rho.ckpt": 3}
    writer.teardown()
    assert written(folder) == {"best.ckpt": 6, "last.ckpt": 6, "rho.ckpt": 3}
    assert torch.load(folder / "last.ckpt")["curve"] == [1, 2, 3, 4, 5, 6]


def test_the_best_epoch_is_written_before_the_last_that_knows_of_it(tmp_path, clock, monkeypatch):
    order, write = [], checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda state, file: (order.append(file.name), write(state, file)))
    writer = WholeCheckpoints()
    for due in (False, True):
        for name in ("best.ckpt", "last.ckpt"):
            writer.save_checkpoint({}, tmp_path / name)
        clock[0] += SAVE_EVERY_S * due
    assert order == ["best.ckpt", "last.ckpt"]
    for name in ("best.ckpt", "last.ckpt"):
        writer.save_checkpoint({}, tmp_path / name)
    assert order == ["best.ckpt", "last.ckpt"] * 2


def test_a_checkpoint_that_waits_is_removed(tmp_path, clock):
    writer = WholeCheckpoints()
    for _ in range(2):
        writer.save_checkpoint({}, tmp_path / "last.ckpt")
    writer.remove_checkpoint(tmp_path / "last.ckpt")
    writer.teardown()
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize(("seconds", "files"), [(0.0, 6), (1e9, 4)])
def test_how_often_checkpoints_are_written_changes_no_number(seconds, files, begun, monkeypatch):
    """Three epochs, each the best so far: all of them, or the first and what waits at the end."""
    names, write = [], checkpoints._write
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_S", seconds)
    monkeypatch.setattr(checkpoints, "_write", lambda state, file: (names.append(file.name), write(state, file)))
    assert run(CELL, replace(THREE, force=True))["metrics"] == begun[1]["metrics"]
    assert names == ["best.ckpt", "last.ckpt"] * (files // 2)


@pytest.mark.parametrize("left", ["nothing", "an untrained net", "half a checkpoint"])
def test_a_folder_in_which_nothing_is_trained_is_begun_anew(left):
    directory = CELL.directory(THREE.runs)
    for path in (directory / "checkpoints").iterdir():
        contents = load_checkpoint(path)
        path.unlink()
        if left == "an untrained net":
            torch.save({**contents, "global_step": 0}, path)
        elif left == "half a checkpoint":
            path.write_bytes(b"half")
    other = replace(THREE, max_epochs=1)
    assert run(CELL, other)["selected_epoch"] == 1


def test_a_trained_checkpoint_of_another_configuration_is_kept():
    with pytest.raises(InputError, match="was begun with something else"):
        run(CELL, replace(THREE, max_epochs=1))
    assert next(Path("runs").rglob("last.ckpt")).is_file()


def test_force_keeps_the_users_own_files(begun):
    directory = CELL.directory(THREE.runs)
    own = [directory / "notes.txt", directory / "figures" / "sketch.svg", directory / "checkpoints" / "mine.ckpt"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    events = set(directory.glob("events.out.tfevents.*"))
    assert run(CELL, replace(THREE, force=True))["metrics"] == begun[1]["metrics"]
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert events
    assert not events & set(directory.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["config.yaml", "scores.csv", "checkpoints/last.ckpt"])
def test_a_directory_with_files_of_the_users_is_left_alone(name):
    path = Path("own", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match=f"own has files that no run has left, such as {name}: give another folder"):
        run_command([*FIT, "--directory", "own"])
    assert path.read_text() == "mine"
    assert not Path("own", ".identity").exists()


def test_a_directory_with_other_files_takes_a_run():
    Path("own").mkdir()
    Path("own", "notes.txt").write_text("mine")
    assert run_command([*FIT, "--directory", "own"])["selected_epoch"] == 3


def test_a_cells_configuration_trains_into_another_folder(capsys):
    """Neither its checkpoint nor its configuration is written over, not even on demand."""
    run(CELL, THREE)
    directory = CELL.directory(THREE.runs)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    again = ["fit", "--config", str(directory / "config.yaml"), "--seed_everything", "5"]
    main(again)
    other = load_checkpoint(Path("runs/fit/version_0/checkpoints/last.ckpt"))["state_dict"]
    own = load_checkpoint(directory / "checkpoints" / "last.ckpt")["state_dict"]
    assert not all(torch.equal(other[name], own[name]) for name in own)
    with pytest.raises(SystemExit) as ended:
        main([*again, "--trainer.default_root_dir", str(directory)])
    assert ended.value.code == 2
    assert f"{directory} holds a run of an experiment" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_fit_with_a_directory_that_a_signal_has_ended_can_be_resumed(sent, status, begun, capsys, monkeypatch):
    before, start = signal.signal(signal.SIGINT, signal.default_int_handler), OneClassModule.on_train_epoch_start

    def press(module):
        if module.current_epoch == 2:
            os.kill(os.getpid(), sent)
        start(module)

    words = ["fit", *FIT, "--rule=validation", "--threads=1", "--directory", "one"]
    with monkeypatch.context() as patch:
        patch.setattr(OneClassModule, "on_train_epoch_start", press)
        with pytest.raises(SystemExit) as ended:
            main(words)
    signal.signal(signal.SIGINT, before)
    assert ended.value.code == status
    assert capsys.readouterr().err == "interrupted: give the same command again to go on\n"
    assert load_checkpoint(Path("one/checkpoints/last.ckpt"))["epoch"] == 1
    main(words)
    assert json.loads(Path("one/metrics.json").read_text())["metrics"] == begun[1]["metrics"]


def test_a_run_that_was_begun_without_the_oracle_does_not_go_on_with_it(begun):
    """Its curve would lack the first epochs. Without the flag it goes on, and one that was begun with it may go on without."""
    with pytest.raises(InputError, match=r"begun with something else \(without --oracle\): give --force"):
        run(CELL, replace(THREE, oracle=True))
    stop = stopped(2)
    with pytest.raises(OSError, match="power cut"):
        run(CELL, replace(THREE, runs=Path("oracle"), oracle=True))
    stop.undo()
    record = run(CELL, replace(THREE, runs=Path("oracle"), oracle=True))
    assert {len(curve) for curve in record["rules"]["oracle"]["curve"].values()} == {3}
    assert run(CELL, THREE)["metrics"] == begun[1]["metrics"]


def held_out(directory):
    return load_checkpoint(Path(directory, "checkpoints", "last.ckpt"))["calibration"]


@pytest.mark.parametrize("every", [2, 5])
def test_the_threshold_is_the_last_epochs_however_rare_validation_is(every):
    run_command([*FIT, "--threads=1", "--directory=often"])
    run_command([*FIT, "--threads=1", f"--trainer.check_val_every_n_epoch={every}", "--directory=seldom"])
    assert torch.equal(held_out("seldom"), held_out("often"))


def test_alocc_stops_at_an_epoch_that_is_validated():
    arguments = ["--config", "alocc-smoke", "--model.rho=1e6", "--trainer.max_epochs=3", "--rule=rho"]
    record = run_command([*arguments, "--trainer.check_val_every_n_epoch=2", "--directory=seldom"])
    assert (record["selected_epoch"], record["reached"]) == (2, True)
    assert "last" in record["rules"]
    assert "rho" not in run_command([*arguments[:-1], "--trainer.limit_val_batches=0", "--directory=never"])["rules"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--trainer.max_epochs=-1"], "the training never ends"),
        (["--trainer.max_epochs=0"], "trains nothing"),
        (["--trainer.limit_train_batches=0"], "no epoch was trained"),
        (["--rule=validation", "--trainer.limit_val_batches=0"], "needs held-out normal samples"),
    ],
)
def test_a_training_without_an_end_or_a_beginning_is_refused(flags, says):
    with pytest.raises(InputError, match=says):
        run_command([*FIT, *flags, "--directory=one"])
    assert not Path("one/checkpoints").exists()


def checkpoint_callback(**arguments):
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": arguments}
    return f"--trainer.callbacks={json.dumps([callback])}"


def test_a_further_model_checkpoint_leaves_the_runs_own_alone():
    """The last file of the run holds whole epochs, though the other callback writes after every batch."""
    run_command([*FIT, "--threads=1", "--directory=plain"])
    run_command([*FIT, "--threads=1", checkpoint_callback(save_last=True, every_n_train_steps=1), "--directory=two"])
    assert Path("two/checkpoints/own-last.ckpt").is_file()
    weights = [load_checkpoint(Path(name, "checkpoints", "last.ckpt"))["state_dict"] for name in ("plain", "two")]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    with pytest.raises(InputError, match=r"last\.ckpt is a file of the run"):
        run_command([*FIT, checkpoint_callback(filename="last"), "--directory=three"])


def test_every_failed_cell_has_its_error_txt(capsys, monkeypatch):
    """Also one whose weights cannot be had, though it is no reason to stop the others."""

    def lacking(cell, settings):
        raise WeightsMissingError("no weights here")

    monkeypatch.setattr("common.experiment.grid.run", lacking)
    Path("runs").rename("earlier")
    experiment = Experiment(
        name="autoencoder", title="A trial", main=Grid(presets=("smoke",), datasets=("digits",)), seeds=(0,)
    )
    with pytest.raises(SystemExit):
        run_experiment(experiment, ["--normal", "3", "--jobs", "1"])
    assert "failed autoencoder-smoke digits standard normal=3 seed=0: no weights here" in capsys.readouterr().out
    errors = list(Path("runs").rglob("error.txt"))
    assert [path.parent for path in errors] == [replace(CELL, preset="autoencoder-smoke").directory(Path("runs"))]
