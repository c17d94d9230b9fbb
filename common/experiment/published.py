"""Builds an experiment's table from records and from reported numbers."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from common.experiment.declaration import Experiment, Place
from common.experiment.records import Record, base_of, cell_key, read_published, row_key
from common.experiment.table import KEY, as_summary, long, summarise
from common.presets import REPOSITORY

RESULTS = REPOSITORY / "experiments" / "results"

SETTINGS = {"max_epochs": "trainer.max_epochs", "image_size": "data.image_size"}
"""Settings that change a result, and the key of each in a preset."""


WITHOUT_ANOMALIES = ("false_alarm_rate", "flagged")
"""The metrics of a table whose test set has normal samples alone."""


def published(experiment: Experiment, more: Sequence[Record] = (), folder: Path = RESULTS) -> pd.DataFrame:
    """Returns the table of the published records, with reported numbers beside them.

    Args:
        experiment: Its places are what the table should hold; records of other rows are shown with the first one's metrics.
        more: Records of a runs folder. They replace published ones of their cells, unless they are stale; see :func:`apart`.
        folder: Holds ``<name>.jsonl``.

    Returns:
        A summary, variants below their bases.
    """
    committed = read_published(folder / f"{experiment.name}.jsonl")
    more = apart(more, committed)
    given = (*more, *committed, *(record for record in more if not record["stale"]))
    return tabulate(experiment, list({cell_key(record): record for record in given}.values()))


def apart(records: Sequence[Record], committed: Sequence[Record]) -> list[Record]:
    """Keeps records of a runs folder apart from rows that are made otherwise, so that no mean is of two settings or two data.

    Args:
        records: Of a runs folder.
        committed: The published ones; a row that they lack is made as its record with the fewest settings is.

    Returns:
        The records. One with a setting, such as ``--max-epochs 1``, that its row is not made with has it in its name, as an
        override. One that lacks a setting of its row, or was made from other data, is ``stale``.
    """
    rows: dict[tuple[str, str, str], Record] = {}
    for record in (*committed, *sorted(records, key=lambda record: len(given_settings(record)))):
        rows.setdefault(row_key(record), record)
    return [_beside(record, rows[row_key(record)]) for record in records]


def _beside(record: Record, of_row: Record) -> Record:
    given, usual = given_settings(record), given_settings(of_row)
    changes = [f"{SETTINGS[setting]}={value}" for setting, value in given.items() if usual.get(setting) != value]
    if changes:
        cell, name = record["cell"], ",".join([record["name"], *changes])
        preset = ",".join([cell["preset"], *changes])
        return record | {"name": name, "base": record["base"] or base_of(name), "cell": cell | {"preset": preset}}
    data = {of["identity"].get("data") for of in (record, of_row)} - {None, ""}
    other = "other data than its row's" if len(data) > 1 else ""
    lacking = [f"{setting.replace('_', '-')} {usual[setting]}" for setting in usual.keys() - given.keys()]
    reason = f"made without --{lacking[0]}, unlike its row" if lacking else other
    return record | {"stale": record["stale"] or reason}


def tabulate(experiment: Experiment, records: Sequence[Record]) -> pd.DataFrame:
    """Returns the table of one command's records, also for rows that the experiment does not declare."""
    table = measured(experiment, records)
    table = _joined(table, unmeasured(experiment, table, reported(experiment.name)))
    return _ordered(experiment, table)


def measured(experiment: Experiment, records: Sequence[Record]) -> pd.DataFrame:
    """The summary of records, each row with the command that makes it."""
    metrics = {place[1:3]: place.metrics for place in reversed(experiment.places)}
    numbers, made_by = reported(experiment.name), commands(experiment.name, records)
    tables = []
    for (dataset, protocol), cells in long(records).groupby(["dataset", "protocol"], sort=False):
        shown = metrics.get((str(dataset), str(protocol)), experiment.main.metrics)
        part = summarise(cells, numbers, experiment.compare, shown)
        if part.empty:  # nothing anomalous was tested
            part = summarise(cells, numbers, experiment.compare, WITHOUT_ANOMALIES)
        tables.append(part)
    table = _joined(*tables)
    rows = zip(table["name"], table["dataset"], table["protocol"], strict=True)
    return table.assign(command=[made_by[row] for row in rows])


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
    is_itself = frame["method"] == frame["table"]  # a tutorial has one method and one table
    return frame.assign(source=frame["method"] + (", " + frame["table"]).mask(is_itself, ""))


def unmeasured(experiment: Experiment, table: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Rows of what stands in the papers' tables and was not measured.

    Args:
        experiment: Its places are what the table should hold.
        table: What was measured, a summary.
        numbers: As :func:`reported` gives them.

    Returns:
        A summary without measured values. Status ``reported``: other methods. Status ``not run``: ours, with the reported
        numbers that it is to be compared with. Both for class means, or for single classes where a paper has no means.
    """
    ours: set[str] = set()
    for key, sources in experiment.compare.items():
        name = key.partition(" ")[0]
        if "-" in name or name in set(table["name"]):  # a preset file's row stands for a source only where it was run
            ours.update(sources)
    parts = []
    printed: dict[Place, pd.DataFrame] = {}
    for place in experiment.places:
        anyone = place._replace(name="")
        if anyone not in printed:
            printed[anyone] = _printed(numbers, place)
        theirs = printed[anyone]
        if not len(theirs):
            continue
        others = theirs[~_is_one_of(theirs, ours)]
        parts.append(others.assign(name=others["method"], status="reported"))
        done = table[(table[["name", "dataset", "protocol"]] == place[:3]).all(axis=1)]
        if not set(done["normal"]) & set(theirs["normal"]):
            for key in (key for key in experiment.compare if key.partition(" ")[0] == place.name):
                score = key.partition(" ")[2]
                parts.append(
                    theirs[_is_one_of(theirs, experiment.compare[key])].assign(name=place.name, score=score, status="not run")
                )
    if not parts:
        return as_summary([])
    rows = pd.concat(parts).rename(columns={"value": "paper", "source": "reference"}).drop(columns="std", errors="ignore")
    rows["n_classes"] = (~rows["normal"].str.startswith("mean")).astype(int)
    return as_summary(rows).drop_duplicates([*KEY, "normal", "reference"], ignore_index=True)


def commands(name: str, records: Iterable[Record]) -> dict[tuple[str, str, str], str]:
    """Returns the command for each row, data set and protocol; presets with equal flags share a command."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault(row_key(record), []).append(record)
    flags = {key: _flags(group) for key, group in groups.items()}
    presets: dict[str, list[str]] = {}
    for key, group in groups.items():
        presets.setdefault(flags[key], []).append(group[0]["cell"]["preset"])
    python = f"python -m experiments.{name} --presets"
    return {key: f"{python} {shlex.join(dict.fromkeys(presets[text]))} {text}" for key, text in flags.items()}


def given_settings(record: Record) -> dict[str, Any]:
    """The settings, keys of :data:`SETTINGS`, with which a record was made in place of its preset's.

    Example:
        >>> given_settings({"name": "classical-lof", "command": "python -m experiments.classical --image-size 32"})
        {'image_size': 32}
        >>> given_settings({"name": "ocgan-small", "command": "oneclass fit --config ocgan-small --trainer.max_epochs 3"})
        {'max_epochs': 3}
    """
    given: dict[str, Any] = {}
    for setting, key in SETTINGS.items():
        # of a net the command is oneclass fit, of a classical detector the experiment's own; both take "=" and a blank
        found = re.search(rf"--(?:{re.escape(key)}|{setting.replace('_', '-')})[= ](\d+)", record.get("command", ""))
        if found and f"{setting}=" not in record["name"]:  # else it is an override of the preset
            given[setting] = int(found[1])
    return given


def _flags(records: Sequence[Record]) -> str:
    """What comes after the presets in the command that makes records of one row."""
    cells = [record["cell"] for record in records]
    normal = dict.fromkeys(cell["normal"] for cell in cells)
    words = ["--datasets", cells[0]["dataset"], "--protocols", cells[0]["protocol"]]
    if len(normal) < float(records[0].get("n_classes") or "inf"):
        words += ["--normal", *normal]
    words += ["--seeds", *map(str, sorted({cell["seed"] for cell in cells}))]
    for setting, value in given_settings(records[0]).items():
        words += [f"--{setting.replace('_', '-')}", str(value)]
    if any("oracle" in record["rules"] for record in records):
        words.append("--oracle")
    return shlex.join(words)


def _ordered(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary in the order of its pages.

    Places have the experiment's order, those without a measured row last. In each, measured rows come first, then stale ones,
    each in the experiment's order too, variants below their bases.
    """
    is_variant = table["base"].isin(table["name"]) & (table["base"] != table["name"])
    families = table["base"].where(is_variant, table["name"])
    order = list(dict.fromkeys([*(place.name for place in experiment.places), *families]))
    here = pd.MultiIndex.from_frame(table[["dataset", "protocol"]])
    measured = set(here[table["n_seeds"] > 0])
    known = dict.fromkeys([*(place[1:3] for place in experiment.places), *here])
    places = sorted(known, key=lambda place: place not in measured)
    ranks = pd.DataFrame({
        "place": here.map(places.index),
        "missing": table["n_seeds"] == 0,
        "stale": table["stale"] != "",
        "family": families.map(order.index),
        "variant": is_variant,
    })  # fmt: skip
    return table.loc[ranks.sort_values(list(ranks), kind="stable").index].reset_index(drop=True)


def _printed(numbers: pd.DataFrame, place: Place) -> pd.DataFrame:
    """What papers print of a place: means, or classes where there is no mean; beside one class no mean stands."""
    same = (numbers["dataset"] == place.dataset) & (numbers["protocol"] == place.protocol.partition(",")[0])
    theirs = numbers[same & numbers["metric"].isin(place.metrics)]
    means = theirs["normal"].str.startswith("mean")
    has_mean = means.groupby([theirs["source"], theirs["metric"]]).transform("any")
    theirs = theirs[means | ~has_mean].assign(protocol=place.protocol)
    return theirs[theirs["normal"].isin(place.normal)] if place.normal and len(place.normal) == 1 else theirs


def _is_one_of(numbers: pd.DataFrame, sources: Iterable[str]) -> "pd.Series[bool]":
    return numbers["method"].isin(sources) | numbers["source"].isin(sources)


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table for table in tables if len(table)] or [as_summary([])], ignore_index=True)
