"""Figures of scores and images, each a free-standing matplotlib ``Figure``: no pyplot, no display, nothing to close.

Blue is normal and orange is anomalous everywhere (Okabe and Ito's colour-blind safe palette).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from common.errors import InputError
from common.evaluation.metrics import Flags, Floats, Values, as_float64, as_pair, evaluate

NORMAL, ANOMALOUS = "#0072B2", "#D55E00"
MAX_CLASSES, MAX_IMAGES = 12, 8


def roc_curve_figure(scores: Values, labels: Values) -> Figure:
    """The ROC curve, anomalies as positives, with its area and the point of equal error.

    Args:
        scores: ``(N,)`` finite, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous.

    Raises:
        InputError: As :func:`common.evaluation.evaluate`, or one class is missing.

    Example:
        >>> roc_curve_figure([1.0, 2.0, 3.0], [0, 1, 1]).axes[0].get_title()
        'AUROC 1.000'
    """
    values, anomalous = _both_classes(scores, labels)
    fpr, tpr, _ = roc_curve(anomalous, values, drop_intermediate=False)
    metrics = evaluate(values, anomalous)
    eer = metrics["eer"]
    figure, axes = _square("false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], ":", color="0.45", label="chance")
    axes.plot(fpr, tpr, color=ANOMALOUS, clip_on=False)
    axes.plot(eer, 1 - eer, "o", color=NORMAL, markersize=5, label=f"equal error rate {eer:.3f}")
    axes.set_title(f"AUROC {metrics['auroc']:.3f}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def precision_recall_figure(scores: Values, labels: Values) -> Figure:
    """Precision over recall with the anomalies and with the normals as positives, each with its chance level.

    Args:
        scores: ``(N,)`` finite, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous.

    Raises:
        InputError: As :func:`common.evaluation.evaluate`, or one class is missing.

    Example:
        >>> [text.get_text() for text in precision_recall_figure([1, 2, 3], [0, 1, 1]).legends[0].texts]
        ['anomalies, area 1.000', 'normals, area 1.000']
    """
    values, anomalous = _both_classes(scores, labels)
    figure, axes = _square("recall", "precision")
    metrics = evaluate(values, anomalous)
    anomalies = "anomalies", metrics["aupr_anomaly"], ANOMALOUS, "-", anomalous, values
    normals = "normals", metrics["aupr_normal"], NORMAL, "--", ~anomalous, -values
    for name, area, color, line, positive, ranked in (anomalies, normals):
        precision, recall, _ = precision_recall_curve(positive, ranked)
        # The curve runs from high recall to low: each value of precision holds for the recalls before it.
        axes.step(recall, precision, line, where="post", color=color, clip_on=False, label=f"{name}, area {area:.3f}")
        axes.axhline(positive.mean(), color=color, linestyle=":", linewidth=1)
    figure.legend(loc="outside upper center", title="positives (dotted: chance)", title_fontsize=8, fontsize=8)
    return figure


def score_histogram(
    scores: Values,
    labels: Values,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    targets: Values | None = None,
) -> Figure:
    """The scores of normals and anomalies and, below, of each original class: which is confused with the normal one?

    The groups' histograms have area 1, the classes' all the same height; the outermost 0.5 % of the scores are drawn at
    the edge. At most 12 classes: the normal ones, then the anomalous ones from the lowest median score upwards, each
    with its AUROC against all normals.

    Args:
        scores: ``(N,)`` finite, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous; one of the two may be missing.
        threshold: Drawn if finite, in the scores' unit.
        classes: Names, indexed by target; by default the targets themselves.
        targets: ``(N,)`` original class (integer) of each sample; None leaves the classes out.

    Raises:
        InputError: As :func:`common.evaluation.evaluate`, or targets that do not match.

    Example:
        >>> figure = score_histogram([1.0, 2.0, 3.0], [0, 1, 1], threshold=1.5, targets=[4, 7, 8])
        >>> [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
        ['4', '7 (1.00)', '8 (1.00)']
    """
    values, anomalous = as_pair(scores, labels)
    thresholds = [threshold] if threshold is not None and np.isfinite(threshold) else []
    visible = [*np.quantile(values, (0.005, 0.995)), *thresholds]
    low, high = min(visible), max(visible)
    margin = 0.1 + 0.1 * abs(high) if np.isclose(low, high, rtol=1e-9, atol=1e-200) else 0.0
    edges = np.histogram_bin_edges(values, bins=40, range=(low - margin, high + margin))
    if targets is None:
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        top = bottom = figure.subplots()
    else:
        original = as_float64(targets)
        if original.shape != values.shape:
            raise InputError(f"targets of shape {original.shape} do not match scores of shape {values.shape}")
        height = 0.4 + 0.24 * min(len(np.unique(original)), MAX_CLASSES)
        figure = Figure(figsize=(4.8, 2.8 + height), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, height))
        _draw_classes(bottom, values, anomalous, original, classes, edges)
    for name, color, line, group in (("normal", NORMAL, "--", ~anomalous), ("anomalous", ANOMALOUS, "-", anomalous)):
        if group.any():
            heights, _ = np.histogram(values[group].clip(edges[0], edges[-1]), edges, density=True)
            label = f"{name} ({group.sum()})"
            top.stairs(heights, edges, fill=True, fc=(color, 0.3), ec=color, linestyle=line, linewidth=1.2, label=label)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
        for value in thresholds:
            axes.axvline(value, color="black", linewidth=1, label=f"threshold {value:.4g}")
    top.legend(fontsize=8)
    top.set(ylabel="density")
    bottom.set(xlabel="score (higher = more anomalous)")
    return figure


def reconstruction_grid(images: Values, reconstructions: Values) -> Figure:
    """The first 8 images above their reconstructions, on one scale from the lowest to the highest value of both.

    Args:
        images: ``(B, C, H, W)`` with C = 1 or 3, any range.
        reconstructions: ``(B, C, H, W)`` in the same unit.

    Raises:
        InputError: Shapes that differ or are not images.

    Example:
        >>> images = np.eye(8).reshape(1, 1, 8, 8)
        >>> [text.get_text() for text in reconstruction_grid(images, 0.9 * images).axes[0].texts]
        ['image', 'reconstruction']
    """
    originals, copies = as_float64(images)[:MAX_IMAGES], as_float64(reconstructions)[:MAX_IMAGES]
    if originals.shape != copies.shape:
        raise InputError(f"images {originals.shape} and reconstructions {copies.shape} differ in shape")
    return _draw_rows([("image", originals, ()), ("reconstruction", copies, ())])


def image_grid(images: Values, titles: Sequence[str], caption: str) -> Figure:
    """Images in rows of 8 with a short title above each, such as its score, and a caption on top.

    Args:
        images: ``(B, C, H, W)`` with C = 1 or 3, any range, scaled jointly; B = 0 leaves only the caption.
        titles: One per image.
        caption: Of the whole figure.

    Raises:
        InputError: Not images, or another number of titles.

    Example:
        >>> image_grid(np.eye(8).reshape(1, 1, 8, 8), ["0.93"], "flagged").axes[0].texts[1].get_text()
        '0.93'
    """
    pixels = as_float64(images)
    if len(titles) != len(pixels):
        raise InputError(f"{len(titles)} titles for {len(pixels)} images")
    starts = range(0, max(len(pixels), 1), MAX_IMAGES)
    return _draw_rows([("", pixels[i : i + MAX_IMAGES], titles[i : i + MAX_IMAGES]) for i in starts], caption)


def extremes_figure(images_normal: Values, scores_normal: Values, images_anomalous: Values, scores_anomalous: Values) -> Figure:
    """Where the method errs most: the 8 most anomalous normals above the 8 least anomalous anomalies, with scores.

    Args:
        images_normal: ``(N, C, H, W)`` with C = 1 or 3, any range, in any order.
        scores_normal: ``(N,)`` higher = more anomalous.
        images_anomalous: ``(M, C, H, W)``, scaled jointly with the normal ones.
        scores_anomalous: ``(M,)``.

    Raises:
        InputError: Not images, or another number of scores.

    Example:
        >>> images = np.eye(8).reshape(1, 1, 8, 8).repeat(2, axis=0)
        >>> [text.get_text() for text in extremes_figure(images, [1.0, 5.0], images, [7.0, 4.0]).axes[0].texts]
        ['normal', '5', '1', 'anomalous', '4', '7']
    """
    rows = []
    groups = ("normal", images_normal, scores_normal, -1), ("anomalous", images_anomalous, scores_anomalous, 1)
    for name, images, scores, sign in groups:
        pixels, values = as_float64(images), as_float64(scores)
        if values.shape != pixels.shape[:1]:
            raise InputError(f"scores of shape {values.shape} do not match images of shape {pixels.shape}")
        chosen = np.argsort(sign * values, kind="stable")[:MAX_IMAGES]
        rows.append((name, pixels[chosen], [f"{value:.4g}" for value in values[chosen]]))
    return _draw_rows(rows, "most anomalous normals and least anomalous anomalies, with scores")


def contact_sheet(most: Values, scores_most: Values, least: Values, scores_least: Values) -> Figure:
    """The most anomalous images above the least anomalous ones, in rows of 8, each with its score.

    Args:
        most: ``(N, C, H, W)`` with C = 1 or 3, any range, in the order of the sheet.
        scores_most: ``(N,)``.
        least: ``(M, C, H, W)``, scaled jointly with the others.
        scores_least: ``(M,)``.

    Raises:
        InputError: Not images, or another number of scores.

    Example:
        >>> image = np.eye(8).reshape(1, 1, 8, 8)
        >>> [text.get_text() for text in contact_sheet(image, [9.0], image, [0.5]).axes[0].texts]
        ['most', '9', 'least', '0.5']
    """
    rows: list[tuple[str, Floats, Sequence[str]]] = []
    for name, images, scores in (("most", most, scores_most), ("least", least, scores_least)):
        pixels, values = as_float64(images), as_float64(scores)
        if values.shape != pixels.shape[:1]:
            raise InputError(f"scores of shape {values.shape} do not match images of shape {pixels.shape}")
        for i in range(0, len(pixels), MAX_IMAGES):
            shown = slice(i, i + MAX_IMAGES)
            rows.append(("" if i else name, pixels[shown], [f"{value:.4g}" for value in values[shown]]))
    return _draw_rows(rows, "most and least anomalous images, with scores")


def _both_classes(scores: Values, labels: Values) -> tuple[Floats, Flags]:
    values, anomalous = as_pair(scores, labels)
    if anomalous.all() or not anomalous.any():
        raise InputError("a curve needs normal and anomalous samples")
    return values, anomalous


def _square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 3.8), layout="constrained")
    axes = figure.subplots(subplot_kw={"aspect": "equal", "xlim": (0, 1), "ylim": (0, 1)})
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.tick_params(labelsize=8)
    return figure, axes


def _draw_classes(
    axes: Axes, values: Floats, anomalous: Flags, targets: Floats, classes: Sequence[str] | None, edges: Floats
) -> None:
    members = [targets == target for target in np.unique(targets)]
    members.sort(key=lambda own: (anomalous[own].any(), np.median(values[own])))
    labels = []
    for i, own in enumerate(members[:MAX_CLASSES]):
        target, is_anomalous = int(targets[own][0]), anomalous[own].any()
        counts, _ = np.histogram(values[own].clip(edges[0], edges[-1]), edges)
        color = ANOMALOUS if is_anomalous else NORMAL
        axes.stairs(0.85 * counts / counts.max() - i, edges, baseline=-i, fill=True, color=color, alpha=0.6)
        labels.append(str(target) if classes is None else classes[target])
        if is_anomalous and not anomalous.all():
            compared = own | ~anomalous
            labels[i] += f" ({roc_auc_score(anomalous[compared], values[compared]):.2f})"
    axes.set_yticks([0.3 - i for i in range(len(labels))], labels)
    axes.tick_params(axis="y", length=0)
    axes.set(ylabel="class (AUROC)", ylim=(0.9 - len(labels), 1.0))


def _draw_rows(rows: Sequence[tuple[str, Floats, Sequence[str]]], caption: str = "") -> Figure:
    """Rows of (name, images ``(B, C, H, W)``, titles), all mapped to [0, 1] by one linear map."""
    for _, images, _ in rows:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(f"images must be of shape (B, 1, H, W) or (B, 3, H, W), not {images.shape}")
    low = min((images.min() for _, images, _ in rows if images.size), default=0.0)
    high = max((images.max() for _, images, _ in rows if images.size), default=1.0)
    aspect = rows[0][1].shape[2] / rows[0][1].shape[3]
    above = 0.3 if any(titles for *_, titles in rows) else 0.06
    pitch = aspect + above
    figure = Figure(figsize=(7.0, 0.75 * pitch * len(rows) + (0.35 if caption else 0.1)), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.06, 1.06 * MAX_IMAGES), ylim=(pitch * len(rows), 0), aspect="equal")
    axes.set_axis_off()
    for i, (name, images, titles) in enumerate(rows):
        top, bottom = pitch * i + above, pitch * (i + 1)
        axes.text(-0.1, (top + bottom) / 2, name, fontsize=8, ha="right", va="center")
        for j, image in enumerate((images - low) / ((high - low) or 1.0)):
            left = 1.06 * j
            place = (left, left + 1, bottom, top)
            axes.imshow(np.moveaxis(image, 0, -1), "gray", vmin=0, vmax=1, interpolation="nearest", extent=place)
            if titles:
                axes.text(left + 0.5, top - 0.04, titles[j], fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(-0.06, 1.06 * MAX_IMAGES), ylim=(pitch * len(rows), 0))
    figure.suptitle(caption, fontsize=9, wrap=True)
    return figure
