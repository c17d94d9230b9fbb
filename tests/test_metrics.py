import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from common.errors import InputError
from common.evaluation import evaluate, evaluate_at

quick = settings(max_examples=50, deadline=None)
RANKING = {"auroc", "aupr_anomaly", "aupr_normal", "fpr95_anomaly", "fpr95_normal", "eer"}
RANKING |= {"f1_max", "f1_max_normal", "f1_eer", "f1_eer_normal"}
RANKING |= {f"f1_normal_{share}" for share in (10, 20, 30, 40, 50)}
MIRRORED = {"aupr_anomaly": "aupr_normal", "fpr95_anomaly": "fpr95_normal", "f1_max": "f1_max_normal"}
MIRRORED |= {"f1_eer": "f1_eer_normal", "f1_trivial": "f1_trivial_normal", "n_anomalous": "n_normal"}


def labelled(values: st.SearchStrategy) -> st.SearchStrategy:
    """Scores and labels, both classes present; few distinct scores, so that ties are common."""
    pairs = st.lists(st.tuples(values, st.integers(0, 1)), min_size=2, max_size=40)
    return pairs.filter(lambda drawn: len({label for _, label in drawn}) == 2).map(lambda drawn: np.array(drawn).T)


ties = labelled(st.integers(-8, 8))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (500.0, 1e3), (1.0, -1e3)])
def test_agrees_with_scikit_learn_on_raw_scores(scale, shift):
    generator = np.random.default_rng(0)
    labels = generator.random(300) < 0.3
    scores = np.round(generator.normal(labels, 1.0), 1) * scale + shift
    metrics = evaluate(scores, labels)
    thresholds = np.unique(scores)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["aupr_anomaly"] == pytest.approx(average_precision_score(labels, scores))
    assert metrics["aupr_normal"] == pytest.approx(average_precision_score(~labels, -scores))
    assert metrics["f1_max"] == pytest.approx(max(f1_score(labels, scores >= t) for t in thresholds))
    assert metrics["f1_max_normal"] == pytest.approx(max(f1_score(~labels, scores <= t) for t in thresholds))
    balanced = min(thresholds, key=lambda t: abs((scores >= t)[~labels].mean() - (scores < t)[labels].mean()))
    assert metrics["f1_eer"] == pytest.approx(f1_score(labels, scores >= balanced))
    passing = [t for t in thresholds if (scores >= t)[labels].mean() >= 0.95]
    assert metrics["fpr95_anomaly"] == pytest.approx((scores >= max(passing))[~labels].mean())
    passing = [t for t in thresholds if (scores <= t)[~labels].mean() >= 0.95]
    assert metrics["fpr95_normal"] == pytest.approx((scores <= min(passing))[labels].mean())


def test_by_hand():
    # From the top: a n a n a n n. ROC: (0, 1/3), (1/4, 1/3), (1/4, 2/3), (1/2, 2/3), (1/2, 1), (3/4, 1), (1, 1).
    metrics = evaluate([7, 6, 5, 4, 3, 2, 1], [1, 0, 1, 0, 1, 0, 0])
    assert metrics == pytest.approx(
        {
            "auroc": 9 / 12,
            "aupr_anomaly": (1 / 1 + 2 / 3 + 3 / 5) / 3,
            "aupr_normal": (1 / 1 + 2 / 2 + 3 / 4 + 4 / 6) / 4,
            "fpr95_anomaly": 1 / 2,
            "fpr95_normal": 2 / 3,
            "eer": 1 / 3,  # on the segment from (1/4, 2/3) to (1/2, 2/3), where FNR is 1/3
            "f1_max": 6 / 8,  # five flagged, three of them right
            "f1_max_normal": 8 / 10,  # six called normal, four of them right
            "f1_eer": 4 / 6,  # |FPR - FNR| is 1/12 with three flagged, 1/6 with four
            "f1_eer_normal": 6 / 8,
            "f1_trivial": 6 / 10,
            "f1_trivial_normal": 8 / 11,
            # called normal: three of four normals, one of three anomalies; p / (1 - p) anomalies for each normal
            "f1_normal_10": 1.5 / (1.75 + 1 / 27),
            "f1_normal_20": 1.5 / (1.75 + 1 / 12),
            "f1_normal_30": 1.5 / (1.75 + 1 / 7),
            "f1_normal_40": 1.5 / (1.75 + 2 / 9),
            "f1_normal_50": 1.5 / (1.75 + 1 / 3),
            "n_normal": 4,
            "n_anomalous": 3,
        }
    )


def test_balanced_threshold_breaks_a_tie_towards_fewer_positives():
    # From the top: a n n n a. |FPR - FNR| is 1/6 with two flagged and with three, but not in floating point.
    metrics = evaluate([5, 4, 3, 2, 1], [1, 0, 0, 0, 1])
    assert metrics["f1_eer"] == pytest.approx(2 / 4)
    assert metrics["f1_eer_normal"] == pytest.approx(2 / 5)


def test_f1_at_a_share_is_that_of_random_draws_on_average():
    random, share = np.random.default_rng(0), 30
    normal, anomalous = random.normal(0, 1, 300), random.normal(1.5, 1, 3000)
    expected = evaluate(np.append(normal, anomalous), [0] * 300 + [1] * 3000)[f"f1_normal_{share}"]
    n = round(300 * share / (100 - share))
    labels = [0] * 300 + [1] * n
    draws = [evaluate(np.append(normal, random.choice(anomalous, n, False)), labels)["f1_eer_normal"] for _ in range(200)]
    assert np.mean(draws) == pytest.approx(expected, abs=0.005)


def test_perfect_ranking():
    metrics = evaluate([-1e3, -999.0, 1e3, 1001.0], [0, 0, 1, 1])
    zero = {"fpr95_anomaly", "fpr95_normal", "eer"}
    assert {key: metrics[key] for key in RANKING} == {key: float(key not in zero) for key in RANKING}


def test_reversed_ranking():
    metrics = evaluate([1001.0, 1e3, -999.0, -1e3], [0, 0, 1, 1])
    assert metrics["auroc"] == 0
    assert metrics["aupr_anomaly"] == metrics["aupr_normal"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert metrics["fpr95_anomaly"] == metrics["fpr95_normal"] == metrics["eer"] == 1
    assert metrics["f1_max"] == metrics["f1_max_normal"] == pytest.approx(4 / 6)
    assert metrics["f1_eer"] == metrics["f1_eer_normal"] == 0


def test_constant_scores_are_worth_the_trivial_detector():
    metrics = evaluate(np.full(10, 1e3), [1] * 7 + [0] * 3)
    assert metrics["auroc"] == metrics["eer"] == 0.5
    assert metrics["aupr_anomaly"] == pytest.approx(0.7)
    assert metrics["fpr95_anomaly"] == metrics["fpr95_normal"] == 1
    assert metrics["f1_max"] == metrics["f1_eer"] == pytest.approx(metrics["f1_trivial"]) == pytest.approx(14 / 17)
    assert metrics["f1_max_normal"] == pytest.approx(metrics["f1_trivial_normal"]) == pytest.approx(6 / 13)


def test_exactly_95_percent_is_enough():
    scores = [*range(1, 21), 1.5, 0.5]  # 20 anomalies, of which 19 lie above both normals
    assert evaluate(scores, [1] * 20 + [0] * 2)["fpr95_anomaly"] == 0


@pytest.mark.parametrize(("label", "missing"), [(0, "anomalous"), (1, "normal")])
def test_one_class_is_nan_with_a_warning(label, missing):
    with pytest.warns(RuntimeWarning, match=f"no {missing} samples"):
        metrics = evaluate([1.0, 2.0, 3.0], [label] * 3, threshold=2.0)
    assert all(math.isnan(metrics[key]) for key in RANKING)
    assert (metrics["n_normal"], metrics["n_anomalous"]) == (3 * (1 - label), 3 * label)
    assert metrics["f1_trivial"] == label
    assert metrics["flagged"] == 2
    undefined = {key for key in metrics if math.isnan(metrics[key])} - RANKING
    assert undefined == {"balanced_accuracy_threshold"} | (
        {"false_alarm_rate"} if label else {"recall_threshold", "f1_threshold"}
    )


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, math.nan, math.inf], [0, 1, 1], "2 of 3 scores are NaN or infinite"),
        ([1.0, 2.0], [0, 1, 1], r"shape \(2,\) do not match labels of shape \(3,\)"),
        ([1.0, 2.0], [-1, 1], "labels must be 0"),
        ([1.0, 2.0], [0, 0.5], "labels must be 0"),
        ([1.0, 2.0], [0, math.nan], "labels must be 0"),
        ([[1.0], [2.0]], [[0], [1]], "non-empty vector"),
        ([], [], "non-empty vector"),
    ],
)
def test_mistakes(scores, labels, message):
    with pytest.raises(InputError, match=message):
        evaluate(scores, labels)
    with pytest.raises(InputError, match=message):
        evaluate_at(scores, labels, 1.0)


def test_threshold_metrics():
    generator = np.random.default_rng(0)
    labels = generator.random(200) < 0.3
    scores = np.round(generator.normal(labels, 1.0), 1) * 1e3
    threshold = float(scores[7])  # a tie: a score that equals the threshold is flagged
    flagged = scores >= threshold
    expected = {
        "precision_threshold": precision_score(labels, flagged),
        "recall_threshold": recall_score(labels, flagged),
        "f1_threshold": f1_score(labels, flagged),
        "false_alarm_rate": flagged[~labels].mean(),
        "accuracy_threshold": accuracy_score(labels, flagged),
        "balanced_accuracy_threshold": balanced_accuracy_score(labels, flagged),
        "flagged": flagged.sum(),
        "threshold": threshold,
    }
    assert evaluate_at(scores, labels, threshold) == pytest.approx(expected)
    metrics = evaluate(scores, labels, threshold)
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert metrics.keys() - expected.keys() == evaluate(scores, labels).keys()


def test_accuracy_at_a_fixed_threshold():
    metrics = evaluate([-2.0, -1.0, 1.0, -1.0, 3.0], [0, 0, 0, 1, 1], fixed=0.0)
    assert metrics["accuracy_fixed"] == pytest.approx(3 / 5)
    assert metrics["balanced_accuracy_fixed"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert "flagged" not in metrics
    both = evaluate([-2.0, -1.0, 1.0, -1.0, 3.0], [0, 0, 0, 1, 1], threshold=2.0, fixed=0.0)
    assert {name: both[name] for name in metrics} == metrics
    assert both["accuracy_threshold"] == pytest.approx(4 / 5)


@pytest.mark.parametrize("threshold", [None, math.nan, math.inf, -math.inf])
def test_no_threshold_yet(threshold):
    assert "flagged" not in evaluate([1.0, 2.0], [0, 1], threshold)


def test_nothing_flagged():
    for threshold in (3.0, math.inf):
        metrics = evaluate_at([1.0, 2.0], [0, 1], threshold)
        assert metrics.pop("threshold") == threshold
        assert metrics.pop("accuracy_threshold") == metrics.pop("balanced_accuracy_threshold") == 0.5
        assert set(metrics.values()) == {0}
    with pytest.raises(InputError, match="threshold is NaN"):
        evaluate_at([1.0, 2.0], [0, 1], math.nan)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors(dtype):
    scores = torch.tensor([5.0, -3.0, 8.0, 1.0], dtype=dtype, requires_grad=True)
    expected = evaluate([5.0, -3.0, 8.0, 1.0], [1, 0, 1, 1], 2.0)
    assert evaluate(scores, torch.tensor([1, 0, 1, 1]), 2.0) == expected
    assert evaluate(scores, torch.tensor([True, False, True, True]), 2.0) == expected


def test_large_scores_do_not_tie():
    scores = np.array([1e3, 1e3 + 1e-9])
    assert evaluate(scores, [0, 1])["auroc"] == evaluate(torch.from_numpy(scores), [0, 1])["auroc"] == 1


def test_inputs_are_left_alone():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 1.0])
    evaluate(scores, labels, 2.0)
    assert scores.tolist() == [3, 1, 2]
    assert labels.tolist() == [1, 0, 1]


def test_speed():
    generator = np.random.default_rng(0)
    start = time.process_time()
    evaluate(generator.normal(size=100_000), generator.random(100_000) < 0.9, 0.0)
    assert time.process_time() - start < 2


@quick
@given(ties)
def test_ranges_and_bounds(drawn):
    metrics = evaluate(*drawn)
    assert all(0 <= metrics[key] <= 1 for key in RANKING - {"aupr_anomaly", "aupr_normal"})
    for suffix in ("", "_normal"):
        assert metrics[f"f1_max{suffix}"] >= max(metrics[f"f1_trivial{suffix}"], metrics[f"f1_eer{suffix}"]) - 1e-12


def precision_in_fractions(scores, positive):
    """Average precision by its definition: at each score, the precision and the share of the positives that lie there."""
    shares = [Fraction(int(positive[scores == score].sum()), int(positive.sum())) for score in np.unique(scores)]
    precisions = [Fraction(int(positive[scores >= score].sum()), int((scores >= score).sum())) for score in np.unique(scores)]
    return sum(share * precision for share, precision in zip(shares, precisions, strict=True))


@quick
@given(ties)
def test_average_precision_is_its_definition_but_for_rounding(drawn):
    """Its floating sum may round to a hair above 1."""
    scores, labels = drawn
    metrics = evaluate(scores, labels)
    for key, exact in (
        ("aupr_anomaly", precision_in_fractions(scores, labels)),
        ("aupr_normal", precision_in_fractions(-scores, 1 - labels)),
    ):
        assert 0 < exact <= 1
        assert metrics[key] == pytest.approx(float(exact), rel=1e-14)


@quick
@given(ties, st.sampled_from([lambda s: 1e3 + 5 * s, lambda s: s**3, np.exp, lambda s: np.tanh(s / 9) * 1e-3 - 1e2]))
def test_only_the_ranking_counts(drawn, increasing):
    scores, labels = drawn
    assert evaluate(increasing(scores.astype(float)), labels) == pytest.approx(evaluate(scores, labels))


@quick
@given(ties, st.randoms(use_true_random=False))
def test_order_of_samples_does_not_count(drawn, random):
    order = random.sample(range(drawn.shape[1]), drawn.shape[1])
    assert evaluate(*drawn[:, order]) == pytest.approx(evaluate(*drawn))


@quick
@given(ties)
def test_negated_scores_mirror_the_curve(drawn):
    scores, labels = drawn
    there, back = evaluate(scores, labels), evaluate(-scores, labels)
    assert back["auroc"] == pytest.approx(1 - there["auroc"])
    assert back["eer"] == pytest.approx(1 - there["eer"])


@quick
@given(ties)
def test_exchanging_the_classes_exchanges_the_twins(drawn):
    scores, labels = drawn
    there, back = evaluate(scores, labels), evaluate(-scores, 1 - labels)
    for key in ("auroc", "eer"):
        assert back[key] == pytest.approx(there[key])
    for anomaly, normal in MIRRORED.items():
        assert back[anomaly] == pytest.approx(there[normal])
        assert back[normal] == pytest.approx(there[anomaly])


@quick
@given(ties, st.integers(-9, 9))
def test_any_threshold_obeys_the_oracle(drawn, threshold):
    metrics = evaluate(*drawn, threshold)
    assert metrics["f1_threshold"] <= metrics["f1_max"] + 1e-12
    hits = metrics["recall_threshold"] * metrics["n_anomalous"]
    assert metrics["flagged"] == pytest.approx(hits + metrics["false_alarm_rate"] * metrics["n_normal"])
