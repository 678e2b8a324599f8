"""A training that is stopped and started again leaves what an undisturbed one leaves, to the bit.

Cells that train are stopped by a real interrupt after some steps and run again. Printed numbers are rounded and might
hide what changed, so every name is compared. A file of its own, beside test_cells_run_again.py: both take minutes, and
a file runs in one process.
"""

import json
from pathlib import Path

import execute
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from one_kernel import kernel

pytestmark = pytest.mark.slow


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


TRAINING = [
    p for p in sorted(execute.FOLDER.glob("*.ipynb")) if "minikeye.training.loop" in p.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_an_interrupted_training_runs_again(path):
    if absent := execute.left_out(path):
        pytest.skip(absent)
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
