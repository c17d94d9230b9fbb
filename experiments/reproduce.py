"""Trains random cells of the published tables again, and compares the numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from common.backbones import weights_file
from common.command_line import Parser, natural, one_line_errors, positive
from common.errors import InputError
from common.experiment.cell import Cell, Settings
from common.experiment.grid import run_grid
from common.experiment.perform import check_writable, missing_data, records_of, refuse_stale
from common.experiment.published import RESULTS, given_settings, measured
from common.experiment.records import Record, read_published, row_key
from common.experiment.render import interval
from common.experiment.table import KEY, long
from common.experiment.terminal import plain
from common.presets import split_preset
from common.training.process import chosen_device
from experiments.report import declared

ROW = ["name", "dataset", "protocol", "normal"]
VALUE = [*KEY, "normal"]
ROUNDING = 0.0005
"""Allowed difference of one seed's value, and of a deterministic detector from a rounded table."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draws rows of single classes, trains them with their seeds, and says whether the numbers are reproduced.

    Without a GPU no row is drawn that a GPU has made, as it would take hours, unless ``--presets`` names it.

    Records are compared seed by seed. If a value differs, for example on another machine, the new mean must lie in the
    interval of the row; that of a detector without randomness is the rounding.

    Exit status: 0; 1 if a row is not reproduced; 2 after a mistake in the command.
    """
    with one_line_errors():
        arguments = _parser().parse_args(argv)
        device = chosen_device(arguments.device)
        records = _records(arguments.results)
        before = long(records).drop_duplicates([*VALUE, "seed"])
        rows = candidates(arguments.results)
        if device == "cpu" and not arguments.presets:
            of_gpus = long(record for record in records if record.get("device", "").startswith("cuda"))
            rows = rows[~_index(rows, ROW).isin(_index(of_gpus, ROW))]
        for column, named in (("name", arguments.presets), ("dataset", arguments.datasets)):
            rows = rows[rows[column].isin(named)] if named else rows
        missing = missing_data(rows["dataset"], arguments.root, InputError)
        rows = rows[~rows["dataset"].isin(missing)]
        no_weights = rows["name"].map(_missing_weights)
        missing |= {path: f"there is no {path}" for path in no_weights if path}
        rows = rows[no_weights == ""]
        names = rows[ROW].drop_duplicates()
        if len(names) < arguments.cells:
            reasons = "".join(f"; {reason}" for reason in missing.values())
            raise InputError(f"only {len(names)} of these rows can be checked: give fewer --cells, or other rows{reasons}")
        rows = rows.merge(names.sample(arguments.cells, random_state=arguments.draw))
        settings = Settings(arguments.root, arguments.runs, device, force=arguments.force)
        check_writable(settings.runs)
        console, plan = Console(highlight=False, markup=False), _plan(rows, records, settings)
        for given, cells in plan.items():
            refuse_stale(cells, given)
        again: list[Record] = []
        failures: dict[Cell, str] = {}
        for given, cells in plan.items():
            failures |= run_grid(cells, given, arguments.jobs, console)
            again += records_of(cells, given)
        compared = verdicts(rows, before, long(again))
        show(compared, console)
        if failures or (compared["verdict"] == "outside").any():
            raise SystemExit(1)


def candidates(results: Path = RESULTS) -> pd.DataFrame:
    """The published rows of single classes; the interval of a detector without randomness is the rounding.

    Args:
        results: The folder of published records.
    """
    if not any((results / f"{known.name}.jsonl").is_file() for known in declared()):
        raise InputError(f"there are no published records in {results}")
    tables = [measured(known, read_published(results / f"{known.name}.jsonl")) for known in declared()]
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    rows = rows[(rows["metric"] == "auroc") & (rows["rule"] != "oracle") & (rows["n_classes"] == 1)]
    rows = rows.drop_duplicates(VALUE)
    steady = ~rows["name"].map(lambda name: Cell(name, "", "", "", 0).seeded)
    rows.loc[steady, "ci_low"], rows.loc[steady, "ci_high"] = rows["mean"] - ROUNDING, rows["mean"] + ROUNDING
    return rows


def verdicts(rows: pd.DataFrame, before: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Adds the new mean ``again``, the largest ``difference`` of a seed and the ``verdict`` to rows.

    Args:
        rows: Rows of :func:`candidates`.
        before: The published values, in the format of :func:`common.experiment.table.long`.
        again: The new values, in the same format.

    Returns:
        The verdict is ``same`` if no seed differs by more than :data:`ROUNDING`, else ``within`` if the new mean
        lies in the interval, else ``outside``, also if a value is missing.
    """
    pairs = before.merge(again[[*VALUE, "seed", "value"]], how="left", on=[*VALUE, "seed"], suffixes=("", "_again"))
    pairs["difference"] = (pairs["value"] - pairs["value_again"]).abs().fillna(np.inf)
    table = rows.join(again.groupby(VALUE)["value"].mean().rename("again"), on=VALUE)
    table = table.join(pairs.groupby(VALUE)["difference"].max(), on=VALUE)
    same = table["difference"] <= ROUNDING
    within = table["again"].between(table["ci_low"], table["ci_high"])
    return table.assign(verdict=np.select([same, within], ["same", "within"], "outside"))


def show(compared: pd.DataFrame, console: Console) -> None:
    """Prints the rows of :func:`verdicts`."""
    lines = [
        {
            "": f"{row['name']} {row['score']}\n  {row['dataset']} {row['protocol']} normal={row['normal']}",
            "published (seeds)": f"{row['mean']:.4f} ({row['n_seeds']})",
            "interval": interval(row["ci_low"], row["ci_high"], ".4f"),
            "again": f"{row['again']:.4f}",
            "by seed": f"±{row['difference']:.4f}" if np.isfinite(row["difference"]) else "",
            "verdict": row["verdict"],
        }
        for row in compared.to_dict("records")
    ]
    console.print(plain(pd.DataFrame(lines)))


def _parser() -> Parser:
    parser = Parser(prog="python -m experiments.reproduce", description=__doc__)
    add = parser.add_argument
    add("--cells", type=positive, default=2, help="number of rows to draw (default: 2)")
    add("--draw", type=natural, default=0, help="seed of the draw; another number draws other rows")
    add("--presets", nargs="+", help="METHOD-PRESET, several (default: all)")
    add("--datasets", nargs="+", help="names of data sets (default: all that are there)")
    add("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    add("--runs", type=Path, default=Path("reproduced"), help="where records go (default: reproduced)")
    add("--jobs", type=positive, help="cells at a time (default: one per core, or per GPU)")
    add("--force", action="store_true", help="run again what is done")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--results", type=Path, default=RESULTS, help="published records (default: the committed ones)")
    return parser


def _missing_weights(name: str) -> str:
    """The file of weights that a row's net needs, if it is not here."""
    given = dict(option.split("=", 1) for option in split_preset(name)[1])
    path = weights_file(given.get("weights"))
    return "" if path is None or path.is_file() else str(path)


def _plan(rows: pd.DataFrame, records: Sequence[Record], settings: Settings) -> dict[Settings, list[Cell]]:
    """The cells of rows by their settings, with the seeds and the image size of their records."""
    made: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        made.setdefault((*row_key(record), record["cell"]["normal"]), []).append(record)
    plan: dict[Settings, list[Cell]] = {}
    for name, dataset, protocol, normal in rows[ROW].drop_duplicates().itertuples(index=False):
        of_row = made[name, dataset, protocol, normal]
        seeds = sorted({record["cell"]["seed"] for record in of_row})
        given = replace(settings, **given_settings(of_row[0]))
        plan.setdefault(given, []).extend(Cell(name, dataset, protocol, normal, seed) for seed in seeds)
    return plan


def _records(results: Path) -> list[Record]:
    return [record for known in declared() for record in read_published(results / f"{known.name}.jsonl")]


def _index(table: pd.DataFrame, columns: list[str]) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(table[columns])


if __name__ == "__main__":
    main()
