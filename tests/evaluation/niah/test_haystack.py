"""What is hidden where: one frame, near the depth, in footage that holds no other answer."""

from itertools import pairwise

import pytest
import torch

from minikeye.evaluation.niah import haystack
from minikeye.evaluation.niah.haystack import JITTER, Case, Cell, cases
from minikeye.evaluation.real_clips import Footage
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.needle import card, thing
from minikeye.minivid.scene import render


def clip_of(count: int, name: str, height: int = 28, width: int = 56) -> Footage:
    greys = (40 + torch.arange(count)).to(torch.uint8)
    return Footage(name, greys[:, None, None, None].repeat(1, 3, height, width), tuple(0.4 * n for n in range(count)))


CLIPS = [clip_of(5, "wide"), clip_of(30, "tall", 56, 28), clip_of(9, "other")]


def all_of(cell: Cell, count: int, most: int = 100) -> list[Case]:
    return [case for some in cases(cell, count, CLIPS, "cpu", most) for case in some]


@pytest.mark.parametrize("hay", ["generator", "real"])
@pytest.mark.parametrize("needle", ["card", "thing"])
def test_one_frame_near_the_depth_shows_it(needle, hay):
    """The pixels differ from the haystack's in that frame alone, and the answer names its time."""
    for depth in (0.0, 0.4, 1.0):
        found = all_of(Cell(needle, hay, 20, depth), 12)
        assert len(found) == 12
        last = 19 if needle == "card" else 18  # a thing ends with a frame after it
        for case in found:
            assert len(case.clip.seconds) == len(case.clip.frames) == 20
            assert abs(case.frame - depth * last) <= JITTER * last + 0.5 and 0 <= case.frame <= last
            changed = (case.frames() != case.clip.frames).flatten(1).any(1)
            assert changed.nonzero().flatten().tolist() == [case.frame]
            start, end = case.clip.seconds[case.frame], case.clip.seconds[min(case.frame + 1, 19)]
            truth = f"{case.needle.name} at {start:.1f} s" if needle == "card" else f"[[{start:.1f}, {end:.1f}]]"
            assert case.problem.answer == truth
        if needle == "card":
            assert sorted(case.needle.name for case in found) == sorted("012345678901")
    assert len({case.frame for case in all_of(Cell(needle, hay, 200, 0.4), 12)}) > 6  # no second for a whole cell


@pytest.fixture
def made(monkeypatch) -> list:
    """The generator's videos as they are made, cards and all."""
    videos, make = [], haystack.make_videos
    monkeypatch.setattr(haystack, "make_videos", lambda *a, **k: videos.append(make(*a, **k)) or videos[-1])
    return videos


def test_the_haystack_holds_no_other_answer(made):
    """Thing: none of that kind is in the video, whose own things the question would find as well."""
    lists = cases(Cell("thing", "generator", 16, 0.4), 40, [], "cpu", 100)
    pairs = [(case, events) for some in lists for case, events in zip(some, made[-1].events, strict=True)]
    assert len(pairs) == 40 and len({case.needle.name for case, _ in pairs}) > 8
    for case, events in pairs:
        assert case.needle.name in KINDS and case.needle.name not in {event.name for event in events}
        assert case.problem.question == f"From when to when is the {case.needle.name} visible?"


def test_generated_videos_have_lost_their_cards(made):
    """They are the generator's videos but for the one frame in which each had its card."""
    for some in cases(Cell("card", "generator", 8, 0.4), 6, [], "cpu", 100):
        whole = render(made[-1].spec, 56, 84)
        for case, frames, events in zip(some, whole, made[-1].events, strict=True):
            lost = (case.clip.frames != frames).flatten(1).any(1).nonzero().flatten().tolist()
            assert lost == [events[0].first] and events[0].kind == "card"
    assert len(made) == 2


def test_half_of_the_generators_videos_are_hard():
    names = [case.levels["footage"] for case in all_of(Cell("card", "generator", 8, 0.0), 10)]
    assert sorted(names) == ["hard"] * 5 + ["plain"] * 5


def test_clips_come_in_turn_and_frames_of_one_size_together():
    """Seven needles in three clips; a list holds at most two, and one shape."""
    lists = list(cases(Cell("card", "real", 12, 0.6), 7, CLIPS, "cpu", 2))
    assert all(len(some) <= 2 and len({case.clip.frames.shape for case in some}) == 1 for some in lists)
    names = [case.levels["footage"] for some in lists for case in some]
    assert {name: names.count(name) for name in names} == {"wide": 3, "tall": 2, "other": 2}
    assert {case.levels["shape"] for some in lists for case in some} == {"28x56", "56x28"}


def test_a_cell_is_the_same_in_every_run_and_batch():
    one, other = (
        sorted((case.levels["footage"], case.frame, case.problem.answer) for case in all_of(cell, 8, most))
        for cell, most in ((Cell("card", "generator", 8, 0.6), 100), (Cell("card", "generator", 8, 0.6), 3))
    )
    assert one == other


def test_a_control_lies_anywhere_and_shows_nothing():
    found = all_of(Cell("card", "real", 100, 0.5, "blank"), 11)
    places = sorted(case.frame for case in found)
    assert places[0] < 6 and places[-1] > 93 and max(b - a for a, b in pairwise(places)) < 25
    assert all(case.frames(blank=True).unique().tolist() == [128] for case in found)


def test_chance_by_hand():
    """20 frames half a second apart: three of them are near enough in the middle, two at an end; a digit of ten."""
    for case in all_of(Cell("card", "real", 20, 0.0), 6):
        assert case.chance == pytest.approx((2 if case.frame == 0 else 3) / 20 / 10)
    assert all(case.chance == 1 / 20 for case in all_of(Cell("thing", "real", 20, 0.0), 3))


def test_levels_say_where_it_is():
    """The frame's third in which the card's middle lies, seen in the pixels of a wide frame."""
    grey = torch.full((1, 3, 56, 168), 90, dtype=torch.uint8)
    for case in all_of(Cell("card", "real", 8, 0.0), 24):
        changed = (case.needle.into(grey, 0) != grey)[0].any(0).any(0).nonzero().flatten().float()
        middle, half = float(changed.min() + changed.max() + 1) / 2, float(changed.max() - changed.min() + 1) / 2
        share = (middle - half) / (168 - 2 * half)  # of the room that the middle may take
        assert case.levels["across"] == ("left" if share < 0.32 else "right" if share > 0.68 else "middle") or (
            min(abs(share - 1 / 3), abs(share - 2 / 3)) < 0.03
        )


def test_needles_are_drawn_from_their_seed():
    grey = torch.full((3, 3, 28, 28), 90, dtype=torch.uint8)
    for make, one, other in ((card, 3, 4), (thing, 0, 5)):
        assert torch.equal(make(one, 1).into(grey, 1), make(one, 1).into(grey, 1))
        assert not torch.equal(make(one, 1).into(grey, 1), make(one, 2).into(grey, 1))
        assert not torch.equal(make(one, 1).into(grey, 1), make(other, 1).into(grey, 1))
    for kind, name in enumerate(KINDS):
        pixel = thing(kind, 3).into(torch.full((1, 3, 112, 112), 90, dtype=torch.uint8), 0)[0]
        x, y = thing(kind, 3).place
        assert thing(kind, 3).name == name and min(x, y) >= -1
        reds, greens, blues = (float(pixel[c].float().mean()) for c in range(3))
        colours = {
            "red": reds > max(greens, blues),
            "green": greens > max(reds, blues),
            "blue": blues > max(reds, greens),
        }
        assert (colours | {"yellow": min(reds, greens) > blues})[name.split()[0]], (name, reds, greens, blues)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("dog", "real", 8, 0.5), "expected a needle of 'card', 'thing', got 'dog'"),
        (("card", "hay", 8, 0.5), "expected a haystack of"),
        (("card", "real", 3, 0.5), "at least 4 frames"),
        (("card", "real", 8, 1.1), "a depth from 0 to 1"),
    ],
)
def test_cells_that_are_none(given, said):
    with pytest.raises(ValueError, match=said):
        Cell(*given)


def test_real_needs_clips_and_kinds_are_known():
    with pytest.raises(ValueError, match="a real haystack needs clips, got none"):
        next(cases(Cell("card", "real", 8, 0.5), 2, [], "cpu", 2))
    with pytest.raises(ValueError, match="an index into KINDS, got 12"):
        thing(12)
