"""Records and reported numbers to one table: terminal, CSV, Markdown."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.experiment.cell import REPOSITORY, Record, write_whole

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
) -> pd.DataFrame:
    """The result table.

    Args:
        records: Of the cells that are done.
        reported: As :func:`reported` gives it.
        compare: For ``<method>-<preset>``, whose reported numbers stand beside ours: the first that has the cell.
        metrics: Which ones.

    Returns:
        One row for each method, preset, data set, protocol, normal class, score and metric, and one for the class mean
        where there are several classes (its ``std`` is that of the seeds' class means); columns :data:`COLUMNS`.
    """
    long = pd.DataFrame(
        {**record["cell"], "rule": record["rule"], "score": score, "metric": metric, "value": values[metric]}
        for record in records
        for score, values in record["metrics"].items()
        for metric in metrics
        if values.get(metric) is not None
    )
    rows = []
    for key, cells in long.groupby(KEY, sort=False) if len(long) else ():
        about = dict(zip(KEY, key, strict=True))
        seeds = cells.pivot_table(index="seed", columns="normal", values="value", sort=False)
        for normal in seeds:
            values = seeds[normal].dropna()
            rows.append(_row(about, str(normal), values, [values], reported, compare))
        if seeds.shape[1] > 1:
            by_class = [seeds[normal].dropna() for normal in seeds]
            rows.append(_row(about, "mean", seeds.dropna().mean(axis=1), by_class, reported, compare))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def show(table: pd.DataFrame, console: Console) -> None:
    """Prints the tables in a terminal's width.

    Where several classes were normal in turn: the class means with their intervals, then every class as papers print it,
    the reported numbers below ours. Where it was one class: one row for each metric.
    """
    several = table.groupby(["dataset", "protocol"])["normal"].transform(lambda normal: "mean" in set(normal))
    for (dataset, protocol, metric), rows in table[several].groupby(["dataset", "protocol", "metric"], sort=False):
        title = f"{dataset} · {protocol} · {metric}"
        means = rows[rows["normal"] == "mean"].assign(name=_name)
        console.print(_detailed(f"{title} · mean over the normal classes", "name", means))
        console.print(_by_class(f"{title} · each class as the normal one", rows))
    one = table[~several].assign(name=_name)
    for (dataset, protocol, name, normal), rows in one.groupby(["dataset", "protocol", "name", "normal"], sort=False):
        console.print(_detailed(f"{dataset} · {protocol} · normal {normal} · {name}", "metric", rows))


def markdown(table: pd.DataFrame, title: str, command: str) -> str:
    """The table as a page that names the command that made it."""
    out = io.StringIO()
    out.write(f"# {title}\n\nWritten by `{command}`; not edited by hand. `paper` is the number reported by `reference`;\n")
    out.write("measured is mean ± standard deviation over seeds, the interval a stratified bootstrap over them.\n")
    for (dataset, protocol, metric), rows in table.groupby(["dataset", "protocol", "metric"], sort=False):
        out.write(f"\n## {dataset}, {protocol}, {metric}\n\n")
        is_mean = rows["normal"] == "mean"
        body = [_cells(row) for _, row in pd.concat([rows[is_mean], rows[~is_mean]]).iterrows()]
        lines = [list(_HEADER), ["---"] * len(_HEADER), *body]
        out.writelines("| " + " | ".join(line) + " |\n" for line in lines)
    return out.getvalue()


def write(table: pd.DataFrame, folder: Path, name: str, title: str, command: str) -> list[Path]:
    """``<name>.csv`` and ``<name>.md`` in a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {".csv": table.to_csv(index=False, float_format="%.6g"), ".md": markdown(table, title, command)}
    for suffix, content in contents.items():
        write_whole(folder / f"{name}{suffix}", content)
    return [folder / f"{name}{suffix}" for suffix in contents]


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
    for method in compare.get(f"{about['method']}-{about['preset']}", ()):
        rows = reported[reported["method"] == method]
        for column in ("dataset", "protocol", "metric", "normal"):
            rows = rows[rows[column] == where[column]]
        if len(rows):
            return float(rows["value"].iloc[0]), f"{method}, {rows['table'].iloc[0]}"
    return float("nan"), ""


_HEADER = ("method", "normal", "paper", "measured (seeds)", "Δ", "95 % interval", "rule", "status", "reference")


def _cells(row: pd.Series) -> list[str]:
    spread = f" ± {_number(row['std'])}" if row["n_seeds"] > 1 else ""
    interval = "" if np.isnan(row["ci_low"]) else f"{_number(row['ci_low'])}–{_number(row['ci_high'])}"
    measured = f"{_number(row['mean'])}{spread} ({row['n_seeds']})"
    paper, delta = ("", "") if np.isnan(row["paper"]) else (_number(row["paper"]), f"{row['delta']:+.3f}")
    method = f"{row['method']}-{row['preset']}"
    return [method, row["normal"], paper, measured, delta, interval, row["rule"], row["status"], row["reference"]]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _name(rows: pd.DataFrame) -> pd.Series:
    """Of a method; its score too, where the method has several."""
    scores = rows.groupby(["method", "preset"])["score"].transform("nunique")
    return rows["method"] + "-" + rows["preset"] + (" " + rows["score"]).where(scores > 1, "")


def _detailed(title: str, first: str, rows: pd.DataFrame) -> Table:
    references = "; ".join(dict.fromkeys(rows["reference"][rows["reference"] != ""]))
    table = _table(title, f"epoch: {', '.join(dict.fromkeys(rows['rule']))}" + (f"; paper: {references}" if references else ""))
    shown = ["measured (seeds)", "95 % interval", *(["paper", "Δ", "status"] if references else [])]
    for name in ("", *shown):
        table.add_column(name, justify="right" if name in {"measured (seeds)", "paper", "Δ"} else "left", no_wrap=True)
    for _, row in rows.iterrows():
        cells = dict(zip(_HEADER, _cells(row), strict=True))
        table.add_row(row[first], *(cells[name] for name in shown))
    return table


def _by_class(title: str, rows: pd.DataFrame) -> Table:
    table = _table(title, "")
    table.box = None
    classes = list(dict.fromkeys(rows["normal"]))
    for name in ("", *classes):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, of_method in rows.groupby(_name(rows), sort=False):
        cells = of_method.set_index("normal")
        table.add_row(name, *(_short(cells["mean"].get(k)) for k in classes))
        for reference, reported_cells in cells[cells["reference"] != ""].groupby("reference", sort=False):
            table.add_row(f"  {reference}", *(_short(reported_cells["paper"].get(k)) for k in classes), style="dim")
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, caption=caption or None, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0), min_width=min(78, len(title)),
    )  # fmt: skip


def _short(value: float | None) -> str:
    """``.984``: eleven of them fit a line."""
    return "" if value is None or np.isnan(value) else f"{value:.3f}".removeprefix("0")
