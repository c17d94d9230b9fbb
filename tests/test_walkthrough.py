"""The notebook is committed with the outputs of a real run, and runs from top to bottom."""

import os
import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
PATH = ROOT / "experiments" / "walkthrough.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CELLS = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
OUTPUTS = [output for cell in CELLS for output in cell.outputs]
DELTA = re.compile(r"Δ to ocgan-small +[+-]0\.\d{3} +[+-]\.\d{3} to [+-]\.\d{3}")


def text(cell):
    """What a cell prints."""
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(outputs):
    return [b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def tells_its_story(cells):
    """Run, look, compare, extend: the three tables, two pictures, the contract; no error and no warning."""
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    ran, compared, extended = (text(cell) for cell in cells if "-m experiments.ocgan" in cell.source)
    assert all(name in ran for name in ("ocgan-small", "epoch: validation", "look at the runs"))
    assert all(name in compared for name in ("autoencoder-small", "classical-knn", "mining_steps=0"))
    assert all(DELTA.search(table) for table in (compared, extended))
    assert "l1_ocgan" in extended
    (contract,) = (text(cell) for cell in cells if "oneclass check" in cell.source)
    assert len(contract.splitlines()) >= 7
    assert all(line.startswith("ok ") for line in contract.splitlines())
    assert len(pictures(outputs)) == 2


def test_every_cell_is_kept_with_its_output():
    assert [cell.execution_count for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert all(cell.outputs for cell in CELLS[1:]), "only the first cell, which sets things up, is silent"
    tells_its_story(CELLS)


def test_the_files_that_it_shows_are_those_of_the_repository():
    source = (ROOT / "experiments" / "extending" / "l1_ocgan.py").read_text(encoding="utf-8")
    assert [cell for cell in CELLS if text(cell).strip() == source.strip()]


def test_it_is_small_and_names_no_machine():
    assert PATH.stat().st_size < 500_000
    for picture in pictures(OUTPUTS):
        assert len(picture) < 100_000
        assert Image.open(BytesIO(picture)).width <= 1100
    printed = "\n".join(map(text, CELLS))
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users|var|private|mnt)/|[A-Z]:\\|\x1b", printed)
    assert not re.search(r"/(home|root|tmp|work)/", "".join(cell.source for cell in NOTEBOOK.cells))


@pytest.mark.slow
def test_it_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    tells_its_story([cell for cell in notebook.cells if cell.cell_type == "code"])
