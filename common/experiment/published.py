"""An experiment's table: of records, of the aggregates from before there were records, and of what papers report."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from common.data import dataset_label
from common.errors import InputError
from common.experiment.records import Record, read_published
from common.experiment.table import KEY, as_summary, long, number_of_classes, summarise
from common.presets import REPOSITORY

RESULTS = REPOSITORY / "experiments" / "results"

SETTINGS = {"trainer.max_epochs": "--max-epochs", "data.image_size": "--image-size"}
"""Options of a cell's command that are flags of an experiment's, where they are no override of the preset."""


class Place(NamedTuple):
    """A row of an experiment that its table should hold.

    Attributes:
        name: Of the row, ``<method>-<preset>`` or a file's stem, with overrides.
        dataset: Its label.
        protocol: With its options.
        metrics: To show, the most important first.
        normal: The only normal choices that are asked for; all classes in turn by default.
    """

    name: str
    dataset: str
    protocol: str
    metrics: Sequence[str] = ("auroc",)
    normal: Sequence[str] | None = None


def reported(name: str) -> pd.DataFrame:
    """The papers' numbers, ``experiments/reported/<name>.csv``, with the mean of ten classes where a paper prints none.

    Columns ``table, page, dataset, protocol, method, normal, metric, value, std`` and ``source``, which is
    ``<method>, <table>``; no row where there is no such file.
    """
    path = REPOSITORY / "experiments" / "reported" / f"{name}.csv"
    columns = ["table", "page", "dataset", "protocol", "method", "normal", "metric", "value", "std"]
    frame = pd.read_csv(path, dtype={"normal": str}) if path.is_file() else pd.DataFrame(columns=columns)
    printed = ["table", "dataset", "protocol", "method", "metric"]
    of_ten = frame.groupby(printed, sort=False).filter(lambda rows: len(rows) == 10 and "mean" not in set(rows["normal"]))
    means = of_ten.groupby(printed, sort=False, as_index=False)["value"].mean().assign(normal="mean")
    frame = pd.concat([part for part in (frame, means) if len(part)] or [frame], ignore_index=True)
    return frame.assign(source=frame["method"] + ", " + frame["table"])


def aggregates(name: str, folder: Path = RESULTS) -> pd.DataFrame:
    """The measured rows of ``aggregates/<name>.csv``: results that were published before records were; never written.

    Raises:
        InputError: The file is no such table.
    """
    path = folder / "aggregates" / f"{name}.csv"
    if not path.is_file():
        return as_summary([])
    try:
        text = dict.fromkeys(["method", "preset", *KEY[1:], "normal", "status", "reference", "command"], str)
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=dict.fromkeys(["paper", "mean", "std"], ""))
        table = table[table["n_seeds"] > 0].assign(name=table["method"] + "-" + table["preset"])
        table = table.replace("", None).assign(n_classes=1)
        blocks = [*KEY, "together"]
        together = table["normal"].str.extract(r"mean of (\d+)", expand=False)
        table["together"] = together.fillna(table["normal"].str.count(r"\+").add(1).astype(str))
        means = table["normal"].str.startswith("mean")
        table.loc[means, "n_classes"] = table.groupby(blocks)["n_classes"].transform("sum")[means] - 1
        return as_summary(table)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no table of aggregates: {error}") from error


def published(
    name: str,
    compare: Mapping[str, Sequence[str]],
    places: Sequence[Place],
    more: Sequence[Record] = (),
    folder: Path = RESULTS,
) -> pd.DataFrame:
    """The published table: committed records in place of the aggregates of the same blocks, and what is reported.

    Args:
        name: Of the experiment.
        compare: As in :func:`common.experiment.table.summarise`.
        places: What the table should hold; records of other rows are shown with the first one's metrics.
        more: Records of a runs folder. They replace published ones of their cells, but no block of aggregates that
            stands for more cells than they do.
        folder: Holds ``<name>.jsonl`` and ``aggregates``.

    Returns:
        A summary, variants below their bases.
    """
    table = measured(name, compare, places, more, folder)
    return ordered(_joined(table, unmeasured(table, places, reported(name), compare)))


def tabulate(
    name: str, records: Sequence[Record], compare: Mapping[str, Sequence[str]], places: Sequence[Place]
) -> pd.DataFrame:
    """As :func:`published`, of the records of one command alone; those that no place names have rows too."""
    table = _of_records(name, records, compare, places)
    return ordered(_joined(table, unmeasured(table, places, reported(name), compare)))


def measured(
    name: str,
    compare: Mapping[str, Sequence[str]],
    places: Sequence[Place],
    more: Sequence[Record] = (),
    folder: Path = RESULTS,
) -> pd.DataFrame:
    """The measured rows of :func:`published`."""
    committed = read_published(folder / f"{name}.jsonl")
    table = _replaced(aggregates(name, folder), _of_records(name, committed, compare, places))
    if not more:
        return table
    cells = {_place(record): record for record in (*committed, *more)}
    newer = _of_records(name, list(cells.values()), compare, places)
    return _replaced(table, _at_least_as_full(newer, table))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """In each data set and protocol measured rows first, stale ones after those, and each variant below its base."""
    names = table["name"].drop_duplicates()
    is_variant = table["base"].isin(names) & (table["base"] != table["name"])
    families = table["base"].where(is_variant, table["name"])
    ranks = pd.DataFrame({
        "place": table.groupby(["dataset", "protocol"], sort=False).ngroup(),
        "missing": table["n_seeds"] == 0,
        "stale": table["stale"] != "",
        "family": pd.factorize(families)[0],
        "variant": is_variant,
    })  # fmt: skip
    return table.loc[ranks.sort_values(list(ranks), kind="stable").index].reset_index(drop=True)


def unmeasured(
    table: pd.DataFrame, places: Iterable[Place], reported: pd.DataFrame, compare: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows of what stands in the papers' tables and was not measured.

    Args:
        table: What was measured, a summary.
        places: What the table should hold.
        reported: As :func:`reported` gives it.
        compare: As in :func:`common.experiment.table.summarise`.

    Returns:
        A summary without measured values. Status ``reported``: other methods. Status ``not run``: ours, with the reported
        numbers that it is to be compared with. Both for class means, or for single classes where a paper has no means.
    """
    ours = {source for sources in compare.values() for source in sources}
    rows = []
    for place in places:
        theirs = _printed(reported, place)
        others = theirs[~_is_one_of(theirs, ours)]
        rows += [_not_measured(row, place, "reported", row["method"]) for row in others.to_dict("records")]
        done = table[(table[["name", "dataset", "protocol"]] == place[:3]).all(axis=1)]
        if set(done["normal"]) & set(theirs["normal"]):
            continue
        for key in (key for key in compare if key.partition(" ")[0] == place.name):
            beside = theirs[_is_one_of(theirs, compare[key])]
            rows += [_not_measured(row, place, "not run", *key.split(" ")) for row in beside.to_dict("records")]
    return as_summary(rows).drop_duplicates([*KEY, "normal", "reference"], ignore_index=True)


def _printed(reported: pd.DataFrame, place: Place) -> pd.DataFrame:
    """What papers print of a place: means, or classes where there is no mean; beside one class no mean stands."""
    same = (reported["dataset"] == place.dataset) & (reported["protocol"] == place.protocol.partition(",")[0])
    theirs = reported[same & reported["metric"].isin(place.metrics)]
    means = theirs["normal"].str.startswith("mean")
    has_mean = means.groupby([theirs["source"], theirs["metric"]]).transform("any")
    theirs = theirs[means | ~has_mean]
    return theirs[theirs["normal"].isin(place.normal)] if place.normal and len(place.normal) == 1 else theirs


def _is_one_of(reported: pd.DataFrame, sources: Iterable[str]) -> "pd.Series[bool]":
    return reported["method"].isin(sources) | reported["source"].isin(sources)


def _not_measured(row: Mapping[str, Any], place: Place, status: str, name: str, score: str = "") -> dict[str, Any]:
    return {
        "name": name, "dataset": place.dataset, "protocol": place.protocol, "normal": row["normal"], "score": score,
        "metric": row["metric"], "n_classes": 0 if row["normal"].startswith("mean") else 1, "paper": row["value"],
        "reference": row["source"], "status": status,
    }  # fmt: skip


def commands(name: str, records: Iterable[Record]) -> dict[tuple[str, str, str], str]:
    """The experiment's command for each row's name, data set and protocol; presets that share all flags share a command."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        cell = record["cell"]
        groups.setdefault((record["name"], dataset_label(cell["dataset"]), cell["protocol"]), []).append(record)
    flags = {place: _flags(group) for place, group in groups.items()}
    presets: dict[str, list[str]] = {}
    for place, group in groups.items():
        presets.setdefault(flags[place], []).append(group[0]["cell"]["preset"])
    python = f"python -m experiments.{name} --presets"
    return {place: f"{python} {shlex.join(dict.fromkeys(presets[text]))} {text}" for place, text in flags.items()}


def _flags(records: Sequence[Record]) -> str:
    """What comes after the presets in the command that makes records of one row."""
    cells = [record["cell"] for record in records]
    normal = dict.fromkeys(cell["normal"] for cell in cells)
    words = ["--datasets", cells[0]["dataset"], "--protocols", cells[0]["protocol"]]
    if len(normal) < number_of_classes(records[0]):
        words += ["--normal", *normal]
    words += ["--seeds", *map(str, sorted({cell["seed"] for cell in cells}))]
    for option, flag in SETTINGS.items():
        given = [word for word in shlex.split(records[0].get("command", "")) if word.startswith(f"--{option}=")]
        if given and f"{option.partition('.')[2]}=" not in records[0]["name"]:
            words += [flag, given[-1].partition("=")[2]]
    if any("oracle" in record["rules"] for record in records):
        words.append("--oracle")
    return shlex.join(words)


def _of_records(
    name: str, records: Sequence[Record], compare: Mapping[str, Sequence[str]], places: Sequence[Place]
) -> pd.DataFrame:
    metrics = {(place.dataset, place.protocol): place.metrics for place in reversed(places)}
    default = places[0].metrics if places else ("auroc",)
    numbers, made_by = reported(name), commands(name, records)
    tables = [
        summarise(cells, numbers, compare, metrics.get((str(dataset), str(protocol)), default))
        for (dataset, protocol), cells in long(records).groupby(["dataset", "protocol"], sort=False)
    ]
    table = _joined(*tables)
    rows = zip(table["name"], table["dataset"], table["protocol"], strict=True)
    return table.assign(command=[made_by[row] for row in rows])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table for table in tables if len(table)] or [as_summary([])], ignore_index=True)


def _blocks(table: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[KEY])


def _replaced(table: pd.DataFrame, newer: pd.DataFrame) -> pd.DataFrame:
    """A table with newer blocks in place of its own; a block is replaced whole, so that no mean is of two sittings."""
    return _joined(table[~_blocks(table).isin(_blocks(newer))], newer)


def _at_least_as_full(newer: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    cells = newer[newer["n_classes"] == 1].groupby(KEY)["n_seeds"].sum()
    before = table[table["n_classes"] == 1].groupby(KEY)["n_seeds"].sum()
    full = cells.index[cells >= before.reindex(cells.index).fillna(0)]
    return newer[_blocks(newer).isin(full)]


def _place(record: Record) -> tuple[object, ...]:
    cell = record["cell"]
    return record["name"], *(cell[key] for key in ("dataset", "protocol", "normal", "seed"))
