"""The notebook runs from top to bottom, and stands in the repository as it ran."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = nbformat.read(ROOT / "experiments" / "walkthrough.ipynb", as_version=4)


def test_it_is_kept_with_its_outputs():
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.slow
def test_it_runs():
    NotebookClient(NOTEBOOK, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
