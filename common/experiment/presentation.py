"""The result table for people: terminal, Markdown, CSV."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from common.experiment.report import COLUMNS, KEY
from common.files import write_whole


def show(table: pd.DataFrame, console: Console, labels: Mapping[str, str] | None = None) -> None:
    """Prints the tables in a terminal's width.

    Where several classes were normal in turn: the class means with their intervals (one table with a column for each
    metric, where there are several), then every class as papers print it, the reported numbers below ours. Where it was
    one class: one row for each metric.

    Args:
        table: As :func:`tabulate` and :func:`only_reported` give it.
        console: Where to.
        labels: Short names of methods, scores and metrics.
    """
    labels = labels or {}
    for (dataset, protocol), group in table.groupby(["dataset", "protocol"], sort=False):
        title = f"{dataset} · {protocol}"
        is_mean = group["normal"].str.startswith("mean")
        metrics = list(dict.fromkeys(group["metric"]))
        if not is_mean.any():
            measured = group[group["n_seeds"] > 0]
            for (name, normal), rows in measured.groupby([_method(measured), "normal"], sort=False):
                console.print(_detailed(f"{title} · normal {normal} · {name}", rows, labels, by_metric=True))
            if len(rest := group[group["n_seeds"] == 0]):
                console.print(_by_metric(f"{title} · not measured", rest, labels))
            continue
        for mean, rows in group[is_mean].groupby("normal", sort=False):
            heading = f"{title} · {mean} over the normal classes"
            if len(metrics) > 2:
                console.print(_by_metric(heading, rows, labels))
                rows = rows[(rows["metric"] == metrics[0]) & (rows["n_seeds"] > 0)]
            for metric, of_metric in rows.groupby("metric", sort=False):
                console.print(_detailed(f"{heading} · {labels.get(metric, metric)}", of_metric, labels))
        classes = group[(group["n_seeds"] > 0) & (group["rule"] != "oracle") & ~group["normal"].str.contains(r"\+| of ")]
        for metric in metrics if len(metrics) <= 2 else metrics[:1]:
            if len(rows := classes[classes["metric"] == metric]):
                heading = f"{title} · {labels.get(metric, metric)} · each class as the normal one"
                console.print(_by_class(heading, rows, labels))


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table as a page that names the commands that made it, and of several each row's.

    Where there are several metrics, their class means stand in one table, and each class only with the first metric; the
    CSV has them all.

    Args:
        table: As :func:`tabulate` and :func:`only_reported` give it, with a column ``command``.
        title: Of the page.
    """
    commands = list(dict.fromkeys(table["command"]))
    by = ["by"] if len(commands) > 1 else []
    table = table.assign(by=table["command"].map({command: str(i) for i, command in enumerate(commands, 1)}))
    out = io.StringIO()
    makers = "the commands below, to which the column `by` points" if by else f"`{commands[0]}`" if commands else "no command"
    out.write(f"# {title}\n\nWritten by {makers}; not edited by hand. `paper` is the number reported by `reference`;\n")
    out.write("measured is mean ± standard deviation over seeds, the interval a stratified bootstrap over them.\n")
    if by:
        out.write("\n" + "".join(f"{i}. `{command}`\n" for i, command in enumerate(commands, 1)))
    for (dataset, protocol), group in table.groupby(["dataset", "protocol"], sort=False):
        metrics = list(dict.fromkeys(group["metric"]))
        is_mean = group["normal"].str.startswith("mean")
        several = is_mean.any() and len(metrics) > 2
        if several:
            for mean, rows in group[is_mean].groupby("normal", sort=False):
                out.write(f"\n## {dataset}, {protocol}, {mean} over the normal classes\n\n")
                _write_table(out, ["method", "score", "rule", "seeds", *metrics, *by], _pivoted(rows, metrics, by))
        for metric in metrics[:1] if several else metrics:
            rows = group[group["metric"] == metric]
            out.write(f"\n## {dataset}, {protocol}, {metric}\n\n")
            body = [[*_cells(row), *row[by]] for _, row in means_first(rows).iterrows()]
            _write_table(out, [*_HEADER, *by], body)
    return out.getvalue()


def write(table: pd.DataFrame, folder: Path, name: str, title: str, command: str) -> list[Path]:
    """``<name>.csv`` and ``<name>.md`` in a folder, each whole or not at all, of what one command made."""
    return _write(_csv(table), markdown(table.assign(command=command), title), folder, name)


def save(table: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """As :func:`write`, of a table that has a column ``command``; the page shows the numbers as the CSV has them."""
    csv = _csv(table)
    return _write(csv, markdown(read(io.StringIO(csv)), title), folder, name)


def add(table: pd.DataFrame, folder: Path, name: str, title: str, command: str) -> list[Path]:
    """As :func:`write`, beside what other commands have written there: the CSV has a column ``command``.

    See :func:`merged` for what is kept.

    Raises:
        InputError: The CSV that is there is no such table.
    """
    table, path = table.assign(command=command), folder / f"{name}.csv"
    return save(merged(read(path), table) if path.is_file() else table, folder, name, title)


def merged(earlier: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """An earlier table's rows where a new one has none, and the new ones.

    All normal classes of a method, preset, data set, protocol, score, metric and rule are kept or replaced together with
    their mean, which is therefore never of two sittings. What one of the two has measured is not "not run".

    Args:
        earlier: Columns :data:`COLUMNS` and ``command``.
        table: Likewise.

    Returns:
        Measured rows first, in the earlier table's order.
    """
    both = pd.concat([part for part in (earlier.assign(new=False), table.assign(new=True)) if len(part)], ignore_index=True)
    blocks = both.groupby(KEY, sort=False, dropna=False)
    both = both.assign(block=blocks.ngroup(), measured=both["n_seeds"] > 0)[both["new"] == blocks["new"].transform("any")]
    place = ["method", "preset", "dataset", "protocol", "normal"]
    done = both.groupby(place)["measured"].transform("any")
    both = both[(both["status"] != "not run") | ~done]
    return both.sort_values(["measured", "block"], ascending=[False, True], kind="stable", ignore_index=True)[list(table)]


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """What people read of a table: a row's method, score, normal class, paper's number, measured one and so on as text.

    Example:
        >>> row = dict.fromkeys(COLUMNS, float("nan")) | {"method": "DAE", "preset": "", "paper": 0.877, "n_seeds": 0}
        >>> readable(pd.DataFrame([row]))[["method", "paper", "Δ"]].values.tolist()
        [['DAE', '0.877', '']]
    """
    return pd.DataFrame([_cells(row) for _, row in table.iterrows()], columns=list(_HEADER), index=table.index)


def means_first(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of class means before those of single classes."""
    return rows.sort_values("normal", key=lambda normal: ~normal.str.startswith("mean"), kind="stable")


def _csv(table: pd.DataFrame) -> str:
    csv: str = table.to_csv(index=False, float_format="%.6g")
    return csv


def read(path: Path | io.StringIO) -> pd.DataFrame:
    """A CSV of :func:`add`.

    Raises:
        InputError: It is none.
    """
    columns = [*COLUMNS, "command"]
    text = [*KEY, "normal", "status", "reference", "command"]
    numbers = [column for column in columns if column not in text]
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=dict.fromkeys(numbers, ""))
        return table[columns].astype(dict.fromkeys(set(numbers) - {"n_seeds"}, float) | {"n_seeds": int})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no result table ({error}): move it away, or give another --out") from error


def _write(csv: str, page: str, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {".csv": csv, ".md": page}
    for suffix, content in contents.items():
        write_whole(folder / f"{name}{suffix}", content)
    return [folder / f"{name}{suffix}" for suffix in contents]


_HEADER = ("method", "score", "normal", "paper", "measured (seeds)", "Δ", "95 % interval", "rule", "status", "reference")


def _cells(row: pd.Series) -> list[str]:
    method = f"{row['method']}-{row['preset']}" if row["preset"] else row["method"]
    interval = "" if np.isnan(row["ci_low"]) else f"{_number(row['ci_low'])}–{_number(row['ci_high'])}"
    delta = "" if np.isnan(row["delta"]) else f"{row['delta']:+.3f}"
    about = [row["rule"], row["status"], row["reference"]]
    return [method, row["score"], row["normal"], _number(row["paper"]), _measured(row), delta, interval, *about]


def _measured(row: pd.Series) -> str:
    if not row["n_seeds"]:
        return ""
    return _number(row["mean"]) + (f" ± {_number(row['std'])}" if row["n_seeds"] > 1 else "") + f" ({row['n_seeds']})"


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _method(rows: pd.DataFrame) -> pd.Series:
    return rows["method"] + ("-" + rows["preset"]).where(rows["preset"] != "", "")


def _variant(rows: pd.DataFrame, labels: Mapping[str, str]) -> pd.Series:
    """Which of a method's scores and rules, where it has several."""
    names = (
        rows["score"].map(lambda score: labels.get(score, score)) if rows["score"].nunique() > 1 else rows["score"].map(_none)
    )
    rules = rows["rule"] if rows["rule"].nunique() > 1 else rows["rule"].map(_none)
    return (names + " " + rules).str.strip()


def _none(_: object) -> str:
    return ""


def _pivoted(rows: pd.DataFrame, metrics: Sequence[str], by: Sequence[str]) -> list[list[str]]:
    """A line for each method, score and rule with a column for each metric, and one with the numbers it stands beside.

    Columns named in ``by`` come last, each with all that its metrics' rows hold.
    """
    lines = []
    for _, of_one in rows.groupby([_method(rows), "score", "rule"], sort=False):
        method, score, rule = _method(of_one).iloc[0], of_one["score"].iloc[0], of_one["rule"].iloc[0]
        cells = of_one.drop_duplicates("metric").set_index("metric").reindex(metrics)
        seeds = int(of_one["n_seeds"].max())
        last = [", ".join(sorted(set(of_one[column]))) for column in by]
        if seeds:
            spread = (f"{m:.3f} ± {s:.3f}" if s == s else _missing(m) for m, s in zip(cells["mean"], cells["std"], strict=True))
            lines.append([method, score, rule, str(seeds), *spread, *last])
        for reference in dict.fromkeys(of_one["reference"][of_one["reference"] != ""]):
            reported = of_one[of_one["reference"] == reference].set_index("metric")["paper"].reindex(metrics)
            name = method if seeds or not score else f"{method} {score}"
            kind = f"reported: {reference}" if seeds else of_one["status"].iloc[0] + f": {reference}"
            lines.append([name if not seeds else "", kind, "", "", *map(_missing, reported), *last])
    return lines


def _missing(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def _write_table(out: io.StringIO, header: list[str], body: Sequence[Sequence[str]]) -> None:
    out.writelines("| " + " | ".join(line) + " |\n" for line in [header, ["---"] * len(header), *body])


def _grouped(rows: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[tuple[str, pd.DataFrame | None]]:
    """Rows by name: a method's own line where it has one variant, else its name alone and then its variants, indented."""
    for method, of_method in rows.groupby(_method(rows), sort=False):
        variants = list(of_method.groupby(_variant(of_method, labels), sort=False))
        label = labels.get(str(method), str(method))
        if len(variants) > 1:
            yield label, None
        for name, of_variant in variants:
            yield (f"  {name}" if len(variants) > 1 else label), of_variant


def _detailed(title: str, rows: pd.DataFrame, labels: Mapping[str, str], by_metric: bool = False) -> Table:
    references = "; ".join(dict.fromkeys(_sources(rows)))
    rules = ", ".join(dict.fromkeys(rows["rule"][rows["rule"] != ""]))
    caption = "; ".join(filter(None, [rules and f"epoch: {rules}", references and f"paper: {references}"]))
    table = _table(title, caption)
    shown = ["measured (seeds)", "95 % interval", *(["paper", "Δ", "status"] if references else [])]
    for name in ("", *shown):
        table.add_column(name, justify="right" if name in {"measured (seeds)", "paper", "Δ"} else "left", no_wrap=True)
    for name, of_one in _grouped(rows, labels):
        if of_one is None:
            table.add_row(name)
        for _, row in of_one.iterrows() if of_one is not None else ():
            cells = dict(zip(_HEADER, _cells(row), strict=True))
            metric = labels.get(row["metric"], row["metric"])
            first = f"{name} {metric}" if by_metric and name.startswith(" ") else metric if by_metric else name
            table.add_row(first, *(cells[name] for name in shown), style="" if row["n_seeds"] else "dim")
    return table


def _sources(rows: pd.DataFrame) -> Iterator[str]:
    """Whose numbers stand beside ours, and the tables of the others, whose lines have their names."""
    for reference, status in zip(rows["reference"], rows["status"], strict=True):
        if reference:
            yield reference.rpartition(", ")[2] if status == "reported" else reference


def _by_metric(title: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    metrics = list(dict.fromkeys(rows["metric"]))
    references = "; ".join(dict.fromkeys(rows["reference"].str.rpartition(", ")[2].replace("", None).dropna()))
    table = _table(title, f"dim: reported ({references})" if references else "")
    shown: set[tuple[str, str]] = set()
    for name in ("", *metrics):
        table.add_column(labels.get(name, name), justify="right" if name else "left", no_wrap=True)
    for name, of_one in _grouped(rows, labels):
        if of_one is None:
            table.add_row(name)
            continue
        cells = of_one.drop_duplicates("metric").set_index("metric").reindex(metrics)
        if of_one["n_seeds"].any():
            table.add_row(name, *map(_short, cells["mean"]))
        else:
            name = f"{name} ({of_one['status'].iloc[0]})" if of_one["status"].iloc[0] == "not run" else name
        method = _method(of_one).iloc[0]
        for reference in dict.fromkeys(cells["reference"].dropna()):
            if reference and (method, reference) not in shown:
                shown.add((method, reference))
                label = f"    {reference.rpartition(', ')[0]}" if of_one["n_seeds"].any() else name
                table.add_row(label, *map(_short, cells["paper"].where(cells["reference"] == reference)), style="dim")
    return table


def _by_class(title: str, rows: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    table = _table(title, "")
    table.box = None
    classes = sorted(dict.fromkeys(rows["normal"]), key=lambda normal: (normal == "mean", len(normal), normal))
    for name in ("", *classes):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    shown: set[tuple[str, object]] = set()
    for name, of_one in _grouped(rows, labels):
        if of_one is None:
            table.add_row(name)
            continue
        cells, method = of_one.set_index("normal"), _method(of_one).iloc[0]
        table.add_row(name, *(_short(cells["mean"].get(k)) for k in classes))
        for reference, reported_cells in cells[cells["reference"] != ""].groupby("reference", sort=False):
            if set(reported_cells.index) - {"mean"} and (method, reference) not in shown:
                shown.add((method, reference))
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
