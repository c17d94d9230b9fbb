"""Summarises records in one frame, from which every table, page and comparison is made."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from common.experiment.records import Record
from common.names import dataset_label
from common.presets import split_preset

LONG = (
    "name", "base", "dataset", "protocol", "normal", "class_name", "seed", "rule", "score", "metric", "value", "chosen",
    "stale", "git", "command", "n_classes", "together",
)  # fmt: skip
"""Columns of :func:`long`."""

KEY = ["name", "dataset", "protocol", "score", "metric", "rule"]
"""What one block of a summary shares: a row for each normal class, and one for their mean."""

COLUMNS = (
    *KEY[:3], "normal", "class_name", *KEY[3:], "n_classes", "together", "paper", "mean", "std", "n_seeds", "delta", "ci_low",
    "ci_high", "status", "reference", "base", "base_delta", "base_low", "base_high", "stale", "commit", "command",
)  # fmt: skip
"""Columns of a summary. ``reference`` says whose number ``paper`` is; ``n_classes`` is 1 in the row of a single
class, and ``together`` how many classes were normal at once."""

TEXT = {*KEY, "normal", "class_name", "status", "reference", "base", "stale", "commit", "command"}

DRAWN = {"caltech101": 3, "caltech256": 3}
"""Where a paper's mean is one over that many random choices of the normal classes."""


def long(records: Iterable[Record]) -> pd.DataFrame:
    """Returns one row for each value of each record, with the columns :data:`LONG`.

    The rules are the record's own and, where the test set was scored after every epoch, all others that it holds.
    ``chosen`` marks the record's own rule and score. ``n_classes`` is how many classes can be normal in turn, infinite where a
    record does not say it, and ``together`` how many were normal at once.
    """
    return pd.DataFrame((row for record in records for row in _values(record)), columns=list(LONG))


def _values(record: Record) -> Iterator[dict[str, Any]]:
    cell, label = record["cell"], dataset_label(record["cell"]["dataset"])
    shared = {
        "name": record["name"], "base": record["base"] or "", "dataset": label, "protocol": cell["protocol"],
        "normal": cell["normal"], "class_name": _class_name(cell["normal"], record["classes"]), "seed": cell["seed"],
        "stale": record.get("stale", ""), "git": record.get("git", ""), "command": record.get("command", ""),
        "n_classes": float(record.get("n_classes") or "inf"), "together": len(record["classes"]),
    }  # fmt: skip
    rules = {record["rule"]: record}
    if "oracle" in record["rules"]:
        rules |= record["rules"]
    for rule, result in rules.items():
        for score, values in result["metrics"].items():
            chosen = (rule, score) == (record["rule"], record["score"])
            for metric, value in values.items():
                if value is not None:
                    yield {**shared, "rule": rule, "score": score, "metric": metric, "value": value, "chosen": chosen}


def _class_name(normal: str, classes: Sequence[str]) -> str:
    """A class's name where it says more than its number; torchvision calls a digit "3 - three"."""
    name = ", ".join(classes)
    return "" if len(classes) > 1 or name == normal or name.startswith(f"{normal} - ") else name


def bootstrap_interval(values: Sequence[ArrayLike], resamples: int = 10_000) -> tuple[float, float]:
    """The 95 % percentile interval of a mean of class means, from each class's values of its seeds.

    The bootstrap resamples seeds within each class, always in the same way. The classes of a table are all there are, so they
    are not resampled (Agarwal et al., NeurIPS 2021, do so with tasks). NaN where a class has fewer than two seeds, which say
    nothing about spread.

    Example:
        >>> low, high = bootstrap_interval([[0.90, 0.92, 0.94], [0.80, 0.80, 0.80]])
        >>> low < 0.86 < high
        True
    """
    if not len(values) or any(len(np.atleast_1d(v)) < 2 for v in values):
        return float("nan"), float("nan")
    random = np.random.default_rng(0)
    means = np.mean([random.choice(np.asarray(v, float), (resamples, len(v))).mean(1) for v in values], axis=0)  # type: ignore[arg-type]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def status(paper: float, mean: float, low: float, high: float) -> str:
    """``matches`` if the interval contains the paper's value, else ``close`` within 0.02, ``above`` or ``below``.

    Example:
        >>> status(0.957, 0.965, 0.964, 0.966), status(0.957, 0.9571, 0.95, 0.96), status(0.9, 0.99, 0.98, 1.0)
        ('close', 'matches', 'above')
    """
    if np.isnan(paper):
        return ""
    if low <= paper <= high:
        return "matches"
    if abs(mean - paper) <= 0.02:
        return "close"
    return "above" if mean > paper else "below"


def summarise(
    long: pd.DataFrame, reported: pd.DataFrame, compare: Mapping[str, Sequence[str]], metrics: Sequence[str] = ("auroc",)
) -> pd.DataFrame:
    """Summarises seeds: one row for each block and normal class, and one for their mean.

    A mean is called ``mean`` if it is over all classes of the data set, else it names its classes; ``mean of n`` is over
    choices of ``n`` classes that are normal together. It stands beside the paper's mean over the same classes or beside
    nothing. A variant has the difference to its base over the classes and seeds that both have.

    Args:
        long: As :func:`long` gives it.
        reported: As :func:`common.experiment.published.reported` gives it.
        compare: For a row's name, or ``<name> <score>``, whose reported numbers stand beside it: the first that has the
            cell. ``<method>``, or ``<method>, <table>`` where several tables have it.
        metrics: Which ones, in their order.

    Returns:
        Columns :data:`COLUMNS`; of a mean, ``std`` is that of the seeds' class means.
    """
    bases = dict(zip(long["name"], long["base"], strict=True))
    long = long.assign(base=long["name"].map({name: _base_here(name, base, bases) for name, base in bases.items()}))
    long = long[long["metric"].isin(metrics)]
    long = long.sort_values("metric", key=lambda metric: metric.map(list(metrics).index), kind="stable")
    current = dict(list(long[long["stale"] == ""].groupby(KEY, sort=False)))
    rows = []
    for (*key, _), cells in long.groupby([*KEY, "together"], sort=False):
        base = current.get((cells["base"].iloc[0], *key[1:]))
        base_seeds = None if base is None else _by_seed(base)
        seeds, of_class = _by_seed(cells), {str(normal): own for normal, own in cells.groupby("normal")}
        choices = [([str(normal)], of_class[str(normal)]) for normal in seeds]
        if len(choices) > 1 and len(seeds.dropna()):
            choices.append(([str(normal) for normal in seeds], cells))
        block = dict(zip(KEY, map(str, key), strict=True))
        numbers = _numbers_of(block, reported, compare)
        for normals, chosen in choices:
            values = seeds.to_numpy() if len(normals) > 1 else seeds[normals[0]].to_numpy()[:, None]
            row = block | _measured(chosen, values, _label(cells, normals))
            row |= _beside_paper(row, normals, numbers)
            rows.append(row | (_beside_base(seeds[normals], base_seeds) if base_seeds is not None else {}))
    return as_summary(rows)


def _base_here(name: str, base: str, names: Collection[str]) -> str:
    """A row's base or, where that is none of the rows, the one with the most of the same overrides."""
    preset, overrides = split_preset(name)
    if not overrides or base in names:
        return base
    others = {other: split_preset(other) for other in names}
    fewer = [other for other, (head, changes) in others.items() if head == preset and set(changes) < set(overrides)]
    return max(fewer, key=lambda other: len(others[other][1]), default=base)


def as_summary(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """A frame with the columns of a summary, in their types."""
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    text, counts = [column for column in COLUMNS if column in TEXT], ["n_classes", "together", "n_seeds"]
    frame[text] = frame[text].astype(object).fillna("")
    frame[counts] = frame[counts].fillna(0).astype(int)
    return frame.astype(dict.fromkeys(set(COLUMNS) - TEXT - set(counts), float) | dict.fromkeys(text, object))


def is_mean(table: pd.DataFrame) -> "pd.Series[bool]":
    """Marks the rows of a summary that are means over classes."""
    return table["n_classes"] != 1


def _by_seed(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.set_index(["seed", "normal"])["value"].unstack(sort=False)


def _label(cells: pd.DataFrame, normals: Sequence[str]) -> str:
    """What the column ``normal`` says."""
    if len(normals) == 1:
        return normals[0]
    if (together := cells["together"].iloc[0]) > 1:
        return f"mean of {together}"
    if len(normals) >= DRAWN.get(cells["dataset"].iloc[0], cells["n_classes"].max()):
        return "mean"
    named = f"mean of {', '.join(normals)}"
    return named if len(named) <= 24 else f"mean of {len(normals)} classes"


def _measured(cells: pd.DataFrame, values: NDArray[np.float64], label: str) -> dict[str, Any]:
    """The columns of one row, from values ``(seeds, classes)``; a seed counts in a mean if it has all the classes."""
    means = values[~np.isnan(values).any(axis=1)].mean(axis=1)
    low, high = bootstrap_interval([column[~np.isnan(column)] for column in values.T])
    return {
        "normal": label,
        "class_name": cells["class_name"].iloc[0] if values.shape[1] == 1 else "",
        "n_classes": values.shape[1],
        "together": int(cells["together"].iloc[0]),
        "mean": float(means.mean()),
        "std": float(means.std(ddof=1)) if len(means) > 1 else np.nan,
        "n_seeds": len(means),
        "ci_low": low,
        "ci_high": high,
        "base": cells["base"].iloc[0],
        "stale": next(filter(None, cells["stale"]), ""),
        "commit": ", ".join(dict.fromkeys(filter(None, cells["git"]))),
    }


def _numbers_of(
    block: Mapping[str, str], reported: pd.DataFrame, compare: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """The reported numbers that may stand beside a block, by class, for each source; the preferred one first."""
    wanted = compare.get(f"{block['name']} {block['score']}", compare.get(block["name"], ()))
    if not wanted:
        return {}
    same = (reported["dataset"] == block["dataset"]) & (reported["metric"] == block["metric"])
    numbers = reported[same & (reported["protocol"] == block["protocol"].partition(",")[0])]
    found: dict[str, dict[str, float]] = {}
    for name in wanted:
        rows = numbers[(numbers["method"] == name) | (numbers["source"] == name)]
        for source, of_source in rows.groupby("source", sort=False):
            found.setdefault(str(source), dict(zip(of_source["normal"], of_source["value"], strict=True)))
    return found


def _beside_paper(row: Mapping[str, Any], normals: Sequence[str], numbers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    for source, values in numbers.items():
        if row["normal"] in values:
            paper = float(values[row["normal"]])
        elif set(normals) <= values.keys():
            paper = float(np.mean([values[normal] for normal in normals]))
        else:
            continue
        verdict = status(paper, row["mean"], row["ci_low"], row["ci_high"])
        return {"paper": paper, "delta": row["mean"] - paper, "reference": source, "status": verdict}
    return {}


def _beside_base(seeds: pd.DataFrame, base: pd.DataFrame) -> dict[str, float]:
    """The mean difference over the pairs of one class and seed, and a bootstrap interval in which pairs are resampled."""
    pairs = (seeds - base.reindex(columns=seeds.columns)).to_numpy().ravel()
    pairs = pairs[~np.isnan(pairs)]
    if not len(pairs):
        return {}
    low, high = bootstrap_interval([pairs])
    return {"base_delta": float(pairs.mean()), "base_low": low, "base_high": high}
