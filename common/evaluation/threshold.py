"""Thresholds and p-values from the scores of held-out normal samples alone.

A quantile threshold has about a share ``1 - quantile`` of the normals above it. A conformal threshold guarantees this for
any number n of calibration samples that are exchangeable with new normals (Vovk, Gammerman and Shafer, *Algorithmic Learning
in a Random World*, 2005; Bates et al., "Testing for outliers with conformal p-values", *Annals of Statistics* 51, 2023).
Scores are ``(N,)``, higher = more anomalous. All functions raise InputError for scores that are empty or not finite and for
shares outside (0, 1).
"""

import math

import numpy as np

from common.errors import InputError
from common.evaluation.metrics import Floats, Values, as_scores


def quantile_threshold(scores: Values, quantile: float) -> float:
    """The score below which a share ``quantile`` of the normal samples lies, linear between order statistics.

    Example:
        >>> quantile_threshold([0.0, 10.0, 20.0], 0.75)
        15.0
    """
    _check_share(quantile, "quantile")
    return float(np.quantile(as_scores(scores), quantile))


def conformal_threshold(scores: Values, alpha: float) -> float:
    """The smallest calibration score t such that a new normal sample has P(score > t) <= alpha.

    It is the ceil((n + 1)(1 - alpha))-th smallest of the n scores, and ``score > t`` holds exactly where
    :func:`conformal_p_value` <= alpha. The bound is strict: if scores are discrete, flag ``score > t``, not ``>=``. With fewer
    than 1/alpha - 1 samples no guarantee is possible, and the threshold is infinite.

    Example:
        >>> conformal_threshold(range(1, 20), alpha=0.1), conformal_threshold([1.0, 2.0], alpha=0.1)
        (18.0, inf)
    """
    _check_share(alpha, "alpha")
    calibration = np.sort(as_scores(scores))
    rank = math.ceil(round((calibration.size + 1) * (1 - alpha), 9))  # 100 * (1 - 0.42) is a hair above 58
    return float(calibration[rank - 1]) if rank <= calibration.size else math.inf


def samples_needed(alpha: float) -> int:
    """The smallest number of calibration samples for which :func:`conformal_threshold` is finite.

    Example:
        >>> samples_needed(0.01), samples_needed(0.3)
        (99, 3)
    """
    _check_share(alpha, "alpha")
    return math.ceil(round(1 / alpha - 1, 9))


def conformal_p_value(scores: Values, calibration: Values) -> Floats:
    """Conformal p-values p(s) = (1 + #{calibration >= s}) / (n + 1); for a new normal, P(p <= alpha) <= alpha.

    ``calibration`` are the n scores of normal samples that were not trained on. The p-values are ``(N,)`` in [1/(n + 1), 1],
    small = anomalous.

    Example:
        >>> conformal_p_value([0.0, 2.0, 9.0], calibration=[1.0, 2.0, 3.0])
        array([1.  , 0.75, 0.25])
    """
    reference = np.sort(as_scores(calibration, "calibration scores"))
    n_below = np.searchsorted(reference, as_scores(scores), side="left")
    return np.asarray((1 + reference.size - n_below) / (1 + reference.size), dtype=np.float64)


def threshold_by(rule: str, calibration: Values) -> float:
    """Computes the lowest score that is flagged, by a rule given as text.

    Args:
        rule: ``quantile=<q>``, see :func:`quantile_threshold`; ``alpha=<a>``, for :func:`conformal_p_value` <= a; or a score.
        calibration: Scores of normal samples that were not trained on; not used if the rule is a score.

    Raises:
        InputError: The rule is invalid, or it needs calibration scores and there are none.

    Example:
        >>> threshold_by("quantile=0.75", [0.0, 10.0, 20.0]), threshold_by("7.5", [])
        (15.0, 7.5)
    """
    name, _, number = rule.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in {"", "quantile", "alpha"} or math.isnan(value):
        raise InputError(f"invalid threshold '{rule}': give quantile=Q or alpha=A, each in (0, 1), or a score")
    if not name:
        return value
    if not np.size(calibration):
        raise InputError(f"threshold '{rule}' needs held-out scores: train with val_fraction above 0, or give a score")
    if name == "quantile":
        return quantile_threshold(calibration, value)
    return float(np.nextafter(conformal_threshold(calibration, value), np.inf))


def _check_share(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, not {share}")
