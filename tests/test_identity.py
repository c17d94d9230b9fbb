"""What makes a record another one: configuration, data and code; and what does not."""

import importlib
import os
import shutil
import sys
from dataclasses import replace

import pytest

from common.errors import InputError
from common.experiment import Cell
from common.experiment.cell import Settings
from common.experiment.identity import (
    COMMON,
    _reachable,
    config_digest,
    difference,
    file_digest,
    identity,
    refuse_changed_code,
    source_digest,
)
from common.presets import REPOSITORY

CELL = Cell("autoencoder-smoke", "digits", "standard", "3", 0)

SOURCE = '''"""A method."""
from autoencoder import Autoencoder
from my_losses import weight

class Mine(Autoencoder):
    """Mine."""
    def reconstruction_loss(self, reconstruction, image):
        # why
        return weight() * super().reconstruction_loss(reconstruction, image)
'''
LOSSES = "def weight():\n    return 2\n"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder outside of the repository with a method and a preset of it."""
    (tmp_path / "my_method.py").write_text(SOURCE)
    (tmp_path / "my_losses.py").write_text(LOSSES)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    (tmp_path / "mine.yaml").write_text("model:\n  class_path: my_method.Mine\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in ("my_method", "my_losses", "my_package"):
        sys.modules.pop(name, None)


def digest(folder):
    importlib.invalidate_caches()
    return source_digest(Cell(str(folder / "mine.yaml"), "digits", "standard", "3", 0).config())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("my_method.py", "weight() *", "weight() +"), ("my_losses.py", "return 2", "return 3")],
    ids=["its own file", "a file that it imports"],
)
def test_a_changed_line_changes_the_source(outside, file, old, new):
    before = digest(outside)
    path = outside / file
    path.write_text(path.read_text().replace(old, new))
    assert digest(outside) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("my_method.py", "# why", "# because"),
        ("my_method.py", '"""Mine."""', '"""Another docstring."""'),
        ("my_losses.py", "return 2", "return (\n        2\n    )"),
        ("unrelated.py", "x = 1", "x = 2"),
    ],
    ids=["comment", "docstring", "formatting", "a file that nobody imports"],
)
def test_comments_docstrings_formatting_and_other_files_do_not(outside, file, old, new):
    before = digest(outside)
    path = outside / file
    path.write_text(path.read_text().replace(old, new))
    assert digest(outside) == before


@pytest.mark.parametrize(
    "statement", ["from .my_losses import weight", "from . import my_losses", "from my_package import my_losses"]
)
@pytest.mark.parametrize("has_init", [True, False])
def test_files_of_a_package_count_however_they_are_imported(statement, has_init, outside):
    package = outside / "my_package"
    package.mkdir()
    if has_init:
        (package / "__init__.py").write_text("")
    (package / "my_losses.py").write_text(LOSSES)
    (package / "my_module.py").write_text(f"import torch\n{statement}\n")
    found = _reachable([package / "my_module.py"])
    assert package / "my_losses.py" in found
    assert all(path.is_relative_to(outside) for path in found)


def test_files_of_one_name_count_in_one_order(outside, monkeypatch):
    for folder, value in (("a", 1), ("b", 2)):
        (outside / folder).mkdir()
        (outside / folder / "losses.py").write_text(f"weight = {value}")
    files = [outside / "a" / "losses.py", outside / "b" / "losses.py"]
    digests = set()
    for order in (files, files[::-1]):
        monkeypatch.setattr("common.experiment.identity._reachable", lambda _, order=order: order)
        digests.add(source_digest(CELL.config()))
    assert len(digests) == 1


def test_code_that_changed_since_it_was_imported_makes_no_record(outside):
    config = Cell(str(outside / "mine.yaml"), "digits", "standard", "3", 0).config()
    refuse_changed_code(config)
    (outside / "my_losses.py").write_text("def weight():\n    return 3\n")
    with pytest.raises(InputError, match=r"my_losses.py has changed since this process imported it"):
        refuse_changed_code(config)


def test_shared_code_that_changed_since_it_was_imported_makes_no_record(tmp_path, monkeypatch):
    copied = tmp_path / "common"
    shutil.copytree(COMMON, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("common.experiment.identity.COMMON", copied)
    monkeypatch.setattr("common.experiment.identity.first_seen", {})
    config = CELL.config()
    refuse_changed_code(config)
    losses = copied / "losses.py"
    losses.write_text(losses.read_text() + "\nWEIGHT = 2\n")
    with pytest.raises(InputError, match=r"losses.py has changed since this process imported it"):
        refuse_changed_code(config)


def test_a_line_that_changed_within_one_tick_of_the_clock_counts(outside):
    """Size and time of the file say nothing then."""
    path = outside / "my_losses.py"
    before, time = digest(outside), path.stat().st_mtime_ns
    path.write_text(LOSSES.replace("return 2", "return 3"))
    os.utime(path, ns=(time, time))
    assert digest(outside) != before


def test_data_of_a_function_whose_code_changed_make_no_record(outside):
    path = outside / "my_losses.py"
    importlib.invalidate_caches()
    config = {
        "model": {"class_path": "autoencoder.Autoencoder"},
        "data": {"dataset": "my_losses:weight", "protocol": "standard"},
    }
    refuse_changed_code(config)
    path.write_text("def weight():\n    return 4\n")
    with pytest.raises(InputError, match=r"my_losses.py has changed since this process imported it"):
        refuse_changed_code(config)


def test_the_files_of_a_paper_count_but_for_its_figures():
    found = {path.relative_to(REPOSITORY).as_posix() for path in _reachable([REPOSITORY / "ocgan" / "module.py"])}
    assert found >= {"ocgan/module.py", "ocgan/losses.py", "ocgan/mining.py", "ocgan/networks.py"}
    assert "ocgan/figures.py" not in found
    assert not any(name.startswith("common/") for name in found)


def test_a_docstring_is_no_code(tmp_path):
    plain, documented = tmp_path / "plain.py", tmp_path / "documented.py"
    plain.write_text("def f():\n    return 1\n")
    documented.write_text('"""A file."""\n\ndef f():\n    """A function."""\n    return 1\n')
    assert file_digest(plain) == file_digest(documented)


def test_settings_that_change_no_number_change_no_identity():
    base = CELL.config()
    assert config_digest(base) == config_digest(
        {**base, "trainer": {**base["trainer"], "accelerator": "cuda", "logger": False}}
    )
    assert config_digest(base) == config_digest({**base, "data": {**base["data"], "root": "elsewhere", "workers": 3}})
    assert config_digest(base) != config_digest(CELL.config(Settings(max_epochs=5)))
    assert config_digest(base) != config_digest(Cell("autoencoder-smoke", "digits", "standard", "3", 1).config())


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("data", "batch_size", 7), ("data", "split_seed", 3), ("data", "normalization", "gcn"), ("trainer", "precision", "16")],
)
def test_settings_that_change_numbers_change_the_identity(group, key, value):
    base = CELL.config()
    assert config_digest(base) != config_digest({**base, group: {**base[group], key: value}})


@pytest.mark.parametrize(("key", "value"), [("rule", "rho"), ("seed_everything", 11)])
def test_rule_and_seed_are_part_of_the_identity(key, value):
    base = CELL.config()
    assert base[key] != value
    assert config_digest(base) != config_digest({**base, key: value})


TRAINED = {"module", "scoring", "losses", "networks", "training/seeding", "training/checkpoints", "experiment/run"}


@pytest.mark.parametrize(
    ("cell", "own"),
    [(CELL, {f"common/{name}.py" for name in TRAINED} | {"autoencoder/module.py"}),
     (replace(CELL, preset="classical-lof"), {"common/classical.py", "common/shallow.py"})],
    ids=["trained", "classical"],
)  # fmt: skip
def test_all_shared_code_that_makes_scores_is_part_of_the_source(cell, own, monkeypatch):
    read = []
    monkeypatch.setattr("common.experiment.identity.file_digest", lambda path: (read.append(path), "x")[1])
    monkeypatch.setattr("common.experiment.identity.first_seen", {})  # what this process saw stays as it is
    source_digest(cell.config())
    names = {path.relative_to(REPOSITORY).as_posix() for path in read}
    data = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "common" / "data").glob("*.py")}
    assert names >= data | own | {f"common/{name}.py" for name in ("backbones", "evaluation/metrics", "evaluation/threshold")}


def test_the_content_of_the_data_counts_and_its_place_does_not(tmp_path):
    import numpy as np

    from common.data.arrays import save_arrays

    X, y = np.random.default_rng(0).random((20, 6)), np.arange(20) % 2
    for folder, shift in (("a", 0), ("b", 0), ("c", 1e-3)):
        (tmp_path / folder).mkdir()
        save_arrays(tmp_path / folder / "my.npz", X + shift, y, X, y)
    digests = [
        identity(Cell("classical-lof", str(tmp_path / folder / "my.npz"), "standard", "0", 0).config()) for folder in "abc"
    ]
    assert digests[0] == digests[1]
    assert difference(digests[2], digests[0]) == "the data have changed"
