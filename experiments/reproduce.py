"""Random cells of the committed tables, trained again and set beside what is committed."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.cli import Parser, chosen_device, one_line_errors
from common.data import load
from common.data.datamodule import default_root
from common.errors import DataMissingError, InputError
from common.experiment.cell import Cell, Settings, finished, is_seeded
from common.experiment.grid import run_grid
from common.experiment.presentation import read
from common.experiment.report import KEY, tabulate
from common.presets import REPOSITORY
from experiments.report import declared

CELL = ["method", "preset", "dataset", "protocol", "normal"]
ROUNDING = 0.0005
"""Of the printed tables; what a detector without randomness may differ by."""


def main(argv: Sequence[str] | None = None) -> None:
    """Draws cells that have an interval, trains each with the seeds of its row, and says whether the new mean lies in it.

    A detector without randomness has no interval, and is to give its value again.

    Exit status: 0, 1 where a cell is not reproduced, 2 for a mistake of the user's.
    """
    parser = Parser(prog="python -m experiments.reproduce", description=__doc__)
    add = parser.add_argument
    add("--cells", type=int, default=2, help="how many (default: 2)")
    add("--draw", type=int, default=0, help="another number draws others")
    add("--presets", nargs="+", help="METHOD-PRESET; all by default")
    add("--datasets", nargs="+", help="all that are there by default")
    add("--root", type=Path, help="where data sets lie; $ONECLASS_DATA or the user's cache by default")
    add("--runs", type=Path, default=Path("reproduced"), help="where records go (default: reproduced)")
    add("--jobs", type=int, help="cells at a time (default: one per core)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--results", type=Path, default=REPOSITORY / "experiments" / "results", help="the tables (default: the committed ones)")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        rows = candidates(arguments.results)
        rows = rows[rows["dataset"].map(lambda name: _is_there(name, arguments.root))]
        for column, wanted in (("name", arguments.presets), ("dataset", arguments.datasets)):
            rows = rows[rows[column].isin(wanted)] if wanted else rows
        names = rows[[*CELL, "n_seeds"]].drop_duplicates()
        if len(names) < arguments.cells:
            raise InputError(f"of these {len(names)} cells are committed and have an interval: give fewer --cells")
        drawn = names.sample(arguments.cells, random_state=arguments.draw)
        chosen = rows.merge(drawn)
        cells = [
            Cell(row["method"], row["preset"], row["dataset"], row["protocol"], row["normal"], seed)
            for row in drawn.to_dict("records")
            for seed in range(row["n_seeds"])
        ]
        settings = Settings(arguments.root, arguments.runs, chosen_device(arguments.device))
        settings.runs.mkdir(parents=True, exist_ok=True)
        console = Console()
        failures = run_grid(cells, settings, arguments.jobs, console)
        again = tabulate(filter(None, (finished(cell, settings) for cell in cells)), pd.DataFrame(columns=["method"]), {})
        both = chosen.merge(again[[*KEY, "normal", "mean"]], how="left", on=[*KEY, "normal"], suffixes=("", "_again"))
        table = Table("", box=SIMPLE_HEAD)
        for column in ("committed (seeds)", "interval", "again", ""):
            table.add_column(column, no_wrap=True)
        for row in both.itertuples():
            cell = f"{row.name} {row.score}\n  {row.dataset} {row.protocol} normal={row.normal}"
            verdict = "within" if row.ci_low <= row.mean_again <= row.ci_high else "[red]outside[/red]"
            interval = f"{row.ci_low:.4f}–{row.ci_high:.4f}"
            table.add_row(cell, f"{row.mean:.4f} ({row.n_seeds})", interval, f"{row.mean_again:.4f}", verdict)
        console.print(table)
        if failures or not both["mean_again"].between(both["ci_low"], both["ci_high"]).all():
            raise SystemExit(1)


def candidates(results: Path) -> pd.DataFrame:
    """The rows of committed tables that a cell can be held to, with the bounds ``ci_low`` and ``ci_high``, and ``name``.

    Example:
        >>> "alocc-stable" in set(candidates(REPOSITORY / "experiments" / "results")["name"])
        True
    """
    paths = (results / f"{experiment.name}.csv" for experiment in declared())
    rows = pd.concat([read(path) for path in paths if path.is_file()], ignore_index=True)
    rows = rows[(rows["n_seeds"] > 0) & (rows["metric"] == "auroc") & (rows["rule"] != "oracle")]
    rows = rows[~rows["normal"].str.startswith("mean")].drop_duplicates([*KEY, "normal"])
    steady = [not is_seeded(method, preset) for method, preset in zip(rows["method"], rows["preset"], strict=True)]
    rows.loc[steady, "ci_low"], rows.loc[steady, "ci_high"] = rows["mean"] - ROUNDING, rows["mean"] + ROUNDING
    rows["name"] = rows["method"] + "-" + rows["preset"]
    return rows[rows["ci_low"].notna()]


def _is_there(dataset: str, root: Path | None) -> bool:
    try:
        load(dataset, root or default_root())
    except DataMissingError:
        return False
    return True


if __name__ == "__main__":
    main()
