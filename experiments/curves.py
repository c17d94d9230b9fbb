"""Draws the held-out criterion and the test AUROC after every epoch, from published records made with --oracle."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from common.command_line import Parser, one_line_errors
from common.errors import InputError
from common.experiment.published import RESULTS
from common.experiment.records import Record, read_published
from common.files import save_figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class Curves(NamedTuple):
    """What is drawn in one colour.

    Attributes:
        label: In the legend.
        error: The held-out criterion after each epoch.
        auroc: The test AUROC of the row's score after each epoch.
        chosen: The epoch that the rule chose; None for a mean over classes, each of which has its own.
    """

    label: str
    error: Sequence[float]
    auroc: Sequence[float]
    chosen: int | None


def main(argv: Sequence[str] | None = None) -> None:
    """Draws published records that were made with ``--oracle``; no epoch was chosen by the test AUROC."""
    parser = Parser(prog="python -m experiments.curves", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="rows of the table, such as ocgan-paper")
    parser.add_argument("--experiment", default="ocgan", help="whose records are read (default: ocgan)")
    parser.add_argument("--datasets", nargs="+", default=["mnist"], metavar="DATA", help="names of data sets (default: mnist)")
    parser.add_argument("--protocol", help="which one, where a row has records of several")
    parser.add_argument("--normal", default="8", help="the normal class, or 'mean' for the mean over all (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the runs (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        published = read_published(RESULTS / f"{arguments.experiment}.jsonl")
        drawn = []
        for row, dataset in itertools.product(arguments.rows, arguments.datasets):
            records = found(published, row, dataset, arguments.normal, arguments.seed, arguments.protocol)
            drawn.append(curves(records, row if len(arguments.datasets) == 1 else f"{row}, {dataset}"))
        save_figure(draw(drawn), arguments.out, dpi=110)
        print(f"written: {arguments.out}")


def found(
    published: Sequence[Record], row: str, dataset: str, normal: str, seed: int, protocol: str | None = None
) -> list[Record]:
    """The records of a row: one, or with normal ``mean`` those of all classes; raises InputError where they cannot be drawn."""
    here = [record for record in published if record["name"] == row and record["cell"]["dataset"] == dataset]
    here = [record for record in here if record["cell"]["seed"] == seed and normal in (record["cell"]["normal"], "mean")]
    protocols = dict.fromkeys(record["cell"]["protocol"] for record in here)
    if protocol is None and len(protocols) > 1:
        raise InputError(f"{row} has records of {', '.join(protocols)} on {dataset}: choose one with --protocol")
    here = [record for record in here if protocol in (None, record["cell"]["protocol"])]
    if not here:
        raise InputError(f"no published record of {row} on {dataset}, normal {normal}, seed {seed}")
    if normal == "mean" and len(here) < here[0]["n_classes"]:
        raise InputError(
            f"{row} has records of {len(here)} of {here[0]['n_classes']} classes on {dataset}: choose one with --normal"
        )
    if any("oracle" not in record["rules"] for record in here):
        raise InputError(f"a record of {row} was made without --oracle: run it again with --oracle --force --publish")
    return here


def curves(records: Sequence[Record], label: str) -> Curves:
    """The curves of a record, or the means of several with equally many epochs."""
    oracles = [record["rules"]["oracle"] for record in records]
    error = np.mean([oracle["monitored"] for oracle in oracles], axis=0)
    auroc = np.mean([oracle["curve"][records[0]["score"]] for oracle in oracles], axis=0)
    return Curves(label, error.tolist(), auroc.tolist(), records[0]["selected_epoch"] if len(records) == 1 else None)


def draw(drawn: Sequence[Curves]) -> Figure:
    """Draws the criterion and, below it, the AUROC by epoch; a point marks the chosen epoch."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for each, color in zip(drawn, itertools.cycle(COLORS), strict=False):
        for axes, values in ((top, each.error), (bottom, each.auroc)):
            axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1.2, label=each.label)
            if each.chosen is not None:
                axes.plot(each.chosen, values[each.chosen - 1], "o", color=color, markersize=5)
    has_points = any(each.chosen is not None for each in drawn)
    top.set(ylabel="held-out error", yscale="log")
    bottom.set(xlabel="epoch" + " (point: the chosen one)" * has_points, ylabel="test AUROC")
    top.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
