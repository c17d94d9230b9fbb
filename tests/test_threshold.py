import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.evaluation import conformal_p_value, conformal_threshold, quantile_threshold, threshold_by

quick = settings(max_examples=50, deadline=None)
shares = st.floats(0.01, 0.99)
calibrations = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=60)


def test_quantile_is_linear_between_scores():
    assert quantile_threshold([30.0, 10.0, 20.0, 40.0, 50.0], 0.9) == pytest.approx(46.0)
    assert quantile_threshold(torch.tensor([-1e3, 1e3]), 0.25) == -500


@quick
@given(calibrations, shares)
def test_quantile_has_its_share_below_to_within_one_sample(scores, quantile):
    threshold = quantile_threshold(scores, quantile)
    assert np.mean(np.array(scores) <= threshold) >= quantile - 1 / len(scores) - 1e-9
    assert np.mean(np.array(scores) < threshold) <= quantile + 1 / len(scores) + 1e-9


@pytest.mark.parametrize("function", [quantile_threshold, conformal_threshold])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 95, math.nan])
def test_share_outside_the_unit_interval(function, share):
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        function([1.0, 2.0], share)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 1.0], [[1.0, 2.0]]])
def test_scores_without_threshold(scores):
    for call in (
        lambda: quantile_threshold(scores, 0.5),
        lambda: conformal_threshold(scores, 0.5),
        lambda: conformal_p_value(scores, [1.0]),
        lambda: conformal_p_value([1.0], scores),
    ):
        with pytest.raises(InputError, match="scores"):
            call()


def test_conformal_threshold_by_hand():
    scores = np.arange(19, 0, -1) * 100.0
    assert conformal_threshold(scores, 0.05) == 1900
    assert conformal_threshold(scores, 0.10) == 1800
    assert conformal_threshold(scores, 0.12) == 1800
    assert conformal_threshold(scores, 0.99) == 100
    assert conformal_threshold(scores, 0.0499) == math.inf
    assert conformal_threshold(scores[:18], 0.05) == math.inf


@pytest.mark.parametrize("percent", range(1, 100))
def test_conformal_rank_is_exact_in_floating_point(percent):
    assert conformal_threshold(np.arange(1, 100), percent / 100) == 100 - percent


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.13, 0.5, 0.9])
@pytest.mark.parametrize("n", [5, 19, 40])
def test_conformal_coverage(n, alpha):
    """Exchangeable: each of n + 1 scores is equally likely to be the fresh one, so leaving each out gives P exactly."""
    scores = np.random.default_rng(n).normal(1e3, 300, n + 1)
    exceeds = [scores[i] > conformal_threshold(np.delete(scores, i), alpha) for i in range(n + 1)]
    assert sum(exceeds) == math.floor(round(alpha * (n + 1), 9))


@quick
@given(calibrations.filter(lambda scores: len(scores) > 1), shares)
def test_conformal_coverage_with_ties(scores, alpha):
    exceeds = [s > conformal_threshold(scores[:i] + scores[i + 1 :], alpha) for i, s in enumerate(scores)]
    assert np.mean(exceeds) <= alpha + 1e-9


@quick
@given(calibrations, st.lists(st.integers(-1100, 1100).map(float), min_size=1), st.integers(1, 99))
def test_threshold_and_p_value_agree(calibration, scores, percent):
    alpha = percent / 100
    above = np.array(scores) > conformal_threshold(calibration, alpha)
    assert (above == (conformal_p_value(scores, calibration) <= alpha + 1e-9)).all()


def test_p_values_of_left_out_scores_are_uniform():
    scores = np.random.default_rng(0).normal(-50.0, 9.0, 20)
    p_values = [conformal_p_value(scores[[i]], np.delete(scores, i))[0] for i in range(20)]
    assert sorted(p_values) == pytest.approx(np.arange(1, 21) / 20)


@quick
@given(calibrations, st.lists(st.integers(-1100, 1100).map(float), min_size=1))
def test_p_values_count_and_fall_with_the_score(calibration, scores):
    scores = sorted(scores)
    p_values = conformal_p_value(scores, calibration)
    expected = [(1 + sum(c >= s for c in calibration)) / (1 + len(calibration)) for s in scores]
    assert p_values.tolist() == pytest.approx(expected)
    assert (np.diff(p_values) <= 0).all()


def test_tensors_and_inputs_left_alone():
    calibration = torch.tensor([3.0, 1.0, 2.0])
    assert conformal_p_value(torch.tensor([2.0, 9.0]), calibration).tolist() == [0.75, 0.25]
    assert conformal_threshold(calibration, 0.5) == 2
    assert calibration.tolist() == [3, 1, 2]
    array = np.array([3.0, 1.0, 2.0])
    conformal_threshold(array, 0.5)
    conformal_p_value(array, array)
    assert array.tolist() == [3, 1, 2]


@quick
@given(calibrations, st.lists(st.integers(-1100, 1100).map(float), min_size=1), st.integers(1, 99))
def test_a_rule_flags_what_it_says(calibration, scores, percent):
    flagged = np.array(scores) >= threshold_by(f"alpha={percent / 100}", calibration)
    assert (flagged == (conformal_p_value(scores, calibration) <= percent / 100 + 1e-9)).all()
    assert threshold_by(f"quantile={percent / 100}", calibration) == quantile_threshold(calibration, percent / 100)
    assert threshold_by(str(scores[0]), calibration) == scores[0]


@pytest.mark.parametrize("rule", ["", "much", "nan", "beta=0.1", "alpha=", "alpha=0", "quantile=1", "=0.5x"])
def test_a_rule_that_is_none(rule):
    with pytest.raises(InputError, match=r"give quantile=Q or alpha=A|must lie strictly between 0 and 1"):
        threshold_by(rule, [1.0, 2.0])


def test_a_quantile_is_computed_in_double_precision():
    assert quantile_threshold([1e9, 1e9 + 1], 0.5) == 1e9 + 0.5
