"""Task S: a video in one line, read back item by item and matched with the true one."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.captions import Item, caption, format_caption, parse_caption, score
from minikeye.minivid.scene import Difficulty, frame_labels
from minikeye.minivid.tasks import Event
from minikeye.scores import temporal_iou

EVENTS = (
    Event("card", "4", 15, 16, 7.5, 8.0),
    Event("thing", "blue square", 6, 19, 3.0, 9.5),
    Event("thing", "red circle", 0, 7, 0.0, 3.5),
)
TEXT = "0.0-3.5 red circle; 3.0-9.5 blue square; 7.5 card 4"


def test_a_caption_by_hand() -> None:
    problem, evidence = caption(EVENTS)
    assert problem[:3] == ("S", "What is visible in the video, and from when to when?", TEXT)
    told = "the red circle from 0.0 s to 3.5 s, the blue square from 3.0 s to 9.5 s, the card 4 at 7.5 s"
    assert problem.solution == f"In the order in which they come: {told}."
    assert evidence == (((0.0, 3.5), (3.0, 9.5)), (7.5,))


def test_together_the_card_is_last_and_things_are_in_the_order_of_kinds() -> None:
    events = [Event("card", "1", 2, 3, 1.0, 1.5)]
    events += [Event("thing", name, 2, 4, 1.0, 2.0) for name in ("blue triangle", "red square", "blue circle")]
    expected = "1.0-2.0 blue circle; 1.0-2.0 red square; 1.0-2.0 blue triangle; 1.0 card 1"
    assert caption(events).problem.answer == expected


@pytest.mark.parametrize("difficulty", [Difficulty(), Difficulty(crowd=True, hard=True, second_card=0.5)])
def test_captions_tell_what_the_labels_show(difficulty: Difficulty) -> None:
    """Every name of every frame and none else, both cards too."""
    videos = make_videos(0, range(30), 12, difficulty=difficulty)
    digits, kinds = frame_labels(videos.spec)
    for video, events in enumerate(videos.events):
        items = parse_caption(caption(events).problem.answer)
        for frame, second in enumerate(videos.seconds[video].tolist()):
            told = {item.name for item in items if item.start <= second and (item.end or item.start + 0.05) > second}
            seen = {name for name, there in zip(KINDS, kinds[video, frame], strict=True) if there}
            digit = int(digits[video, frame])
            assert told == seen | ({f"card {digit}"} if digit < 10 else set())


TIMES = st.integers(0, 99_999).map(lambda tenths: tenths / 10)
THINGS = st.builds(
    lambda name, start, length: Item(name, start, round(start + length, 1)),
    st.sampled_from(KINDS), TIMES, st.integers(1, 9999).map(lambda tenths: tenths / 10),
)  # fmt: skip
CARDS = st.builds(Item, st.integers(0, 9).map("card {}".format), TIMES, st.none())


@given(st.lists(THINGS | CARDS, min_size=1, max_size=8))
def test_a_caption_is_read_back(items: list[Item]) -> None:
    text = format_caption(items)
    assert parse_caption(text) == items and parse_caption(text.replace(" ", "  ")) == items


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", TEXT + ";", TEXT + ".", "0-3.5 red circle", "3.5-0.0 red circle", "3.5-3.5 red circle",
        "7.5 card", "7.5 card 10", "7.5-8.0 card 4", "7.5 red circle",
        "0.0-3.5 red circle 3.0-9.5 blue square", "0.0-3.5 circle",
    ],
)  # fmt: skip
def test_what_is_no_caption(text: str) -> None:
    problem = caption(EVENTS).problem
    assert parse_caption(text) is None and set(score(problem, text).values()) == {0.0}


@pytest.mark.parametrize(
    ("answer", "f1", "names"),
    [
        (TEXT, 1, 1),
        ("7.5 card 4; 3.0-9.5 blue square; 0.0-3.5 red circle", 1, 1),  # the order does not count
        ("0.0-3.5 red circle; 3.0-9.5 blue square; 8.0 card 4", 1, 1),  # near enough
        ("0.0-3.5 red circle; 3.0-9.5 blue square; 8.1 card 4", 2 / 3, 1),
        ("0.0-3.5 red circle; 3.0-9.5 blue square; 7.5 card 5", 2 / 3, 2 / 3),
        ("0.0-7.0 red circle; 3.0-9.5 blue square; 7.5 card 4", 2.5 / 3, 1),  # an IoU of half
        ("0.0-3.5 red circle", 2 / 4, 2 / 4),
        (f"{TEXT}; 0.0-9.5 green circle", 6 / 7, 6 / 7),  # one too many
        (f"{TEXT}; 0.0-3.5 red circle; 0.0-3.5 red circle", 6 / 8, 6 / 8),  # said thrice
        ("0.0-7.0 red circle; 0.0-3.5 red circle", 2 / 5, 2 / 5),  # the better one counts
        ("0.0-3.5 purple hexagon", 0, 0),
    ],
)
def test_caption_scores_by_hand(answer: str, f1: float, names: float) -> None:
    parts = score(caption(EVENTS).problem, answer)
    assert parts == pytest.approx({"f1": f1, "names": names, "exact": float(answer == TEXT)})


def test_the_second_card_is_an_item_of_its_own() -> None:
    """Two cards with one digit: one said card can be one of them only."""
    events = (Event("card", "4", 1, 2, 0.5, 1.0), Event("card", "4", 2, 3, 1.0, 1.5))
    problem = caption(events).problem
    assert problem.answer == "0.5 card 4; 1.0 card 4"
    assert score(problem, "0.8 card 4")["f1"] == pytest.approx(2 / 3)
    assert score(problem, "0.0 card 4; 0.8 card 4")["f1"] == 1  # 0.8 would do for both, 0.0 for the first alone


@given(st.lists(THINGS | CARDS, min_size=1, max_size=4), st.lists(THINGS | CARDS, min_size=1, max_size=4))
def test_no_pairing_is_better(said: list[Item], true: list[Item]) -> None:
    """All pairings are tried."""

    def worth(a: Item, b: Item) -> float:
        if a.name != b.name:
            return 0.0
        if a.end is None:
            return float(abs(a.start - b.start) <= 0.5 + 1e-9)
        return temporal_iou([a[1:]], [b[1:]])

    said = [item._replace(name="red circle" if item.end else "card 1") for item in said]
    true = [item._replace(name="red circle" if item.end else "card 1") for item in true]
    short, long = sorted((said, true), key=len)
    best = max(sum(map(worth, short, picked)) for picked in permutations(long, len(short)))
    problem = caption(EVENTS).problem._replace(answer=format_caption(true))
    assert score(problem, format_caption(said))["f1"] == pytest.approx(2 * best / (len(said) + len(true)))
