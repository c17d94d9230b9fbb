"""Compares false alarms among new normal images with the rate that a conformal threshold promises, for every method."""

import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.stats import betabinom, binom

from common.command_line import Parser, one_line_errors, positive
from common.deploy.load import load_checkpoint
from common.errors import InputError
from common.evaluation import conformal_p_value
from common.evaluation.metrics import Values
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.documents import table_lines
from common.experiment.folder import chosen_checkpoint
from common.experiment.grid import run_grid
from common.experiment.perform import check_writable, refuse_stale
from common.experiment.records import FILE, read_record
from common.experiment.terminal import plain
from common.files import write_whole
from common.training.process import chosen_device

PRESETS = ("autoencoder-small", "alocc-small", "ocgan-small", "ocnn-small")
ALPHAS = (0.01, 0.05, 0.1)
NOTE = """
Normals are split at random (protocol `balanced`): some are held out from training for the threshold, others are fresh. The
threshold for a rate of α flags a fresh normal with probability α at most, whatever the method and however well it is
trained. `binomial` counts the classes whose alarms lie in the 95 % interval of that many draws at rate α, which takes the
threshold as exact; held-out scores are a sample too, and `exact` counts by the beta-binomial law of both.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains every preset on every class, counts false alarms at three rates, and prints and writes the table."""
    parser = Parser(prog="python -m experiments.false_alarms", description=__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), help="METHOD-PRESET, or a YAML file")
    parser.add_argument("--dataset", default="mnist", help="a data set's name (default: mnist)")
    parser.add_argument("--normal", nargs="+", default=[str(k) for k in range(10)], help="normal classes (default: 0 to 9)")
    parser.add_argument("--max-epochs", type=positive, default=3, help="the promise holds for any number (default: 3)")
    parser.add_argument("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    parser.add_argument("--runs", type=Path, default=Path("runs", "false_alarms"), help="default: runs/false_alarms")
    parser.add_argument("--out", type=Path, help="where the table goes (default: the runs folder)")
    parser.add_argument("--jobs", type=positive, help="cells at a time (default: one per core, or per GPU)")
    parser.add_argument("--force", action="store_true", help="run again what is done")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        settings = Settings(
            arguments.root,
            arguments.runs,
            chosen_device("auto"),
            max_epochs=arguments.max_epochs,
            force=arguments.force,
        )
        check_writable(settings.runs)
        cells = [
            Cell(name, arguments.dataset, "balanced", normal, 0)
            for name, normal in itertools.product(arguments.presets, arguments.normal)
        ]
        if classical := [cell.name for cell in cells if cell.detector]:
            raise InputError(f"{classical[0]} is a classical detector: it holds out no samples for a threshold")
        refuse_stale(cells, settings)
        console = Console(highlight=False, markup=False)
        if failures := run_grid(cells, settings, arguments.jobs, console):
            raise SystemExit(f"{len(failures)} cells failed; each has an error.txt in its folder")
        counts = pd.DataFrame([row for cell in cells for row in false_alarms(cell.directory(settings.runs))])
        if counts.empty:
            least = math.ceil(1 / max(ALPHAS)) - 1
            raise InputError(f"too few held-out samples: a rate of {max(ALPHAS)} needs {least} of each class")
        command = shlex.join(["python", "-m", "experiments.false_alarms", *(sys.argv[1:] if argv is None else argv)])
        report(counts, arguments.out or arguments.runs, command, console)


def false_alarms(directory: Path) -> list[dict[str, object]]:
    """Counts the false alarms of a finished cell, one row for each rate α for which it has enough held-out samples."""
    record = read_record(directory / FILE)
    calibration = load_checkpoint(chosen_checkpoint(directory, record))["calibration"].numpy()
    scores = pd.read_csv(directory / "scores.csv").query("label == 0")[record["score"]]
    row = {"method": record["name"], "normal": record["cell"]["normal"]}
    return [row | count(scores, calibration, alpha) for alpha in ALPHAS if alpha * (len(calibration) + 1) >= 1]


def count(scores: Values, calibration: Values, alpha: float) -> dict[str, object]:
    """Counts false alarms among N new normals, and checks them against the binomial and the beta-binomial distribution.

    Each new normal is flagged with probability k / (n + 1), k = ⌊α(n + 1)⌋. Given the held-out scores, that probability is a
    random draw from Beta(k, n + 1 - k), so the alarms are beta-binomial. The binomial distribution ignores this.

    Args:
        scores: ``(N,)`` scores of the new normals, higher = more anomalous.
        calibration: ``(n,)`` scores of the held-out normals, n at least 1/α - 1.
        alpha: The promised rate, in (0, 1).

    Example:
        >>> count([0.5, 2.5, 3.5], calibration=[1.0, 2.0, 3.0], alpha=0.5)["alarms"]
        2
    """
    n, fresh = np.size(calibration), np.size(scores)
    k = math.floor(round(alpha * (n + 1), 9))
    alarms = int((conformal_p_value(scores, calibration) <= alpha).sum())
    inside = {}
    for name, law in (("in_binomial", binom(fresh, alpha)), ("in_exact", betabinom(fresh, k, n + 1 - k))):
        low, high = law.interval(0.95)
        inside[name] = bool(low <= alarms <= high)
    return {"alpha": alpha, "held_out": n, "fresh": fresh, "alarms": alarms, **inside}


def report(counts: pd.DataFrame, folder: Path, command: str, console: Console) -> None:
    """Prints and writes the false alarm rate of each method, and how many classes lie within the intervals."""
    lines = []
    for (method, alpha), rows in counts.groupby(["method", "alpha"], sort=False):
        rates = rows["alarms"] / rows["fresh"]
        lines.append({
            "method": str(method),
            "α": f"{alpha:g}",
            "held out": str(rows["held_out"].sum()),
            "fresh": str(rows["fresh"].sum()),
            "rate": f"{rows['alarms'].sum() / rows['fresh'].sum():.4f}",
            "lowest": f"{rates.min():.4f}",
            "highest": f"{rates.max():.4f}",
            "binomial": f"{rows['in_binomial'].sum()}/{len(rows)}",
            "exact": f"{rows['in_exact'].sum()}/{len(rows)}",
        })  # fmt: skip
    text = pd.DataFrame(lines)
    table = plain(text, "false alarms among fresh normals")
    table.padding = 0  # nine columns fit 80 characters
    console.print(table)
    page = [f"# False alarms among fresh normals\n\nWritten by `{command}`; not edited by hand.\n{NOTE}", *table_lines(text)]
    write_whole(folder / "false_alarms.csv", counts.to_csv(index=False))
    write_whole(folder / "false_alarms.md", "\n".join(page) + "\n")
    console.print(f"written: {folder / 'false_alarms.md'}", soft_wrap=True)


if __name__ == "__main__":
    main()
