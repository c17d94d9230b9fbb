"""Metrics, thresholds and figures from anomaly scores."""

from common.evaluation.figures import image_grid, precision_recall_figure, roc_curve_figure, score_histogram
from common.evaluation.metrics import evaluate, evaluate_at
from common.evaluation.threshold import (
    conformal_p_value,
    conformal_threshold,
    quantile_threshold,
    samples_needed,
    threshold_by,
)

__all__ = [
    "conformal_p_value",
    "conformal_threshold",
    "evaluate",
    "evaluate_at",
    "image_grid",
    "precision_recall_figure",
    "quantile_threshold",
    "roc_curve_figure",
    "samples_needed",
    "score_histogram",
    "threshold_by",
]
