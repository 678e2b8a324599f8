"""Lays out what Sphinx reads: the repository's own texts, each link turned to the page of the site that shows its goal.

A link to a notebook or a Markdown file stays; README is the front page; a link to code becomes `source:FILE#L-LINE`
(`sources.py`), one to a folder of code its API page, one to a results file its tables.
"""

import ast
import re
import shutil
import sys
from pathlib import Path
from posixpath import normpath, relpath

import nbformat
import result_tables
from nbformat.v4 import new_markdown_cell

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

import source_links  # noqa: E402 - notebooks/source_links.py

LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
PACKAGES = {"minikeye": ROOT / "minikeye", "minikeye.kernels": ROOT / "kernels"}
LESSONS = "../../notebooks/"


def lay_out(folder: Path) -> None:
    """Write all sources of the site into `folder`. Raises ValueError for a link that leads nowhere."""
    (folder / "assets").mkdir(parents=True)
    shutil.copytree(ROOT / "assets" / "figures", folder / "assets" / "figures")
    for text in ("CONTRIBUTING.md", "assets/README.md"):
        (folder / text).write_text(turned((ROOT / text).read_text(encoding="utf-8"), text), encoding="utf-8")
    way = (ROOT / "assets" / "site" / "find_your_way.md").read_text(encoding="utf-8")
    way = source_links.relink(way, ROOT / "assets" / "site")
    (folder / "find_your_way.md").write_text(turned(way, "assets/site/find_your_way.md", "."), encoding="utf-8")
    names = notebooks(folder)
    solutions = [name for name in names if "/solutions/" in name]
    text = "# Solutions\n\nOf the exercises, lesson by lesson.\n\n" + _toctree("", solutions, hidden=False)
    (folder / "solutions.md").write_text(text, encoding="utf-8")
    api(folder / "api")
    result_tables.write(ROOT / "assets" / "results", folder / "results")
    (folder / "index.md").write_text(front(names), encoding="utf-8")


def turned(text: str, file: str, place: str | None = None) -> str:
    """`text` of `file` with its links turned; both count from the root. place: the folder of its page, if another."""
    place = str(Path(file).parent) if place is None else place

    def goal(match: re.Match) -> str:
        path, anchor = normpath(f"{Path(file).parent}/{match[1]}"), match[2] or ""
        if not (ROOT / path).exists():
            raise ValueError(f"{file} links to {path}, which is not there: mend the link")
        if path.startswith("assets/explorer/"):
            return f"source:{path.removeprefix('assets/')}"
        if path.endswith(".py"):
            return f"source:{path}" + re.sub(r"#L(\d+).*", r"#L-\1", anchor)
        if (ROOT / path).is_dir():
            path = f"api/minikeye.{path.removeprefix('minikeye/').replace('/', '.')}.rst"
        elif path.startswith("assets/results/"):
            path = f"results/{Path(path).stem}.md"
        elif path == "README.md":
            path = "index.md"
        return relpath(path, place) + anchor

    return LINK.sub(goal, text)


def notebooks(folder: Path) -> list[str]:
    """Lessons and solutions with turned links. Returns their names as documents, lessons first."""
    lessons = sorted((ROOT / "notebooks").glob("*.ipynb"))
    paths = lessons + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
    for path in paths:
        file = path.relative_to(ROOT).as_posix()
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = turned(cell.source, file)
        said = f"*A saved run of `{file}`; `make lab` opens it, to run and to change.*"
        notebook.cells.insert(1, new_markdown_cell(said + ("\n\n" + shown() if "explorer" in path.stem else "")))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / file)
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in paths]


def explorers() -> list[Path]:
    """Self-contained pages in which frames, layers and queries are chosen, where the repository holds some."""
    return sorted((ROOT / "assets" / "explorer").glob("*.html"))


def shown() -> str:
    """A paragraph with a link to each of them, or nothing."""
    titles = [re.search(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"), re.S) for path in explorers()]
    links = [
        f"[{title[1].strip() if title else path.stem}](source:explorer/{path.name})"
        for path, title in zip(explorers(), titles, strict=True)
    ]
    return "To try without Python, in this browser: " + ", ".join(links) + "." if links else ""


def api(folder: Path) -> None:
    """A page for every package, a section for every module."""
    folder.mkdir()
    for package, modules in packages().items():
        parts = [_section(package, "=", f".. automodule:: {package}\n   :no-members:")]
        parts += [_section(name, "-", f".. automodule:: {name}") for name in modules]
        (folder / f"{package}.rst").write_text("\n".join(parts), encoding="utf-8")
    lines = [f"- {{doc}}`{package}`: {said(package)}" for package in packages()]
    text = (
        "# API reference\n\nSignatures carry jaxtyping shapes, `Float[Tensor, 'b t h e']`: a letter for an axis, "
        "which the module's first lines name. Exercises' checkers are left out.\n\n" + "\n".join(lines)
    )
    names = "\n".join(packages())
    (folder / "index.md").write_text(f"{text}\n\n```{{toctree}}\n:hidden:\n{names}\n```\n", encoding="utf-8")


def packages() -> dict[str, list[str]]:
    """Package -> its modules, both by the name that they are imported under."""
    found = {}
    for name, top in PACKAGES.items():
        for start in sorted(top.rglob("__init__.py")):
            package = ".".join([name, *start.parent.relative_to(top).parts])
            files = [path.stem for path in sorted(start.parent.glob("*.py")) if not path.stem.startswith(("__", "nb"))]
            found[package] = [f"{package}.{stem}" for stem in files]
    return dict(sorted(found.items()))


def said(package: str) -> str:
    """The first sentence of a package's docstring."""
    name = next(name for name in reversed(PACKAGES) if (package + ".").startswith(name + "."))
    path = PACKAGES[name].joinpath(*package.removeprefix(name).split("."), "__init__.py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0].replace("\n", " ")


def _section(title: str, line: str, body: str) -> str:
    return f"{title}\n{line * len(title)}\n\n{body}\n"


def front(names: list[str]) -> str:
    """README as the front page, with what the site adds, and the list of all pages."""
    text = turned((ROOT / "README.md").read_text(encoding="utf-8"), "README.md")
    head, begin, rest = text.partition("## Where to begin")
    if not begin:
        raise ValueError("README.md has no heading `## Where to begin`, before which the site says what it holds")
    here = (
        "Here to read: the lessons with their saved outputs, [find your way](find_your_way.md) from a question to a "
        "lesson, its code and its test, all [results](results/index.md) as tables, and the "
        "[API reference](api/index.md)."
    )
    lessons = [name for name in names if "/solutions/" not in name]
    trees = [
        ("Lessons", ["find_your_way", *lessons]),
        ("Reference", ["results/index", "api/index", "solutions", "assets/README", "CONTRIBUTING"]),
    ]
    return "\n\n".join([head + here, shown(), begin + rest, *(_toctree(*tree) for tree in trees)])


def _toctree(caption: str, names: list[str], hidden: bool = True) -> str:
    options = [":hidden:"] * hidden + [":titlesonly:"] + [f":caption: {caption}"] * bool(caption)
    return "\n".join(["```{toctree}", *options, "", *names, "```"])
