"""A cell that is run twice, or stopped and started again, gives its saved output: it does not eat what it starts from.

Every cell of every lesson is run twice in a row in one kernel. One that trains or turns its input in place, draws
without a seed, or reads a log that it then clears, would go on from what it left. Cells that train are also stopped by
a real interrupt after some steps and run again: they leave what an undisturbed run leaves, to the bit, for printed
numbers are rounded and might hide it. One lesson by hand:

    PYTHONPATH=notebooks .venv/bin/python tests/notebooks/test_cells_run_again.py notebooks/16_full_checkpoint.ipynb
"""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import execute
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.slow


def words(cell: NotebookNode) -> list[str]:
    """What a cell wrote, without its pictures, errors by name and message."""
    found = []
    for output in cell.outputs:
        said = output.get("text") or output.get("data", {}).get("text/plain") or f"{output.ename}: {output.evalue}"
        found.append(said)
    return found


@contextmanager
def kernel(notebook: NotebookNode, path: Path):
    """A client with a running kernel for `notebook`, which lies at `path`."""
    client = NotebookClient(
        notebook,
        timeout=execute.CELL_SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # for `interruption`
    ours = execute.ENVIRONMENT | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places.rstrip(os.pathsep)}
    with client.setup_kernel(env=os.environ | ours):
        yield client


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


def states_after_training(path: Path, interrupt_after: int | None = None, last: str = "") -> dict[str, dict[str, str]]:
    """What every name holds after each cell that trains, by the cell's id; every training is cut short.

    interrupt_after: the cell is interrupted after so many steps of its optimisers, and then run again.
    last: the id of the last cell to be run.
    """
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    begin, again, told = f"_ours.start({interrupt_after})", "_ours.start()", "_ours.report(globals())"
    ours = ("import interruption as _ours; _ours.watch()", begin, again, told)
    notebook = new_notebook(cells=[*map(new_code_cell, ours), *code])
    watch, start, start_again, report = range(4)
    found = {}
    with kernel(notebook, path) as client:

        def run(number: int) -> str | None:
            """The name of the error that the cell ended with, if any."""
            try:
                client.execute_cell(notebook.cells[number], number)
            except CellExecutionError as error:
                return error.ename
            return None

        assert run(watch) is None
        for number, cell in enumerate(code, len(ours)):
            assert run(start) is None
            error = run(number)
            stopped = error == "KeyboardInterrupt"
            if stopped:
                assert run(start_again) is None
                error = run(number)
            assert run(report) is None
            taken, state = json.loads(notebook.cells[report].outputs[0].text)
            assert found or error is None, f"{cell.id}, before anything was trained: {error}"
            if taken:  # the other cells may fail: what they assert need not hold after a training that was cut short
                assert error is None and stopped == bool(interrupt_after), f"{cell.id}: {error}, stopped {stopped}"
                found[cell.id] = state
            if cell.id == last:
                break
    return found


def changed_by_interrupt(path: Path) -> dict[str, list[str]]:
    """For each cell that trains: the names that hold something else than without the interrupt."""
    right = states_after_training(path)
    ours = states_after_training(path, interrupt_after=5, last=[*right, ""][-1])
    assert list(ours) == list(right), "other cells train after an interrupt"
    return {cell: sorted(name for name in right[cell] if ours[cell].get(name) != right[cell][name]) for cell in right}


LESSONS = sorted(execute.FOLDER.glob("*.ipynb"))
TRAINING = [path for path in LESSONS if "minikeye.training.loop" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_an_interrupted_training_runs_again(path):
    changed = changed_by_interrupt(path)
    assert changed and not any(changed.values()), changed


def test_a_training_that_goes_on_from_an_interrupt_is_found(tmp_path):
    """One cell trains a copy, one what an earlier cell made, and prints nothing that would show it."""
    sources = [
        "import copy\n\nimport torch\n\nfrom minikeye.training.loop import LoopConfig, train\n\n"
        "torch.manual_seed(0)\ngiven, x = torch.nn.Linear(4, 1), torch.randn(8, 4)\n\n\n"
        "def teach(model):\n"
        "    def backward_at(step):\n        model.zero_grad()\n        loss = model(x).square().mean()\n"
        "        loss.backward()\n        return loss.detach(), {}\n\n"
        "    return train(dict(model.named_parameters()), backward_at, LoopConfig(steps=20, lr=0.1))",
        "mine = copy.deepcopy(given)\nlog = teach(mine)",
        "teach(given)",
    ]
    path = tmp_path / "99_training.ipynb"
    cells = [new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells), path)
    assert changed_by_interrupt(path) == {"cell-1": [], "cell-2": ["given"]}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_cell_of_a_lesson_runs_again(path):
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
