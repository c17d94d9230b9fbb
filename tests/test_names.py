"""A class is found by its name on every way in, even if YAML takes the name for something else."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from common.cli import _presets_as_files
from common.data import OneClassDataModule
from common.errors import InputError
from common.experiment import Cell, Experiment, Grid, run_experiment
from common.names import keep_names
from common.presets import REPOSITORY, merged
from common.training.lightning import OneClassCLI

pytestmark = pytest.mark.usefixtures("blank_figures")

SMOKE = REPOSITORY / "autoencoder" / "configs" / "smoke.yaml"
SPELLINGS = ["01", "02", "007", "0x10", "1_000", "1e3", "1.0", "1:30", "yes", "null", "~", "nan", "2020-01-01", "a + b", "c++"]
OPTIONAL = [name for name in SPELLINGS if name not in {"null", "~"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four images of each class in both official parts, whose brightness grows with the class number."""
    root, random = tmp_path_factory.mktemp("names"), np.random.default_rng(0)
    for part in ("train", "test"):
        for k, name in enumerate(sorted(SPELLINGS)):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 12, (8, 8), dtype=np.uint8) + np.uint8(16 * k)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def command(root, *arguments):
    """The data module that a command line makes."""
    fixed = ["--config", str(SMOKE), "--data.dataset=folder", f"--data.root={root}", "--trainer.logger=false"]
    words = _presets_as_files([*fixed, "--trainer.accelerator=cpu", *arguments])
    return OneClassCLI(words, run=False)


def trained_on(data):
    return {data.data.classes[k] for k in data.data.targets[data.splits.train]}


def compared_with(data):
    return {data.data.classes[k] for k in data.data.targets[data.splits.test]} - set(data.class_names())


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_flag_names_the_class(root, name):
    assert trained_on(command(root, f"--data.normal={name}").datamodule) == {name}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_configuration_names_the_class_and_is_written_so(root, tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data:\n  normal: {name}\n")
    cli = command(root, "--config", str(path))
    assert trained_on(cli.datamodule) == {name}
    path.write_text(cli.parser.dump(cli.config, skip_none=False))
    assert trained_on(command(root, "--config", str(path)).datamodule) == {name}


@pytest.mark.parametrize("way", ["flag", "configuration", "protocol"])
@pytest.mark.parametrize("name", ["02", "1e3", "yes"])
def test_anomalous_classes_are_named_likewise(root, tmp_path, way, name):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data:\n  anomalous: {name}\n")
    ways = {"flag": [f"--data.anomalous={name}"], "configuration": ["--config", str(path)]}
    words = ways.get(way, [f"--data.protocol=standard,anomalous={name}"])
    assert compared_with(command(root, "--data.normal=01", *words).datamodule) == {name}


@pytest.mark.parametrize("way", ["flag", "two words", "configuration"])
def test_lists_of_names(root, tmp_path, way):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  normal: [01, 1e3, c++]\n")
    text = "[01, 1e3, c++]"
    ways = {"flag": [f"--data.normal={text}"], "two words": ["--data.normal", text], "configuration": ["--config", str(path)]}
    assert trained_on(command(root, *ways[way]).datamodule) == {"01", "1e3", "c++"}


def test_what_is_not_given_stays_so(root, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  normal: 01\n  anomalous: null\n  root: null\n")
    assert merged(["--config", str(SMOKE), "--data.anomalous=null"])["data"]["anomalous"] is None
    assert compared_with(command(root, "--data.normal=01", "--data.anomalous=null").datamodule) == {*SPELLINGS} - {"01"}
    config = yaml.safe_load(path.read_text())
    assert keep_names(config, path.read_text()) == {"data": {"normal": "01", "anomalous": None, "root": None}}


def test_a_root_that_is_a_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{SMOKE.read_text()}\n".replace("data:", "data:\n  root: 2024_05"))
    assert merged(["--config", str(path)])["data"]["root"] == "2024_05"
    assert str(OneClassCLI(["--config", str(path), "--trainer.logger=false"], run=False).datamodule.root) == "2024_05"


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_override_names_the_class(name):
    assert Cell(f"autoencoder-smoke,data.anomalous={name}", "folder", "standard", "01", 0).config()["data"]["anomalous"] == name


@pytest.mark.parametrize(
    ("normal", "names"),
    [
        ("01", ["01"]),
        (["01", "02"], ["01", "02"]),
        ("c+++01", ["c++", "01"]),
        ("01+a + b+c++", ["01", "a + b", "c++"]),
        (0, ["007"]),
    ],
    ids=str,
)
def test_python_names_the_class(root, normal, names):
    assert OneClassDataModule("folder", root=str(root), normal=normal).class_names() == names


@pytest.mark.parametrize("text", ["1", "7", "2"])
def test_a_text_that_may_mean_a_name_is_no_number(root, text):
    with pytest.raises(InputError, match=f"has no class '{text}': choose from 007, 01, 02"):
        OneClassDataModule("folder", root=str(root), normal=text).class_names()


def test_an_experiment_trains_on_the_class_and_so_does_its_printed_line(root, tmp_path, capsys):
    experiment = Experiment("autoencoder", "A trial", Grid(("smoke", "classical-lof"), ("digits",)), seeds=(0,))
    flags = ["--datasets", "folder", "--root", str(root), "--normal", "02", "1e3", "--device", "cpu", "--max-epochs", "1"]
    run_experiment(experiment, [*flags, "--runs", str(tmp_path), "--jobs", "1"])
    paths = sorted(tmp_path.rglob("metrics.json"))
    assert {path.parts[-3] for path in paths} == {"normal=02", "normal=1e3"}
    assert len(paths) == 4
    for path in paths:
        record, scores = json.loads(path.read_text()), pd.read_csv(path.parent / "scores.csv")
        name = path.parts[-3].removeprefix("normal=")
        assert record["classes"] == [name]
        assert record["cell"]["normal"] == name
        assert set(scores["target"][scores["label"] == 0]) == {sorted(SPELLINGS).index(name)}
    capsys.readouterr()
    run_experiment(experiment, [*flags, "--runs", str(tmp_path / "pasted"), "--dry-run", "--presets", "smoke"])
    lines = capsys.readouterr().out.splitlines()
    assert [merged(line.partition("  # ")[0].split()[2:])["data"]["normal"] for line in lines] == ["02", "1e3"]
