"""Draws the held-out criterion and the test AUROC after every epoch, from published records made with --oracle."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.command_line import Parser, one_line_errors
from common.errors import InputError
from common.experiment.published import RESULTS
from common.experiment.records import Record, read_published
from common.files import whole

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def main(argv: Sequence[str] | None = None) -> None:
    """Draws published records that were made with ``--oracle``; no epoch was chosen by the test AUROC."""
    parser = Parser(prog="python -m experiments.curves", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="rows of the table, such as ocgan-paper")
    parser.add_argument("--experiment", default="ocgan", help="whose records are read (default: ocgan)")
    parser.add_argument("--dataset", default="mnist", help="a data set's name (default: mnist)")
    parser.add_argument("--normal", default="8", help="the normal class (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the runs (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="PNG", help="default: curves.png")
    with one_line_errors():
        arguments = parser.parse_args(argv)
        place = (arguments.dataset, arguments.normal, arguments.seed)
        published = read_published(RESULTS / f"{arguments.experiment}.jsonl")
        records = [_found(published, row, place) for row in arguments.rows]
        with whole(arguments.out) as temporary:
            draw(records).savefig(temporary, format="png", dpi=110)
        print(f"written: {arguments.out}")


def _found(published: Sequence[Record], row: str, place: tuple[str, str, int]) -> Record:
    for record in published:
        cell = record["cell"]
        if record["name"] == row and (cell["dataset"], cell["normal"], cell["seed"]) == place:
            if "oracle" not in record["rules"]:
                raise InputError(f"the record of {row} was made without --oracle: run it again with --oracle --force --publish")
            return record
    raise InputError(f"no published record of {row} on {place[0]}, normal {place[1]}, seed {place[2]}")


def draw(records: Sequence[Record]) -> Figure:
    """Draws the criterion and, below it, the AUROC of the record's score by epoch; a point marks the chosen epoch.

    Args:
        records: Records with ``rules["oracle"]``, which holds ``curve`` and ``monitored``.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for record, color in zip(records, itertools.cycle(COLORS), strict=False):
        oracle, chosen = record["rules"]["oracle"], record["selected_epoch"]
        for axes, values in ((top, oracle["monitored"]), (bottom, oracle["curve"][record["score"]])):
            axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1.2, label=record["name"])
            axes.plot(chosen, values[chosen - 1], "o", color=color, markersize=5)
    top.set(ylabel="held-out error", yscale="log")
    bottom.set(xlabel="epoch (point: the chosen one)", ylabel="test AUROC")
    top.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
