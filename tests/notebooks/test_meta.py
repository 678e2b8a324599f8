"""The checks of the notebooks bite: a small lesson passes them all, and every damage done to it is found."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbconvert
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebook_rules import complaints

ROOT = Path(__file__).resolve().parents[2]

TOY = [
    new_markdown_cell("# A toy lesson"),
    new_markdown_cell("## Learning goals\n\nAdd two numbers. See [the exercise](#exercise)."),
    new_code_cell("import sys\n\nprint(sys.version)", metadata={"tags": ["nbval-ignore-output"]}),
    new_markdown_cell("Two numbers."),
    new_code_cell("total = 40 + 2\nprint(f'total {total}')\ntotal / 8"),
    new_markdown_cell("## A figure"),
    new_code_cell(
        "import matplotlib.pyplot as plt\n\nfrom minikeye.explore.figures import show\n\n"
        "figure, axes = plt.subplots()\naxes.bar([0, 1], [40, 2])\n"
        "show(figure, 'Two bars: the left one, 40, is twenty times as high.')"
    ),
    new_markdown_cell("A bar for readers who run this, and nothing in the saved file."),
    new_code_cell("from minikeye.progress import progress\n\nsum(progress(range(4), 'adding'))"),
    new_markdown_cell("## Exercise"),
    new_code_cell(
        "def check_sum(answer):\n    assert answer(1, 2) is not None, 'write the body first'\n\n\n"
        "def add(x, y):\n    return None  # your code here"
    ),
    new_markdown_cell("Run the checker."),
    new_code_cell("check_sum(add)", metadata={"tags": ["raises-exception"]}),
    new_markdown_cell("## Take-aways"),
    new_markdown_cell("## Where this differs from the paper"),
]


def nbval(path: Path) -> subprocess.CompletedProcess:
    """Run nbval on one notebook, with the very options of `make validate`."""
    options = re.search(r"--nbval .*?sanitize\.cfg", (ROOT / "Makefile").read_text()).group().split()
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider", *options, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"MINIKEYE_QUIET": "1"})


def execute(path: Path) -> subprocess.CompletedProcess:
    """What `make notebooks NB=path` does."""
    command = [sys.executable, str(ROOT / "notebooks" / "execute.py"), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """The toy lesson, run and saved."""
    path = tmp_path_factory.mktemp("notebooks") / "99_toy.ipynb"
    nbformat.write(new_notebook(cells=TOY), path)
    result = execute(path)
    assert result.returncode == 0, result.stdout + result.stderr
    return path


@pytest.fixture
def damaged(toy, tmp_path):
    """A function that applies a change to a copy of the toy and returns the copy's path."""

    def damage(change) -> Path:
        notebook = nbformat.read(toy, as_version=4)
        change(notebook)
        path = tmp_path / toy.name
        path.write_text(nbformat.writes(notebook) + "\n")
        return path

    return damage


def test_toy_passes(toy):
    assert complaints(toy) == []
    result = nbval(toy)
    assert result.returncode == 0, result.stdout


def test_saving_twice_gives_the_same_bytes(toy):
    before = toy.read_bytes()
    assert "unchanged" in execute(toy).stdout
    assert toy.read_bytes() == before


def change_print(notebook):
    notebook.cells[4].outputs[0].text = "total 43\n"


def change_result(notebook):
    notebook.cells[4].outputs[1].data["text/plain"] = "5.26"


def change_alt(notebook):
    notebook.cells[6].outputs[0].data["text/plain"] = "Two bars: the left one, 41, is twenty times as high."


def change_error(notebook):
    notebook.cells[12].outputs[0].evalue = "another message"


def change_code(notebook):
    notebook.cells[4].source = notebook.cells[4].source.replace("40", "41")


# nbval counts code cells from 0.
CHANGED_CELL = {change_print: 1, change_result: 1, change_alt: 2, change_error: 5, change_code: 1}


@pytest.mark.parametrize("change", CHANGED_CELL)
def test_nbval_finds_a_changed_output(damaged, change):
    result = nbval(damaged(change))
    assert result.returncode == 1, result.stdout  # 1: tests failed; any other number: pytest itself did
    assert re.findall(r"^FAILED .*::Cell (\d+)", result.stdout, re.M) == [str(CHANGED_CELL[change])]


def strip(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def edit(cell, **fields):
    """A change that sets fields of one cell."""
    return lambda notebook: notebook.cells[cell].update(fields)


def retag(cell, *tags):
    return lambda notebook: notebook.cells[cell].metadata.update(tags=list(tags))


def delete(cell):
    return lambda notebook: notebook.cells.pop(cell)


def widget_state(notebook):
    notebook.metadata["widgets"] = {}


def stderr(notebook):
    notebook.cells[4].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="Warning"))


def bare_figure(notebook):
    notebook.cells[6].outputs[0].data["text/plain"] = "<Figure size 700x300 with 1 Axes>"


def no_alt_metadata(notebook):
    notebook.cells[6].outputs[0].metadata = {}


def html_picture(notebook):
    notebook.cells[4].outputs[1].data["text/html"] = "<img src='x.png'>"


def too_big(notebook):
    notebook.cells[4].outputs[0].text = "x" * 1_500_001


def machine_path(notebook):
    notebook.cells[4].outputs[0].text = "saved to /home/someone/file\n"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (strip, "executed: execution counts"),
        (edit(4, execution_count=7), "executed: execution counts"),
        (widget_state, "saved_by_execute: not saved"),
        (too_big, "saved_by_execute: 1,5"),
        (edit(5, source="# Another"), "heading_order: needs one"),
        (edit(5, source="#### Deep"), "heading_order: a heading of level 4"),
        (stderr, "outputs: code cell 2: writes to stderr"),
        (machine_path, "outputs: code cell 2: an output contains a path"),
        (retag(12), "outputs: code cell 6: has an error"),
        (retag(4, "raises-exception"), "outputs: code cell 2: has an error"),
        (bare_figure, "pictures: code cell 3: a picture has no alt sentence"),
        (no_alt_metadata, "pictures: code cell 3: a picture's alt"),
        (html_picture, "pictures: code cell 2: an <img>"),
        (edit(4, source="x = 1\n" * 26), "code_size: code cell 2 has 26"),
        (edit(4, source=""), "code_size: code cell 2 has 0"),
        (retag(4, "nbval-skip"), "uncompared: no cell may be skipped"),
        (edit(3, source="[x](nowhere.md)"), "links: link to nowhere.md"),
        (edit(3, source="[x](#nowhere)"), "links: link to #nowhere"),
        (edit(3, source="![](99_toy.ipynb)"), "links: picture 99_toy.ipynb has no alt"),
        (edit(3, source="![a curve](nowhere.png)"), "links: picture nowhere.png: no such file"),
        (edit(3, source="<img src='99_toy.ipynb'>"), "links: picture 99_toy.ipynb has no alt"),
        (edit(3, source="word " * 3000), "lesson_shape: 3,0"),
        (delete(1), "lesson_shape: needs the heading 'Learning goals'"),
        (delete(14), "lesson_shape: must end with"),
        (edit(9, source="## Homework"), "lesson_shape: needs a heading with the word Exercise"),
        (edit(12, source="add(1, 2)"), "lesson_shape: needs an exercise with a checker"),
        (retag(2), "lesson_shape: the first code cell"),
        (lambda notebook: [notebook.cells.pop(i) for i in (7, 5, 3)], "lesson_shape: 6 text cells for 6"),
    ],
)
def test_rules_find_damage(damaged, change, complaint):
    found = complaints(damaged(change))
    assert any(text.startswith(complaint) for text in found), found


def test_median_is_limited(damaged):
    def lengthen(notebook):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = "x = 1\n" * 11

    assert any("the median code cell has 11" in text for text in complaints(damaged(lengthen)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import sys\n\nprint('oh', file=sys.stderr)", "writes to stderr"), ("1 / 0", "ZeroDivision")],
)
def test_execute_refuses_stderr_and_errors(damaged, source, reason):
    path = damaged(edit(4, source=source))
    before = path.read_bytes()
    result = execute(path)
    assert result.returncode == 1
    assert reason in result.stdout
    assert path.read_bytes() == before


EXPLORER = """\
import torch

from minikeye.explore import FrameSelection
from minikeye.explore.widget.explorer import FrameExplorer

one = torch.ones(1, 1)
FrameExplorer(FrameSelection(one.int()[None], 4 * one.int(), one[None] / 2, one, (0,), (0.0,), (0,)))"""


def test_a_widget_leaves_its_picture_and_its_words(tmp_path):
    """Saved without the live view, whose model nobody has; the same bytes twice; compared by its words; alt in HTML."""
    path = tmp_path / "98_widget.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(EXPLORER)]), path)
    assert "saved" in execute(path).stdout
    [output] = nbformat.read(path, as_version=4).cells[0].outputs
    words = output.data["text/plain"]
    assert set(output.data) == {"image/png", "text/plain"} and output.metadata["image/png"]["alt"] == words
    assert "1 of its 4 keys (25 %) lies in the frame at 0.0 s, with 50 % of the attention." in words
    assert "unchanged" in execute(path).stdout
    assert nbval(path).returncode == 0
    html, _ = nbconvert.HTMLExporter(template_name="classic").from_filename(str(path))
    assert f'alt="{words}"' in unescape(html)
    path.write_text(path.read_text().replace("1 of its 4 keys", "2 of its 4 keys"))
    assert nbval(path).returncode == 1
