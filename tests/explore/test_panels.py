"""The explorer's picture: what is light, how long the bars are, and no text clipped or over another."""

import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from minikeye.explore import FrameSelection
from minikeye.explore.widget import panels
from minikeye.explore.widget.page import SCALE, WIDTH, Page, font, wrapped
from minikeye.explore.widget.view import Query, View, picture, sentence

INNER = WIDTH - panels.LEFT - panels.RIGHT


def view(s: FrameSelection, layer: int = 0, first: int = 0, last: int | None = None, **query) -> View:
    base = {"position": 0, "name": "1", "place": "the query that writes “7”", "sees": len(s.seconds)}
    return View(
        Query(**base | query), layer, first, len(s.seconds) - 1 if last is None else last, "all 4 heads, k = 64"
    )


def fake(frames: int, layers: int, **rest) -> FrameSelection:
    """One query with 64 keys, drawn at random, and pictures."""
    draw = np.random.default_rng(0)
    counts = torch.tensor(draw.multinomial(48, np.ones(frames) / frames, size=(layers, 1)), dtype=torch.int32)
    base = {
        "layers": tuple(range(layers)),
        "seconds": tuple(0.5 * n for n in range(frames)),
        "videos": (0,) * frames,
        "truth": (frames // 2,),
        "subject": "the card",
        "thumbnails": torch.zeros(frames, 3, 28, 42, dtype=torch.uint8),
    }
    keys = torch.full((layers, 1), 64, dtype=torch.int32)
    return FrameSelection(counts, keys, counts / 64, torch.full((layers, 1), 0.68), **base | rest)


def columns_of(page: Page, colour) -> np.ndarray:
    """x where at least 10 pixels have the colour, in units: edges of letters may have any."""
    same = (np.array(page.image) == np.array(colour)).all(axis=-1)
    return np.flatnonzero(same.sum(axis=0) >= 10) / SCALE


def longest_run(page: Page, x: float, colour: str) -> float:
    """The longest upright run of the colour at x, in units."""
    same = (np.array(page.image)[:, round(x * SCALE)] == ImageColor.getrgb(colour)).all(axis=-1)
    ends = np.flatnonzero(np.diff(np.concatenate(([0], same, [0]))))
    return float((ends[1::2] - ends[::2]).max(initial=0)) / SCALE


def one(tiny: FrameSelection, query: int) -> FrameSelection:
    n = slice(query, query + 1)
    parts = {"counts": tiny.counts[:, n], "keys": tiny.keys[:, n], "mass": tiny.mass[:, n], "kept": tiny.kept[:, n]}
    return replace(tiny, labels=(), whole=tiny.whole[:, n], **parts)


def test_the_lightest_cell_is_the_most_read_frame(tiny):
    """Of the second query, layer 0 has 3 of 4 keys in frame 1 and layer 1 has 3 of 4 in frame 2: nowhere else more."""
    page = panels.draw(one(tiny, 1), view(tiny))
    lightest = columns_of(page, panels.colours()[-1])
    lightest = lightest[lightest < WIDTH - panels.RIGHT - 300]  # left of the legend, which ends in the lightest colour
    assert panels.LEFT + INNER / 3 - 1 <= lightest.min() <= panels.LEFT + INNER / 3 + 2
    assert lightest.max() <= panels.LEFT + INNER


def test_bars_are_as_long_as_the_counts(tiny):
    """Of the first query, layer 0 has 1 key in frame 0 and 2 in frame 1, with 0.2 and 0.7 of the attention."""
    page = panels.draw(one(tiny, 0), view(tiny))
    zero, first, second = (panels.LEFT + INNER * (n + 0.5) / 3 for n in range(3))
    full = panels.BARS - 4
    assert longest_run(page, first, panels.KEYS) == pytest.approx(full, abs=1.5)
    assert longest_run(page, zero, panels.KEYS) == pytest.approx(full / 2, abs=1.5)
    assert longest_run(page, first, panels.ATTENTION) == pytest.approx(full, abs=1.5)
    assert longest_run(page, zero, panels.ATTENTION) == pytest.approx(full * 2 / 7, abs=1.5)
    assert longest_run(page, second, panels.ATTENTION) <= 10  # the gauge only


def test_truth_is_striped_and_in_the_accent_colour(tiny):
    """The bars differ by more than colour: white lines cross the marked one."""
    page = panels.draw(replace(one(tiny, 0), truth=(1,)), view(tiny))
    beside = panels.LEFT + 0.4 * INNER  # the tag stands in the middle
    assert longest_run(page, beside, panels.KEYS) <= 10
    assert 2 < longest_run(page, beside, panels.ACCENT) < 6


def test_only_the_frames_shown(tiny):
    """Frame 2 alone: neither the keys nor the attention of the other frames; the gauge says where they are."""
    s = one(tiny, 1)
    page, whole = (panels.draw(s, view(s, 1, first=first)) for first in (2, 0))
    assert np.array(page.image).shape == np.array(whole.image).shape
    assert longest_run(page, panels.LEFT + INNER * 0.05, panels.KEYS) <= 10  # a gap beside the single bar
    assert longest_run(page, panels.LEFT + INNER / 2, panels.KEYS) == pytest.approx(panels.BARS - 4, abs=1.5)


def test_frames_after_the_query_are_grey(tiny):
    page = panels.draw(one(tiny, 0), view(tiny, sees=1))
    grey = columns_of(page, (0xE4, 0xE4, 0xE4))
    assert grey.min() == pytest.approx(panels.LEFT + INNER / 3, abs=1)
    assert columns_of(panels.draw(one(tiny, 0), view(tiny)), (0xE4, 0xE4, 0xE4)).size == 0


LONG = "the query at [ ] in “the question is very lo[n]g, so long”, token 123456 of the prompt of this conversation"


@pytest.mark.parametrize(("frames", "layers"), [(1, 1), (2, 6), (9, 6), (84, 6), (256, 48), (1024, 48)])
@pytest.mark.parametrize("rest", [{}, {"thumbnails": None}, {"subject": "the 卡片"}, {"every": 1}, {"every": 2}])
def test_no_text_is_clipped_or_lies_over_another(frames, layers, rest, monkeypatch):
    rest = dict(rest)
    boxes = []
    write = Page.text

    def text(self, x, y, text, size=12.5, bold=False, **style):
        box = self._pen.textbbox((x * SCALE, y * SCALE), text, font(size, bold), anchor=style.get("anchor", "la"))
        boxes.append((text, box, self.image.size))
        write(self, x, y, text, size, bold, **style)

    monkeypatch.setattr(Page, "text", text)
    if every := rest.pop("every", 0):  # truth in a run, or scattered
        rest["truth"] = tuple(range(frames // 3, frames, every))
    s = fake(frames, layers, **rest)
    panels.draw(s, view(s, layers // 2, place=LONG))
    assert s.subject[:3] in " ".join(text for text, _, _ in boxes)
    assert len(boxes) > 10
    for words, (left, top, right, bottom), (width, height) in boxes:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, words
    for (a, p, _), (b, q, _) in combinations(boxes, 2):
        assert p[2] <= q[0] or q[2] <= p[0] or p[3] <= q[1] or q[3] <= p[1], (a, b)


def test_several_videos_have_names(monkeypatch):
    said = []
    write = Page.text
    monkeypatch.setattr(Page, "text", lambda self, x, y, text, *a, **k: (said.append(text), write(self, x, y, text)))
    s = fake(8, 2, videos=(0,) * 4 + (1,) * 4, seconds=(0.0, 0.5, 1.0, 1.5) * 2)
    panels.draw(s, view(s))
    assert {"video 1", "video 2", "1.5 s v1", "0.0 s v2"} <= set(said)


def test_the_most_attended_frame_is_shown_and_marked():
    """Among 64 frames with equally many keys, the one with most attention has a thumbnail and a black frame."""
    s = fake(64, 1, truth=(), thumbnails=torch.full((64, 3, 28, 28), 200, dtype=torch.uint8))
    mass = torch.full((1, 1, 64), 0.001)
    mass[..., 41] = 0.3
    s = replace(s, counts=torch.full((1, 1, 64), 1, dtype=torch.int32), mass=mass)
    assert 41 in panels._worth_showing(s, 0, 9) and panels._peaks(s, 0) == {41}
    beside = replace(s, truth=(42, 43, 44))
    assert {41, 42} <= set(panels._worth_showing(beside, 0, 9)) and len(panels._worth_showing(beside, 0, 9)) <= 9
    none = replace(s, counts=torch.zeros_like(s.counts), mass=torch.zeros_like(mass))
    assert panels._peaks(none, 0) == set()


def test_png_is_the_image(tiny):
    page = panels.draw(one(tiny, 0), view(tiny))
    with Image.open(io.BytesIO(page.png())) as image:
        assert np.array_equal(np.array(image), np.array(page.image))


def test_the_small_png_keeps_what_means_something(tiny):
    """Noise takes many colours; white, the heat map, bars and truth stay as they are, or nearly."""
    noise = torch.randint(256, (3, 3, 28, 42), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    page = panels.draw(replace(one(tiny, 0), thumbnails=noise, truth=(1,)), view(tiny))
    small, full = page.small_png(keep=panels.palette()), np.array(page.image)
    assert len(small) < len(page.png()) / 2
    with Image.open(io.BytesIO(small)) as image:
        got = np.array(image.convert("RGB"))
    for colour in (panels.KEYS, panels.ATTENTION, panels.ACCENT, "white"):
        same = (full == ImageColor.getrgb(colour)).all(axis=-1)
        assert np.abs(got[same].astype(int) - ImageColor.getrgb(colour)).max(initial=0) == 0, colour
    for colour in panels.colours():
        same = (full == colour).all(axis=-1)
        assert np.abs(got[same].astype(int) - colour).max(initial=0) <= 8  # 64 shades of 256


def test_wrapped_lines_fit_and_lose_nothing():
    text = "a sentence of several words, one-of-which-is-far-too-long-for-a-line, and more words"
    lines = wrapped(text, 150, 15, True)
    assert " ".join(lines) == text and len(lines) > 3
    assert [line for line in lines if font(15, True).getlength(line) / SCALE > 150] == [
        "one-of-which-is-far-too-long-for-a-line,"
    ]


@pytest.mark.parametrize("change", [{"layer": 3}, {"first": 3}, {"first": 2, "last": 1}, {"last": 3}])
def test_a_view_that_does_not_fit(tiny, change):
    with pytest.raises(ValueError, match="layer row of 0 to 2 and frames within 0 to 2"):
        panels.draw(one(tiny, 0), replace(view(tiny), **change))
    with pytest.raises(ValueError, match="got 2 queries"):
        sentence(tiny, view(tiny))


SENTENCES = [
    (1, {}, {}, "3 of its 4 keys (75 %) lie in the 3 frames from 0.0 s to 1.0 s, most in the frame at 0.5 s: 3 with "
     "90 % of the attention. The keys hold 80 % of what dense attention would spend."),
    (1, {"first": 0, "last": 0}, {}, "None of its 4 keys lies in the frame at 0.0 s. The keys hold 80 % of"),
    (0, {"first": 0, "last": 0}, {}, "1 of its 4 keys (25 %) lies in the frame at 0.0 s, with 20 % of the attention."),
    (1, {"layer": 1}, {"truth": (0, 2), "subject": "the card"},
     "4 of its 4 keys (100 %) lie in the 3 frames from 0.0 s to 1.0 s, most in the frame at 1.0 s: 3 with 60 % of the "
     "attention. The card at 0.0 s and 1.0 s: 4 keys, 100 % of the attention."),
    (1, {}, {"truth": (0,)}, "The answer's frame at 0.0 s: no keys, 0 % of the attention."),
    (0, {"layer": 2, "sees": 2}, {}, "It stands before the frame at 1.0 s and sees 2 of 3. None of its 4 keys lies in"),
    (0, {"sees": 0}, {}, "It stands before all frames and sees none."),
]  # fmt: skip


@pytest.mark.parametrize(("query", "settings", "known", "expected"), SENTENCES)
def test_sentence_by_hand(tiny, query, settings, known, expected):
    s = replace(one(tiny, query), **known)
    said = sentence(s, view(s, **settings))
    assert expected in said
    layer = settings.get("layer", 0)
    assert said.startswith(f"Layer {layer}, all 4 heads, k = 64, for the query that writes “7”. ")


def test_sentence_with_ties():
    s = fake(4, 1, truth=())
    counts = torch.tensor([[[5, 2, 5, 0]]], dtype=torch.int32)
    s = replace(s, counts=counts, mass=torch.tensor([[[0.1, 0.0, 0.3, 0.0]]]))
    assert (
        "12 of its 64 keys (19 %) lie in the 4 frames from 0.0 s to 1.5 s; 2 frames have most, 5 each, and of these "
        "the frame at 1.0 s gets most attention, 30 %." in sentence(s, view(s))
    )


def test_picture_in_words(tiny):
    assert picture(tiny, view(tiny, 1, first=2)) == (
        "A heat map of 3 layers by 1 frame, lighter where more of a layer's keys lie; below, bars for layer 1: its "
        "keys upwards, its attention downwards."
    )
    s = fake(8, 1)
    assert picture(s, view(s)).startswith("A strip of video frames over a heat map of 1 layer by 8 frames, lighter")


@pytest.mark.parametrize(("first", "last"), [(0, 39), (10, 29)])
def test_a_place_belongs_to_a_frame(first, last):
    """In the heat map and the bars the frame whose column it is; in the margins none; a thumbnail's is its own."""
    s = fake(40, 3)
    page = panels.draw(s, view(s, 1, first, last))
    count = last - first + 1
    low = page.image.height / SCALE - 106 - 10  # in the bars
    for n in range(count):
        x = panels.LEFT + (n + 0.5) / count * INNER
        assert page.at(x, low) == page.at(x, low - 2 * panels.BARS) == first + n
    assert page.at(panels.LEFT - 1, low) is page.at(WIDTH - panels.RIGHT + 1, low) is page.at(500, 5) is None
    thumbnails = {page.at(x, 110) for x in range(panels.LEFT, WIDTH - panels.RIGHT)} - {None}
    assert 20 in thumbnails and thumbnails <= set(range(first, last + 1)) and len(thumbnails) > 3


def test_a_column_of_many_frames_gives_the_one_with_most_keys():
    s = fake(5000, 2)
    page, low = panels.draw(s, view(s)), None
    low = page.image.height / SCALE - 106 - 10
    step = panels.columns(s.shown[:, 0].double().numpy())[1]
    frame = page.at(panels.LEFT + 0.5 * step / 5000 * INNER, low)
    assert step > 1 and frame < step and s.counts[0, 0, frame] == s.counts[0, 0, :step].max()
