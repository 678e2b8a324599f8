"""What every notebook must satisfy. Each rule takes a notebook and yields complaints; `complaints` applies them all.

These rules do not depend on nbval: nbval never compares a cell without an execution count, ignores pictures, and does
not know what a lesson looks like.
"""

import re
import statistics
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import execute
import nbformat
from nbformat import NotebookNode
from source_links import LINK, relink

MAX_BYTES = 1_500_000
MAX_WIDTH = 100  # characters of a line of code or of a printed line: longer ones scroll, or break inside words
MAX_CODE_LINES = 25  # any cell
MAX_MEDIAN_LINES = 10  # half of the cells are no longer than this
MIN_OPENING = 30  # words of the paragraph under the title
MAX_WORDS = 3000
MIN_TEXT_PER_CODE = 1.2  # text cells per code cell
MAX_UNCOMPARED = 3  # cells whose output is ignored, the environment report included
GOALS, TAKEAWAYS, DIFFERENCES = "learning goals", "take-aways", "where this differs from the paper"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def prose(cell: NotebookNode) -> str:
    """The text of a markdown cell without code and formulas, in which # and []() mean something else."""
    text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)


def headings(notebook: NotebookNode) -> list[tuple[int, str]]:
    """(level, text) of every heading, in order."""
    found = [match for cell in text_cells(notebook) for match in re.findall(r"^(#{1,6}) +(.*?)\s*$", prose(cell), re.M)]
    return [(len(marks), text) for marks, text in found]


def saved_by_execute(notebook: NotebookNode, path: Path) -> Iterator[str]:
    if path.read_text(encoding="utf-8") != execute.serialise(execute.normalise(notebook)):
        yield f"not saved by `make notebooks NB={path.name}`: metadata, widget state or formatting differ"
    if path.stat().st_size > MAX_BYTES:
        yield f"{path.stat().st_size:,} bytes, at most {MAX_BYTES:,}"


def heading_order(notebook: NotebookNode, path: Path) -> Iterator[str]:
    levels = [level for level, _ in headings(notebook)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield f"needs one level-1 heading, first of all; heading levels are {levels}"
    for before, after in pairwise(levels):
        if after > before + 1:
            yield f"a heading of level {after} follows one of level {before}"


def executed(notebook: NotebookNode, path: Path) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}: run `make notebooks`"


def outputs(notebook: NotebookNode, path: Path) -> Iterator[str]:
    for number, cell in enumerate(code_cells(notebook), 1):
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed != ("raises-exception" in tags(cell)):
            yield f"code cell {number}: has an error output {failed}, is tagged raises-exception {not failed}"
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"code cell {number}: writes to stderr: {output.text[:80]!r}"
            if re.search(r"/(home|root|Users|tmp)/", str(output.get("text", "")) + str(output.get("data", {}))):
                yield f"code cell {number}: an output contains a path of the machine it ran on"
            if long := [line for line in output.get("text", "").splitlines() if len(line) > MAX_WIDTH]:
                yield f"code cell {number}: prints {len(long[0])} characters in a line, at most {MAX_WIDTH}: {long[0]}"


def pictures(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Every picture in an output has words; see minikeye.explore.figures.show."""
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            data = output.get("data", {})
            if any(re.search(r"<img(?![^>]*\balt=.?\w)", text) for text in [data.get("text/html", "")]):
                yield f"code cell {number}: an <img> in an HTML output has no alt text"
            kinds = [kind for kind in data if kind.startswith("image/")]
            if not kinds:
                continue
            alt = data.get("text/plain", "")
            if alt.startswith("<") or len(alt.split()) < 5:
                yield f"code cell {number}: a picture has no alt sentence ({alt!r}); use minikeye.explore.figures.show"
            if any(output.metadata.get(kind, {}).get("alt") != alt for kind in kinds):
                yield f"code cell {number}: a picture's alt metadata is not its text/plain"
            if f'<img alt="{escape(alt)}" src="data:image/' not in data.get("text/html", ""):
                yield f"code cell {number}: a picture is not in its text/html, with its text/plain as alt text"


def code_size(notebook: NotebookNode, path: Path) -> Iterator[str]:
    lines = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    for number, length in enumerate(lines, 1):
        if not 0 < length <= MAX_CODE_LINES:
            yield f"code cell {number} has {length} lines, at most {MAX_CODE_LINES} and not empty"
    for number, cell in enumerate(code_cells(notebook), 1):
        if any(len(line) > MAX_WIDTH for line in cell.source.splitlines()):
            yield f"code cell {number} has a line of more than {MAX_WIDTH} characters"
    if lines and statistics.median(lines) > MAX_MEDIAN_LINES:
        yield f"the median code cell has {statistics.median(lines)} lines, at most {MAX_MEDIAN_LINES}"


def uncompared(notebook: NotebookNode, path: Path) -> Iterator[str]:
    cells = code_cells(notebook)
    if any("nbval-skip" in tags(cell) or "# NBVAL_" in cell.source for cell in cells):
        yield "no cell may be skipped, and exceptions are tags, not comments"
    ignored = sum("nbval-ignore-output" in tags(cell) for cell in cells)
    if ignored > MAX_UNCOMPARED:
        yield f"{ignored} cells are tagged nbval-ignore-output, at most {MAX_UNCOMPARED}"


def links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    anchors = {text.lower().replace(" ", "-") for _, text in headings(notebook)}
    for cell in text_cells(notebook):
        text = prose(cell)
        for alt, target in re.findall(r"!\[(.*?)\]\(([^)\s]+)[^)]*\)", text):
            yield from _picture(alt, target, path)
        for element in re.findall(r"<img\b[^>]*>", text):
            attributes = dict(re.findall(r"""(\w+)=["']([^"']*)["']""", element))
            yield from _picture(attributes.get("alt", ""), attributes.get("src", ""), path)
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)", text):
            file, _, anchor = unquote(target).partition("#")
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            if file and not (path.parent / file).exists():
                yield f"link to {target}: no such file"
            if not file and anchor.lower() not in anchors:
                yield f"link to {target}: no such heading"


def code_links(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A link whose text names a piece of a module leads to the lines of that piece."""
    for cell in text_cells(notebook):
        try:
            if relink(cell.source, path.parent) != cell.source:
                yield f"a link leads to old lines, run `notebooks/execute.py --links`: {cell.source[:80]!r}"
        except ValueError as error:
            yield str(error)


def _picture(alt: str, target: str, path: Path) -> Iterator[str]:
    if not alt.strip():
        yield f"picture {target} has no alt text"
    if not (path.parent / unquote(target)).is_file():
        yield f"picture {target}: no such file (pictures lie in the repository)"


def lesson_shape(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """Goals first, an exercise with a checker, take-aways and the distance to the paper last; more text than code."""
    titles = [text.lower() for _, text in headings(notebook)]
    if GOALS not in titles[:3]:
        yield f"needs the heading 'Learning goals' among its first three; they are {titles[:3]}"
    if set(titles[-2:]) != {TAKEAWAYS, DIFFERENCES}:
        yield f"must end with 'Take-aways' and 'Where this differs from the paper'; it ends with {titles[-2:]}"
    if not any("exercise" in title for title in titles):
        yield "needs a heading with the word Exercise"
    cells = code_cells(notebook)
    if not any(re.search(r"^check_\w+\(", cell.source, re.M) for cell in cells):
        yield "needs an exercise with a checker: a line check_NAME(answer)"
    if not cells or "nbval-ignore-output" not in tags(cells[0]):
        yield "the first code cell must be the environment report, tagged nbval-ignore-output"
    words = sum(len(cell.source.split()) for cell in text_cells(notebook))
    if words > MAX_WORDS:
        yield f"{words:,} words, at most {MAX_WORDS:,}"
    if len(text_cells(notebook)) < MIN_TEXT_PER_CODE * len(cells):
        yield f"{len(text_cells(notebook))} text cells for {len(cells)} code cells, at least {MIN_TEXT_PER_CODE} each"


def sections(notebook: NotebookNode) -> list[tuple[str, list[NotebookNode]]]:
    """(title, cells) of what stands under each level-2 heading."""
    found: list[tuple[str, list[NotebookNode]]] = []
    for cell in notebook.cells:
        title = re.match(r"## +(.*)", cell.source) if cell.cell_type == "markdown" else None
        if title:
            found.append((title[1], []))
        if found:
            found[-1][1].append(cell)
    return found


def ways_in_and_out(notebook: NotebookNode, path: Path) -> Iterator[str]:
    """A lesson can be opened first, leads into the modules that it builds, and on to the next lesson."""
    opening = re.sub(r"^# .*", "", notebook.cells[0].source).split()
    if len(opening) < MIN_OPENING:
        yield f"the title is followed by {len(opening)} words, at least {MIN_OPENING}: what is this about?"
    for title, cells in sections(notebook):
        frame = title.lower() in (GOALS, TAKEAWAYS, DIFFERENCES) or "exercise" in title.lower()
        if not frame and any(c.cell_type == "code" for c in cells) and not any(LINK.search(c.source) for c in cells):
            yield f"section {title!r} links to no lines of a module: [`name`](../minikeye/file.py)"
    lessons = sorted(other.name for other in path.parent.glob("*.ipynb"))
    following = lessons[lessons.index(path.name) + 1 :]
    if following and f"]({following[0]})" not in notebook.cells[-1].source:
        yield f"the last cell does not link to the next lesson, {following[0]}"


EVERYWHERE = (saved_by_execute, heading_order, executed, outputs, pictures, code_size, uncompared, links, code_links)
LESSONS_ONLY = (lesson_shape, ways_in_and_out)


def complaints(path: Path) -> list[str]:
    """Everything that is wrong with the notebook at `path`; solutions/ need not have the shape of a lesson."""
    notebook = nbformat.read(path, as_version=4)
    rules = EVERYWHERE if path.parent.name == "solutions" else EVERYWHERE + LESSONS_ONLY
    return [f"{rule.__name__}: {complaint}" for rule in rules for complaint in rule(notebook, path)]
