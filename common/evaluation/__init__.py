"""From anomaly scores to numbers, thresholds and figures."""

from common.evaluation.figures import (
    extremes_figure,
    image_grid,
    precision_recall_figure,
    reconstruction_grid,
    roc_curve_figure,
    score_histogram,
)
from common.evaluation.metrics import evaluate, evaluate_at
from common.evaluation.threshold import conformal_p_value, conformal_threshold, quantile_threshold

__all__ = [
    "conformal_p_value",
    "conformal_threshold",
    "evaluate",
    "evaluate_at",
    "extremes_figure",
    "image_grid",
    "precision_recall_figure",
    "quantile_threshold",
    "reconstruction_grid",
    "roc_curve_figure",
    "score_histogram",
]
