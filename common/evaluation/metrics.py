"""Metrics of how well scores separate anomalies from normal samples: higher = more anomalous, label 1 = anomalous."""

import math
import warnings
from collections import defaultdict
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from common.errors import InputError

Values: TypeAlias = ArrayLike | Tensor
Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


SHARES = (10, 20, 30, 40, 50)
"""Percentages of anomalies in the test set at which ALOCC reports F1 (Sabokrou et al., CVPR 2018, Fig. 8)."""


def evaluate(scores: Values, labels: Values, threshold: float | None = None, fixed: float | None = None) -> dict[str, float]:
    r"""Computes every metric of one split from raw scores in float64 (a sigmoid would tie large scores).

    ==============================  ===================================================================================
    ``auroc``                       area under the ROC curve, P(anomaly scores above normal), ties count one half
    ``aupr_anomaly, _normal``       average precision with the anomalies / the normals (negated scores) as positives
    ``fpr95_anomaly, _normal``      false positive rate at the first operating point whose true positive rate is
                                    at least 0.95, positives as above
    ``eer``                         equal error rate: where FPR = FNR, linear between the points of the ROC curve
    ``f1_max, f1_max_normal``       F1 at the threshold that is best on these labels: an **oracle**, an upper bound
    ``f1_eer, f1_eer_normal``       F1 at the score where \|FPR - FNR\| is smallest, the one with fewer positives if two
                                    tie; this threshold needs the labels, so it is an oracle too
    ``f1_trivial, _normal``         F1 of calling everything positive, 2p / (1 + p) for a share p of positives:
                                    any useful F1 is higher
    ``f1_normal_10, … _50``         F1 of the normals at the threshold of ``f1_eer_normal``, with the anomalies weighted to
                                    10 % … 50 % of the test set: the average over random draws of anomalies
    ``n_normal, n_anomalous``       sample counts
    ==============================  ===================================================================================

    Args:
        scores: ``(N,)`` finite, any range, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous.
        threshold: Adds the keys of :func:`evaluate_at` if it is finite; None, NaN and infinity mean "no threshold yet".
        fixed: A threshold that follows from the meaning of the score, such as 0 for a difference of logits; adds
            ``accuracy_fixed`` and ``balanced_accuracy_fixed``.

    Returns:
        Metrics by name, in [0, 1] except for the counts; ``aupr`` may round to a hair above 1. If one class is missing, all
        ranking metrics (all except ``f1_trivial`` and the counts) are NaN, with a RuntimeWarning.

    Raises:
        InputError: There are no samples, scores are not finite, labels are not 0 or 1, or the shapes do not match.

    Example:
        >>> metrics = evaluate([-3.0, 10.0, 20.0, 1500.0], [0, 1, 0, 1], threshold=15.0)
        >>> metrics["auroc"], metrics["eer"], metrics["f1_max"], metrics["precision_threshold"]
        (0.75, 0.5, 0.8, 0.5)
    """
    values, anomalous = as_pair(scores, labels)
    n_anomalous = int(anomalous.sum())
    n_normal = anomalous.size - n_anomalous
    if n_anomalous and n_normal:
        auroc = float(roc_auc_score(anomalous, values))
        anomaly, normal = _ranking(values, anomalous), _ranking(-values, ~anomalous)
    else:
        missing = "normal" if n_anomalous else "anomalous"
        warnings.warn(f"no {missing} samples: every ranking metric is NaN", RuntimeWarning, stacklevel=2)
        auroc, anomaly = math.nan, defaultdict(lambda: math.nan)
        normal = anomaly
    metrics = {
        "auroc": auroc,
        "aupr_anomaly": anomaly["aupr"],
        "aupr_normal": normal["aupr"],
        "fpr95_anomaly": anomaly["fpr95"],
        "fpr95_normal": normal["fpr95"],
        "eer": anomaly["eer"],
        "f1_max": anomaly["f1_max"],
        "f1_max_normal": normal["f1_max"],
        "f1_eer": anomaly["f1_eer"],
        "f1_eer_normal": normal["f1_eer"],
        "f1_trivial": 2 * n_anomalous / (values.size + n_anomalous),
        "f1_trivial_normal": 2 * n_normal / (values.size + n_normal),
        **{f"f1_normal_{share}": normal[f"f1_{share}"] for share in SHARES},
        "n_normal": n_normal,
        "n_anomalous": n_anomalous,
    }
    if threshold is not None and math.isfinite(threshold):
        metrics |= evaluate_at(values, anomalous, threshold)
    if fixed is not None:
        at_fixed = evaluate_at(values, anomalous, fixed)
        metrics |= {f"{name}_fixed": at_fixed[f"{name}_threshold"] for name in ("accuracy", "balanced_accuracy")}
    return metrics


def evaluate_at(scores: Values, labels: Values, threshold: float) -> dict[str, float]:
    """Computes the metrics of a detector that flags ``score >= threshold``, with the anomalies as positives.

    Args:
        scores: ``(N,)`` finite, any range, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous.
        threshold: The lowest score that is flagged; infinity flags nothing, and NaN raises InputError.

    Returns:
        In [0, 1]: ``precision_threshold`` (0 when nothing is flagged), ``recall_threshold``, ``f1_threshold``,
        ``false_alarm_rate`` (flagged share of the normals), ``accuracy_threshold`` and ``balanced_accuracy_threshold`` (mean
        accuracy on anomalies and on normals); also the number ``flagged`` and the ``threshold``. Recall and F1 are NaN without
        anomalies, the false alarm rate without normals, balanced accuracy if one class is missing.

    Example:
        >>> evaluate_at([-3.0, 10.0, 20.0, 1500.0], [0, 1, 0, 1], threshold=10.0)["recall_threshold"]
        1.0
    """
    if math.isnan(threshold):
        raise InputError("the threshold is NaN")
    values, anomalous = as_pair(scores, labels)
    flagged = values >= threshold
    n_flagged, n_anomalous, hits = int(flagged.sum()), int(anomalous.sum()), int((flagged & anomalous).sum())
    n_normal = anomalous.size - n_anomalous
    recall = hits / n_anomalous if n_anomalous else math.nan
    false_alarm_rate = (n_flagged - hits) / n_normal if n_normal else math.nan
    return {
        "precision_threshold": hits / n_flagged if n_flagged else 0.0,
        "recall_threshold": recall,
        "f1_threshold": 2 * hits / (n_flagged + n_anomalous) if n_anomalous else math.nan,
        "false_alarm_rate": false_alarm_rate,
        "accuracy_threshold": float((flagged == anomalous).mean()),
        "balanced_accuracy_threshold": (recall + 1 - false_alarm_rate) / 2,
        "flagged": n_flagged,
        "threshold": threshold,
    }


def as_scores(scores: Values, name: str = "scores") -> Floats:
    """Converts scores to an ``(N,)`` float64 array; raises InputError if it is empty or not finite.

    Args:
        scores: ``(N,)``, a tensor on any device, an array or a list.
        name: What an error calls them.

    Example:
        >>> as_scores([1, 2])
        array([1., 2.])
    """
    array = as_float64(scores)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} must be a non-empty vector, not of shape {array.shape}")
    if n_bad := array.size - int(np.isfinite(array).sum()):
        raise InputError(f"{n_bad} of {array.size} {name} are NaN or infinite")
    return array


def as_pair(scores: Values, labels: Values) -> tuple[Floats, Flags]:
    """Converts scores and labels to arrays; raises InputError if labels do not match the scores or are not 0 or 1.

    Args:
        scores: ``(N,)``, finite.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous.

    Returns:
        ``(N,)`` float64 scores, and ``(N,)`` flags, True = anomalous.

    Example:
        >>> as_pair([0.5, 2.0], [0, 1])
        (array([0.5, 2. ]), array([False,  True]))
    """
    values, flags = as_scores(scores), as_float64(labels)
    if flags.shape != values.shape:
        raise InputError(f"scores of shape {values.shape} do not match labels of shape {flags.shape}")
    if not np.isin(flags, (0, 1)).all():
        raise InputError("labels must be 0 (normal) or 1 (anomalous)")
    return values, flags == 1


def as_float64(values: Values) -> Floats:
    """Converts an array, or a tensor on any device, to a float64 array of the same shape."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _ranking(scores: Floats, positive: Flags) -> dict[str, float]:
    """The ranking metrics with one of the two classes as positives; every value is in [0, 1]."""
    fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
    n_positive = np.count_nonzero(positive)
    true_positives, false_positives = tpr * n_positive, fpr * (positive.size - n_positive)
    f1 = 2 * true_positives / (true_positives + false_positives + n_positive)
    fpr_minus_fnr = fpr + tpr - 1
    # The first point of the curve is infinity, not a score. Rounding makes the two sides of a tie equal.
    balanced = 1 + np.abs(fpr_minus_fnr[1:]).round(12).argmin()
    tpr_eer, fpr_eer = float(tpr[balanced]), float(fpr[balanced])
    ranking = {
        "aupr": float(average_precision_score(positive, scores)),
        "fpr95": float(fpr[np.argmax(tpr >= 0.95)]),
        "eer": float(np.interp(0, fpr_minus_fnr, fpr)),
        "f1_max": float(f1.max()),
        "f1_eer": float(f1[balanced]),
    }
    for percent in SHARES:
        share = percent / 100
        ranking[f"f1_{percent}"] = 2 * tpr_eer / (tpr_eer + fpr_eer * share / (1 - share) + 1)
    return ranking
