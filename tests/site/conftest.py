"""The site, built once, and its pages as a crawler sees them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FETCHED = ("href", "src", "data", "srcset", "poster", "action")


@dataclass
class Page(HTMLParser):
    """What a page refers to, what in it can be referred to, its words, and the alt text of its pictures."""

    names: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # that a reader may follow
    loads: list[str] = field(default_factory=list)  # that a browser fetches unasked
    alts: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    formulas: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"])
        elif tag not in ("a", "use"):
            self.loads += [given[key] for key in FETCHED if given.get(key)]
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        self.formulas += tag == "math"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site. MINIKEYE_SITE names one that is there already, to spare a minute while its tests are edited."""
    if built := os.environ.get("MINIKEYE_SITE"):
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("site")
    script = ROOT / "assets" / "site" / "build.py"
    command = [sys.executable, script, "--out", folder / "out", "--work", folder / "work"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "out"


@pytest.fixture(scope="session")
def pages(site) -> dict[str, Page]:
    """Every page by its path in the site."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path.relative_to(site).as_posix()] = page = Page()
        # A picture in its page is a megabyte of letters, which the parser is slow to read.
        page.feed(re.sub(r'src="data:[^"]*"', 'src="data:"', path.read_text(encoding="utf-8")))
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """The distribution's Chromium; skipped where there is none, unless MINIKEYE_REQUIRE_BROWSER=1 forbids that."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    there = chromium and importlib.util.find_spec("playwright") and importlib.util.find_spec("axe_playwright_python")
    if not there and os.environ.get("MINIKEYE_REQUIRE_BROWSER", "0") in ("", "0"):
        pytest.skip("needs Chromium (Debian: apt-get install chromium), playwright and axe-playwright-python")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium refuses its sandbox; the only pages it opens are ours.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
