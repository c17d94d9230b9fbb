"""False alarms are counted as the thresholds promise them."""

import numpy as np
import pandas as pd
import pytest

from common.deploy.load import load_checkpoint
from common.evaluation import threshold_by
from experiments.false_alarms import count, main

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_exact_law_holds_where_the_binomial_is_too_narrow(alpha):
    random = np.random.default_rng(0)
    drawn = pd.DataFrame([count(random.gamma(2, size=400), random.gamma(2, size=99), alpha) for _ in range(600)])
    assert drawn["alarms"].mean() / 400 == pytest.approx(alpha, rel=0.1)
    assert 0.93 < drawn["in_exact"].mean() < 0.98
    assert drawn["in_binomial"].mean() < 0.8


def test_normals_that_have_changed_fall_outside():
    random = np.random.default_rng(0)
    shifted = count(random.normal(1, size=400), random.normal(size=999), 0.05)
    assert not shifted["in_exact"]
    assert shifted["alarms"] > 60


def test_the_table(tmp_path, capsys):
    flags = ["--dataset", "digits", "--normal", "1", "2", "--presets", "autoencoder-smoke", "--max-epochs", "2"]
    runs = tmp_path / "new"
    main([*flags, "--jobs", "1", "--runs", str(runs), "--out", str(tmp_path / "out")])
    output = capsys.readouterr().out.partition("false alarms among fresh normals")[2]
    assert "autoencoder-smoke" in output
    assert max(map(len, output.partition("written")[0].splitlines())) <= 80
    table = pd.read_csv(tmp_path / "out" / "false_alarms.csv")
    assert set(table["alpha"]) == {0.1}  # 14 or 15 held-out digits are too few for a smaller rate
    for row in table.itertuples():
        cell = next(runs.glob(f"autoencoder-smoke/digits/balanced/normal={row.normal}/seed=0"))
        held_out = load_checkpoint(cell / "checkpoints" / "last.ckpt")["calibration"]
        fresh = pd.read_csv(cell / "scores.csv").query("label == 0")["reconstruction"]
        assert (row.held_out, row.fresh) == (len(held_out), len(fresh))
        assert row.alarms == (fresh >= threshold_by("alpha=0.1", held_out)).sum()
    assert "--max-epochs 2" in (tmp_path / "out" / "false_alarms.md").read_text()
    with pytest.raises(SystemExit) as ended:
        main([*flags[:-1], "1", "--jobs", "1", "--runs", str(runs)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "2 of autoencoder-smoke: the configuration differs): --force runs them again" in said
    assert "--keep" not in said
    main([*flags[:-1], "1", "--jobs", "1", "--runs", str(runs), "--force"])
    assert "--max-epochs 1" in (runs / "false_alarms.md").read_text()


def test_a_classical_detector_and_too_few_samples_are_refused(tmp_path, capsys):
    flags = ["--normal", "0", "--max-epochs", "1", "--jobs", "1", "--runs", str(tmp_path / "runs"), "--dataset"]
    np.savez(tmp_path / "few.npz", X=np.random.default_rng(0).random((40, 8, 8)), y=np.repeat([0, 1], [12, 28]))
    for preset, dataset, says in (
        ("classical-lof", "digits", "classical-lof is a classical detector: it holds out no samples for a threshold"),
        ("autoencoder-smoke", str(tmp_path / "few.npz"), "too few held-out samples: a rate of 0.1 needs 9 of each class"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*flags, dataset, "--presets", preset])
        assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {says}\n")
    assert not list((tmp_path / "runs").glob("classical*"))


def test_the_device_is_chosen_before_the_cells_are_counted(tmp_path, monkeypatch):
    devices = []

    def noted(cells, settings, *rest):
        devices.append(settings.device)
        return {cells[0]: "it stops here"}

    monkeypatch.setattr("experiments.false_alarms.run_grid", noted)
    with pytest.raises(SystemExit):
        main(["--dataset", "digits", "--runs", str(tmp_path)])
    assert devices == ["cpu"]


@pytest.mark.parametrize("flag", ["--jobs", "--max-epochs"])
def test_a_number_below_1_is_refused(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([flag, "-1", "--runs", str(tmp_path)])
    assert ended.value.code == 2
    assert f"argument {flag}: -1 is not a number of at least 1" in capsys.readouterr().err
