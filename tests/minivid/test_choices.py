"""Task O: the first and the last to come, and letters that cannot be learnt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.choices import (
    LETTERS,
    comings,
    options_of,
    ordering,
    parse_choice,
    rotation_score,
    rotations,
    score,
)
from minikeye.minivid.scene import Difficulty, frame_labels
from minikeye.minivid.tasks import Event, Problem, grounding

CIRCLE = Event("thing", "red circle", 6, 18, 3.0, 9.0)
SQUARE = Event("thing", "blue square", 2, 18, 1.0, 9.0)
CARD, LATER = Event("card", "3", 15, 16, 7.5, 8.0), Event("card", "4", 1, 2, 0.5, 1.0)
EVENTS = (CARD, CIRCLE, SQUARE)
OPTIONS = ["red circle", "card", "green circle", "blue square"]


def first() -> Problem:
    return ordering(EVENTS, OPTIONS).problem


def test_first_and_last_by_hand() -> None:
    problem, evidence = ordering(EVENTS, OPTIONS)
    listed = "A red circle, B card, C green circle, D blue square"
    assert problem[:3] == ("O", f"Which of these comes first? {listed}", "D")
    told = "the blue square at 1.0 s, the red circle at 3.0 s, the card at 7.5 s, the green circle never"
    assert problem.solution == f"Of these comes {told}. The blue square comes first: D."
    assert evidence.moments == (1.0, 3.0, 7.5) and not evidence.intervals
    last = ordering(EVENTS, OPTIONS[:3], "last").problem
    assert (last.question, last.answer) == ("Which of these comes last? A red circle, B card, C green circle", "B")
    assert last.solution.endswith("the green circle never. The card comes last: B.")


def test_the_card_is_the_first_card() -> None:
    assert comings((CARD, CIRCLE, LATER))["card"] == LATER
    assert ordering((CARD, CIRCLE, LATER), ["red circle", "card"]).problem.answer == "B"


def test_the_labels_of_the_frames_agree() -> None:
    """All pairs of things of a crowd: the first frame of each is looked up in the labels."""
    videos = make_videos(1, range(30), 16, difficulty=Difficulty(crowd=True))
    asked = 0
    for events, there in zip(videos.events, frame_labels(videos.spec)[1].tolist(), strict=True):
        came = {}
        for frame, shown in enumerate(there):
            for name in (name for name, is_there in zip(KINDS, shown, strict=True) if is_there):
                came.setdefault(name, frame)
        for one in came:
            for other in came:
                if came[one] < came[other]:
                    assert ordering(events, [one, other]).problem.answer == "A"
                    assert ordering(events, [one, other], "last").problem.answer == "B"
                    asked += 1
    assert asked > 100


@pytest.mark.parametrize(
    ("options", "word", "message"),
    [
        (["red circle"], "first", "2 to 4 different options"),
        (["red circle", "red circle"], "first", "2 to 4 different options"),
        (list(KINDS[:5]), "first", "2 to 4 different options"),
        (["red circle", "card"], "next", "expected first or last"),
        (["green circle", "red square"], "first", "but the green circle never, the red square never"),
    ],
)
def test_unclear_choices_are_refused(options: list[str], word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ordering(EVENTS, options, word)


def test_a_tie_is_refused_only_where_it_is_asked_for() -> None:
    tied = (CARD, CIRCLE, Event("thing", "blue square", 6, 9, 3.0, 4.5))
    with pytest.raises(ValueError, match=r"to come first in this video, but the red circle at 3\.0 s"):
        ordering(tied, ["red circle", "blue square", "card"])
    assert ordering(tied, ["red circle", "blue square", "card"], "last").problem.answer == "C"


# --- rotations ---


def test_the_right_option_is_once_at_every_letter() -> None:
    turned = rotations(first())
    assert turned[0] == first() and [problem.answer for problem in turned] == ["D", "A", "B", "C"]
    assert [options_of(problem)[LETTERS.index(problem.answer)] for problem in turned] == ["blue square"] * 4
    assert turned[1] == ordering(EVENTS, ["blue square", "red circle", "card", "green circle"]).problem
    for column in zip(*map(options_of, turned), strict=True):
        assert set(column) == set(OPTIONS)


@given(st.permutations(["red circle", "card", "blue square", "green circle"]), st.integers(2, 4))
def test_rotations_are_the_questions_about_the_turned_options(options: list[str], count: int) -> None:
    options = options[:count]
    asked = ordering(EVENTS, options, "last").problem
    assert options_of(asked) == options
    for turn, problem in enumerate(rotations(asked)):
        assert problem == ordering(EVENTS, options[count - turn :] + options[: count - turn], "last").problem


@pytest.mark.parametrize(
    ("answers", "letter", "all_right", "same"),
    [
        ("DABC", 1, 1, 1),  # the truth
        ("AAAA", 0.25, 0, 0),  # one letter always
        ("ABCD", 0, 0, 1),  # always the red circle
        ("DABB", 0.75, 0, 0),
        ("DAB?", 0.75, 0, 0),
        ("????", 0, 0, 0),  # nothing is meant: that is not the same
    ],
)
def test_rotation_scores(answers: str, letter: float, all_right: float, same: float) -> None:
    assert rotation_score(rotations(first()), list(answers)) == {"letter": letter, "all": all_right, "same": same}


def test_a_letter_beyond_the_options_means_none() -> None:
    turned = rotations(ordering(EVENTS, ["red circle", "card"]).problem)
    assert rotation_score(turned, ["D", "D"]) == {"letter": 0, "all": 0, "same": 0}


def test_other_than_rotations_are_refused() -> None:
    turned = rotations(first())
    for problems, answers in ((turned[:3], "ABC"), (turned, "ABC"), ([], ""), (turned[::-1], "ABCD")):
        with pytest.raises(ValueError, match="expected the rotations of a problem, an answer each"):
            rotation_score(problems, list(answers))
    with pytest.raises(ValueError, match="expected a problem of task O, got G"):
        rotations(grounding(CIRCLE))


@pytest.mark.parametrize(
    ("text", "letter"), [("A", "A"), (" D\n", "D"), ("E", None), ("a", None), ("A.", None), ("A B", None), ("", None)]
)
def test_letters_are_read(text: str, letter: str | None) -> None:
    assert parse_choice(text) == letter


def test_a_letter_is_right_or_wrong() -> None:
    assert score(first(), "D") == {"letter": 1, "exact": 1} and score(first(), " D") == {"letter": 1, "exact": 0}
    assert score(first(), "A") == {"letter": 0, "exact": 0}
