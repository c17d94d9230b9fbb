"""The picture of a finished run."""

import json
import shutil

import pandas as pd
import pytest

from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.experiment.run import run
from experiments.picture import IMAGES, main, picture

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    settings = Settings(runs=tmp_path_factory.mktemp("picture"), max_epochs=1, threads=1)
    cells = {name: Cell(f"{name}-smoke", "digits", "standard", "3", 0) for name in ("autoencoder", "ocnn")}
    for cell in cells.values():
        run(cell, settings)
    return {name: cell.directory(settings.runs) for name, cell in cells.items()}


def test_every_image_stands_above_what_is_decoded_of_it_and_flagged_ones_are_framed(runs, tmp_path):
    table = pd.read_csv(runs["autoencoder"] / "scores.csv")
    images, scores = picture(runs["autoencoder"]).axes
    assert len(images.images) == 2 * 2 * IMAGES
    threshold = scores.lines[0].get_xdata()[0]
    ranked = {label: table[table["label"] == label]["reconstruction"].sort_values() for label in (0, 1)}
    flagged = 0
    for values in ranked.values():
        chosen = [values.iloc[int(share * (len(values) - 1))] for share in (0.05, 0.23, 0.41, 0.59, 0.77, 0.95)]
        flagged += sum(value >= threshold for value in chosen)
    assert len(images.patches) == flagged > 0
    counted = [text.get_text() for text in scores.get_legend().texts if "(" in text.get_text()]
    assert counted == [f"normal ({len(ranked[0])})", f"anomalies ({len(ranked[1])})"]
    main([str(runs["autoencoder"]), "--out", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_held_out_samples_nothing_is_framed(tmp_path):
    cell = Cell("autoencoder-smoke,data.val_fraction=0", "digits", "standard", "3", 0)
    run(cell, Settings(runs=tmp_path, max_epochs=1, threads=1))
    images, scores = picture(cell.directory(tmp_path)).axes
    assert not images.patches
    assert not scores.lines


def test_the_format_is_that_of_the_ending(runs, tmp_path, capsys):
    main([str(runs["autoencoder"]), "--out", str(tmp_path / "a.pdf")])
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(SystemExit):
        main([str(runs["autoencoder"]), "--out", str(tmp_path / "a.txt")])
    assert ".pdf, .pgf, .png" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pdf"]


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no record .*metrics.json: give the folder of a finished cell"):
        picture(tmp_path)


def test_a_method_that_does_not_reconstruct_is_refused(runs):
    with pytest.raises(InputError, match="does not reconstruct"):
        picture(runs["ocnn"])


def test_a_bound_that_was_never_reached_shows_the_last_epoch(runs, tmp_path):
    """The record names the rule, and the run has no checkpoint of it."""
    folder = tmp_path / "seed=0"
    shutil.copytree(runs["autoencoder"], folder)
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(record | {"rule": "rho", "reached": False}), encoding="utf-8")
    shown, same = picture(folder).axes[0].images, picture(runs["autoencoder"]).axes[0].images
    assert all((a.get_array() == b.get_array()).all() for a, b in zip(shown, same, strict=True))
