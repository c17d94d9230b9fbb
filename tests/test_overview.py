"""The picture of an experiment's means."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from common.experiment.overview import BASELINE, OURS, REPORTED, overview, write_overview
from common.experiment.published import published
from common.experiment.table import as_summary
from common.presets import preset_path, read_config
from experiments import classical, ocgan
from experiments.report import declared

METHODS = {"alocc", "autoencoder", "ocgan", "ocnn"}


@pytest.fixture(scope="module")
def table():
    return published(ocgan.EXPERIMENT)


def test_dots_stand_at_the_means_and_diamonds_at_the_papers_numbers(table):
    figure = overview(table, ocgan.EXPERIMENT)
    axes = next(axes for axes in figure.axes if axes.get_title("left") == "mnist, standard")
    names = [label.get_text() for label in axes.get_yticklabels()]
    line = names.index("tuned, squared error (6)")
    row = table[(table["dataset"] == "mnist") & (table["protocol"] == "standard") & (table["normal"] == "mean")]
    row = row[(row["name"] == "ocgan-tuned") & (row["score"] == "reconstruction") & (row["metric"] == "auroc")].iloc[0]
    dots = {
        marks.get_color(): dict(zip(marks.get_ydata(), marks.get_xdata(), strict=True))
        for marks in axes.lines
        if len(marks.get_xdata())
    }
    assert dots[REPORTED][line] == pytest.approx(0.975)
    assert {OURS, BASELINE, REPORTED} <= set(dots)
    (errorbar,) = (bars for bars in axes.containers if bars.lines[0].get_color() == OURS)
    assert dict(zip(errorbar.lines[0].get_ydata(), errorbar.lines[0].get_xdata(), strict=True))[line] == pytest.approx(
        row["mean"]
    )
    low, high = next(ends[:, 0] for ends in errorbar.lines[2][0].get_segments() if ends[0, 1] == line)
    assert (low, high) == pytest.approx((row["ci_low"], row["ci_high"]))


def test_the_best_line_is_on_top_and_rows_of_other_methods_name_their_paper(table):
    axes = overview(table, ocgan.EXPERIMENT).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert "VAE, Perera2019 T2" in names
    assert names.index("tuned, squared error (6)") < names.index("tuned, relative error (6)")
    assert not any("not run" in name or "official" in name for name in names)


def test_a_row_is_drawn_once_by_its_own_rule_and_a_mean_of_some_classes_names_them(table):
    axes = next(axes for axes in overview(table, ocgan.EXPERIMENT).axes if axes.get_title("left") == "mnist, standard")
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == len(set(names))
    paper = "paper, squared error (3)"
    (errorbar,) = (bars for bars in axes.containers if bars.lines[0].get_color() == OURS)
    drawn = dict(zip(errorbar.lines[0].get_ydata(), errorbar.lines[0].get_xdata(), strict=True))[names.index(paper)]
    row = {"dataset": "mnist", "protocol": "standard", "name": "ocgan-paper", "score": "reconstruction", "metric": "auroc"}
    rows = table[(table[list(row)] == pd.Series(row)).all(axis=1) & (table["normal"] == "mean")].set_index("rule")["mean"]
    assert drawn == pytest.approx(rows["validation"])
    assert rows["validation"] != pytest.approx(rows["last"], abs=1e-4)
    assert "paper,mining_steps=0, squared error of 2, 8 (1)" in names


@pytest.mark.parametrize("experiment", declared(), ids=lambda experiment: experiment.name)
def test_the_first_of_each_published_row_is_by_its_presets_rule(experiment):
    table = published(experiment)
    rows = table[(table["n_seeds"] > 0) & ~table["name"].str.startswith("classical-")]
    for (name, *_), rules in rows.groupby(["name", "dataset", "protocol", "score", "metric"])["rule"]:
        if name.partition(",")[0].partition("-")[0] in METHODS and rules.iloc[0] != "oracle":
            preset = read_config(preset_path(name.partition(",")[0]))
            assert rules.iloc[0] == preset.get("rule", "last"), name


def test_long_names_leave_the_dots_their_room(table):
    short = overview(table, ocgan.EXPERIMENT)
    long = overview(table.replace({"name": {"ocgan-tuned": "ocgan-tuned," + "weight=0.125," * 12}}), ocgan.EXPERIMENT)
    for figure in (short, long):
        figure.savefig(io.BytesIO(), dpi=30)
    inches = [figure.axes[0].get_position().width * figure.get_figwidth() for figure in (short, long)]
    assert min(inches) > 3
    assert long.get_figwidth() > short.get_figwidth()


def test_what_was_not_measured_has_no_picture(tmp_path):
    assert overview(as_summary([]), ocgan.EXPERIMENT) is None
    assert write_overview(as_summary([]), ocgan.EXPERIMENT, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_file_is_small_and_keeps_its_colours(tmp_path):
    (path,) = write_overview(published(classical.EXPERIMENT), classical.EXPERIMENT, tmp_path)
    assert path.stat().st_size < 100_000
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    for color in (BASELINE, REPORTED):
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(pixels - wanted).sum(1).min() < 30
