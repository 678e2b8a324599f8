"""The site as a reader gets it: every link leads somewhere, every saved output is there, nothing comes from outside.

It is built once, from the repository as it is; Sphinx's warnings are errors.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))

pytestmark = pytest.mark.slow


def squeezed(text: str) -> str:
    """`text` without white space, which HTML and highlighting change."""
    return re.sub(r"\s+", "", text)


def inner(pages: dict) -> Iterator[tuple[str, str, str]]:
    """(page, file, anchor) of everything in the site that a page links to or loads."""
    for name, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            folder = Path("/", name).parent
            path = (folder / unquote(parts.path)) if parts.path else Path("/", name)
            yield name, Path(*path.parts[1:]).as_posix(), unquote(parts.fragment)


def test_links_and_anchors_lead_somewhere(site, pages):
    broken = set()
    for name, file, anchor in inner(pages):
        target = (site / file).resolve()
        file = target.relative_to(site.resolve()).as_posix() if target.is_relative_to(site.resolve()) else "outside"
        if not target.is_file() or (anchor and file in pages and anchor not in pages[file].names):
            broken.add((name, file, anchor))
    assert broken == set()
    assert len(pages) > 300


def test_nothing_is_fetched_from_outside(site, pages):
    """A page loads what lies beside it, or carries it; links out are links of texts, for a reader to follow."""
    loads = {(name, load[:60]) for name, page in pages.items() for load in page.loads}
    assert {
        (name, load) for name, load in loads if urlsplit(load).scheme not in ("", "data") or "//" in load[:2]
    } == set()
    for style in site.rglob("*.css"):
        assert re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")) == [], style


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_saved_output_is_shown(pages, path):
    """Code, printed lines, errors and pictures of a notebook are on its page, and each picture has its words."""
    page = pages[path.relative_to(ROOT).with_suffix(".html").as_posix()]
    text, pictures = squeezed("".join(page.words)), []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert squeezed(cell.source) in text
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            said = output.get("text") or output.get("evalue") or data.get("text/plain", "")
            assert squeezed(said) in text
            pictures += [data["text/plain"]] if "image/png" in data else []
    assert page.alts == pictures


def test_formulas_are_drawn_without_a_script(pages):
    """Each dollar formula of a lesson is an element of MathML, and no dollar is left in its place."""
    cells = [
        cell for path in LESSONS for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
    ]
    dollars = sum(len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", cell.source, re.S)) for cell in cells)
    drawn = sum(page.formulas for name, page in pages.items() if name.startswith("notebooks/"))
    assert drawn == dollars > 100


def test_signatures_carry_shapes(pages):
    text = squeezed("".join(pages["api/minikeye.ops.html"].words))
    assert "select_topk(q:Float[Tensor,'btji'],k:Float[Tensor,'bsi'],w:Float[Tensor,'btj']" in text
    assert "Int[Tensor,'btk']" in text


def test_every_module_is_in_the_reference(pages):
    names = {name for page in pages for name in pages[page].names if page.startswith("api/")}
    parts = {"minikeye": ROOT / "minikeye", "minikeye.kernels": ROOT / "kernels"}
    paths = {package: [p.relative_to(top) for p in top.rglob("[!_]*.py")] for package, top in parts.items()}
    modules = {".".join([package, *p.with_suffix("").parts]) for package in paths for p in paths[package]}
    assert {m for m in modules if f"module-{m}" not in names and ".exercises." not in m} == set()
    assert len(modules) > 200


def test_results_are_tables(pages):
    """Every number of every summary, and every file from the list."""
    for path in (ROOT / "assets" / "results").glob("*.json"):
        text = squeezed("".join(pages[f"results/{path.stem}.html"].words))
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"]
        assert [key for key, value in summary.items() if f"{key}{value}" not in text] == []
        assert f"{path.stem}.html" in pages["results/index.html"].links


def test_the_way_from_a_question(pages):
    """Every lesson is found from a question; a line names a lesson, code and a test."""
    way = pages["find_your_way.html"].links
    lessons = [path.stem for path in LESSONS if path.parent.name == "notebooks" and not path.stem.startswith("00")]
    assert [lesson for lesson in lessons if f"notebooks/{lesson}.html" not in way] == []
    code = [link for link in way if re.match(r"source/(minikeye|kernels)/.*#L-\d+$", link)]
    tests = [link for link in way if re.match(r"source/tests/.*#L-\d+$", link)]
    assert len(code) == len(tests) >= 30


def test_explorers_are_shown(site, pages):
    """Pages of assets/explorer, where there are some, beside the others, from the front page and from their lesson."""
    for path in (ROOT / "assets" / "explorer").glob("*.html"):
        assert (site / "explorer" / path.name).read_bytes() == path.read_bytes()
        assert f"explorer/{path.name}" in pages["index.html"].links
        assert f"../explorer/{path.name}" in pages["notebooks/08_frame_explorer.html"].links
