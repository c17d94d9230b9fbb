"""What the paper cards, CONTRIBUTING and sentences of other pages name is there; commands that would take hours are parsed."""

import re
import shlex
from configparser import ConfigParser
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import yaml
from test_readme import call_here

from common.command_line import Parser
from common.data import OneClassDataModule, parse_protocol
from common.importing import import_class

ROOT = Path(__file__).parents[1]
CARDS = sorted(folder.parent / "README.md" for folder in ROOT.glob("*/configs"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
EXPERIMENTS = ROOT / "experiments"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *CARDS,
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(EXPERIMENTS.glob("*.md")),
    EXPERIMENTS / "reported" / "README.md",
]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def spans(text):
    """The code inside of a page's sentences and tables."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


SPANS = sorted({span for page in PAGES for span in spans(page.read_text(encoding="utf-8"))})
COMMANDS = [span.replace("<method>", "ocgan") for span in SPANS if span.startswith("python -m ")]


def sections(page):
    """A page's second-level sections by heading."""
    _, *parts = re.split(r"^## ", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def test_every_page_with_commands_is_looked_at():
    assert {card.parent.name for card in CARDS} >= {"alocc", "autoencoder", "ocgan", "ocnn"}
    ours = {command.split()[2].removeprefix("experiments.") for command in COMMANDS}
    assert ours >= {"alocc", "autoencoder", "benchmark", "classical", "ocgan", "ocnn", "picture", "report"}
    for page in (*CARDS, *EXPERIMENTS.glob("*.md")):
        fences = FENCE.findall(page.read_text(encoding="utf-8"))
        assert all(fence.startswith("```bibtex") for fence in fences), f"{page}: test these commands"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_sentences_are_taken(command, tmp_path, monkeypatch):
    module = import_module(shlex.split(command)[2])
    if hasattr(module, "EXPERIMENT"):
        command += "" if "--datasets" in command else " --datasets digits"
        command += "" if "--normal" in command else " --normal 0"
        lines = call_here(f"{command} --dry-run", tmp_path).splitlines()
        assert lines
        assert all(line.endswith("# to do") for line in lines)
        return

    parse, parsed = Parser.parse_args, []

    def stop_after_parsing(self, *arguments):
        parsed.append(parse(self, *arguments))
        raise SystemExit(0)

    monkeypatch.setattr(Parser, "parse_args", stop_after_parsing)
    call_here(command, tmp_path)
    assert len(parsed) == 1


@pytest.mark.parametrize("name", [span for span in SPANS if re.fullmatch(r"experiments\.\w+", span)])
def test_experiments_named_in_sentences_are_there(name):
    assert import_module(name)


@pytest.mark.parametrize("path", [span for span in SPANS if re.fullmatch(r"(common|docs|experiments|tests)/[\w./-]+", span)])
def test_files_named_in_sentences_are_there(path):
    assert (ROOT / path).exists()


def test_contributing_uses_the_tools_of_its_extra():
    (block,) = FENCE.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    words = [command.split("#")[0].split() for line in block.splitlines()[1:-1] for command in line.split("&&")]
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extra = setup["options.extras_require"]["dev"].split()
    assert words[0] == ["pip", "install", "-e", '".[dev]"']
    assert {command[0] for command in words[1:]} == {"pre-commit", "pytest", "ruff", "mypy"} <= set(extra)
    assert ["pytest", "-m", "slow"] in words
    assert "slow:" in setup["tool:pytest"]["markers"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_cards_have_the_sections_that_contributing_lists(card):
    listed = re.findall(r"^\| ([A-Z][^|]+?) \|", CONTRIBUTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed[0] == "The idea"
    assert [name for name in sections(card) if name in listed] == listed
    text = card.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.search(r"^\| preset \|", text.partition("## ")[0], re.MULTILINE)
    assert "```bibtex\n@" in text[-600:]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_differences_are_undone_by_keys_that_exist(card):
    smoke = yaml.safe_load((card.parent / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    known = import_class(smoke["model"]["class_path"]).arguments().keys() | set(signature(OneClassDataModule).parameters)
    undone = [span for span in spans(sections(card)["Differences"]) if re.match(r"[\w.]+: |--protocols ", span)]
    assert undone
    for span in undone:
        if span.startswith("--protocols "):
            assert parse_protocol(span.removeprefix("--protocols "))
        else:
            (key,) = yaml.safe_load(span)
            assert key.rpartition(".")[2] in known
