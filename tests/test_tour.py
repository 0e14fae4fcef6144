"""The notebook: run top to bottom on a tiny model, and stored without outputs, or with those of one run."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
SMALL = 'MODEL, WINDOWS, LENGTH, HELD_OUT, SPARSITY = "{model}", 4, 32, 2, 0.5'


@pytest.fixture
def notebook():
    """As it is stored; a newer or damaged format fails here."""
    found = nbformat.read(TOUR, as_version=4)
    nbformat.validate(found)
    return found


def assigned(source: str) -> set[str]:
    """The names that a cell gives values to."""
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def outputs(notebook) -> str:
    """All that the code cells have printed and shown, as text."""
    return "\n".join(str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code")


def test_it_runs_from_top_to_bottom(notebook, model_folder, tmp_path):
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert assigned(SMALL) == assigned(parameters.source)
    parameters.source = SMALL.format(model=model_folder)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises on any error
    shown = outputs(notebook)
    assert "tokens are equal" in shown and "SubFitLlamaForCausalLM writes:" in shown and "image/png" in shown
    assert "largest_addition" in shown and "ratio, manual" in shown
    assert (tmp_path / "tour/runs/rows.jsonl").read_text().count('"status": "done"') == 4


def test_stored_outputs_are_of_one_run(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts in ([None] * len(counts), list(range(1, len(counts) + 1)))
    assert not re.search(r"/(home|root|tmp|work|Users)/|Traceback|Warning", outputs(notebook))
    assert TOUR.stat().st_size < 200_000
