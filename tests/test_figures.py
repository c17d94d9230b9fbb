import io
import re
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from sklearn.metrics import auc

from common.errors import InputError
from common.evaluation import (
    evaluate,
    image_grid,
    precision_recall_figure,
    roc_curve_figure,
    score_histogram,
)
from common.evaluation.figures import ANOMALOUS, NORMAL

GENERATOR = np.random.default_rng(0)
TARGETS = np.arange(200) % 5
LABELS = (TARGETS != 3).astype(int)
SCORES = GENERATOR.normal(1000 + 100 * np.array([1, 4, 2, 0, 3])[TARGETS], 5.0)


def written(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def images(count: int, channels: int = 1, height: int = 8, width: int = 8) -> np.ndarray:
    return GENERATOR.normal(size=(count, channels, height, width))


def drawn(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def row_names(figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[1].get_yticklabels()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: roc_curve_figure(SCORES, LABELS),
        lambda: precision_recall_figure(SCORES, LABELS),
        lambda: score_histogram(SCORES, LABELS, 1050.0, None, TARGETS),
        lambda: image_grid({"image": images(9), "reconstruction": images(9)}),
        lambda: image_grid({"": images(9, 3)}, ["1.5"] * 9, "flagged"),
    ],
    ids=["roc", "precision_recall", "histogram", "reconstruction", "grid"],
)
def test_renders_into_a_small_card_without_pyplot(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    figure, file = make(), io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    width, height = figure.get_size_inches() * figure.dpi
    assert width <= 700
    assert height <= 600


def test_roc_curve():
    scores = np.where(GENERATOR.random(200) < 0.3, 0.0, SCORES)
    (axes,) = roc_curve_figure(scores, LABELS).axes
    metrics = evaluate(scores, LABELS)
    assert axes.get_title() == f"AUROC {metrics['auroc']:.3f}"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("false positive rate", "true positive rate")
    _, curve, point = axes.lines
    assert auc(curve.get_xdata(), curve.get_ydata()) == pytest.approx(metrics["auroc"])
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx((metrics["eer"], 1 - metrics["eer"]))


def test_precision_recall():
    scores = GENERATOR.normal(LABELS, 1.0)
    figure = precision_recall_figure(scores, LABELS)
    (axes,) = figure.axes
    metrics = evaluate(scores, LABELS)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    for text, key in zip(figure.legends[0].texts, ("aupr_anomaly", "aupr_normal"), strict=True):
        assert text.get_text().endswith(f"area {metrics[key]:.3f}")
    anomalies, chance, normals, chance_normal = axes.lines
    for line, key in (anomalies, "aupr_anomaly"), (normals, "aupr_normal"):
        assert -np.sum(np.diff(line.get_xdata()) * line.get_ydata()[:-1]) == pytest.approx(metrics[key])
    assert chance.get_ydata()[0] == pytest.approx(0.8)
    assert chance_normal.get_ydata()[0] == pytest.approx(0.2)


@pytest.mark.parametrize("figure", [roc_curve_figure, precision_recall_figure])
@pytest.mark.parametrize("label", [0, 1])
def test_curves_need_both_classes(figure, label):
    with pytest.raises(InputError, match="normal and anomalous"):
        figure([1.0, 2.0], [label] * 2)


def test_histogram_of_groups():
    (axes,) = score_histogram(SCORES, LABELS, threshold=1050.0).axes
    assert [text.get_text() for text in axes.get_legend().texts] == ["normal (40)", "anomalous (160)", "threshold 1050"]
    assert [to_hex(patch.get_facecolor()).upper() for patch in axes.patches] == [NORMAL, ANOMALOUS]
    for patch in axes.patches:
        heights, edges, _ = patch.get_data()
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1)
    assert axes.lines[0].get_xdata()[0] == 1050
    assert axes.get_xlabel().startswith("score")
    assert axes.get_ylabel() == "density"


@pytest.mark.parametrize("threshold", [None, np.nan, np.inf])
def test_histogram_without_threshold(threshold):
    assert not score_histogram(SCORES, LABELS, threshold).axes[0].lines


def test_histogram_reaches_a_far_threshold():
    patch = score_histogram(SCORES, LABELS, threshold=5e4).axes[0].patches[0]
    assert patch.get_data().edges[-1] == 5e4


def test_histogram_keeps_outliers_from_squashing_the_rest():
    scores = np.append(SCORES, 1e9)
    heights, edges, _ = score_histogram(scores, np.append(LABELS, 1)).axes[0].patches[1].get_data()
    assert edges[-1] < 2000
    assert heights[-1] * (edges[-1] - edges[-2]) == pytest.approx(np.sum(scores >= edges[-2]) / 161)


def test_histogram_has_a_row_per_class_with_the_most_confused_next_to_the_normal_one():
    figure = score_histogram(SCORES, LABELS, 1050.0, ["cat", "dog", "ship", "plane", "frog"], TARGETS)
    assert row_names(figure) == ["plane", "cat (1.00)", "ship (1.00)", "frog (1.00)", "dog (1.00)"]
    assert [to_hex(patch.get_facecolor()).upper() for patch in figure.axes[1].patches] == [NORMAL] + 4 * [ANOMALOUS]
    assert figure.axes[1].get_ylabel() == "class (AUROC)"


def test_histogram_rows_tell_each_class_auroc():
    scores, labels, targets = [1.0, 3.0, 2.0, 2.0, 9.0, 0.0], [0, 0, 1, 1, 1, 1], [5, 5, 6, 6, 7, 8]
    assert row_names(score_histogram(scores, labels, targets=targets)) == ["5", "8 (0.00)", "6 (0.50)", "7 (1.00)"]


def test_histogram_of_many_classes_shows_the_most_confused():
    targets = np.arange(100)
    figure = score_histogram(np.where(targets == 50, -1.0, 100.0 - targets), targets != 50, targets=targets)
    assert [re.sub(" .*", "", name) for name in row_names(figure)] == ["50", *map(str, range(99, 88, -1))]


def test_histogram_row_of_a_class_of_outliers_ends_at_the_edge():
    figure = score_histogram(np.append(SCORES, 1e9), np.append(LABELS, 1), targets=np.append(TARGETS, 9))
    row = figure.axes[1].patches[-1].get_data()
    assert np.flatnonzero(row.values - row.baseline).tolist() == [39]


@pytest.mark.parametrize("label", [0, 1])
def test_histogram_of_one_class(label):
    figure = score_histogram([1.0, 2.0], [label, label], targets=[4, 6])
    assert row_names(figure) == ["4", "6"]
    assert len(figure.axes[0].patches) == 1


@pytest.mark.parametrize("scores", [[7.0, 7.0], [0.0, 0.0], [1e3, 1e3 + 1e-12], [1e20, 1e20], [5e-324, 0.0]])
def test_histogram_of_collapsed_scores(scores):
    top, bottom = score_histogram(scores, [0, 1], targets=[0, 1]).axes
    for axes in (top, bottom):
        assert np.isfinite(axes.dataLim.bounds).all()
        for patch in axes.patches:
            assert np.count_nonzero(np.diff(np.append(patch.get_data().baseline, patch.get_data().values))) >= 1


def test_histogram_mistakes():
    with pytest.raises(InputError, match="targets"):
        score_histogram([1.0, 2.0], [0, 1], targets=[1])
    with pytest.raises(InputError, match="1 of 2 scores"):
        score_histogram([1.0, np.nan], [0, 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_share_one_scale(channels):
    x = images(3, channels, 6, 9) * 100 - 40
    copies = 2 * x
    figure = image_grid({"image": x, "reconstruction": copies})
    assert written(figure) == ["image", "reconstruction"]
    low, high = copies.min(), copies.max()
    assert low < x.min()
    assert high > x.max()
    expected = (np.concatenate([x, copies]).transpose(0, 2, 3, 1) - low) / (high - low)
    for picture, pixels in zip(drawn(figure), expected, strict=True):
        np.testing.assert_allclose(picture.reshape(pixels.shape), pixels, atol=0.5 / 255)
    assert all(picture.get_clim() == (0, 1) for picture in figure.axes[0].images)


def test_constant_images():
    pictures = drawn(image_grid({"": torch.full((2, 1, 4, 4), 3.0, requires_grad=True)}))
    assert not np.any(pictures)


def test_image_grid_wraps_and_titles():
    titles = [f"{i}.5" for i in range(11)]
    figure = image_grid({"": images(11, 3)}, titles, "flagged")
    assert [text for text in written(figure) if text] == titles
    corners = [(picture.get_extent()[3], picture.get_extent()[0]) for picture in figure.axes[0].images]
    tops, lefts = (sorted(set(values)) for values in zip(*corners, strict=True))
    assert [(tops.index(top), lefts.index(left)) for top, left in corners] == [divmod(i, 8) for i in range(11)]
    assert figure.get_suptitle() == "flagged"


def test_image_grid_of_nothing():
    figure = image_grid({"": images(0)}, [], "nothing was flagged")
    assert not drawn(figure)
    assert figure.get_suptitle() == "nothing was flagged"


def test_image_grid_names_each_group_once():
    figure = image_grid({"normal": images(9), "anomalous": images(2), "none": images(0)}, [f"{i}.5" for i in range(11)])
    names = ["normal", *[f"{i}.5" for i in range(8)], "", "8.5", "anomalous", "9.5", "10.5", "none"]
    assert written(figure) == names


@pytest.mark.parametrize(
    "make",
    [
        lambda: image_grid({"image": images(2), "reconstruction": images(2, height=9)}),
        lambda: image_grid({"": images(2, 2)}),
        lambda: image_grid({"": np.zeros((2, 64))}),
        lambda: image_grid({"": images(2)}, ["a"], "flagged"),
    ],
)
def test_image_mistakes(make):
    with pytest.raises(InputError, match="images"):
        make()


def test_inputs_are_left_alone():
    arrays = [SCORES.copy(), LABELS.astype(float), TARGETS.astype(float), images(4), images(4)]
    copies = [array.copy() for array in arrays]
    scores, labels, targets, x, reconstructions = arrays
    roc_curve_figure(scores, labels)
    precision_recall_figure(scores, labels)
    score_histogram(scores, labels, 1050.0, None, targets)
    image_grid({"image": x, "reconstruction": reconstructions}, ["a"] * 8, "flagged")
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
