"""Re-run notebooks from top to bottom and save them, so that running twice gives the same bytes.

    make notebooks                            all lessons and their solutions
    make notebooks NB=notebooks/03_moe.ipynb  one
    .venv/bin/python notebooks/execute.py --links  only the lines that links into modules lead to

What differs between two machines or two runs is left out of the file: timings, live widgets (their
picture and words stay), tracebacks (the error's name and message stay), the kernel's exact version.
A notebook that prints to stderr or fails is not saved.
"""

import argparse
import os
import sys
import time
from functools import cache
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from source_links import relink

FOLDER = Path(__file__).resolve().parent
CELL_SECONDS = (
    600  # stops a cell that hangs, not a slow machine; the same limit as in `make validate`
)
WIDGET = "application/vnd.jupyter.widget-view+json"  # of use only while its kernel runs
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Kernels inherit these.
ENVIRONMENT = {"MINIKEYE_QUIET": "1", "PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1"}


def all_notebooks(folder: Path = FOLDER) -> list[Path]:
    """Every lesson of `folder`, then every solution, each in order of its number."""
    return sorted(folder.glob("*.ipynb")) + sorted((folder / "solutions").glob("*.ipynb"))


@cache
def left_out(path: Path) -> str | None:
    """Why the notebook at `path` is not run here, in one line; None for one that is.

    A lesson about SmolLM2 needs its file, which `make real` fetches, unless MINIKEYE_REQUIRE_REAL.
    """
    if "smollm2()" not in path.read_text(encoding="utf-8"):
        return None
    from minikeye.checkpoint import smollm2  # not before the tests have set their hook

    absent = smollm2.left_out()
    return absent and f"{path.name} is left out: {absent}"


def normalise(notebook: NotebookNode) -> NotebookNode:
    """A copy of `notebook` without anything that differs between two runs of it."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number:02d}")
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
            if "image/png" in output.get("data", {}):
                output.data.pop(WIDGET, None)
    return notebook


def serialise(notebook: NotebookNode) -> str:
    """The text of the file: sorted keys, indented by one, newline at the end."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def stderr_of(notebook: NotebookNode) -> str:
    """Everything that the cells wrote to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")


def with_links(notebook: NotebookNode, path: Path) -> NotebookNode:
    """`notebook`, which lies at `path`, its links leading to the lines of today; or ValueError."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, path.parent)
    return notebook


def run(path: Path) -> NotebookNode:
    """Run the notebook in a fresh kernel, in its own folder.

    Raises CellExecutionError for an error in a cell that is not tagged raises-exception,
    RuntimeError for anything printed to stderr, warnings included, and ValueError for a link to
    code that is not there.
    """
    notebook = with_links(normalise(nbformat.read(path, as_version=4)), path)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors, but no remarks on its transport
        coalesce_streams=True,  # how prints are cut into messages is a matter of timing
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    if text := stderr_of(notebook):
        raise RuntimeError(
            f"{path.parent.name}/{path.name} writes to stderr; repair the cause of this message:\n"
            f"{text}"
        )
    return normalise(notebook)


def save(notebook: NotebookNode, path: Path) -> bool:
    """Replace `path` in one step; return whether its bytes changed."""
    text = serialise(notebook)
    if path.read_text(encoding="utf-8") == text:
        return False
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    draft.replace(path)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run and save each notebook; return 0, or 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: all lessons and solutions"
    )
    parser.add_argument(
        "--links", action="store_true", help="only write the lines that links lead to"
    )
    asked = parser.parse_args(arguments)
    paths = asked.notebooks or all_notebooks()
    os.environ.update(ENVIRONMENT)
    ran = failures = 0
    for path in (path.resolve() for path in paths):
        if not asked.links and (absent := left_out(path)):
            print(f"==> {absent}")
            continue
        print(f"==> {path.parent.name}/{path.name} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            read = nbformat.read(path, as_version=4)
            changed = save(with_links(read, path) if asked.links else run(path), path)
        except (CellExecutionError, RuntimeError, ValueError) as error:
            failures += 1
            print(f"FAILED, not saved\n{error}")
        else:
            ran += 1
            print(f"{time.perf_counter() - start:.1f} s, {'saved' if changed else 'unchanged'}")
    print(f"==> {ran} of {len(paths)} notebooks ran")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
