"""Committed cells can be trained again, and what differs is said."""

import pandas as pd
import pytest

from common.experiment import run_experiment
from experiments import reproduce
from experiments.alocc import EXPERIMENT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("committed")
    flags = ["--datasets", "digits", "--presets", "autoencoder-smoke", "classical-lof"]
    flags += ["--normal", "1", "3", "--seeds", "0", "1"]
    run_experiment(EXPERIMENT, [*flags, "--device", "cpu", "--runs", str(folder / "runs"), "--out", str(folder)])
    return folder


def again(results, tmp_path, *flags):
    reproduce.main(["--results", str(results), "--runs", str(tmp_path), "--jobs", "1", "--device", "cpu", *flags])


def test_cells_are_reproduced(results, tmp_path, capsys):
    again(results, tmp_path, "--cells", "4")
    printed = capsys.readouterr().out
    assert printed.count("within") == 4
    assert len(list(tmp_path.glob("*/*/*/*/*/metrics.json"))) == 6


def test_a_draw_depends_on_its_number_alone(results, tmp_path, capsys):
    drawn = []
    for draw in (0, 0, 1, 2, 3):
        again(results, tmp_path, "--cells", "1", "--draw", str(draw))
        drawn.append([line for line in capsys.readouterr().out.splitlines() if "within" in line])
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


def test_another_value_is_told_and_is_an_error(results, tmp_path, capsys):
    table = pd.read_csv(results / "alocc.csv", dtype={"normal": str})
    table.loc[table["preset"] == "lof", "mean"] += 0.001
    (tmp_path / "results").mkdir()
    table.to_csv(tmp_path / "results" / "alocc.csv", index=False)
    with pytest.raises(SystemExit) as end:
        again(tmp_path / "results", tmp_path / "runs", "--cells", "2", "--presets", "classical-lof")
    assert end.value.code == 1
    assert capsys.readouterr().out.count("outside") == 2


def test_a_score_that_is_no_longer_given_is_an_error(results, tmp_path, capsys):
    table = pd.read_csv(results / "alocc.csv", dtype={"normal": str})
    (tmp_path / "results").mkdir()
    table.replace({"score": {"lof": "another"}}).to_csv(tmp_path / "results" / "alocc.csv", index=False)
    with pytest.raises(SystemExit) as end:
        again(tmp_path / "results", tmp_path / "runs", "--cells", "1", "--presets", "classical-lof")
    assert end.value.code == 1
    assert "outside" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--cells", "99"], ["--presets", "ocgan-paper"], ["--datasets", "mnist"]])
def test_what_is_not_committed_cannot_be_drawn(results, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as end:
        again(results, tmp_path, *flags)
    assert end.value.code == 2
    assert "fewer --cells" in capsys.readouterr().err


def test_what_is_committed_can_be_drawn():
    rows = reproduce.candidates(reproduce.REPOSITORY / "experiments" / "results")
    assert {"autoencoder-denoising", "alocc-stable", "ocgan-tuned", "ocnn-tuned", "classical-lof"} <= set(rows["name"])
    assert (rows["ci_low"] <= rows["ci_high"]).all()
    assert (rows["metric"] == "auroc").all()
