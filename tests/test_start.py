"""What a command says before PyTorch is imported: help, the version, and mistakes that can be seen without it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import experiments
from common import classical, cli
from common.deploy.export import Format
from common.training.lightning import OneClassCLI
from experiments.classical import DETECTORS

ROOT = Path(__file__).parents[1]

# one process for all, as each takes a fifth of a second to start
ANSWERS = """
import sys
from experiments import alocc, alocc_ablation, autoencoder, classical, ocgan, ocnn, oneclass, quickstart
from common.experiment import run_experiment

def ended(function, *arguments):
    try:
        function(*arguments)
    except SystemExit as end:
        return end.code
    return 0

for experiment in (alocc, alocc_ablation, autoencoder, classical, ocgan, ocnn, quickstart):
    assert ended(run_experiment, experiment.EXPERIMENT, ["--help"]) == 0
    assert ended(run_experiment, experiment.EXPERIMENT, ["--bogus"]) == 2
for words in (["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)):
    assert ended(oneclass, words) == 0, words
for words in ([], ["fitt"], ["--bogus"], ["fit", "--modle=3"], ["check"], ["export", "--bogus"], ["predict-folder"]):
    assert ended(oneclass, words) == 2, words
heavy = {"torch", "torchvision", "pytorch_lightning", "lightning_fabric", "sklearn", "scipy", "pandas", "matplotlib"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
COMMANDS = ("fit", "validate", "test", "predict", "check", "predict-folder", "export")


def test_nothing_heavy_is_imported_before_a_command_is_understood():
    code = f"COMMANDS = {COMMANDS!r}\n{ANSWERS}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "usage: python -m experiments.ocgan" in ended.stdout
    assert "error: unknown command 'fitt': did you mean fit? see oneclass --help" in ended.stderr


@pytest.fixture(scope="module")
def flags():
    """The flags of each of Lightning's commands, as its parser has them."""
    found = {}

    class Stopped(OneClassCLI):
        def parse_arguments(self, parser, args):
            for name, command in self._subcommand_parsers.items():
                found[name] = {option for action in command._actions for option in action.option_strings}
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Stopped(["fit"])
    return found


def test_the_short_help_names_flags_that_exist_in_80_columns(flags):
    shown = set(re.findall(r"--[a-z_.]+", cli.FIT_HELP)) - {"--model.", "--model.help", "--help", "--directory"}
    assert len(shown) > 15
    assert shown - flags["fit"] == set()
    texts = (cli.HELP, cli.FIT_HELP.format(command="validate"), cli.CHECK_HELP)
    assert [line for text in texts for line in text.splitlines() if len(line) > 80] == []
    assert [command for command in COMMANDS if f"\n  {command} " not in cli.HELP] == []


@pytest.mark.parametrize("command", cli.LIGHTNING)
def test_no_flag_of_the_parser_is_taken_for_a_mistake(command, flags):
    assert len(flags[command]) > 20
    for flag in flags[command] - {"--help"}:  # answered before
        cli._refuse_misspelt([command, flag, "-1", "--data.normal+=3", f"{flag}=--x"])


def test_every_command_of_the_help_is_there():
    names = re.findall(r"experiments\.(\w+)|(?<=[ ,])(alocc|ocnn|autoencoder|classical|quickstart)\b", cli.HELP)
    for name in {first or second for first, second in names}:
        assert (Path(experiments.__path__[0]) / f"{name}.py").is_file()


def test_all_classical_detectors_are_declared():
    """Names that stand where nothing heavy is imported are those of the code."""
    assert tuple(classical.DETECTORS) == DETECTORS


def test_the_formats_of_an_export_are_those_of_its_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    assert f"--format {{{','.join(get_args(Format))}}}" in capsys.readouterr().out
