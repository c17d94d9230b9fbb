"""Figures of scores and images, each a matplotlib ``Figure`` without pyplot, so that nothing has to be closed.

Scores and labels are as in :func:`common.evaluation.evaluate`. Everywhere blue is normal and orange is anomalous (from the
colour-blind safe palette of Okabe and Ito).
"""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from common.errors import InputError
from common.evaluation.metrics import Flags, Floats, Values, as_float64, as_pair, evaluate

NORMAL, ANOMALOUS = "#0072B2", "#D55E00"
MAX_CLASSES, MAX_IMAGES = 12, 8
CHARACTER = 0.067
"""Width of a character of 8 points, in inches."""


def roc_curve_figure(scores: Values, labels: Values) -> Figure:
    """Draws the ROC curve, with anomalies as positives, its area and the point of equal error.

    Raises:
        InputError: One of the two classes is missing.

    Example:
        >>> roc_curve_figure([1.0, 2.0, 3.0], [0, 1, 1]).axes[0].get_title()
        'AUROC 1.000'
    """
    values, anomalous = _both_classes(scores, labels)
    fpr, tpr, _ = roc_curve(anomalous, values, drop_intermediate=False)
    metrics = evaluate(values, anomalous)
    eer = metrics["eer"]
    figure, axes = _square("false positive rate", "true positive rate", above=0.35)
    axes.plot([0, 1], [0, 1], ":", color="0.45", label="chance")
    axes.plot(fpr, tpr, color=ANOMALOUS, clip_on=False)
    axes.plot(eer, 1 - eer, "o", color=NORMAL, markersize=5, label=f"equal error rate {eer:.3f}")
    axes.set_title(f"AUROC {metrics['auroc']:.3f}", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def precision_recall_figure(scores: Values, labels: Values) -> Figure:
    """Draws precision over recall, with the anomalies and with the normals as positives, each with its chance level.

    Raises:
        InputError: One of the two classes is missing.

    Example:
        >>> [text.get_text() for text in precision_recall_figure([1, 2, 3], [0, 1, 1]).legends[0].texts]
        ['anomalies, area 1.000', 'normals, area 1.000']
    """
    values, anomalous = _both_classes(scores, labels)
    figure, axes = _square("recall", "precision", above=0.7)
    metrics = evaluate(values, anomalous)
    anomalies = "anomalies", metrics["aupr_anomaly"], ANOMALOUS, "-", anomalous, values
    normals = "normals", metrics["aupr_normal"], NORMAL, "--", ~anomalous, -values
    for name, area, color, line, positive, ranked in (anomalies, normals):
        precision, recall, _ = precision_recall_curve(positive, ranked)
        # The curve runs from high recall to low: each value of precision holds for the recalls before it.
        axes.step(recall, precision, line, where="post", color=color, clip_on=False, label=f"{name}, area {area:.3f}")
        axes.axhline(positive.mean(), color=color, linestyle=":", linewidth=1)
    figure.legend(loc="upper center", title="positives (dotted: chance)", title_fontsize=8, fontsize=8)
    return figure


def score_histogram(
    scores: Values,
    labels: Values,
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    targets: Values | None = None,
) -> Figure:
    """Draws histograms of the scores of normals and anomalies and, below, of each original class.

    The upper histograms have area 1; the lower ones all have the same height. The outermost 0.5 % of the scores are drawn
    at the edges. At most 12 classes are shown: the normal ones, then the anomalous ones by ascending median score, each
    with its AUROC against all normals.

    Args:
        scores: ``(N,)`` finite, higher = more anomalous.
        labels: ``(N,)`` in {0, 1}, 1 = anomalous; one of the two may be missing.
        threshold: Drawn as a line if it is finite.
        classes: Names of the classes, indexed by target; by default the targets.
        targets: ``(N,)`` original class (integer) of each sample; None leaves the lower histograms out.

    Raises:
        InputError: The targets do not match the scores.

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
        figure = _figure(4.8, 2.8, left=0.6, bottom=0.5)
        top = bottom = figure.subplots()
    else:
        original = as_float64(targets)
        if original.shape != values.shape:
            raise InputError(f"targets of shape {original.shape} do not match scores of shape {values.shape}")
        height = 0.4 + 0.24 * min(len(np.unique(original)), MAX_CLASSES)
        figure = _figure(4.8, 2.8 + height, left=0.6, bottom=0.5)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, height), gridspec_kw={"hspace": 0.08})
        longest = _draw_classes(bottom, values, anomalous, original, classes, edges)
        left = max(0.6, 0.3 + CHARACTER * longest)
        width = 4.8 + max(0.0, left - 1.5)
        figure.set_figwidth(width)
        figure.subplots_adjust(left=left / width, right=1 - 0.1 / width)
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


def image_grid(groups: Mapping[str, Values], titles: Sequence[str] = (), caption: str = "") -> Figure:
    """Draws groups of images in rows of 8, with the name of each group on the left and one scale of values for all.

    Args:
        groups: Images by name of the group, ``(B, C, H, W)`` with C = 1 or 3, in any range; a group may be empty.
        titles: Text above each image, such as its score, in the order of all images; none by default.
        caption: Title of the whole figure.

    Raises:
        InputError: There are no images, several sizes, or another number of titles.

    Example:
        >>> image = np.eye(8).reshape(1, 1, 8, 8)
        >>> [text.get_text() for text in image_grid({"most": image, "least": image}, ["9", "0.5"]).axes[0].texts]
        ['most', '9', 'least', '0.5']
    """
    rows: list[tuple[str, Floats, list[str]]] = []
    remaining = iter(titles)
    for name, images in groups.items():
        pixels = as_float64(images)
        for start in range(0, max(len(pixels), 1), MAX_IMAGES):
            row = pixels[start : start + MAX_IMAGES]
            rows.append(("" if start else name, row, list(islice(remaining, len(row)))))
    if len({row.shape[1:] for _, row, _ in rows}) > 1:
        raise InputError(f"images differ in shape: {', '.join(str(row.shape[1:]) for _, row, _ in rows)}")
    if titles and len(titles) != sum(len(row) for _, row, _ in rows):
        raise InputError(f"there are {len(titles)} titles for {sum(len(row) for _, row, _ in rows)} images")
    return _draw_rows(rows, caption)


def _both_classes(scores: Values, labels: Values) -> tuple[Floats, Flags]:
    values, anomalous = as_pair(scores, labels)
    if anomalous.all() or not anomalous.any():
        raise InputError("a curve needs both normal and anomalous samples")
    return values, anomalous


def _figure(width: float, height: float, left: float, bottom: float, above: float = 0.1) -> Figure:
    """A figure with its margins, all in inches; to find margins takes matplotlib as long as all the rest."""
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=left / width, bottom=bottom / height, right=1 - 0.1 / width, top=1 - above / height)
    return figure


def _square(xlabel: str, ylabel: str, above: float) -> tuple[Figure, Axes]:
    figure = _figure(3.6, 3.8, left=0.6, bottom=0.5, above=above)
    axes = figure.subplots(subplot_kw={"aspect": "equal", "xlim": (0, 1), "ylim": (0, 1)})
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.tick_params(labelsize=8)
    return figure, axes


def _draw_classes(
    axes: Axes, values: Floats, anomalous: Flags, targets: Floats, classes: Sequence[str] | None, edges: Floats
) -> int:
    """Returns the length of the longest name."""
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
    return max(map(len, labels))


def _draw_rows(rows: Sequence[tuple[str, Floats, Sequence[str]]], caption: str) -> Figure:
    """Draws rows of (name, images ``(B, C, H, W)``, titles), with all values mapped linearly to [0, 1]."""
    for _, images, _ in rows:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(f"images must be of shape (B, 1, H, W) or (B, 3, H, W), not {images.shape}")
    low = min((images.min() for _, images, _ in rows if images.size), default=0.0)
    high = max((images.max() for _, images, _ in rows if images.size), default=1.0)
    aspect = rows[0][1].shape[2] / rows[0][1].shape[3]
    above = 0.3 if any(titles for *_, titles in rows) else 0.06
    pitch = aspect + above
    above_all = 0.35 if caption else 0.05
    names = 0.15 + CHARACTER * max(len(name) for name, *_ in rows)
    figure = _figure(7.0, 0.75 * pitch * len(rows) + above_all + 0.05, left=names, bottom=0.05, above=above_all)
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
