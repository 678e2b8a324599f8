"""The site as a reader gets it: every link leads somewhere, every saved output is there, nothing comes from outside.

It is built once, from the repository as it is; Sphinx's warnings are errors.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb")) + sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))

# Looked at by axe-core, by name and by keyboard; for its width every page is, of the sources one.
SHOWN = [
    "index.html",
    "find_your_way.html",
    "notebooks/06_sparse_attention.html",
    "notebooks/08_frame_explorer.html",
    "api/minikeye.ops.html",
    "results/mini.html",
    "source/minikeye/ops/door.py.html",
]

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
            file = normpath(join(dirname(name), unquote(parts.path))) if parts.path else name
            yield name, file, unquote(parts.fragment)


def test_links_and_anchors_lead_somewhere(site, pages):
    broken, files = set(), {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for name, file, anchor in inner(pages):
        if file not in files or (anchor and file in pages and anchor not in pages[file].names):
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


def test_fields_have_their_comments(pages):
    """What the code says of a field behind its #, units among it."""
    text = squeezed("".join(pages["api/minikeye.cost.html"].words))
    assert "cache:keys,valuesandindexkeysofalltokens" in text


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


@contextmanager
def opened(browser, site: Path, width: int) -> Iterator[object]:
    """A tab that opens pages of the site; what it asks for elsewhere, or complains of, is an error in the end."""
    screen = {
        "viewport": {"width": width, "height": 900},
        "reduced_motion": "reduce",
    }  # nothing slides, nothing to wait for
    tab, wrong, own = browser.new_page(**screen), [], (site.as_uri(), "data:")
    tab.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    tab.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.open = lambda name: tab.goto(f"{site.as_uri()}/{name}")
    yield tab
    tab.close()
    assert wrong == []


@pytest.fixture(params=[1280, 390])
def tab(browser, site, request) -> Iterator[object]:
    """A tab of a laptop's width, and of a phone's."""
    with opened(browser, site, request.param) as tab:
        yield tab


def test_no_page_is_wider_than_the_screen(browser, site, pages):
    """Nothing but boxes of their own scrolls sideways; and all these pages fetch nothing from elsewhere."""
    names = [name for name in pages if not name.startswith("source/")] + ["source/minikeye/ops/door.py.html"]
    assert len(names) > 90
    wide = set()
    with opened(browser, site, 1280) as tab:
        for name in names:
            tab.open(name)
            for width in (1440, 1280, 1100, 390):
                tab.set_viewport_size({"width": width, "height": 900})
                if tab.evaluate("document.documentElement.scrollWidth") > width:
                    wide.add((name, width))
    assert wide == set()


@pytest.mark.parametrize("name", SHOWN)
def test_who_sees_nothing_or_has_no_mouse_finds_the_way(tab, name):
    """axe-core finds nothing serious; one main part, one first heading, navigation with names; the first Tab stop leads
    past the navigation."""
    from axe_playwright_python.sync_playwright import Axe

    tab.open(name)
    assert tab.get_by_role("main").count() == 1
    assert tab.get_by_role("heading", level=1).count() == 1
    names = tab.evaluate("[...document.querySelectorAll('nav, [role=navigation]')].map(e => e.ariaLabel)")
    assert all(names) and len(set(names)) == len(names) and {"All pages", "Site"} & set(names)
    found = Axe().run(tab, options={"preload": False}).response  # else it fetches styles, which a file may not
    grave = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in grave] == []
    assert len(found["passes"]) > 10
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent").strip().startswith("Skip to")
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('main, [role=main], footer') !== null")


# Name of what has the keyboard's focus, and whether it is on the screen.
FOCUSED = """(() => {
    const e = document.activeElement, r = e.getBoundingClientRect();
    return [(e.ariaLabel || e.textContent).trim(), r.right > 0 && r.left < innerWidth && r.bottom > 0];
})()"""


@pytest.mark.parametrize("opening", [False, True])
def test_navigation_by_keyboard(tab, opening):
    """The list of pages is reached by Tab, on a small screen after its button opened it; no stop is out of sight."""
    tab.open("results/index.html")
    small, stops = tab.viewport_size["width"] == 390, []
    while len(stops) < 16 and (not stops or stops[-1][0] != "05 The lightning indexer"):
        tab.keyboard.press("Tab")
        stops.append(tab.evaluate(FOCUSED))
        if opening and stops[-1][0] == "All pages":
            assert tab.evaluate("document.activeElement.ariaExpanded") == "false"
            tab.keyboard.press("Enter")
            assert tab.evaluate("document.activeElement.ariaExpanded") == "true"
    assert [name for name, visible in stops if not visible] == []
    assert ("All pages" in [name for name, _ in stops]) == small
    assert (stops[-1][0] == "05 The lightning indexer") == (opening or not small)
    if stops[-1][0] == "05 The lightning indexer":
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/05_lightning_indexer.html")


def test_tables_sort_by_keyboard(tab):
    """A head is a button: Enter sorts its column, numbers as numbers, again turns it round; and both are said aloud."""
    tab.open("results/mini.html")
    head = tab.locator("table.sortable").first.locator("th", has_text="number")
    cells = "[...document.querySelector('table.sortable').tBodies[0].rows].map(r => r.cells[1].textContent.trim())"
    before = tab.evaluate(cells)
    summary = json.loads((ROOT / "assets" / "results" / "mini.json").read_text(encoding="utf-8"))["summary"]
    assert [float(cell) for cell in before] == list(summary.values())
    tab.locator("table.sortable").first.locator("th button").first.focus()
    tab.keyboard.press("Tab")
    for said, order in (("ascending", sorted(summary.values())), ("descending", sorted(summary.values())[::-1])):
        tab.keyboard.press("Enter")
        assert [float(cell) for cell in tab.evaluate(cells)] == order
        assert head.get_attribute("aria-sort") == said


def test_a_link_to_a_line_shows_it(tab):
    """From a lesson's name of a function to the line on which it begins."""
    tab.open("notebooks/05_lightning_indexer.html")
    tab.locator("article a", has_text="select_topk").first.click()
    tab.wait_for_url("**/source/minikeye/ops/door.py.html#L-*")
    line = tab.locator(f"[id='{tab.url.split('#')[1]}']")
    box = line.bounding_box()
    assert 0 <= box["y"] < 900 and "def select_topk" in line.locator("xpath=following-sibling::*[1]/..").inner_text()


def test_search_finds_a_word(tab):
    """Without a server: the index is a script beside the pages."""
    tab.open("search.html?q=select_topk")
    found = tab.locator("#search-results li a")
    found.first.wait_for()
    assert any("select_topk" in text for text in found.all_inner_texts())
