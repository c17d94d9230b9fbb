"""Protocols: which samples are trained on and which are tested, as pure functions from class labels to index arrays.

A protocol takes

* ``targets`` ``(N,)``, the class of every sample,
* ``official_test`` ``(N,)``, true where the sample belongs to the data set's own test set,
* ``normal``, the numbers of the normal classes,

and by keyword its options and the ``seed`` of its random choices. It returns :class:`Splits`. Three options are common to all
protocols of :data:`PROTOCOLS`:

* ``val_fraction``: share of the normal training samples that is held out, in [0, 1);
* ``contamination``: unlabelled anomalies in training, as a share of all normal training samples, held-out ones too, in [0, 1);
* ``anomalous``: the classes that count as anomalies, in contamination and test; all others by default.

All raise :class:`common.errors.InputError` for a share outside its range, a class without samples or too few anomalies.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError

TRAIN_SHARE = 0.8
"""Share of the normal samples that is trained on, where a protocol makes its own test set."""

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Splits(NamedTuple):
    """Index arrays into a data set: training, validation (normal-only, unless a protocol says otherwise) and test."""

    train: Indices
    val: Indices
    test: Indices


def standard(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    val_fraction: float = 0.1,
    contamination: float = 0.0,
    anomalous: Sequence[int] | None = None,
    n_train: int | None = None,
    seed: int = 0,
) -> Splits:
    """One class against the rest on the data set's official split (OCGAN's protocol 2, Deep SVDD's only one).

    Train and validation are the normal classes' official training samples; the test set is the whole official test set.
    ``n_train``, at least 1, draws that many of the training samples before any is held out; by default all are used.

    Example:
        >>> targets = np.arange(100) % 10
        >>> splits = standard(targets, np.arange(100) >= 50, normal=[3], val_fraction=0.2)
        >>> [len(part) for part in splits], set(targets[splits.train].tolist())
        ([4, 1, 50], {3})
    """
    is_normal, is_anomalous = _roles(targets, normal, anomalous)
    if not official_test.any():
        other = _without_official_test(is_normal.sum(), is_anomalous.sum())
        raise InputError(f"this protocol needs a data set with an official test set: use the protocol '{other}'")
    random = np.random.default_rng(seed)
    normals = random.permutation(np.flatnonzero(is_normal & ~official_test))
    anomalies = random.permutation(np.flatnonzero(is_anomalous & ~official_test))
    if n_train is not None:
        if not 1 <= n_train <= len(normals):
            raise InputError(f"n_train must lie between 1 and the {len(normals)} normal training samples, not {n_train}")
        normals = normals[:n_train]
    train, val = _hold_out(normals, val_fraction)
    train = np.append(train, _contaminants(anomalies, contamination, len(normals)))
    test = np.flatnonzero((is_normal | is_anomalous) & official_test)
    return Splits(np.sort(train), np.sort(val), test)


def balanced(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    val_fraction: float = 0.1,
    contamination: float = 0.0,
    anomalous: Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Trains on 80 % of all normal samples, and tests on the rest and as many anomalies (OCGAN's protocol 1).

    The official split is ignored: both of its parts are pooled.

    Example:
        >>> targets = np.arange(100) % 10
        >>> splits = balanced(targets, np.zeros(100, bool), normal=[3], val_fraction=0.25)
        >>> [len(part) for part in splits], (targets[splits.test] == 3).sum()
        ([6, 2, 4], np.int64(2))
    """
    normals, anomalies = _pooled(targets, normal, anomalous, seed)
    n_train = round(TRAIN_SHARE * len(normals))
    n_test = len(normals) - n_train
    if len(anomalies) < n_test:
        found = f"the data set has only {len(anomalies)}: use the protocol 'hold_out'"
        raise InputError(f"the protocol 'balanced' needs {n_test} anomalies, but {found}")
    train, val = _hold_out(normals[:n_train], val_fraction)
    train = np.append(train, _contaminants(anomalies[n_test:], contamination, n_train))
    test = np.append(normals[n_train:], anomalies[:n_test])
    return Splits(np.sort(train), np.sort(val), np.sort(test))


def hold_out(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    val_fraction: float = 0.1,
    contamination: float = 0.0,
    anomalous: Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Trains on 80 % of all normal samples, and tests on the rest and all anomalies: for data with few anomalies.

    The official split is ignored: both of its parts are pooled. Anomalies that contaminate the training are not tested.

    Example:
        >>> targets = np.append(np.zeros(60, int), np.ones(8, int))
        >>> splits = hold_out(targets, np.zeros(68, bool), normal=[0])
        >>> [len(part) for part in splits], targets[splits.test].sum()
        ([43, 5, 20], np.int64(8))
    """
    normals, anomalies = _pooled(targets, normal, anomalous, seed)
    n_train = round(TRAIN_SHARE * len(normals))
    train, val = _hold_out(normals[:n_train], val_fraction)
    contaminants = _contaminants(anomalies, contamination, n_train)
    test = np.append(normals[n_train:], anomalies[len(contaminants) :])
    return Splits(np.sort(np.append(train, contaminants)), np.sort(val), np.sort(test))


def proportion(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    share: float = 0.5,
    val_fraction: float = 0.1,
    contamination: float = 0.0,
    anomalous: Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Like ``standard``, but draws anomalies to be ``share``, in (0, 1), of the test set (ALOCC's Fig. 8: 0.1 to 0.5).

    Example:
        >>> targets = np.arange(1000) % 10
        >>> splits = proportion(targets, np.arange(1000) >= 500, normal=[3], share=0.2)
        >>> round(float((targets[splits.test] != 3).mean()), 2)
        0.19
    """
    common = {"val_fraction": val_fraction, "contamination": contamination, "anomalous": anomalous, "seed": seed}
    splits = standard(targets, official_test, normal, **common)  # type: ignore[arg-type]
    is_normal = np.isin(targets[splits.test], normal)
    normals, anomalies = splits.test[is_normal], splits.test[~is_normal]
    chosen = _draw(anomalies, share, len(normals), np.random.default_rng(seed))
    return splits._replace(test=np.sort(np.append(normals, chosen)))


def in_sample(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    val_fraction: float = 0.2,
    contamination: float = 0.01,
    anomalous: Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Finds the outliers in the contaminated, unlabelled data that the model was trained on (the published MNIST recipe).

    The normal classes' official training samples and ``contamination`` times as many anomalies are pooled.
    ``val_fraction`` of the pool gets no gradient. Threshold and test use the whole pool: validation is *not* normal-only.

    Example:
        >>> targets = np.arange(1000) % 10
        >>> splits = in_sample(targets, np.zeros(1000, bool), normal=[1], contamination=0.1, anomalous=[3])
        >>> [len(part) for part in splits], (targets[splits.test] == 3).sum()
        ([88, 110, 110], np.int64(10))
    """
    is_normal, is_anomalous = _roles(targets, normal, anomalous)
    random = np.random.default_rng(seed)
    normals = np.flatnonzero(is_normal & ~official_test)
    anomalies = random.permutation(np.flatnonzero(is_anomalous & ~official_test))
    pool = random.permutation(np.append(normals, _contaminants(anomalies, contamination, len(normals))))
    train, _ = _hold_out(pool, val_fraction)
    return Splits(np.sort(train), np.sort(pool), np.sort(pool))


def no_split(
    targets: Indices,
    official_test: Mask,
    normal: Sequence[int],
    *,
    share: float | None = None,
    limit: int | None = None,
    val_fraction: float = 0.1,
    contamination: float = 0.0,
    anomalous: Sequence[int] | None = None,
    seed: int = 0,
) -> Splits:
    """Tests on the normal samples that were trained on, beside unseen anomalies (a reading of ALOCC's Sec. 4).

    The normal samples are the official training samples, or all samples if the data set has no test set. The results
    flatter the method. Validation samples get no gradient but are tested.
    ``share``, in (0, 1), is the share of anomalies in the test set; by default all anomalies are tested. ``limit``, at
    least 1, keeps only the first samples of each normal class; by default all are used. Anomalies that contaminate the
    training are not tested.

    Example:
        >>> targets = np.arange(1000) % 10
        >>> splits = no_split(targets, np.zeros(1000, bool), normal=[1, 2], share=0.5, limit=40)
        >>> [len(part) for part in splits], np.isin(targets[splits.test], [1, 2]).sum()
        ([72, 8, 160], np.int64(80))
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit, the number of samples of each normal class, must be at least 1, not {limit}")
    _, is_anomalous = _roles(targets, normal, anomalous)
    random = np.random.default_rng(seed)
    members = [np.flatnonzero((targets == k) & ~official_test)[:limit] for k in np.unique(normal)]
    normals = random.permutation(np.concatenate(members))
    anomalies = random.permutation(np.flatnonzero(is_anomalous & ~official_test))
    train, val = _hold_out(normals, val_fraction)
    contaminants = _contaminants(anomalies, contamination, len(normals))
    tested = anomalies[len(contaminants) :]
    if share is not None:
        tested = _draw(tested, share, len(normals), random)
    return Splits(np.sort(np.append(train, contaminants)), np.sort(val), np.sort(np.append(normals, tested)))


PROTOCOLS: dict[str, Callable[..., Splits]] = {
    protocol.__name__: protocol for protocol in (standard, balanced, proportion, in_sample, no_split, hold_out)
}


def _roles(targets: Indices, normal: Sequence[int], anomalous: Sequence[int] | None) -> tuple[Mask, Mask]:
    is_normal = np.isin(targets, normal)
    if not is_normal.any():
        raise InputError(f"no sample belongs to the normal class {'+'.join(map(str, normal))}")
    if anomalous is not None and set(anomalous) & set(normal):
        raise InputError(f"a class cannot be both normal and anomalous: {sorted(set(anomalous) & set(normal))}")
    for k in anomalous or ():
        if k not in targets:
            raise InputError(f"no sample belongs to the anomalous class {k}")
    return is_normal, ~is_normal if anomalous is None else np.isin(targets, anomalous)


def _pooled(targets: Indices, normal: Sequence[int], anomalous: Sequence[int] | None, seed: int) -> tuple[Indices, Indices]:
    """Normal and anomalous samples of both official parts, in random order."""
    is_normal, is_anomalous = _roles(targets, normal, anomalous)
    random = np.random.default_rng(seed)
    return random.permutation(np.flatnonzero(is_normal)), random.permutation(np.flatnonzero(is_anomalous))


def _without_official_test(n_normal: int, n_anomalous: int) -> str:
    """The name of a protocol that suits a data set without a test set."""
    if not n_anomalous:
        return "no_split"
    n_test = n_normal - round(TRAIN_SHARE * n_normal)
    return "balanced" if n_anomalous >= n_test else "hold_out"


def _hold_out(indices: Indices, fraction: float) -> tuple[Indices, Indices]:
    if not 0 <= fraction < 1:
        raise InputError(f"val_fraction must lie in [0, 1), not {fraction}")
    n_val = round(fraction * len(indices))
    if n_val == len(indices):
        hint = "" if n_val else "; the protocol 'hold_out' trains on samples of the official test set too"
        raise InputError(f"nothing is left to train on: {len(indices)} normal samples and val_fraction {fraction}{hint}")
    return indices[n_val:], indices[:n_val]


def _contaminants(anomalies: Indices, contamination: float, n_normal: int) -> Indices:
    if not 0 <= contamination < 1:
        raise InputError(f"contamination must lie in [0, 1), not {contamination}")
    wanted = int(round(contamination * n_normal, 9))  # 0.29 * 100 is a hair below 29
    if wanted > len(anomalies):
        highest = np.floor(1000 * len(anomalies) / n_normal) / 1000
        raise InputError(
            f"contamination {contamination} needs {wanted} anomalies, not {len(anomalies)}: give at most {highest:g}"
        )
    return anomalies[:wanted]


def _draw(anomalies: Indices, share: float, n_normal: int, random: np.random.Generator) -> Indices:
    if not 0 < share < 1:
        raise InputError(f"share, the share of anomalies in the test set, must lie in (0, 1), not {share}")
    wanted = round(n_normal * share / (1 - share))
    if len(anomalies) < wanted:
        highest = np.floor(1000 * len(anomalies) / (len(anomalies) + n_normal)) / 1000
        raise InputError(f"share={share} needs {wanted} anomalies, not {len(anomalies)}: give at most {highest:g}")
    return random.choice(anomalies, wanted, replace=False)
