"""The page of a text: what is in the file, and what it does in a real browser without a network."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from minikeye.explore.passage import PassageSelection
from minikeye.explore.passage.document import LEFT_OUT, SHADES, UNITS, document, numbers_within
from minikeye.explore.passage.shades import levels
from minikeye.explore.passage.words import token

from . import conftest as made

MB = 1_000_000
HOSTILE = """</script><script>document.title='taken'</script><!-- <img src=x onerror="alert('taken')"> '"&amp;$style"""
ALL = (None, None, None)


def large(pieces: int, layers: int, queries: int, k: int, heads: int = 0) -> PassageSelection:
    """Keys drawn at random, which no code makes small, with attention as uneven as attention is."""
    draw = np.random.default_rng(0)
    pick = lambda: torch.tensor(draw.random((layers, queries, pieces)) < k / pieces).int()  # noqa: E731
    counts = pick()
    mass = torch.tensor(draw.pareto(1.2, counts.shape), dtype=torch.float32) * counts
    alone = [pick() for _ in range(heads)]
    words = ["the ", "needle", " is", "\n", " 7", " long", " word ", ", "]
    return PassageSelection(
        pieces=tuple(words[n] for n in draw.integers(0, 8, pieces)),
        tokens=(1,) * pieces,
        first=30,
        counts=counts,
        keys=counts.sum(-1, dtype=torch.int32) + 3,
        mass=mass / mass.sum(-1, keepdim=True),
        kept=torch.rand(layers, queries),
        seen=tuple(pieces + 60 + n for n in range(queries)),
        layers=tuple(range(layers)),
        labels=tuple(f"w{n}" for n in range(queries)),
        truth=((100, 112),),
        heads=torch.stack(alone) if alone else None,
        head_keys=torch.stack([x.sum(-1, dtype=torch.int32) for x in alone]) if alone else None,
        whole=torch.full((layers, queries), k >= pieces),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("k", "heads"), [(512, 0), (512, 4), (8192, 0)])
def test_a_page_has_at_most_3_mb(k, heads):
    """8,192 tokens, 30 layers, 32 queries; what is left out for that is said."""
    text = document(large(8192, 30, 32, k, heads))
    assert len(text.encode()) <= 3 * MB
    assert (LEFT_OUT in text) == (heads > 0)


def test_what_is_left_out_first(passage):
    """Attention gets coarse, then the heads alone go; what fits stays as fine as it can be."""
    fine, whole = numbers_within(passage, 10**6)
    assert whole and numbers_within(passage, len(fine)) == (fine, True)
    less, whole = numbers_within(passage, len(fine) - 1)
    assert len(less) < len(fine)
    least, whole = numbers_within(passage, 0)
    assert not whole and len(least) < len(less)
    assert tuple(sorted(UNITS)) == UNITS and LEFT_OUT not in document(passage)


def test_nothing_else_may_run_or_be_loaded(passage, check_policy):
    check_policy(document(passage))


def test_indentation_stays_with_its_line(passage):
    """Also where the token that ends a line holds it: a line break takes room, to be seen and clicked on."""
    pieces = ("if a:\n\n    ", "b\n", "  c", "\r\n\n")
    some = {name: getattr(passage, name)[..., :4] for name in ("counts", "mass", "heads")}
    text = document(replace(passage, pieces=pieces, tokens=(1,) * 4, truth=((1, 2),), **some))
    lines = re.findall(r"<b>(\d)</b><code>(.*?)</code>", text)
    assert [(number, re.sub("<[^>]*>", "", code)) for number, code in lines] == [
        ("1", "if a:⏎⏎"),
        ("2", ""),
        ("3", "    b⏎"),
        ("4", "  c⏎⏎"),
        ("5", ""),
    ]
    assert re.findall(r"<mark>(.*?)</mark>", text) == re.findall(r"<span[^>]*>b⏎</span>", text)


def test_text_from_outside_stays_text(passage):
    """The page has the tags of a harmless one, and shows the text as it is."""
    some = {"labels": ("a",) * 7, "subject": "x", "question": "q", "answer": "a"}
    harmless = document(replace(passage, **some, pieces=("x",) * len(passage.pieces)))
    texts = {name: HOSTILE for name in ("subject", "question", "answer")}
    hostile = document(replace(passage, **texts, labels=(HOSTILE,) * 7, pieces=(HOSTILE,) * len(passage.pieces)))
    tags = [re.findall(r"<[a-zA-Z/!][^<]*?>", page.split('id="numbers"')[0]) for page in (harmless, hostile)]
    assert tags[0] == tags[1] and "$" not in re.sub(r"\$style", "", hostile.split('id="numbers"')[0])


@pytest.mark.parametrize("name", ["mass", "kept"])
def test_no_page_of_numbers_that_are_not(passage, tmp_path, name):
    broken = getattr(passage, name).clone()
    broken.flatten()[1] = torch.nan
    with pytest.raises(ValueError, match=f"expected {name} to be finite"):
        replace(passage, **{name: broken}).to_html(tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"expected the name of a web page, which ends in \.html, got .*page.txt"):
        passage.to_html(tmp_path / "page.txt")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_page_leaves_the_old_one(passage, tmp_path, monkeypatch):
    """Whole or not at all; the same selection gives the same bytes."""
    path = tmp_path / "page.html"
    passage.to_html(path)
    before = path.read_bytes()
    passage.to_html(str(path))
    assert path.read_bytes() == before
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace(passage, subject="other").to_html(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_a_page_of_nothing_is_refused(passage, tmp_path):
    none = replace(
        passage, pieces=(), tokens=(), counts=passage.counts[..., :0], mass=passage.mass[..., :0], truth=(), heads=None
    )
    with pytest.raises(ValueError, match="expected a layer, a query and a token at least"):
        none.to_html(tmp_path / "page.html")


# ------------------------------------------------------------------------------------------------------ in the browser


def choose(page, s: PassageSelection, layer, query, head) -> None:
    for name, row in (("layer", layer), ("query", query), ("head", head)):
        if page.locator(f"#{name}").is_enabled():
            page.locator(f"#{name}").select_option(str(-1 if row is None else row))


def check(page, s: PassageSelection, layer=None, query=None, head=None) -> None:
    """Sentence, shades and legend are Python's."""
    assert page.locator("#sentence").text_content() == s.sentence(layer, query, head)
    found = page.locator("#passage code span").evaluate_all("all => all.map(e => Number(e.className.slice(1)))")
    assert found == levels(s, layer, query, head).tolist()
    kind = "attention" if s.reads_all and head is None else "keys"
    assert page.locator("#shade").text_content() == SHADES[kind]


def views(s: PassageSelection) -> list[tuple]:
    layers, queries = ([None, *range(n)] for n in s.keys.shape)
    heads = [None, *range(0 if s.heads is None else len(s.heads))]
    return [(layer, query, head) for layer in layers for query in queries for head in heads]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["passage", "full"])
def test_every_view_is_pythons(show, request, which):
    """And every token of it, told as Python tells it. Attention in the page is in millionths."""
    s = request.getfixturevalue(which)
    page = show(s)
    check(page, s)
    spans = page.locator("#passage code span")
    rounded = replace(s, mass=(s.mass.double() / 1e-6).round().float() * 1e-6)
    for n, view in enumerate(views(s)):
        choose(page, s, *view)
        check(page, s, *view)
        at = (7 * n) % len(s.pieces)
        spans.nth(at).click()
        assert page.locator("#token").text_content() == token(rounded, at, *view)


@pytest.mark.slow
def test_the_text_and_the_truth_are_there(show, passage):
    page = show(passage)
    assert page.locator("#passage li").evaluate_all("all => all.map(e => e.querySelector('b').textContent)") == [
        "1", "2", "3", "4", "5"
    ]  # fmt: skip
    shown = page.locator("#passage code").evaluate_all("all => all.map(e => e.textContent)")
    assert "".join(shown).replace("⏎", "\n") == made.TEXT
    assert page.locator("#passage mark").all_text_contents() == [made.NEEDLE]
    assert page.locator("#passage li").nth(3).locator(".tag").text_content() == "the needle"
    assert page.locator("#passage .tag").count() == 1
    look = "e => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineColor]"
    assert page.locator("mark").evaluate(look) == ["solid", "rgb(213, 94, 0)"]
    assert page.locator("#asked").text_content() == "Asked “what?”, the model answers “7 is it”."


@pytest.mark.slow
def test_by_keyboard(show, passage):
    """Tab reaches the three choices, then the text; arrow keys change both."""
    page = show(passage)
    press, focus = page.keyboard.press, "document.activeElement.id || document.activeElement.textContent"
    for name in ("query", "layer", "head"):
        press("Tab")
        assert page.evaluate(focus) == name
        press("ArrowDown")
    check(page, passage, 0, 0, 0)
    press("Tab")
    assert page.evaluate(focus) == passage.pieces[0]
    lines = [a for _, a, b in passage.line_pieces if b > a]
    for key, at in (
        ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowDown", lines[1]), ("ArrowDown", lines[2]),
        ("ArrowUp", lines[1]), ("End", len(passage.pieces) - 1), ("ArrowRight", len(passage.pieces) - 1), ("Home", 0),
    ):  # fmt: skip
        press(key)
        tokens = "[...document.querySelectorAll('#passage code span')].indexOf(document.activeElement)"
        assert page.evaluate(tokens) == at
        assert page.locator("#token").text_content() == token(passage, at, 0, 0, 0)
    press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BODY"  # the whole text takes one step of the Tab key


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_nobody_is_kept_out(show, axe, passage, width, height):
    """axe finds nothing serious; nothing lies beyond the right edge; what has the focus is framed."""
    page = show(passage, width, height)
    for view in (ALL, (0, 0, None)):
        choose(page, passage, *view)
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("h1").click()
    outlines = []
    for _ in range(4):
        page.keyboard.press("Tab")
        outlines.append(
            page.evaluate("(s => `${s.outlineStyle} ${s.outlineWidth}`)(getComputedStyle(document.activeElement))")
        )
    assert outlines == ["solid 3px"] * 4
    assert [page.locator(role).count() for role in ("header", "main", "footer", "h1", "[role=status]")] == [
        1,
        1,
        1,
        1,
        2,
    ]


@pytest.mark.slow
def test_shades_differ_by_more_than_colour(show, passage):
    """Each level is darker than the one before and never less underlined; black on all can be read (4.5:1 and more)."""
    page = show(passage)
    look = "all => all.map(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).boxShadow])"
    found = page.locator(".scale span").evaluate_all(look)
    light = [luminance([int(n) for n in re.findall(r"\d+", colour)[:3]]) for colour, _ in found]
    thick = [int(re.search(r"(-?\d+)px 0px 0px inset", shadow)[1]) for _, shadow in found]
    assert len(found) == 9 and light == sorted(light, reverse=True) and len(set(light)) == 9
    assert thick == [0, -1, -1, -2, -2, -3, -3, -4, -4]
    ink = luminance([0x1A] * 3)
    assert min((z + 0.05) / (ink + 0.05) for z in light) > 4.5


def luminance(rgb: list[int]) -> float:
    """As WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (n / 255 for n in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.slow
def test_hostile_text_in_the_browser(show, passage):
    """Nothing of it runs or loads (`show` looks); it is shown as it is."""
    texts = {name: HOSTILE for name in ("subject", "question", "answer")}
    s = replace(passage, **texts, labels=(HOSTILE,) * 7, pieces=(HOSTILE, *passage.pieces[1:]))
    page = show(s)
    assert page.title() == HOSTILE and page.locator("#passage code span").first.text_content() == HOSTILE
    choose(page, s, 0, 1, None)
    check(page, s, 0, 1, None)


@pytest.mark.slow
def test_without_javascript_one_view_is_there(show, passage):
    live, still = show(passage), show(passage, java_script_enabled=False)
    assert still.locator("#sentence").text_content() == passage.sentence()
    shades = live.locator("#passage code span").evaluate_all("all => all.map(e => e.className)")
    assert shades == re.findall(r'<span class="(s\d)" tabindex', still.content())
    assert not still.locator("#controls").is_visible() and still.locator(".still-only").is_visible()
    assert live.locator("#controls").is_visible() and not live.locator(".still-only").is_visible()
