"""The explorer in a real browser: JupyterLab on this machine, the distribution's Chromium, keys instead of a mouse.

Skipped where playwright or Chromium is missing: `chromium` in conftest.py.
The picture in the README is made by this test, too:

    MINIKEYE_SCREENSHOT=assets/figures/explorer.png .venv/bin/pytest tests/explore/test_browser.py
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import execute
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WAIT = 180_000  # milliseconds, for the slowest step on a busy machine: a kernel that loads torch and answers a question

pytestmark = pytest.mark.slow

HEAT_MAP_ENDS = 0.65  # of the picture's height, filmstrip and all; below it lie bars and gauges
CLIP = "big_buck_bunny.mp4"
CELL = f"""\
from minikeye.explore.widget.explorer import FrameExplorer

question = "Which digit is on the card, and at which second?"
FrameExplorer.from_video("{CLIP}", question, insert_card=(7, 13.0))"""


@pytest.fixture(scope="module")
def home(chromium, tmp_path_factory) -> Path:
    """A folder with a notebook of one cell, the clip, and settings that keep JupyterLab from asking about news."""
    home = tmp_path_factory.mktemp("lab")
    notebook = new_notebook(cells=[new_code_cell(CELL)], metadata=execute.METADATA)  # with a kernel, else Lab asks
    nbformat.write(notebook, home / "explorer.ipynb")
    shutil.copy(ROOT / "assets" / "clips" / CLIP, home)
    settings = home / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return home


@pytest.fixture(scope="module")
def lab(home) -> Iterator[str]:
    """Address of the notebook in a JupyterLab with a configuration of its own."""
    token = secrets.token_hex(16)
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    environment = os.environ | {place: str(home / place.lower()) for place in places}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    options = [f"--ServerApp.root_dir={home}", f"--IdentityProvider.token={token}", "--ServerApp.port=0"]
    options += ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    with (home / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
        try:
            yield f"{_url(home / 'jupyter_runtime_dir', server)}lab/tree/explorer.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(WAIT / 1000)


def _url(runtime: Path, server: subprocess.Popen) -> str:
    """The server writes its address into a file of its runtime folder when it is up."""
    for _ in range(WAIT // 100):
        files = list(runtime.glob("jpserver-*.json"))
        if files:
            return json.loads(files[0].read_text())["url"]
        assert server.poll() is None, (runtime.parent / "lab.log").read_text()[-2000:]
        time.sleep(0.1)
    raise TimeoutError((runtime.parent / "lab.log").read_text()[-2000:])


@pytest.fixture
def page(chromium, lab):
    """The notebook in Chromium, its cell run, the explorer shown."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        # As root, Chromium refuses its sandbox; the only page it opens is ours.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1380, "height": 1180}, device_scale_factor=1.25)
        page.set_default_timeout(WAIT)
        page.goto(lab)
        kernel = page.locator(".jp-Notebook-ExecutionIndicator").first
        expect(kernel).to_have_attribute("data-status", "idle")
        _run_cell(page)
        expect(page.locator(".jp-OutputArea p[role=status]").first).to_contain_text("Layer 0, all 4 heads, k = 256")
        yield page
        browser.close()


def _run_cell(page) -> None:
    """Run the first cell by keyboard. JupyterLab ignores this without a word until its session is ready: try again."""
    page.locator(".jp-Cell .cm-content").first.click()
    for _ in range(20):
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(1000)
        if page.locator(".jp-Cell .jp-InputPrompt").first.inner_text() != "[ ]:":
            return
    raise AssertionError("JupyterLab did not run the cell")


def handle(page, name: str):
    """The part of the slider `name` that takes the keyboard's focus."""
    return page.get_by_text(name, exact=True).locator("xpath=..").locator(".noUi-handle").first


def test_the_explorer_by_keyboard(page, home):
    """No mouse: a slider moves by arrow keys, and sentence and picture follow; Tab reaches every control."""
    from playwright.sync_api import expect

    words, picture = page.locator(".jp-OutputArea p[role=status]").first, page.locator(".jp-OutputArea img").first
    before, source = words.inner_text(), picture.get_attribute("src")
    assert "heat map of 6 layers by 84 frames" in picture.get_attribute("alt")
    handle(page, "Layer").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(words).to_contain_text("Layer 3, all 4 heads, k = 256")
    expect(picture).not_to_have_attribute("src", source)
    assert words.inner_text() != before
    if picture_file := os.environ.get("MINIKEYE_SCREENSHOT"):
        _screenshot(page, ROOT / picture_file)

    page.locator(".jp-OutputArea select").first.focus()
    visited = []
    while "Save CSV" not in visited and len(visited) < 30:
        page.keyboard.press("Tab")
        visited.append(page.evaluate(FOCUSED))
    sliders = ["noUi-handle"] * 5  # token, k, layer, first frame, last frame
    buttons = ["Save PNG", "Save SVG", "Save PDF", "Save JSON", "Save CSV"]
    assert sorted(name for name in visited if name != "widget-readout") == sorted(
        [*sliders, "SELECT", "jupyter-button", "jupyter-button", "widget-input", *buttons]
    )
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".jp-OutputArea p[role=status]").last).to_contain_text("Wrote frames.json")
    assert json.loads((home / "frames.json").read_text())["view"]["layer"] == 3


def test_a_frame_is_picked_by_a_click(page):
    """In the heat map, a quarter of the way: that frame alone, with its share of the keys; a click more: all frames."""
    from playwright.sync_api import expect

    words, picture = page.locator(".jp-OutputArea p[role=status]").first, page.locator(".jp-OutputArea img").first
    whole, box = words.inner_text(), picture.bounding_box()
    middle = 84 + (1000 - 2 * 84) * 21.5 / 84  # of frame 21 of 84; the page's margins are 84 of 1,000 units
    picture.click(position={"x": middle * box["width"] / 1000, "y": box["height"] * 0.5})
    expect(words).to_contain_text("in the frame at 10.6 s")
    assert "heat map of 6 layers by 1 frame," in picture.get_attribute("alt")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    expect(words).to_have_text(whole)


def test_the_heat_map_stays_on_a_small_screen_while_a_slider_moves(page):
    """1280x720: from the first control to the last row of the heat map, all is within the notebook's panel."""
    page.set_viewport_size({"width": 1280, "height": 720})
    image = page.locator(".jp-OutputArea img").first
    page.locator(".jp-OutputArea .widget-dropdown").first.evaluate("e => e.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1000)
    if picture_file := os.environ.get("MINIKEYE_SMALL_SCREENSHOT"):
        page.screenshot(path=picture_file)
    panel, box = page.locator(".jp-NotebookPanel-notebook").first.bounding_box(), image.bounding_box()
    foot = panel["y"] + panel["height"]
    assert panel["y"] - 2 <= handle(page, "Layer").bounding_box()["y"] < box["y"]
    assert box["y"] + HEAT_MAP_ENDS * box["height"] <= foot
    assert not page.get_by_text("Indexer head", exact=True).evaluate("e => e.scrollWidth > e.clientWidth")


# What has the keyboard's focus: a button's label, else the first class that says what it is.
FOCUSED = """(() => {
    const e = document.activeElement, known = ["noUi-handle", "widget-readout", "widget-input", "jupyter-button"];
    return e.tagName === "BUTTON" && e.textContent.trim() || known.find(k => e.closest("." + k)) || e.tagName;
})()"""


def _screenshot(page, path: Path) -> None:
    """The cell and its output, without the rest of JupyterLab: at most 400 kB."""
    page.locator(".jp-Cell").first.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path, optimize=True)
    assert path.stat().st_size <= 400_000
