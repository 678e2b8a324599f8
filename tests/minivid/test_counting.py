"""Task C: counted by hand, and by a loop over the labels of the frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import COLOURS, KINDS, SHAPES
from minikeye.minivid.questions.counting import WANTED, counting, parse_count, score
from minikeye.minivid.scene import Difficulty, frame_labels
from minikeye.minivid.tasks import Event, things_of

THINGS = [
    Event("thing", "blue square", 5, 8, 2.5, 4.0),
    Event("thing", "red circle", 1, 4, 0.5, 2.0),
    Event("thing", "red square", 6, 9, 3.0, 4.5),
]


@pytest.mark.parametrize(
    ("wanted", "what", "count"),
    [("thing", "things", 3), ("red", "red things", 2), ("green", "green things", 0), ("square", "squares", 2)],
)
def test_counted_by_hand(wanted: str, what: str, count: int) -> None:
    problem, evidence = counting(THINGS, wanted)
    assert problem[:3] == ("C", f"How many {what} are visible in the video?", str(count))
    assert len(evidence.intervals) == count and not evidence.moments


def test_the_reason_names_what_was_counted() -> None:
    problem, evidence = counting(THINGS, "red")
    when = "the red circle from 0.5 s to 2.0 s, the red square from 3.0 s to 4.5 s"
    assert problem.solution == f"Of the red things in the video there is {when}: 2."
    assert counting(THINGS, "triangle").problem.solution == "Of the triangles in the video there is none: 0."
    assert counting(THINGS).evidence.intervals == ((0.5, 2.0), (2.5, 4.0), (3.0, 4.5))
    assert evidence.intervals == ((0.5, 2.0), (3.0, 4.5))


def test_counts_are_those_of_the_labels() -> None:
    """Every word that can be counted, against the names that any frame shows."""
    videos = make_videos(0, range(40), 12, difficulty=Difficulty(crowd=True, hard=True, second_card=0.5))
    for events, there in zip(videos.events, frame_labels(videos.spec)[1].any(1).tolist(), strict=True):
        seen = [name for name, shown in zip(KINDS, there, strict=True) if shown]
        for wanted in WANTED:
            count = sum(wanted == "thing" or wanted in name for name in seen)
            assert counting(things_of(events), wanted).problem.answer == str(count)


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of thing, red, .*, triangle to count, got 'card'"):
        counting(THINGS, "card")
    assert set(WANTED) == {"thing", *COLOURS, *SHAPES}


@given(st.integers(0, 10**17 - 1))
def test_a_count_is_read_back(count: int) -> None:
    assert parse_count(str(count)) == count == parse_count(f" 0{count} ")


@pytest.mark.parametrize(
    ("answer", "count", "exact"),
    [("2", 1, 1), (" 02\n", 1, 0), ("3", 0, 0), ("two", 0, 0), ("2.0", 0, 0), ("-2", 0, 0), ("", 0, 0), ("2 2", 0, 0)],
)
def test_counts_are_right_or_wrong(answer: str, count: float, exact: float) -> None:
    assert score(counting(THINGS, "red").problem, answer) == {"count": count, "exact": exact}
