"""Classical one-class detectors on pixels, HOG or features of a backbone: the baselines in every table.

``experiments/classical.md`` says what each preset is, where its settings come from and which published row it reproduces.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import zscore
from sklearn.base import BaseEstimator
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from sklearn.utils import gen_batches
from torch import Tensor

from common.backbones import split
from common.data import OneClassDataModule, Sample
from common.errors import InputError
from common.evaluation import evaluate, quantile_threshold
from common.scoring import Scored, highest_of_each
from common.shallow import (
    HOG,
    SVDD,
    DenseKernelDensity,
    Mahalanobis,
    MinimaxProbabilityMachine,
    NearestNeighborDistance,
    NoiseSVM,
    PCAReconstruction,
    PrincipalComponents,
    Rows,
    WideOneClassSVM,
)


class Preset(NamedTuple):
    """A classical detector with its data settings.

    Attributes:
        build: Makes an estimator with scikit-learn's ``fit`` and ``score_samples`` (higher = more normal), or a pipeline that
            ends in one. The shape of the images is passed as ``shape``, and the seed as ``random_state`` if ``seeded``.
        data: Arguments of :class:`common.data.OneClassDataModule` for this detector.
        seeded: Whether it is random; if not, it is run with one seed.
    """

    build: Callable[[], BaseEstimator]
    data: Mapping[str, Any] = {}
    seeded: bool = False


_WHOLE_CLASS = {"val_fraction": 0.0}
_AS_DEEP_SVDD = {"normalization": "gcn", **_WHOLE_CLASS}

DETECTORS: dict[str, Preset] = {
    "ocsvm": Preset(lambda: OneClassSVM(nu=0.1, gamma="scale")),
    "hog_ocsvm": Preset(lambda: make_pipeline(HOG(), OneClassSVM(nu=0.1, gamma="scale"))),
    "lof": Preset(lambda: LocalOutlierFactor(novelty=True, algorithm="brute")),
    "knn": Preset(NearestNeighborDistance),
    "pca": Preset(PCAReconstruction),
    "kde": Preset(DenseKernelDensity),
    "mahalanobis": Preset(lambda: make_pipeline(PrincipalComponents(), Mahalanobis())),
    "elliptic": Preset(lambda: make_pipeline(PrincipalComponents(), EllipticEnvelope(support_fraction=0.95)), seeded=True),
    "iforest": Preset(IsolationForest, seeded=True),
    "pca_iforest": Preset(lambda: make_pipeline(PrincipalComponents(), IsolationForest()), seeded=True),
    "ocsvm_ruff": Preset(WideOneClassSVM, _WHOLE_CLASS),
    "kde_ruff": Preset(lambda: DenseKernelDensity("diameter", "exponential"), _WHOLE_CLASS),
    "kde_ruff_gcn": Preset(lambda: make_pipeline(PrincipalComponents(), DenseKernelDensity("diameter")), _AS_DEEP_SVDD),
    "iforest_ruff": Preset(lambda: make_pipeline(PrincipalComponents(), IsolationForest()), _AS_DEEP_SVDD, seeded=True),
    "ocsvm_linear": Preset(lambda: OneClassSVM(kernel="linear", nu=0.5)),
    "bsvm": Preset(NoiseSVM, seeded=True),
    "mpm": Preset(MinimaxProbabilityMachine),
    "svdd": Preset(SVDD),
}
"""The detectors by preset. The four ``_ruff`` presets are Deep SVDD's shallow rows; OC-CNN compares with the last four."""


def detector(preset: str) -> Preset:
    """The classical detector of a preset; raises InputError if there is none.

    Example:
        >>> detector("kde_ruff").data
        {'val_fraction': 0.0}
    """
    if preset not in DETECTORS:
        raise InputError(f"unknown classical detector '{preset}': choose from {', '.join(DETECTORS)}")
    return DETECTORS[preset]


QUANTILE = 0.95
SCORED_TOGETHER = 20_000
"""Samples that a detector scores at a time: more than most test sets have, fewer than the patches of a video."""


def fit_and_score(
    preset: str, data: OneClassDataModule, seed: int, backbone: Mapping[str, Any] | None = None
) -> tuple[Scored, dict[str, Any]]:
    """Fits a classical detector to the training images or their features, and scores the test set.

    The training images are in the order of the data set, so the seed affects only the random parts of a detector.

    Args:
        preset: A key of :data:`DETECTORS`.
        data: Created with the data settings of the preset, and set up here.
        seed: For detectors with random parts.
        backbone: Arguments of :func:`common.backbones.split`, whose frozen features replace the pixels, and optionally
            ``instance_norm``: whether to standardise the features of each image, as OC-CNN does.

    Returns:
        The scored test set (higher = more anomalous), and the entries of the record.

    Raises:
        InputError: The preset is unknown, or the backbone refuses its arguments.

    Example:
        >>> scored, results = fit_and_score("ocsvm", OneClassDataModule("digits", normal=0), seed=0)
        >>> results["metrics"]["ocsvm"]["auroc"] > 0.99
        True
    """
    estimator = _estimator(preset, data.shape, seed)
    if backbone:
        options = dict(backbone)
        if options.pop("instance_norm", False):
            estimator = make_pipeline(FunctionTransformer(zscore, kw_args={"axis": 1}), estimator)
        try:
            data.extractor, _ = split(**options, fine_tuned=False)
        except TypeError as error:
            known = "backbone, weights, head_layers, pooling, instance_norm and image_size"
            raise InputError(f"the options of a detector are {known} ({error})") from error
    data.setup()

    def score(loader: Any) -> Scored:
        parts = []
        for batches in _in_parts(loader):
            columns = (torch.cat(column).numpy() for column in zip(*(batch[1:] for batch in batches), strict=True))
            label, target, index = columns
            scores = -estimator.score_samples(_rows(batch.image for batch in batches))
            parts.append((index, target, label, scores))
        index, target, label, scores = map(np.concatenate, zip(*parts, strict=True))
        scored = Scored(index, target, label, {preset: scores})
        return scored if data.groups is None else highest_of_each(scored, data.groups[scored.index], preset)

    train = data.splits.train
    estimator.fit(_rows(data.inputs(train[part]) for part in gen_batches(len(train), data.eval_batch_size)))
    scored, held_out = score(data.test_dataloader()), data.val_dataloader()
    threshold = quantile_threshold(score(held_out).scores[preset], QUANTILE) if held_out else float("nan")
    return scored, {
        "rule": "last",
        "score": preset,
        "metrics": {preset: evaluate(scored.scores[preset], scored.label, threshold)},
        "rules": {},
        "threshold": threshold,
        "device": "cpu",
        **dict.fromkeys(("selected_epoch", "reached", "epochs", "train_images_per_s", "parameters")),  # nothing is trained
    }


def _estimator(preset: str, shape: Sequence[int], seed: int) -> Any:
    """Builds the detector, with the shape of the images and the seed if it takes them."""
    chosen = detector(preset)
    estimator = chosen.build()
    given: dict[str, Any] = {"shape": shape}
    if chosen.seeded:
        given["random_state"] = seed
    for key in estimator.get_params():
        name = key.rpartition("__")[2]
        if name in given:
            estimator.set_params(**{key: given[name]})
    return estimator


def _in_parts(loader: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Lists of batches with at least :data:`SCORED_TOGETHER` samples each, but for the last."""
    part: list[Sample] = []
    for batch in loader:
        part.append(batch)
        if sum(len(batch.index) for batch in part) >= SCORED_TOGETHER:
            yield part
            part = []
    if part:
        yield part


def _rows(batches: Iterable[Tensor]) -> Rows:
    return torch.cat([batch.flatten(1) for batch in batches]).double().numpy()
