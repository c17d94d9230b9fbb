"""The picture of a run on video frames."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from common.data import datasets
from common.deploy.load import load_detector
from common.errors import InputError
from common.evaluation.figures import ANOMALOUS
from common.experiment.cell import Cell, Settings
from common.experiment.records import read_record
from common.experiment.run import run
from experiments.frames import frames, main

pytestmark = pytest.mark.usefixtures("blank_figures")

CLIPS = {"Train/Train001": 8, "Test/Test001": 3, "Test/Test002": 7, "Test/Test003": 5}
TRUTH = "x.gt_frame = [1:3];\nx.gt_frame = [1:2, 5:6];\nx.gt_frame = [4:5];\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on frames of 40x56 pixels: of a net, of a classical detector, and on digits."""
    root = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    for clip, n in CLIPS.items():
        for i in range(1, n + 1):
            path = root / "UCSDped2" / clip / f"{i:03}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (40, 56), dtype=np.uint8)).save(path)
    (root / "UCSDped2" / "Test" / "UCSDped2.m").write_text(TRUTH)
    settings = Settings(root=root, runs=root / "runs", max_epochs=1, threads=1)
    cells = {name: Cell(name, "ucsd_ped2", "standard", "0", 0) for name in ("autoencoder-smoke", "classical-pca")}
    cells["digits"] = Cell("autoencoder-smoke", "digits", "standard", "3", 0)
    for cell in cells.values():
        run(cell, settings)
    yield {name: cell.directory(settings.runs) for name, cell in cells.items()}
    datasets._load.cache_clear()


def boxes(axes):
    """Left, top and colour of what is marked."""
    return [(box.get_x() + 0.5, box.get_y() + 0.5, box.get_edgecolor()) for box in axes.patches]


def test_the_first_clip_with_both_kinds_of_frames_and_its_true_intervals(runs):
    table = pd.read_csv(runs["autoencoder-smoke"] / "scores.csv")
    clip = table[table["path"].str.contains("Test002")]
    *_, scores = frames(runs["autoencoder-smoke"]).axes
    np.testing.assert_array_equal(scores.lines[0].get_xdata(), np.arange(1, 8))
    np.testing.assert_allclose(scores.lines[0].get_ydata(), clip["reconstruction"])
    assert [(span.get_x(), span.get_width()) for span in scores.patches] == [(0.5, 2), (4.5, 2)]
    threshold = read_record(runs["autoencoder-smoke"] / "metrics.json")["threshold"]
    assert scores.lines[2].get_ydata()[0] == threshold
    medians = [clip[clip["label"] == label]["reconstruction"].sort_values().iloc[1] for label in (1, 0)]
    np.testing.assert_allclose(scores.lines[1].get_ydata(), medians)


def test_the_most_anomalous_patches_of_a_net_are_marked(runs):
    folder = runs["autoencoder-smoke"]
    table, record = pd.read_csv(folder / "scores.csv"), read_record(folder / "metrics.json")
    abnormal, normal, _ = frames(folder).axes
    detector = load_detector(folder / "checkpoints" / "last.ckpt")
    for axes, label in ((abnormal, 1), (normal, 0)):
        rows = table[table["path"].str.contains("Test002") & (table["label"] == label)].sort_values("reconstruction")
        row = rows.iloc[1]
        with Image.open(row["path"]) as image:
            frame = np.array(image)
        np.testing.assert_array_equal(axes.images[0].get_array(), frame)
        scores = {}
        for top in (0, 10):
            for left in (0, 10, 20, 26):
                patch = torch.from_numpy(frame[top : top + 30, left : left + 30].copy())[None, None]
                scores[left, top] = detector.scores(patch).item()
        ranked = sorted(scores, key=scores.get, reverse=True)
        assert [box[:2] for box in boxes(axes)] == ranked  # a frame has eight patches, fewer than ten
        assert ranked[0] == (row["left"], row["top"])
        is_orange = [box[2] == to_rgba(ANOMALOUS) for box in boxes(axes)]
        assert is_orange == [scores[place] >= record["threshold"] for place in ranked]


def test_a_classical_detector_has_its_one_patch_marked_and_a_clip_can_be_chosen(runs, tmp_path, capsys):
    folder = runs["classical-pca"]
    table = pd.read_csv(folder / "scores.csv")
    abnormal, normal, scores = frames(folder, "Test003").axes
    assert scores.get_title().startswith("Test003")
    for axes, label in ((abnormal, 1), (normal, 0)):
        rows = table[table["path"].str.contains("Test003") & (table["label"] == label)].sort_values("pca")
        row = rows.iloc[(len(rows) - 1) // 2]
        assert [box[:2] for box in boxes(axes)] == [(row["left"], row["top"])]
    main([str(folder), "--clip", "Test003", "--out", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"written: {tmp_path / 'a.png'}\n"


def test_what_has_no_frames_or_no_such_clip_is_refused(runs):
    with pytest.raises(InputError, match="was not tested on patches of frames"):
        frames(runs["digits"])
    with pytest.raises(InputError, match=r"no clip 'Test001' .*: choose from Test002, Test003"):
        frames(runs["classical-pca"], "Test001")
