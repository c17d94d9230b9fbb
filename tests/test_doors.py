"""From a folder outside of the repository: a method, a preset, data and a protocol of one's own in a grid."""

import importlib
import json
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.cli import main
from common.errors import InputError
from common.estimator import OneClassEstimator
from common.experiment import Experiment, Grid, compare, run_experiment

pytestmark = pytest.mark.usefixtures("blank_figures")

EXPERIMENT = Experiment(name="ocgan", title="A trial", main=Grid(("smoke",), ("digits",)), seeds=(0, 1))

IDEA = '''
from ocgan import OCGAN


class MyOCGAN(OCGAN):
    """OCGAN with another weight."""

    def generator_losses(self, *arguments):
        losses = super().generator_losses(*arguments)
        return {**losses, "loss_reconstruction": 0.5 * losses["loss_reconstruction"]}
'''
DATA = """
import numpy as np
from sklearn.datasets import load_digits
from common.data.arrays import image_data


def load():
    X, y = load_digits(return_X_y=True)
    images = (X * 15).astype(np.uint8).reshape(-1, 8, 8)
    return image_data(images[:900], y[:900], images[900:], y[900:], classes=[f"digit {k}" for k in range(10)])
"""
PROTOCOL = """
import numpy as np
from common.data import Splits


def half(targets, official_test, normal, *, seed=0, keep=2):
    normals = np.flatnonzero(np.isin(targets, normal) & ~official_test)[::keep]
    return Splits(normals[10:], normals[:10], np.flatnonzero(official_test))
"""


def forget():
    """What another test may have imported by the same names."""
    for name in ("my_idea", "my_data", "my_protocols"):
        sys.modules.pop(name, None)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A working folder of a stranger's, with all that he brings."""
    forget()
    monkeypatch.chdir(tmp_path)
    smoke = Path(importlib.import_module("ocgan").__file__).parent / "configs" / "smoke.yaml"
    (tmp_path / "my_idea.py").write_text(IDEA)
    (tmp_path / "l1.yaml").write_text(smoke.read_text().replace("ocgan.OCGAN", "my_idea.MyOCGAN"))
    (tmp_path / "my_data.py").write_text(DATA)
    (tmp_path / "my_protocols.py").write_text(PROTOCOL)
    yield tmp_path
    forget()


def records(folder):
    return {path.parent.as_posix().partition("runs/")[2]: json.loads(path.read_text()) for path in folder.rglob("metrics.json")}


FLAGS = ["--presets", "smoke", "l1.yaml", "--normal", "3", "4", "--seeds", "0", "1", "--max-epochs", "1"]


def test_a_method_of_ones_own_stands_beside_its_base(outside, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run_experiment(EXPERIMENT, [*FLAGS, "--jobs", "2", "--presets", "l1.yaml", "--seeds", "0"])  # by workers, which import
    run_experiment(EXPERIMENT, [*FLAGS, "--jobs", "1"])
    output = capsys.readouterr().out
    made = records(outside)
    assert {name.split("/")[0] for name in made} == {"ocgan-smoke", "l1"}
    assert len(made) == 8
    assert made["l1/digits/standard/normal=3/seed=0"]["class_path"] == "my_idea.MyOCGAN"
    assert (
        made["l1/digits/standard/normal=3/seed=0"]["metrics"] != made["ocgan-smoke/digits/standard/normal=3/seed=0"]["metrics"]
    )
    assert "Δ" in output
    assert not any("…" in line for line in output.splitlines() if "digits" not in line)

    (outside / "my_idea.py").write_text(IDEA.replace("0.5", "0.25"))
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, [*FLAGS, "--report-only"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "4 of l1: the code has changed" in said.err
    assert "AUROC" not in said.out
    run_experiment(EXPERIMENT, [*FLAGS, "--report-only", "--keep"])
    assert "stale" in capsys.readouterr().out
    run_experiment(EXPERIMENT, [*FLAGS, "--report-only", "--presets", "smoke"])
    assert "stale" not in capsys.readouterr().out


def test_a_printed_line_makes_the_same_numbers(outside, capsys):
    flags = ["--presets", "l1.yaml,trainer.max_epochs=2,latent=5", "--normal", "4", "--seeds", "1", "--jobs", "1"]
    run_experiment(EXPERIMENT, [*flags, "--runs", "grid"])
    capsys.readouterr()
    run_experiment(EXPERIMENT, [*flags, "--runs", "pasted", "--dry-run"])
    line, _, state = capsys.readouterr().out.strip().partition("  # ")
    assert state == "to do"
    program, *words = shlex.split(line)
    assert program == "oneclass"
    main(words)
    (first,), (second,) = (list(Path(runs).rglob("metrics.json")) for runs in ("grid", "pasted"))
    assert first.relative_to("grid") == second.relative_to("pasted")
    assert (first.parent / "scores.csv").read_text() == (second.parent / "scores.csv").read_text()
    one, other = json.loads(first.read_text()), json.loads(second.read_text())
    assert one["metrics"] == other["metrics"]
    assert one["identity"] == other["identity"]
    run_experiment(EXPERIMENT, [*flags, "--runs", "pasted", "--dry-run"])
    assert capsys.readouterr().out.strip().endswith("# done")


@pytest.mark.parametrize("dataset", ["my.npz", "my_data:load"])
def test_data_of_ones_own(dataset, outside, capsys):
    X, y = np.random.default_rng(0).random((200, 6)), np.repeat(["01", "02"], 100)
    X[y == "02"] += 2
    np.savez(outside / "my.npz", X_train=X[::2], y_train=y[::2], X_test=X[1::2], y_test=y[1::2])
    normal = "01" if dataset == "my.npz" else "digit 3"
    presets = ["smoke", "autoencoder-smoke", "alocc-small", "classical-lof"]
    flags = ["--datasets", dataset, "--normal", normal, "--jobs", "1", "--seeds", "0", "--max-epochs", "1"]
    run_experiment(EXPERIMENT, [*flags, "--presets", *presets])
    assert f"no preset is made for '{dataset}'" in capsys.readouterr().out
    made = records(outside)
    assert {record["classes"][0] for record in made.values()} == {normal}
    assert {name.split("/")[1] for name in made} == {"my" if dataset == "my.npz" else "my_data.load"}
    if dataset == "my.npz":
        assert made[f"classical-lof/my/standard/normal={normal}/seed=0"]["metrics"]["lof"]["auroc"] == 1.0
        assert list((outside / "runs").glob("ocgan-smoke/my/standard/normal=01/seed=0/events*"))
        assert "--config alocc-small.vectors" in made[f"alocc-small/my/standard/normal={normal}/seed=0"]["command"]


def test_a_protocol_of_ones_own(outside):
    protocol = "my_protocols:half,keep=3"
    run_experiment(EXPERIMENT, ["--presets", "classical-lof", "--protocols", protocol, "--normal", "3", "--jobs", "1"])
    (record,) = records(outside).values()
    assert record["cell"]["protocol"] == protocol
    assert record["metrics"]["lof"]["n_anomalous"] > 400


def test_arrays_from_python(outside):
    X, y = np.random.default_rng(0).random((120, 1, 8, 8)).astype(np.float32), np.repeat([0, 1], 60)
    X[y == 1] += 1
    presets = ["autoencoder-smoke", "classical-pca"]
    table = compare(presets, X[::2], y[::2], X[1::2], y[1::2], name="mine", normal=["0"], jobs=1)
    assert set(table["name"]) == {"autoencoder-smoke", "classical-pca"}
    assert table.set_index("name")["mean"]["classical-pca"] > 0.95
    assert (outside / "runs" / "mine.npz").is_file()
    assert isinstance(table, pd.DataFrame)


@pytest.fixture
def arrays():
    X, y = np.random.default_rng(0).random((60, 6)), np.repeat([0, 1], 30)
    X[y == 1] += 1
    return X[::2], y[::2], X[1::2], y[1::2]


def test_what_is_named_twice_is_run_once(outside, arrays, capsys):
    table = compare(["classical-lof"] * 2, *arrays, normal=["0", "0"], seeds=(0, 0), jobs=1)
    assert (table["n_seeds"] == 1).all()
    assert capsys.readouterr().out.count("AUROC") == 1


def test_preset_files_of_one_name_are_refused(outside, arrays):
    for folder in ("a", "b"):
        (outside / folder).mkdir()
        (outside / folder / "l1.yaml").write_text("model:\n  class_path: autoencoder.Autoencoder\n")
    with pytest.raises(InputError, match=r"a/l1.yaml and b/l1.yaml would both be called l1"):
        compare(["a/l1.yaml", "b/l1.yaml"], *arrays, jobs=1)


def test_stale_records_are_kept_where_that_is_asked_for(outside, arrays):
    compare(["classical-lof"], *arrays, normal=["0"], jobs=1)
    other = (arrays[0] + 1, *arrays[1:])
    with pytest.raises(InputError, match="holds other data: give another name; force=True replaces it, keep=True too"):
        compare(["classical-lof"], *other, normal=["0"], jobs=1)
    table = compare(["classical-lof"], *other, normal=["0"], jobs=1, keep=True)
    assert (table["stale"] != "").all()


def test_a_file_of_the_users_is_not_replaced(outside, arrays):
    (outside / "runs").mkdir()
    np.savez(outside / "runs" / "mine.npz", secret=np.arange(3))
    with pytest.raises(InputError, match=r"mine.npz holds other data"):
        compare(["classical-lof"], *arrays, name="mine", normal=["0"], jobs=1)
    assert np.load(outside / "runs" / "mine.npz").files == ["secret"]


@pytest.mark.parametrize("jobs", [0, -1])
def test_less_than_one_cell_at_a_time_is_refused(jobs, outside, arrays):
    with pytest.raises(InputError, match=f"jobs must be at least 1, not {jobs}"):
        compare(["classical-lof"], *arrays, normal=["0"], jobs=jobs)


BRACKETS = """
from autoencoder import Autoencoder


class Faulty(Autoencoder):
    def scores(self, x):
        raise ValueError("cannot read [/home/me/x.png]")
"""


def test_brackets_in_names_and_messages_are_printed_as_they_are(outside, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (outside / "my_idea.py").write_text(BRACKETS)
    (outside / "faulty.yaml").write_text("model:\n  class_path: my_idea.Faulty\n")
    own_data(outside / "mine.npz", 40, shape=(6,), names=("fine", "scratch [deep]"))
    flags = balanced("mine.npz", "--presets", "faulty.yaml", "classical-lof", "--normal", "scratch [deep]")
    with pytest.raises(SystemExit) as ended:
        run_experiment(EXPERIMENT, flags)
    output = capsys.readouterr().out
    assert ended.value.code == 1
    assert "ValueError: cannot read [/home/me/x.png] (my_idea.py, line 7)" in output
    assert "classical-lof mine balanced normal=scratch [deep] seed=0: AUROC" in output
    assert "normal scratch [deep]" in output.partition("AUROC")[2]


SCRIPT = """
from sklearn.datasets import load_digits
from common.experiment import compare

print("begun")
X, y = load_digits(return_X_y=True)
table = compare(["classical-lof"], X[:900], y[:900], X[900:], y[900:], normal=["3", "4"], jobs=2)
print("ended with", len(table), "rows")
"""


def test_a_script_that_has_no_guard_is_not_run_again_in_every_worker(tmp_path, fork):
    (tmp_path / "mine.py").write_text(SCRIPT)
    process = fork(runpy.run_path, "mine.py", run_name="__main__", folder=tmp_path)
    assert process.wait() == 0, process.output
    assert process.output.startswith("begun\n")
    assert process.output.endswith("ended with 3 rows\n")
    assert process.output.count("begun") == 1


def own_data(path, n_normal, shape=(8, 8), names=("0", "1")):
    """Random images of two classes, which have no test set of their own."""
    y = np.repeat(names, [n_normal, 20])
    np.savez(path, X=np.random.default_rng(0).integers(0, 256, (len(y), *shape), dtype=np.uint8), y=y)


def balanced(dataset, *words):
    return ["--datasets", dataset, "--protocols", "balanced", "--seeds", "0", "--jobs", "1", "--max-epochs", "1", *words]


def test_images_higher_than_wide_train_to_the_record(outside):
    own_data(outside / "tall.npz", 40, shape=(24, 8))
    run_experiment(EXPERIMENT, balanced("tall.npz", "--presets", "smoke", "autoencoder-smoke", "--normal", "0"))
    assert len(records(outside)) == 2


@pytest.mark.parametrize("preset", ["smoke", "classical-lof"])
def test_a_protocol_that_leaves_nothing_to_test_is_refused(preset, outside, capsys):
    own_data(outside / "one.npz", 1)
    with pytest.raises(SystemExit):
        run_experiment(EXPERIMENT, balanced("one.npz", "--presets", preset, "--normal", "0"))
    assert "protocol 'balanced' leaves no sample to test" in capsys.readouterr().err


def test_a_number_that_is_no_class_beside_classes_that_are_numbers_is_refused(outside, capsys):
    own_data(outside / "from_one.npz", 20, names=("1", "2"))
    with pytest.raises(SystemExit):
        run_experiment(EXPERIMENT, balanced("from_one.npz", "--presets", "classical-pca", "--normal", "0"))
    assert "from_one has no class 0: choose from 1, 2" in capsys.readouterr().err


FAULTY = """
from autoencoder import Autoencoder


class Faulty(Autoencoder):
    def scores(self, x):
        raise ValueError("no scores yet")
"""


def test_an_error_of_ones_own_code_says_where_it_is_and_a_preset_needs_no_trainer(outside, capsys):
    (outside / "my_idea.py").write_text(FAULTY)
    (outside / "faulty.yaml").write_text("model:\n  class_path: my_idea.Faulty\n")
    with pytest.raises(SystemExit):
        run_experiment(EXPERIMENT, ["--presets", "faulty.yaml", "--normal", "3", "--seeds", "0", "1", "--jobs", "1"])
    output = capsys.readouterr()
    assert output.out.count("ValueError: no scores yet (my_idea.py, line 7)") == 2
    assert "all 2 cells failed; each has an error.txt in its folder" in output.err


def test_an_estimator_of_ones_own(outside):
    X = np.random.default_rng(0).random((60, 8, 8)).astype(np.float32)
    detector = OneClassEstimator(str(outside / "l1.yaml"), max_epochs=1, random_state=0).fit(X)
    assert type(detector.module_).__name__ == "MyOCGAN"
