"""Published cells can be trained again, and what differs is said."""

import json
import re

import pytest
from fake_records import of_classes

from common.errors import InputError
from common.experiment import run_experiment
from common.experiment.records import read_record
from common.experiment.table import as_summary, long
from experiments import reproduce
from experiments.alocc import EXPERIMENT

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Records of a trained preset and of a detector without randomness."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--datasets", "digits", "--presets", "autoencoder-smoke", "classical-lof"]
    flags += ["--normal", "1", "3", "--seeds", "0", "1"]
    run_experiment(EXPERIMENT, [*flags, "--device", "cpu", "--jobs", "1", "--runs", str(folder)])
    return [read_record(path) for path in sorted(folder.rglob("metrics.json"))]


def publish(records, folder):
    folder.mkdir(exist_ok=True)
    (folder / "alocc.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory):
    return publish(trained, tmp_path_factory.mktemp("published"))


def again(results, tmp_path, *flags):
    reproduce.main(["--results", str(results), "--runs", str(tmp_path), "--jobs", "1", "--device", "cpu", *flags])


def test_cells_are_reproduced_seed_by_seed(results, tmp_path, capsys):
    again(results, tmp_path, "--cells", "4")
    printed = capsys.readouterr().out
    assert printed.count("same") == 4
    assert printed.count("±0.0000") == 4
    made = list(tmp_path.glob("*/*/*/*/*/metrics.json"))
    assert len(made) == 6
    for path in made:
        path.write_text(json.dumps(read_record(path) | {"identity": {}}))
    with pytest.raises(SystemExit) as ended:
        again(results, tmp_path, "--cells", "4")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "an earlier version made it): --force runs them again" in said
    assert "--keep" not in said
    again(results, tmp_path, "--cells", "4", "--force")
    assert capsys.readouterr().out.count("same") == 4


def test_cells_are_reproduced_at_the_size_of_their_records(tmp_path, capsys):
    flags = ["--datasets", "digits", "--presets", "autoencoder-smoke", "classical-lof", "--normal", "1", "--seeds", "0"]
    settings = ["--image-size", "6", "--max-epochs", "1"]
    run_experiment(EXPERIMENT, [*flags, *settings, "--device", "cpu", "--jobs", "1", "--runs", str(tmp_path / "trained")])
    records = [read_record(path) for path in (tmp_path / "trained").rglob("metrics.json")]
    again(publish(records, tmp_path / "published"), tmp_path / "again", "--cells", "2")
    assert capsys.readouterr().out.count("same") == 2


def test_a_draw_depends_on_its_number_alone(results, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(reproduce, "run_grid", lambda cells, *_: drawn.append(cells) or {})
    monkeypatch.setattr(reproduce, "records_of", lambda *_: [])
    for draw in (0, 0, 1, 2, 3):
        with pytest.raises(SystemExit):
            again(results, "unused", "--cells", "1", "--draw", str(draw))
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


def test_what_a_gpu_has_made_is_not_drawn_without_one_unless_it_is_named(trained, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(reproduce, "run_grid", lambda cells, *_: drawn.extend(cells) or {})
    monkeypatch.setattr(reproduce, "records_of", lambda *_: [])
    of_gpu = [one | {"device": "cuda:0"} for one in trained if one["name"] == "autoencoder-smoke"]
    results = publish([*of_gpu, *(one for one in trained if one["name"] == "classical-lof")], tmp_path)
    with pytest.raises(SystemExit):
        again(results, tmp_path / "runs", "--cells", "2")
    assert {cell.name for cell in drawn} == {"classical-lof"}
    with pytest.raises(SystemExit):
        again(results, tmp_path / "runs", "--cells", "4")
    assert "fewer --cells" in capsys.readouterr().err
    drawn.clear()
    with pytest.raises(SystemExit):
        again(results, tmp_path / "runs", "--cells", "2", "--presets", "autoencoder-smoke")
    assert len(drawn) == 4


@pytest.mark.parametrize("change", ["value", "score"])
def test_another_value_is_told_and_is_an_error(trained, tmp_path, capsys, change):
    """So is a score that is no longer given."""
    changed = []
    for one in trained:
        (score, values), *_ = one["metrics"].items()
        new = {score: values | {"auroc": values["auroc"] + 0.001}} if change == "value" else {"another": values}
        changed.append(one | {"metrics": new})
    results = publish(changed, tmp_path / "results")
    with pytest.raises(SystemExit) as end:
        again(results, tmp_path / "runs", "--cells", "2", "--presets", "classical-lof")
    assert end.value.code == 1
    assert capsys.readouterr().out.count("outside") == 2


@pytest.mark.parametrize("flags", [["--cells", "99"], ["--presets", "ocgan-paper"], ["--datasets", "mnist"]])
def test_what_is_not_published_cannot_be_drawn(results, tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as end:
        again(results, tmp_path, *flags)
    assert end.value.code == 2
    assert "fewer --cells" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--cells", "--jobs"])
def test_a_number_below_1_is_refused(flag, results, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        again(results, tmp_path, flag, "-1")
    assert ended.value.code == 2
    assert f"argument {flag}: -1 is not a number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--draw", "-1"], "argument --draw: -1 is not a number from 0 to 4294967295"),
        (["--results", "nowhere"], "there are no published records in nowhere"),
    ],
)
def test_a_draw_of_nothing_is_refused(flags, says, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--cells", "1", *flags])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.fixture
def without_downloads(monkeypatch):
    """Nothing but the digits can be had; says what was asked for."""
    asked = []

    def load(dataset, root):
        asked.append(dataset)
        if dataset != "digits":
            raise InputError(f"{dataset} cannot be downloaded")

    monkeypatch.setattr("common.experiment.perform.load", load)
    return asked


def test_data_that_cannot_be_had_are_not_drawn_and_others_not_loaded(trained, tmp_path, without_downloads, capsys):
    others = [record | {"cell": record["cell"] | {"dataset": "mnist"}} for record in trained]
    results = publish([*trained, *others], tmp_path / "results")
    flags = ["--cells", "1", "--presets", "classical-lof"]
    again(results, tmp_path / "runs", *flags, "--datasets", "digits")
    assert without_downloads == ["digits"]
    again(results, tmp_path / "runs", *flags)
    assert without_downloads == ["digits", "digits", "mnist"]
    assert "mnist" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        again(results, tmp_path / "runs", *flags, "--datasets", "mnist")
    assert "fewer --cells, or other rows; mnist cannot be downloaded" in capsys.readouterr().err


def test_rows_without_their_weights_are_not_drawn(trained, tmp_path, capsys):
    name = "classical-lof,backbone=vgg16,weights=not_here.pth,head_layers=0"
    lofs = [record for record in trained if record["name"] == "classical-lof"]
    others = [record | {"name": name, "cell": record["cell"] | {"preset": name}} for record in lofs]
    results = publish([*lofs, *others], tmp_path / "results")
    again(results, tmp_path / "runs", "--cells", "2")
    assert "vgg16" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        again(results, tmp_path / "runs", "--cells", "3")
    assert re.search(r"only 2 of these rows .*; there is no \S+checkpoints/not_here.pth$", capsys.readouterr().err.strip())


def test_what_is_published_can_be_drawn():
    rows = reproduce.candidates()
    assert {"autoencoder-denoising", "alocc-stable", "ocgan-tuned", "ocnn-tuned", "classical-lof"} <= set(rows["name"])
    bounded = rows[rows["ci_low"].notna()]
    assert (bounded["ci_low"] <= bounded["ci_high"]).all()
    assert (rows["metric"] == "auroc").all()


def verdicts_of(rows, before, after):
    rows = as_summary([dict(rows)])
    return reproduce.verdicts(rows, long(before), long(after))["verdict"].item()


def test_records_are_compared_seed_by_seed_then_by_the_interval_of_their_mean():
    row = {
        "name": "autoencoder-small",
        "dataset": "mnist",
        "protocol": "standard",
        "score": "reconstruction",
        "metric": "auroc",
    }
    row |= {"rule": "last", "normal": "3", "n_classes": 1, "n_seeds": 2, "mean": 0.93, "ci_low": 0.92, "ci_high": 0.94}
    seeds, moved = of_classes("3", 2), of_classes("3", 2, value=0.905)
    assert verdicts_of(row, seeds, seeds) == "same"
    assert verdicts_of(row, seeds, moved) == "within", "another machine's seeds, the same mean"
    assert verdicts_of(row, seeds, of_classes("3", 2, value=0.93)) == "outside"
    assert verdicts_of(row, seeds, seeds[:1]) == "within", "a seed that is missing is not the same"
    without = {key: value for key, value in row.items() if not key.startswith("ci")}
    assert verdicts_of(without, seeds, moved) == "outside", "nothing but its seeds to hold it to"
    assert verdicts_of(row, seeds, []) == "outside"
