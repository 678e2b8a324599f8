"""The checks of the notebooks bite: a small lesson passes them all, and every damage done to it is found."""

import copy
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

pytestmark = pytest.mark.slow  # all of it is about notebooks that a kernel ran

OPENING = """A paragraph that a reader understands who opens this lesson first: what it is about, why anybody
should want to know, and what the words mean that every other lesson takes for granted, in thirty words."""
FIGURES = "[`show`](../minikeye/explore/figures.py)"  # execute.py adds the lines

TOY = [
    new_markdown_cell(f"# A toy lesson\n\n{OPENING}"),
    new_markdown_cell("## Learning goals\n\nAdd two numbers. See [the exercise](#exercise)."),
    new_code_cell("import sys\n\nprint(sys.version)", metadata={"tags": ["nbval-ignore-output"]}),
    new_markdown_cell("Two numbers."),
    new_code_cell("total = 40 + 2\nprint(f'total {total}')\ntotal / 8"),
    new_markdown_cell(f"## A figure\n\nBy {FIGURES}."),
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


def execute(*paths: Path) -> subprocess.CompletedProcess:
    """What `make notebooks NB=path` does."""
    command = [sys.executable, str(ROOT / "notebooks" / "execute.py"), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True)


EXPLORER = """\
import torch

from minikeye.explore import FrameSelection
from minikeye.explore.widget.explorer import FrameExplorer

one = torch.ones(1, 1)
FrameExplorer(FrameSelection(one.int()[None], 4 * one.int(), one[None] / 2, one, (0,), (0.0,), (0,)))"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Path]:
    """The toy lesson and a notebook with a widget, run and saved: starting kernels is what takes the time here."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder.parent / "minikeye").symlink_to(ROOT / "minikeye")  # where links into modules lead
    toy, widget = folder / "99_toy.ipynb", folder / "98_widget.ipynb"
    nbformat.write(new_notebook(cells=TOY), toy)
    nbformat.write(new_notebook(cells=[new_code_cell(EXPLORER)]), widget)
    result = execute(toy, widget)
    assert result.returncode == 0 and result.stdout.count("saved") == 2, result.stdout + result.stderr
    return toy, widget


@pytest.fixture(scope="module")
def toy(saved) -> Path:
    return saved[0]


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


def test_toy_keeps_the_rules(toy):
    assert complaints(toy) == []


def test_saving_twice_gives_the_same_bytes(saved):
    before = [path.read_bytes() for path in saved]
    assert execute(*saved).stdout.count("unchanged") == 2
    assert [path.read_bytes() for path in saved] == before


def test_a_widget_leaves_its_picture_and_its_words(saved):
    """Saved without the live view, whose model nobody has; alt in HTML."""
    [output] = nbformat.read(saved[1], as_version=4).cells[0].outputs
    words = output.data["text/plain"]
    assert set(output.data) == {"image/png", "text/html", "text/plain"}
    assert "1 of its 4 keys (25 %) lies in the frame at 0.0 s, with 50 % of the attention." in words


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_pictures_have_their_words_in_every_html(saved, template):
    """Figures and widgets, in what nbconvert makes of them: "lab" is its default and looks like JupyterLab."""
    for path in saved:
        html, _ = nbconvert.HTMLExporter(template_name=template).from_filename(str(path))
        outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
        words = [output.data["text/plain"] for output in outputs if "image/png" in output.get("data", {})]
        shown = re.findall(r'<img[^>]*?alt="([^"]*)"', html)
        assert [unescape(alt) for alt in shown] == words and len(words) == 1
        assert html.count("<img") == 1 and f"<p>{words[0]}</p>" in unescape(html)


def test_nbval_finds_every_changed_output_and_no_other(saved, tmp_path):
    """Both notebooks in one, whole; then their cells again, each with one change. Cells are compared one by one."""
    notebook, widget = (nbformat.read(path, as_version=4) for path in saved)
    notebook.cells += widget.cells
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed, result, figure, source, refused, words = (copy.deepcopy(cells[n]) for n in (1, 1, 2, 1, 5, 6))
    printed.outputs[0].text = "total 43\n"
    result.outputs[1].data["text/plain"] = "5.26"
    figure.outputs[0].data["text/plain"] = "Two bars: the left one, 41, is twenty times as high."
    source.source = source.source.replace("40", "41")
    refused.outputs[0].evalue = "another message"
    words.outputs[0].data["text/plain"] = words.outputs[0].data["text/plain"].replace("1 of its 4", "2 of its 4")
    notebook.cells += [printed, result, figure, source, refused, words]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    path = tmp_path / "97_both.ipynb"
    path.write_text(nbformat.writes(notebook))

    done = nbval(path)
    assert done.returncode == 1, done.stdout  # 1: tests failed; any other number: pytest itself did
    failed = re.findall(r"^FAILED .*::Cell (\d+)", done.stdout, re.M)
    assert [int(n) for n in failed] == list(range(len(cells), len(cells) + 6)), done.stdout


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


def no_html(notebook):
    del notebook.cells[6].outputs[0].data["text/html"]


def no_alt_metadata(notebook):
    notebook.cells[6].outputs[0].metadata = {}


def html_picture(notebook):
    notebook.cells[4].outputs[1].data["text/html"] = "<img src='x.png'>"


def too_big(notebook):
    notebook.cells[4].outputs[0].text = "x" * 1_500_001


def long_print(notebook):
    notebook.cells[4].outputs[0].text = "x" * 101 + "\n"


def old_lines(notebook):
    cell = notebook.cells[5]
    cell.source = re.sub(r"#L\d+", "#L1", cell.source)


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
        (no_html, "pictures: code cell 3: a picture is not in its text/html"),
        (html_picture, "pictures: code cell 2: an <img>"),
        (edit(4, source="x = 1\n" * 26), "code_size: code cell 2 has 26"),
        (edit(4, source=f"x = '{'long ' * 20}'"), "code_size: code cell 2 has a line of more than 100"),
        (long_print, "outputs: code cell 2: prints 101 characters"),
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
        (edit(0, source="# A toy lesson"), "ways_in_and_out: the title is followed by 0 words"),
        (edit(5, source="## A figure"), "ways_in_and_out: section 'A figure' links to no lines"),
        (old_lines, "code_links: a link leads to old lines"),
        (edit(5, source=f"## A figure\n\n{FIGURES}"), "code_links: a link leads to old lines"),
        (edit(5, source=f"## A figure\n\n{FIGURES.replace('show', 'hide')}"), "code_links: link to `hide`"),
        (edit(5, source=f"## A figure\n\n{FIGURES.replace('figures', 'nothing')}"), "code_links: link to `show`"),
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


def test_a_lesson_leads_on_to_the_next(toy, tmp_path):
    for name in ("98_first.ipynb", "99_last.ipynb"):
        (tmp_path / name).write_text(toy.read_text())
    missing = "ways_in_and_out: the last cell does not link to the next lesson, 99_last.ipynb"
    assert complaints(tmp_path / "98_first.ipynb") == [missing]
    assert complaints(tmp_path / "99_last.ipynb") == []


def test_links_are_renewed_without_running_anything(damaged, toy):
    path = damaged(old_lines)
    assert execute("--links", path).stdout.endswith("s, saved\n==> 1 of 1 notebooks ran\n")
    assert path.read_bytes() == toy.read_bytes() and complaints(path) == []


def test_execute_refuses_stderr_and_errors(tmp_path):
    """And goes on with the next notebook."""
    sources = {
        "writes to stderr": "import sys\n\nprint('oh', file=sys.stderr)",
        "ZeroDivision": "1 / 0",
        "saved": "1 / 2",
    }
    paths = [tmp_path / f"{n}.ipynb" for n in range(len(sources))]
    for path, source in zip(paths, sources.values(), strict=True):
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    before = [path.read_bytes() for path in paths]
    result = execute(*paths)
    assert result.returncode == 1 and result.stdout.endswith("==> 1 of 3 notebooks ran\n")
    for reason, said in zip(sources, result.stdout.split("==>")[1:], strict=False):
        assert reason in said
    assert [path.read_bytes() == old for path, old in zip(paths, before, strict=True)] == [True, True, False]
