"""The ``oneclass`` command. It reads its arguments before it imports PyTorch."""

import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from common.command_line import Parser, one_line_errors
from common.errors import InputError
from common.hidden import naming_hidden_packages
from common.names import joined
from common.presets import CLASS_KEYS, config_path, make_importable

HELP = """usage: oneclass COMMAND ...

One-class novelty detection: train a method, test it, use it. Every command has
a --help of its own.

train and test
  fit             train a method on one normal class
  validate        score the held-out normal samples with a checkpoint
  test            score the test set with a checkpoint, and evaluate
  predict         write the test set's scores as a table

use a trained detector
  predict-folder  score every image of a folder
  export          write it as a program of its own: ONNX or torch.export

build on it
  check           put a method of your own to the contract tests

--version prints the version. A paper's table is a command of its own:
python -m experiments.ocgan --help, also alocc, ocnn, autoencoder, classical
and quickstart; experiments.report makes every table from the records.
"""

FIT_HELP = """usage: oneclass {command} [--config PRESET] [--KEY VALUE ...]

  --config PRESET        a preset such as ocgan-tuned, or a YAML file; what
                         follows it on the command line overrides it

method
  --model CLASS          a class path, such as ocgan.OCGAN or my_idea.MyMethod
  --model.KEY VALUE      one of its arguments; --model.help CLASS lists them

data
  --data.dataset NAME    digits, mnist, fashion_mnist, cifar10, ...; folder;
                         FILE.npz; or module:function
  --data.root DIR        where data sets lie; for folder, the folder itself
  --data.normal CLASS    the normal class by number or name; A+B joins several
  --data.protocol NAME   standard, balanced, ...; NAME,OPTION=VALUE sets options
  --data.image_size N    height and width, instead of the data's own
  --data.batch_size N    samples in a step
  --data.val_fraction P  share of the normal training samples that is held out

training
  --trainer.max_epochs N
  --trainer.accelerator  cpu or gpu; found by itself where it is not given
  --seed_everything N    the seed of every random part
  --rule RULE            the epoch that is tested: last, validation or rho
  --oracle true          score the test set after every epoch, to look at it
  --ckpt_path FILE       go on from a checkpoint, or test it; last or best find
                         those of the run in --trainer.default_root_dir
  --directory DIR        fit one cell of a table: train, test, write a record

  --print_config         the whole configuration as YAML
  --help-all             every flag, those of Lightning's trainer too
"""

LIGHTNING = ("fit", "validate", "test", "predict")
OTHER_FLAGS = {"threads", "speed", "verbose", "weights_only", "return_predictions"}
"""First parts of flags that :data:`FIT_HELP` leaves to ``--help-all``."""


def main(argv: Sequence[str] | None = None) -> None:
    """``oneclass fit|validate|test|predict``, Lightning's commands over modules and data, and the commands of this package.

    ``fit`` with ``--directory`` makes one cell of a table: it goes on where it was stopped, tests the chosen epoch, and
    leaves the record that the experiments read.

    Example:
        >>> main(["fit", "--config", "autoencoder-smoke", "--directory", "runs/one"])  # doctest: +SKIP
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    make_importable(Path.cwd())
    with one_line_errors():
        command, rest = (arguments or [""])[0], arguments[1:]
        if command in {"-h", "--help"}:
            print(HELP, end="")
        elif command == "--version":
            print(f"oneclass {version('oneclass')}")
        elif command in OWN:
            OWN[command](rest)
        elif command in LIGHTNING and {"-h", "--help"} & set(rest):
            print(FIT_HELP.format(command=command), end="")
        else:
            _refuse_misspelt(arguments)
            _lightning(arguments)


def _refuse_misspelt(arguments: Sequence[str]) -> None:
    """Refuses an unknown command or flag at once; Lightning's parser would take seconds."""
    commands = (*LIGHTNING, *OWN)
    if not arguments:
        raise InputError(f"give a command: {', '.join(commands)}; see oneclass --help")
    if not arguments[0].startswith("-"):
        _refuse_unknown("command", arguments[0], commands)
    flags = sorted({f"--{name}" for name in (*re.findall(r"--([a-z_-]+)", FIT_HELP), *OTHER_FLAGS)})
    for word in arguments:
        if re.match(r"--[a-zA-Z]", word):
            _refuse_unknown("flag", re.split(r"[.=+]", word)[0], flags)


def _refuse_unknown(kind: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)};"
        raise InputError(f"unknown {kind} '{word}': {hint} see oneclass --help")


def _lightning(arguments: Sequence[str]) -> None:
    with naming_hidden_packages():
        from common.training.lightning import OneClassCLI
        from common.training.process import configure_process
    configure_process()
    if arguments[0] == "fit" and any(word.partition("=")[0] == "--directory" for word in arguments):
        _fit_cell(arguments[1:])
        return
    words = ["--help" if word == "--help-all" else word for word in arguments]
    sys.argv[1:] = _presets_as_files(words)  # Lightning starts the other processes of DDP with the same command
    OneClassCLI()


def _fit_cell(argv: Sequence[str]) -> None:
    from common.experiment.records import auroc_text
    from common.experiment.run import run_command

    record = run_command(argv)
    print(f"{record['score']}: {auroc_text(record)}, by the epoch {record['selected_epoch']} (rule: {record['rule']})")


def _presets_as_files(arguments: Sequence[str]) -> list[str]:
    """Rewrites a command line for Lightning: presets become files, lists of classes become one text.

    A preset file's folder becomes importable.
    """
    words = list(arguments)
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        at = position if equals else position + 1
        text = value if equals else "".join(words[at : at + 1])
        if flag.removeprefix("--") in CLASS_KEYS and text.startswith("["):
            words[at] = f"{flag}={joined(text)}" if equals else joined(text)
        if flag == "--config":
            path = str(config_path(text))
            words[at] = f"--config={path}" if equals else path
    return words


CHECK_HELP = """usage: oneclass check CLASS [--KEY VALUE ...]

Put a method to the contract tests. CLASS is its path, such as my_idea.MyMethod,
importable from the current folder; --KEY VALUE are arguments of the class, and
small nets make the checks fast. --help after CLASS lists them.
"""


def _check(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv[:1]):
        print(CHECK_HELP, end="")
        return
    if not argv or argv[0].startswith("-"):
        raise InputError("give the path of a class, then its arguments: oneclass check my_idea.MyMethod --latent 8")
    with naming_hidden_packages():
        from common.testing import main as check
    check(argv)


def _predict_folder(argv: Sequence[str]) -> None:
    parser = Parser(prog="oneclass predict-folder", description="Score every image of a folder with a trained detector.")
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="as oneclass fit or an experiment leaves it")
    add("folder", type=Path, metavar="DIR", help="searched with all that is below it")
    add("--out", type=Path, default=Path("predictions.csv"), metavar="CSV", help="path, score, p_value, label (%(default)s)")
    add("--threshold", help="quantile=Q or alpha=A of the held-out normal scores, or a score (the checkpoint's)")
    add("--figures", type=Path, metavar="DIR", help="where a contact sheet and a histogram go")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = vars(parser.parse_args(argv))
    with naming_hidden_packages():
        from common.deploy.folder import predict_folder
        from common.training.process import chosen_device
    predict_folder(**arguments | {"device": chosen_device(arguments["device"])})


def _export(argv: Sequence[str]) -> None:
    parser = Parser(prog="oneclass export", description="Write a trained detector as a program of its own.")
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="as oneclass fit or an experiment leaves it")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CKPT with the ending .onnx or .pt2 by default")
    arguments = vars(parser.parse_args(argv))
    with naming_hidden_packages():
        from common.deploy.export import export
    print(f"written: {export(**arguments)}")


OWN: dict[str, Callable[[Sequence[str]], None]] = {"check": _check, "predict-folder": _predict_folder, "export": _export}
"""The commands of this package, besides Lightning's."""
