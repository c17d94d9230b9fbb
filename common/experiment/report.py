"""Records and reported numbers to one table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from common.experiment.cell import Cell, Record
from common.presets import REPOSITORY

COLUMNS = (
    "method", "preset", "dataset", "protocol", "normal", "score", "metric", "paper", "mean", "std", "n_seeds", "delta",
    "ci_low", "ci_high", "rule", "status", "reference",
)  # fmt: skip
"""Of the result table. ``reference`` says whose number ``paper`` is, because one preset may stand beside several tables."""

KEY = ["method", "preset", "dataset", "protocol", "score", "metric", "rule"]


def reported(name: str) -> pd.DataFrame:
    """The papers' numbers, ``experiments/reported/<name>.csv``, with the class mean computed where a paper prints none.

    Columns ``table, page, dataset, protocol, method, normal, metric, value, std``; no row where there is no such file.
    """
    path = REPOSITORY / "experiments" / "reported" / f"{name}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["table", "page", "dataset", "protocol", "method", "normal", "metric", "value", "std"])
    frame = pd.read_csv(path, dtype={"normal": str})
    pieces = []
    for key, rows in frame.groupby(["table", "dataset", "protocol", "method", "metric"], sort=False):
        pieces.append(rows)
        if "mean" not in set(rows["normal"]) and len(rows) == 10:
            about = dict(zip(("table", "dataset", "protocol", "method", "metric"), key, strict=True))
            pieces.append(pd.DataFrame([{**about, "normal": "mean", "value": rows["value"].mean()}]))
    return pd.concat(pieces, ignore_index=True)


def bootstrap_interval(values: Sequence[ArrayLike], confidence: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile interval of a mean of class means, seeds resampled within each class (stratified bootstrap).

    The classes of a table are all there are, so they are not resampled (Agarwal et al., NeurIPS 2021, do so with tasks).

    Args:
        values: For each class, its seeds' values.
        confidence: In (0, 1).
        resamples: Always the same ones.

    Returns:
        Low and high; NaN where a class has fewer than two seeds, which say nothing about spread.

    Example:
        >>> low, high = bootstrap_interval([[0.90, 0.92, 0.94], [0.80, 0.80, 0.80]])
        >>> low < 0.86 < high
        True
    """
    if any(len(np.atleast_1d(v)) < 2 for v in values):
        return float("nan"), float("nan")
    random = np.random.default_rng(0)
    means = np.mean([random.choice(np.asarray(v, float), (resamples, len(v))).mean(1) for v in values], axis=0)  # type: ignore[arg-type]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def status(paper: float, mean: float, low: float, high: float) -> str:
    """``matches`` where the interval holds the paper's value, else ``close`` within 0.02, ``above`` or ``below``.

    Example:
        >>> status(0.957, 0.965, 0.964, 0.966), status(0.957, 0.9571, 0.95, 0.96), status(0.9, 0.99, 0.98, 1.0)
        ('close', 'matches', 'above')
    """
    if np.isnan(paper):
        return ""
    if low <= paper <= high:
        return "matches"
    return "close" if abs(mean - paper) <= 0.02 else "above" if mean > paper else "below"


def tabulate(
    records: Iterable[Record],
    reported: pd.DataFrame,
    compare: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = ("auroc",),
    wanted: Iterable[Cell] = (),
) -> pd.DataFrame:
    """The result table.

    Args:
        records: Of the cells that are done.
        reported: As :func:`reported` gives it.
        compare: For ``<method>-<preset> <score>`` or ``<method>-<preset>``, whose reported numbers stand beside ours: the
            first that has the cell. ``<method>``, or ``<method>, <table>`` where several tables have it.
        metrics: Which ones.
        wanted: All cells that the table should hold; while one of a method's normal classes is missing it has no mean.

    Returns:
        One row for each method, preset, data set, protocol, normal class, score, metric and rule (the preset's, and all that
        the record has where the test set was scored after every epoch), and one for the class mean where there are several
        normal choices (its ``std`` is that of the seeds' class means; ``mean of n`` where ``n`` classes are normal together);
        columns :data:`COLUMNS`.
    """
    long = pd.DataFrame(
        {**record["cell"], "rule": rule, "score": score, "metric": metric, "value": values[metric]}
        for record in records
        for rule, metrics_of in _by_rule(record).items()
        for score, values in metrics_of["metrics"].items()
        for metric in metrics
        if values.get(metric) is not None
    )
    rows = []
    classes: dict[tuple[str, str, int], set[str]] = {}
    for cell in wanted:
        classes.setdefault((cell.dataset, cell.protocol, cell.normal.count("+") + 1), set()).add(cell.normal)
    if len(long):
        long["n_classes"] = long["normal"].str.count(r"\+") + 1
    for (*key, n_classes), cells in long.groupby([*KEY, "n_classes"], sort=False) if len(long) else ():
        about = dict(zip(KEY, key, strict=True))
        seeds = cells.pivot_table(index="seed", columns="normal", values="value", sort=False)
        for normal in seeds:
            values = seeds[normal].dropna()
            rows.append(_row(about, str(normal), values, [values], reported, compare))
        if seeds.shape[1] > 1 and set(seeds) >= classes.get((about["dataset"], about["protocol"], n_classes), set()):
            by_class = [seeds[normal].dropna() for normal in seeds]
            name = "mean" if n_classes == 1 else f"mean of {n_classes}"
            rows.append(_row(about, name, seeds.dropna().mean(axis=1), by_class, reported, compare))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def only_reported(table: pd.DataFrame, wanted: Iterable[tuple[str, str, str]], reported: pd.DataFrame,
                  compare: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> pd.DataFrame:  # fmt: skip
    """Rows of what stands in the papers' tables and was not measured.

    Args:
        table: What was measured, as :func:`tabulate` gives it.
        wanted: ``(<method>-<preset>, data set, protocol)`` of everything that the table should hold.
        reported: As :func:`reported` gives it.
        compare: As in :func:`tabulate`.
        metrics: Which ones.

    Returns:
        Like :func:`tabulate`, without measured values. Status ``not run``: ours, with the reported numbers that it is to
        be compared with. Status ``reported``: other methods, for class means and single classes.
    """
    rows = []
    ours = {source for sources in compare.values() for source in sources}
    places: dict[tuple[str, str], list[str]] = {}
    for name, dataset, protocol in wanted:
        places.setdefault((dataset, protocol), []).append(name)
    for (dataset, protocol), names in places.items():
        here = reported[(reported["dataset"] == dataset) & (reported["protocol"] == protocol.split(",")[0])]
        here = here[here["metric"].isin(metrics)]
        has_mean = here.groupby(["table", "method", "metric"])["normal"].transform(lambda n: n.str.startswith("mean").any())
        here = here[here["normal"].str.startswith("mean") | ~has_mean]
        measured = table[(table["dataset"] == dataset) & (table["protocol"] == protocol)]
        whole = measured[measured["normal"].str.startswith("mean") | measured["normal"].isin(here["normal"])]
        done = set(whole["method"] + "-" + whole["preset"])
        for _, row in here.iterrows():
            about = {"dataset": dataset, "protocol": protocol, "metric": row["metric"], "normal": row["normal"], "score": ""}
            source = f"{row['method']}, {row['table']}"
            about |= {"paper": row["value"], "n_seeds": 0, "reference": source, "rule": ""}
            if not ours & {row["method"], source}:
                rows.append({**about, "method": row["method"], "preset": "", "status": "reported"})
            for name in names:
                method, _, preset = name.partition("-")
                for key, sources in compare.items():
                    if key.split(" ")[0] == name and {row["method"], source} & set(sources) and name not in done:
                        score = key.partition(" ")[2]
                        rows.append({**about, "method": method, "preset": preset, "score": score, "status": "not run"})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_rule(record: Record) -> dict[str, Any]:
    return {record["rule"]: record, **(record["also"] if "oracle" in record["also"] else {})}


def _row(
    about: Mapping[str, str],
    normal: str,
    values: pd.Series,
    by_class: Sequence[pd.Series],
    reported: pd.DataFrame,
    compare: Mapping[str, Sequence[str]],
) -> dict[str, object]:
    low, high = bootstrap_interval(by_class)
    paper, reference = _reference(about, normal, reported, compare)
    mean = float(values.mean())
    return {
        **about,
        "normal": normal,
        "paper": paper,
        "mean": mean,
        "std": float(values.std(ddof=1)),
        "n_seeds": len(values),
        "delta": mean - paper,
        "ci_low": low,
        "ci_high": high,
        "status": status(paper, mean, low, high),
        "reference": reference,
    }


def _reference(
    about: Mapping[str, str], normal: str, reported: pd.DataFrame, compare: Mapping[str, Sequence[str]]
) -> tuple[float, str]:
    where = {**about, "protocol": about["protocol"].split(",")[0], "normal": normal}
    name = f"{about['method']}-{about['preset']}"
    for source in compare.get(f"{name} {about['score']}", compare.get(name, ())):
        rows = reported[(reported["method"] == source) | (_sources(reported) == source)]
        for column in ("dataset", "protocol", "metric", "normal"):
            rows = rows[rows[column] == where[column]]
        if len(rows):
            return float(rows["value"].iloc[0]), _sources(rows).iloc[0]
    return float("nan"), ""


def _sources(reported: pd.DataFrame) -> pd.Series:
    return reported["method"] + ", " + reported["table"]
