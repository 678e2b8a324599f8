"""A small model that was watched while it answered, and a record small enough to count by hand."""

import base64
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.explore import FrameSelection
from minikeye.explore.widget.sources import Probed
from minikeye.inputs.processor import Clip
from minikeye.inputs.prompt import FrameSpan
from minikeye.model.record import LayerRecord, Record


def skip_without(**there: object) -> None:
    """Skip the test where one of these is not there. MINIKEYE_REQUIRE_BROWSER=1 makes that a failure, as CI does."""
    if missing := [name for name, found in there.items() if not found]:
        required = os.environ.get("MINIKEYE_REQUIRE_BROWSER", "0") not in ("", "0")
        how = "pip install -r requirements.txt; Debian: apt-get install chromium"
        (pytest.fail if required else pytest.skip)(f"needs {' and '.join(missing)} ({how})")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the distribution's Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    skip_without(playwright=importlib.util.find_spec("playwright"), chromium=path)
    return path


@pytest.fixture(scope="session")
def axe():
    """Looks for what keeps people from using a page."""
    skip_without(axe_playwright_python=importlib.util.find_spec("axe_playwright_python"))
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium refuses its sandbox; the only pages it opens are ours.
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def check_policy() -> Callable[[str], None]:
    """A browser is told to run the page's own script and none other, and to load nothing, not even from beside it."""

    def check(page: str) -> None:
        (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
        (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        none = {name: "'none'" for name in ("default-src", "base-uri", "form-action")}
        only = {"img-src": "data:", "style-src": "'unsafe-inline'", "script-src": f"'sha256-{digest}'"}
        assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == none | only

    return check


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Callable]:
    """Open the page of a selection of frames or of text, offline.

    At the end: nothing was asked for but the file, no error was reported.
    """
    seen, contexts = [], []

    def open_page(s, width: int = 1280, height: int = 900, name: str = "page.html", **options):
        s.to_html(tmp_path / name)
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: seen.append(request.url.split(",")[0][:200]))
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto((tmp_path / name).as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html.live")
        return page

    yield open_page
    for context in contexts:
        context.close()
    others = [one for one in seen if not one.startswith(("file://", "data:image/webp;base64"))]
    assert others == [] and {one for one in seen if one.startswith("file:")} <= {p.as_uri() for p in tmp_path.iterdir()}


@pytest.fixture(scope="session")
def model(lively) -> KeyeVL:
    return lively


@pytest.fixture(scope="session")
def processor() -> Processor:
    return Processor(KeyeConfig.nano())


@pytest.fixture(scope="session")
def pictures() -> torch.Tensor:
    """Eight frames of 2 tokens each."""
    return torch.randint(256, (8, 3, 28, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def inputs(processor, pictures):
    video = Clip(pictures, [0.5 * n for n in range(8)])
    content = [{"type": "video", "video": video}, {"type": "text", "text": "What is on the card?"}]
    return processor([{"role": "user", "content": content}])


@pytest.fixture(scope="session")
def probed(model, processor, inputs, pictures) -> Probed:
    """Ten tokens of an answer to a question about eight frames; frame 3 is said to hold it."""
    known = {"thumbnails": pictures, "truth": [3], "subject": "the card"}
    return Probed.of(model, processor, inputs, max_new_tokens=10, **known)


@pytest.fixture
def tiny() -> FrameSelection:
    """Tokens: 0 1 text, 2-4 frame 0, 5 text, 6-8 frame 1, 9 text, 10-12 frame 2, 13-15 text. Queries at 14 and 15."""
    frames = [FrameSpan(2, 5, 0.0, 0), FrameSpan(6, 9, 0.5, 0), FrameSpan(10, 13, 1.0, 0)]
    indices = [[[0, 2, 6, 7], [5, 6, 7, 8]], [[2, 3, 10, -1], [3, 10, 11, 12]], [[0, 1, 5, 9], [0, 1, 13, 14]]]
    weights = [
        [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]],
        [[0.5, 0.25, 0.25, 0.0], [0.4, 0.3, 0.2, 0.1]],
        [[0.25] * 4, [0.25] * 4],
    ]
    layers = [
        LayerRecord(
            torch.tensor([at], dtype=torch.int32),
            torch.tensor([weight]),
            torch.tensor([[0.9, 0.8]]),
            torch.zeros(1, 2, 1, dtype=torch.long),
        )
        for at, weight in zip(indices, weights, strict=True)
    ]
    return FrameSelection.from_record(Record(layers, first=14), frames, labels=["7", " "])
