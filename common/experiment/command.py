"""The command line of all experiments; :mod:`common.experiment.perform` does the work."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from common.command_line import Parser, one_line_errors, positive
from common.experiment.declaration import Backend, Experiment
from common.experiment.forked import begin_imports
from common.hidden import naming_hidden_packages


def run_experiment(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment's cells, prints its tables and writes them into the runs folder or ``--out``.

    Exit status: 0, 1 if a cell failed, 2 for a mistake of the user's, 130 after Ctrl-C.
    """
    with one_line_errors():
        arguments = _parser(experiment).parse_args(argv)
        only_looks = arguments.dry_run or arguments.report_only
        if not only_looks and arguments.backend == "loky" and arguments.jobs != 1 and arguments.device != "cuda":
            begin_imports()
        with naming_hidden_packages():
            from common.experiment.perform import perform
        perform(experiment, arguments)


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = Parser(prog=f"python -m experiments.{experiment.name}", description=experiment.title)
    _add_what(parser.add_argument_group("what is run").add_argument, experiment)
    _add_how(parser.add_argument_group("how and where").add_argument)
    _add_done(parser.add_argument_group("finished cells").add_argument)
    return parser


def _add_what(add: Callable[..., Any], experiment: Experiment) -> None:
    add(
        "--presets",
        nargs="+",
        metavar="PRESET",
        help="PRESET of this method, METHOD-PRESET, or a YAML file; ,KEY=VALUE overrides",
    )
    add("--datasets", nargs="+", metavar="DATA", help="a data set's name, a .npz file, module:function; 'folder' takes --root")
    add(
        "--protocols",
        nargs="+",
        metavar="PROTOCOL",
        help="NAME or module:function, with ,OPTION=VALUE: standard,contamination=0.01",
    )
    add(
        "--normal",
        nargs="+",
        metavar="CLASS",
        help="normal classes, by number or name; A+B takes several as one (default: all in turn)",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=list(experiment.seeds),
        help="of the training; the first where nothing is random",
    )
    add("--max-epochs", type=positive, help="instead of the presets'")
    add("--image-size", type=int, help="height and width, instead of the presets' or the data's own")
    add("--oracle", action="store_true", help="score the test set after every epoch too; nothing is chosen by it")
    add("--smoke", action="store_true", help="the smoke presets on the embedded digits, two classes, one seed")


def _add_how(add: Callable[..., Any]) -> None:
    add("--root", type=Path, help="where data sets lie (default: $ONECLASS_DATA or the user's cache)")
    add("--runs", type=Path, default=Path("runs"), help="where records go (default: runs)")
    add("--out", type=Path, help="where this command's tables go (default: the runs folder)")
    add("--jobs", type=positive, help="cells at a time (default: one per core, --cells-per-gpu for each GPU, or a cluster)")
    add("--backend", choices=get_args(Backend), default="loky", help="processes of this machine, or a cluster's")
    add("--cells-per-gpu", type=positive, default=1, help="with --device cuda, how many share a GPU (default: 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_done(add: Callable[..., Any]) -> None:
    add("--dry-run", action="store_true", help="print the command of each cell, and whether it is done")
    add("--force", action="store_true", help="rerun finished cells")
    add("--keep", action="store_true", help="show stale records, marked, instead of stopping at them")
    add("--report-only", action="store_true", help="the tables of finished cells")
    add("--publish", action="store_true", help="add finished cells to the committed records, and make their page again")
