"""A cell that is run twice gives its saved output: it does not eat what it starts from.

Every cell of every lesson is run twice in a row in one kernel. One that trains or turns its input in place, draws
without a seed, or reads a log that it then clears, would go on from what it left. One lesson by hand:

    PYTHONPATH=notebooks .venv/bin/python tests/notebooks/test_cells_run_again.py notebooks/17_full_checkpoint.ipynb
"""

import sys
from pathlib import Path

import execute
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from one_kernel import kernel

pytestmark = pytest.mark.slow


def words(cell: NotebookNode) -> list[str]:
    """What a cell wrote, without its pictures, errors by name and message."""
    found = []
    for output in cell.outputs:
        said = output.get("text") or output.get("data", {}).get("text/plain") or f"{output.ename}: {output.evalue}"
        found.append(said)
    return found


def complaints(path: Path) -> list[str]:
    """The code cells of the notebook at `path` whose first or second run differs from the saved output."""
    notebook = execute.normalise(nbformat.read(path, as_version=4))
    found = []
    with kernel(notebook, path) as client:
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            saved = words(cell)
            for run in ("first", "second"):
                try:
                    client.execute_cell(cell, number)
                except CellExecutionError as error:
                    found.append(f"cell {number}, {run} run: {error.ename}: {error.evalue}")
                if "nbval-ignore-output" not in cell.metadata.get("tags", []) and words(cell) != saved:
                    found.append(f"cell {number}, {run} run: expected the saved {saved}, got {words(cell)}")
    return found


LESSONS = sorted(execute.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_cell_of_a_lesson_runs_again(path):
    if absent := execute.left_out(path):
        pytest.skip(absent)
    assert complaints(path) == []


def test_a_cell_that_trains_in_place_is_found(tmp_path):
    """The fault of old: a copy kept, and then the original trained. The same cell that trains a copy passes."""
    sources = ["w = [0]", "kept = list(w)\nw[0] += 1\nprint(w[0])", "mine = list(kept)\nmine[0] += 1\nprint(mine[0])"]
    path = tmp_path / "99_in_place.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    assert execute.main([str(path)]) == 0
    [found] = [text for text in complaints(path) if "cell 1, " in text]
    assert "second run: expected the saved ['1\\n'], got ['2\\n']" in found


if __name__ == "__main__":
    faults = {name: complaints(Path(name).resolve()) for name in sys.argv[1:]}
    print(
        *(f"{name}: {text}" for name, texts in faults.items() for text in texts or ["every cell runs again"]), sep="\n"
    )
    sys.exit(any(faults.values()))
