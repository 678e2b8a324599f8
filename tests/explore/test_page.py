"""The explorer's page: what is in the file, and what it does in a real browser without a network.

The browser tests are skipped where playwright or Chromium is missing, as in test_browser.py.
"""

import base64
import json
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from minikeye.explore import FrameSelection, standalone
from minikeye.explore.standalone.document import document
from minikeye.explore.standalone.pack import pack, pictures
from minikeye.explore.strip import GAMMA
from minikeye.explore.widget import panels, view
from minikeye.explore.words import percent

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000
QUESTION = "Which digit is on the card, and at which second?"
HOSTILE = """</script><script>document.title='taken'</script><!-- <img src=x onerror="alert('taken')"> '"&amp;$style"""
RTL = "שלום \u202eمرحبا 👩‍👩‍👧‍👦🏳️‍🌈"


def made(frames: int, layers: int = 4, queries: int = 3, side: int = 40, **rest) -> FrameSelection:
    """Keys and attention drawn at random; half of the frames unread; pictures of noise, which no codec makes small."""
    draw = np.random.default_rng(frames)
    shape = layers, queries, frames
    counts = draw.integers(0, 7, shape) * draw.integers(0, 2, shape)
    mass = draw.dirichlet(np.full(frames + 1, 0.3), (layers, queries))[..., :-1] * (counts > 0)
    known = {
        "layers": tuple(range(2, 2 + layers)),
        "seconds": tuple(0.5 * n for n in range(frames)),
        "videos": (0,) * frames,
        "labels": tuple(f"{n}" for n in range(queries)),
        "thumbnails": torch.tensor(draw.integers(0, 256, (frames, 3, side, 2 * side)), dtype=torch.uint8),
        "whole": torch.zeros(layers, queries, dtype=torch.bool),
        "question": QUESTION,
        "answer": "7",
    }
    return FrameSelection(
        torch.tensor(counts, dtype=torch.int32),
        torch.tensor(counts.sum(-1) + 5, dtype=torch.int32),
        torch.tensor(mass, dtype=torch.float32),
        torch.tensor(draw.random((layers, queries)), dtype=torch.float32),
        **known | rest,
    )


@pytest.fixture(scope="module")
def selection() -> FrameSelection:
    return made(9, truth=(2, 3), subject="the card")


def sentence(s: FrameSelection, layer: int, query: int, first: int, last: int) -> str:
    """Python's words on what is chosen; layer and query by their place in the record."""
    how = view.as_recorded(s, layer, query)
    return view.sentence(view.of_query(s, query), view.View(view.recorded(s)[query], layer, first, last, how))


# --------------------------------------------------------------------------------------------------------- in the file


class Outline(HTMLParser):
    """Tags with their attributes' names, and all text outside of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *[name for name, _ in attributes]))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "script":
            self.text.append(data)


@pytest.mark.parametrize(("frames", "layers", "queries"), [(256, 6, 12), (256, 48, 32), (1024, 6, 12)])
def test_a_page_has_at_most_3_mb(frames, layers, queries):
    """Also at the released model's 48 layers, and for pictures of noise at the largest size that a selection keeps."""
    text = document(made(frames, layers, queries, side=96))
    assert text.count("data:image/webp;base64,") == frames
    assert len(text.encode()) <= 3 * MB


def test_numbers_come_back_from_their_planes(selection):
    """By a loop over single bytes. Attention to 6 decimals, as in JSON."""
    data = zlib.decompress(base64.b64decode(pack({"layers": [2]}, selection)))
    long = int.from_bytes(data[:4], "little")
    assert json.loads(data[4 : 4 + long]) == {"layers": [2]}
    cells, planes = selection.counts.numel(), data[4 + long :]
    assert len(planes) == 6 * cells
    for name, start, unit in (("counts", 0, 1), ("mass", 3 * cells, 1e6)):
        for n, value in enumerate(getattr(selection, name).flatten().tolist()):
            number = sum(planes[start + n + place * cells] * 256**place for place in range(3))
            assert number / unit == pytest.approx(value, abs=0 if unit == 1 else 5.1e-7)


@pytest.mark.parametrize("truth", [(), (2, 3)])
def test_it_begins_where_most_is_read(selection, truth):
    """At the layer that the finding names, and the query with most of the truth's keys, or of one frame's."""
    upside_down = {name: getattr(selection, name).flip(0) for name in ("counts", "keys", "mass", "kept")}
    s = replace(selection, truth=truth, **upside_down)  # else it is the first layer, by chance
    code = document(s).split('id="numbers">')[1].split("<")[0]
    data = zlib.decompress(base64.b64decode(code))
    start = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])["start"]
    assert start["layer"] > 0 and f"Layer {s.layers[start['layer']]} " in s.sentence()
    best = []
    for counts, keys, mass in zip(
        s.counts[start["layer"]], s.keys[start["layer"]], s.mass[start["layer"]], strict=True
    ):
        read = [sum(x[n].item() for n in truth) if truth else x.max().item() for x in (counts, mass)]
        best.append((read[0] / keys.item(), read[1]))
    assert start["query"] == best.index(max(best)) and len(set(best)) == 3


def test_pictures_get_smaller_until_they_fit():
    thumbnails = made(20, side=96).thumbnails
    sizes = [sum(map(len, pictures(thumbnails, room))) for room in (10**9, 200_000, 60_000)]
    assert sizes[0] > 200_000 >= sizes[1] > 60_000 >= sizes[2]
    assert sum(map(len, pictures(thumbnails, 0))) < sizes[2]  # the smallest there is


@pytest.mark.parametrize("text", [HOSTILE, RTL, "\ud800 \x00"])
def test_text_from_outside_stays_text(text):
    """The page has the tags of a harmless one, and shows the text as it is."""
    harmless = document(made(3, truth=(1,), subject="x", labels=("a", "b", "c"), question="q", answer="a"))
    hostile = document(made(3, truth=(1,), subject=text, labels=(text,) * 3, question=text, answer=text))
    tags, words = (Outline(page) for page in (harmless, hostile))
    assert tags.tags == words.tags
    assert f"Asked “{text[:199]}" in " ".join(words.text)


def test_nothing_else_may_run_or_be_loaded(selection, check_policy):
    check_policy(document(selection))


@pytest.mark.parametrize("name", ["page.txt", "page", "page.html.png"])
def test_only_a_web_pages_name(selection, tmp_path, name):
    with pytest.raises(ValueError, match=r"expected the name of a web page, which ends in \.html, got .*page"):
        selection.to_html(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mass", "kept"])
def test_no_page_of_numbers_that_are_not(selection, tmp_path, name):
    """The page's script reads JSON, which has no nan, and attention as integers, in which nan would be 0 %."""
    broken = getattr(selection, name).clone()
    broken.flatten()[1] = torch.nan
    with pytest.raises(ValueError, match=f"expected {name} to be finite"):
        replace(selection, **{name: broken}).to_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [(3, 0, 1), (3, 1, 0)])
def test_no_page_of_nothing(tmp_path, sizes):
    with pytest.raises(ValueError, match="expected a layer, a query and a frame at least"):
        made(*sizes, truth=()).to_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_page_leaves_the_old_one(selection, tmp_path, monkeypatch):
    """Whole or not at all; the same selection gives the same bytes."""
    path = tmp_path / "page.html"
    selection.to_html(path)
    before = path.read_bytes()
    selection.to_html(str(path))
    assert path.read_bytes() == before
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace(selection, subject="other").to_html(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("name", ["card", "thing"])
def test_shipped_pages_are_made_by_this_code(name):
    """After a change of the page: python assets/make_explorer.py."""
    text = (ROOT / "assets" / "explorer" / f"{name}.html").read_text(encoding="utf-8")
    assert len(text.encode()) <= 1.5 * MB
    for part in Path(standalone.__file__).parent.glob("*.[cj]s*"):
        assert part.read_text(encoding="utf-8") in text, part.name


def test_without_pictures(selection):
    assert "<img" not in document(replace(selection, thumbnails=None))


# ------------------------------------------------------------------------------------------------------ in the browser


def said(page) -> str:
    return f"{page.locator('#asked').inner_text()} {page.locator('#sentence').inner_text()}"


def check(page, s: FrameSelection, layer: int, query: int, first: int = 0, last: int | None = None) -> None:
    """Sentence, shading, numbers and colours of the page are those of the selection."""
    last = len(s.seconds) - 1 if last is None else last
    assert said(page) == sentence(s, layer, query, first, last)
    one = view.of_query(s, query)
    share = one.shown[:, 0].double()
    shades = (share / share.max()) ** GAMMA  # [l f]
    frames = page.locator("#film button").evaluate_all(FRAMES)
    assert [frame["shade"] for frame in frames] == pytest.approx(shades[layer].tolist(), abs=1e-6)
    counts, mass = one.counts[layer, 0].tolist(), one.mass[layer, 0].tolist()
    texts = [f"{n or 'no'} key{'s' * (n != 1)}" for n in counts]
    assert [frame["amount"] for frame in frames] == ([percent(m) for m in mass] if one.reads_all else texts)
    inside = [first <= n <= last for n in range(len(counts))]
    assert [not frame["out"] for frame in frames] == inside
    best = max(range(len(counts)), key=lambda n: (share[layer, n].item(), mass[n]))
    assert [frame["most"] for frame in frames] == [n == best and share[layer, n] > 0 for n in range(len(counts))]
    assert [frame["pressed"] == "true" for frame in frames] == [there and not all(inside) for there in inside]
    if s.thumbnails is not None:
        pale = zip((0.25 + 0.75 * shades[layer]).tolist(), inside, strict=True)
        opacity = [strong if there else 0.15 for strong, there in pale]
        assert [float(frame["opacity"]) for frame in frames] == pytest.approx(opacity, abs=1e-4)
    palette = panels.colours(128)
    stripes = ["rgb({}, {}, {})".format(*palette[int(np.floor(127 * z + 0.5))]) for z in shades[layer].tolist()]
    assert [frame["stripe"] for frame in frames] == stripes


FRAMES = """buttons => buttons.map(b => ({
    shade: Number(getComputedStyle(b).getPropertyValue("--shade")), amount: b.querySelector(".amount").textContent,
    out: b.classList.contains("out"), most: b.classList.contains("most"), pressed: b.getAttribute("aria-pressed"),
    opacity: b.querySelector("img") && getComputedStyle(b.querySelector("img")).opacity,
    stripe: getComputedStyle(b.querySelector(".stripe")).backgroundColor}))"""


def begun(s: FrameSelection, page) -> tuple[int, int]:
    """Layer and query that the page begins with."""
    query = page.locator("#queries input").evaluate_all("inputs => inputs.findIndex(i => i.checked)")
    return int(page.locator("#layer").input_value()), query


@pytest.mark.slow
def test_layer_query_and_frames_by_keyboard(show, selection):
    """Arrow keys, Home and End alone; Tab goes from one control to the next."""
    page = show(selection)
    layer, query = begun(selection, page)
    check(page, selection, layer, query)
    press = page.keyboard.press
    press("Tab")  # into the queries
    press("Home")
    check(page, selection, layer, 0)
    press("ArrowRight")
    check(page, selection, layer, 1)
    press("End")
    check(page, selection, layer, 2)
    press("Tab")  # to the layers
    press("Home")
    check(page, selection, 0, 2)
    press("ArrowRight")
    check(page, selection, 1, 2)
    press("End")
    check(page, selection, 3, 2)
    press("Tab"), press("Tab")  # past the play button to the first frame
    for _ in range(3):
        press("ArrowRight")
    check(page, selection, 3, 2, 3, 8)
    press("Tab")
    press("ArrowLeft")
    check(page, selection, 3, 2, 3, 7)
    press("Home")  # the last frame before the first one takes that along
    check(page, selection, 3, 2, 0, 0)
    press("Tab")
    press("Enter")
    check(page, selection, 3, 2)
    assert page.evaluate("document.activeElement.id") == "first"
    press("Tab"), press("Tab")  # "All frames" is off: from the last frame into the film
    for key, frame in (("ArrowRight", 1), ("End", 8), ("ArrowLeft", 7), ("Home", 0), ("ArrowRight", 1)):
        press(key)
        assert page.evaluate("[...document.querySelectorAll('#film button')].indexOf(document.activeElement)") == frame
    press("Enter")
    check(page, selection, 3, 2, 1, 1)
    press("ArrowRight"), press("ArrowRight"), press("Shift+Enter")
    check(page, selection, 3, 2, 1, 3)


@pytest.mark.slow
def test_layer_query_and_frames_by_mouse(show, selection):
    page = show(selection)
    page.locator("#queries label").nth(1).click()
    check(page, selection, begun(selection, page)[0], 1)
    box = page.locator("#layer").bounding_box()
    page.locator("#layer").click(position={"x": box["width"] - 4, "y": box["height"] / 2})
    check(page, selection, 3, 1)
    film = page.locator("#film button")
    film.nth(4).click()
    check(page, selection, 3, 1, 4, 4)
    film.nth(6).click(modifiers=["Shift"])
    check(page, selection, 3, 1, 4, 6)
    page.locator("#all").click()
    check(page, selection, 3, 1)
    click_cell(page, selection, layer=1, frame=7)
    check(page, selection, 1, 1, 7, 7)
    click_cell(page, selection, layer=1, frame=7)
    check(page, selection, 1, 1)


def click_cell(page, s: FrameSelection, layer: int, frame: int) -> None:
    """A click in the heat map, whose margins are those of draw.js: 84, 74 and 22 pixels, with rows of 24."""
    width = page.locator("#map").bounding_box()["width"] - 84 - 74
    x = 84 + width * (frame + 0.5) / len(s.seconds)
    page.locator("#map").click(position={"x": x, "y": 22 + 24 * (layer + 0.5)})


@pytest.mark.slow
def test_cells_of_the_heat_map_have_their_colours(show, selection):
    """Every cell of every layer, by its middle pixel: a row has 24."""
    page = show(selection)
    _, query = begun(selection, page)
    share = view.of_query(selection, query).shown[:, 0].double()
    shades = ((share / share.max()) ** GAMMA).numpy()
    width = page.locator("#map").bounding_box()["width"] - 84 - 74
    places = [(int(84 + width * (f + 0.5) / 9), 22 + 24 * l + 12) for l, f in np.ndindex(shades.shape)]  # noqa: E741
    want = panels.colours(128)[np.floor(127 * shades.flatten() + 0.5).astype(int)]
    assert page.evaluate(PIXELS, places) == want.tolist()


PIXELS = """places => {
    const map = document.getElementById("map");
    const all = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
    return places.map(([x, y]) => [...all.slice(4 * (y * map.width + x), 4 * (y * map.width + x) + 3)]);
}"""


@pytest.mark.slow
def test_playing_goes_through_the_layers_and_stops(show, selection):
    """From the last layer it begins anew."""
    from playwright.sync_api import expect

    page = show(selection)
    page.locator("#layer").focus()
    page.keyboard.press("End")
    page.evaluate(WATCH)
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "false", timeout=60_000)
    assert page.evaluate("window.seen") == ["layer 2", "layer 3", "layer 4", "layer 5"]
    check(page, selection, 3, begun(selection, page)[1])


WATCH = """() => {
    const words = document.getElementById("layer-words");
    window.seen = [];
    new MutationObserver(() => window.seen.push(words.textContent)).observe(words, {childList: true});
}"""


@pytest.mark.slow
def test_every_sentence_is_pythons(show):
    """The words of words.js on every layer, query and range of frames, and every share of 1 in 40,000."""
    page = show(made(3))
    folder = Path(standalone.__file__).parent
    script = "".join((folder / name).read_text(encoding="utf-8") for name in ("numbers.js", "words.js"))
    shares = [n / 40_000 for n in range(40_001)]
    told = page.evaluate(f"shares => {{ {script}\n return shares.map(percent); }}", shares)
    assert told == [percent(share) for share in shares]
    for s in (made(7), made(6, videos=(0, 0, 0, 1, 1, 1)), whole(5)):
        numbers = {"keys": s.keys.tolist(), "counts": s.counts.tolist(), "mass": s.mass.tolist()}
        numbers |= {"times": [view.when(s, n) for n in range(len(s.seconds))], "readsAll": [s.reads_all] * 3}
        views = [(l, q, a, b) for l, q in np.ndindex(4, 3) for b in range(len(s.seconds)) for a in range(b + 1)]  # noqa: E741
        told = page.evaluate(f"([s, views]) => {{ {script}\n {READS} }}", [numbers, views])
        want = [view.reads(view.of_query(s, q), view.View(view.recorded(s)[q], l, a, b, "")) for l, q, a, b in views]  # noqa: E741
        assert told == want


READS = """
const {counts, mass} = s;
s.counts = (layer, query) => Int32Array.from(counts[layer][query]);
s.mass = (layer, query) => Float32Array.from(mass[layer][query]);
return views.map(([layer, query, first, last]) => reads(s, {layer, query, first, last}));"""


def whole(frames: int) -> FrameSelection:
    """Every query reads every key."""
    s = made(frames)
    keys, counts = torch.full_like(s.keys, 4 * frames), torch.full_like(s.counts, 4)
    return replace(s, whole=torch.ones_like(s.whole), counts=counts, keys=keys)


KINDS = {
    "one frame": lambda: made(1, layers=1, queries=1, truth=(0,)),
    "256 frames": lambda: made(256, truth=tuple(range(100, 120)), side=20),
    "1,024 frames": lambda: made(1024, layers=48, queries=20, side=20),
    "no pictures": lambda: replace(made(12), thumbnails=None),
    "no labels": lambda: made(5, labels=()),
    "every key": lambda: whole(6),
    "two videos": lambda: made(6, videos=(0, 0, 0, 1, 1, 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_selections(show, kind):
    s = KINDS[kind]()
    page = show(s)
    layer, query = begun(s, page)
    check(page, s, layer, query)
    page.locator("#film button").last.click()
    check(page, s, layer, query, *([len(s.seconds) - 1] * 2 if len(s.seconds) > 1 else []))
    if len(s.layers) > 1:
        page.locator("#layer").focus()
        page.keyboard.press("Home")
        check(page, s, 0, query, *[len(s.seconds) - 1] * 2)


@pytest.mark.slow
def test_two_pages_do_not_know_of_each_other(show, selection):
    """And a page that is opened or loaded again begins anew."""
    one, two = show(selection), show(selection)
    start = said(one)
    one.locator("#film button").nth(4).click()
    assert said(one) != said(two) == start
    two.reload()
    two.wait_for_selector("html.live")
    assert said(two) == start


@pytest.mark.slow
@pytest.mark.parametrize("text", [HOSTILE, RTL])
def test_hostile_text_in_the_browser(show, text):
    """Nothing of it runs or loads (`show` looks), it is shown as it is, and does not turn what follows around."""
    s = made(3, truth=(1,), subject=text, labels=(text,) * 3, question=text, answer=text)
    page = show(s)
    assert page.title() == text
    layer, query = begun(s, page)
    assert page.locator("#queries bdi").first.inner_text() == f"1 {view.quoted(text)}"
    assert " ".join(said(page).split()) == " ".join(sentence(s, layer, query, 0, 2).split())
    places = page.locator("#asked, #settings, #reads, #findings, bdi").evaluate_all(
        "all => all.map(e => getComputedStyle(e).unicodeBidi)"
    )
    assert len(places) >= 8 and set(places) == {"isolate"}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_nobody_is_kept_out(show, axe, selection, width, height):
    """axe finds nothing serious; nothing lies beyond the right edge; what has the focus is framed."""
    page = show(selection, width, height)
    for n in range(2):
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
        page.locator("#film button").nth(4 + n).click()  # once more, with frames that are not chosen
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visited = []
    page.evaluate("document.activeElement.blur()")
    page.locator("h1").click()
    for _ in range(8):
        page.keyboard.press("Tab")
        visited.append(page.evaluate(FOCUSED))
    assert [name for name, _ in visited[:7]] == ["query", "layer", "play", "first", "last", "all", "film"]
    assert {outline for _, outline in visited[:7]} == {"solid 3px"}
    roles = ["header", "main", "footer", "h1", "[role=status]"]
    assert [page.locator(role).count() for role in roles] == [1] * len(roles)


FOCUSED = """(() => {
    const e = document.activeElement, style = getComputedStyle(e);
    return [e.name || e.id || e.closest("ol")?.id, `${style.outlineStyle} ${style.outlineWidth}`];
})()"""


@pytest.mark.slow
def test_nothing_plays_for_those_who_want_no_motion(show, selection):
    assert show(selection).locator("#play").is_visible()
    assert not show(selection, reduced_motion="reduce").locator("#play").is_visible()


@pytest.mark.slow
def test_without_javascript_one_view_is_there(show, selection):
    """The one that the live page begins with."""
    live = show(selection)
    still = show(selection, java_script_enabled=False)
    assert said(still) == said(live)
    shade = "b => [b.querySelector('.amount').textContent, b.style.getPropertyValue('--colour')]"
    film = [page.locator("#film button") for page in (still, live)]
    assert [film[0].nth(n).inner_text() for n in range(9)] == [film[1].nth(n).inner_text() for n in range(9)]
    assert film[1].nth(2).evaluate(shade)[1] in film[0].nth(2).get_attribute("style")
    assert not still.locator("#controls").is_visible() and still.locator(".still-only").is_visible()
    assert live.locator("#controls").is_visible() and not live.locator(".still-only").is_visible()
