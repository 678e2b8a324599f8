"""Task V: four questions about one thing; whether the answers are right, and whether they agree with each other."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.linked import (
    Group,
    consistent,
    group_score,
    independent_square,
    linked,
    parse_names,
    parse_second,
    score,
)
from minikeye.minivid.tasks import Event

CIRCLE = Event("thing", "red circle", 6, 19, 3.0, 9.5)
SQUARE = Event("thing", "blue square", 7, 9, 3.5, 4.5)
TRUTH = ("3.0 s", "9.5 s", "yes", "red circle and blue square")


def group() -> Group:
    return linked([CIRCLE, SQUARE], CIRCLE, 7, 3.5)


def test_four_questions_by_hand() -> None:
    asked = group()
    assert tuple(problem.answer for problem in asked) == TRUTH
    assert [problem.task for problem in asked] == ["V", "V", "Y", "D"]
    assert [problem.question for problem in asked] == [
        "At which second does the red circle come?",
        "At which second is the red circle gone?",
        "Is the red circle visible at 3.5 s?",
        "What is visible at 3.5 s?",
    ]
    assert asked.come.solution == "The red circle comes in frame 6 at 3.0 s."
    assert asked.gone.solution == "The red circle is gone in frame 19 at 9.5 s."


@given(st.data())
def test_the_truth_never_contradicts_itself(data: st.DataObject) -> None:
    """Any things, any frame."""
    names = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True))
    things = []
    for name in names:
        first = data.draw(st.integers(0, 14))
        stop = data.draw(st.integers(first + 1, 16))
        things.append(Event("thing", name, first, stop, first * 0.7, stop * 0.7))
    frame = data.draw(st.integers(0, 15))
    asked = linked(things, things[0], frame, frame * 0.7)
    answers = [problem.answer for problem in asked]
    assert group_score(asked, answers) == {"share": 1, "square": 1, "all": 1, "consistent": 1}


@pytest.mark.parametrize(
    ("answers", "holds"),
    [
        (TRUTH, True),
        (("0.0 s", "0.1 s", "no", "nothing"), True),  # wrong in all, at one with itself
        (("0.0 s", "9.5 s", "yes", "red circle"), True),
        (("3.5 s", "9.5 s", "yes", "red circle"), True),  # the first frame is there
        (("3.0 s", "3.5 s", "yes", "red circle"), False),  # the end is not
        (("3.0 s", "9.5 s", "no", "red circle and blue square"), False),
        (("3.0 s", "9.5 s", "no", "nothing"), False),
        (("3.0 s", "9.5 s", "yes", "blue square"), False),
        (("9.5 s", "3.0 s", "no", "nothing"), False),  # gone before it comes
        (("3.0 s", "3.0 s", "no", "nothing"), False),
        (("3.0", "9.5 s", "yes", "red circle"), False),
        (("3.0 s", "9.5 s", "Yes", "red circle"), False),
        (("3.0 s", "9.5 s", "yes", "red circles"), False),
    ],
)
def test_what_agrees_with_itself(answers: tuple[str, ...], holds: bool) -> None:
    assert consistent(group(), answers) is holds


def test_a_contradiction_is_found_by_trying_all_videos() -> None:
    """Each set of answers is held against every interval of five frames and every way to be named: a child's search."""
    asked = linked([CIRCLE], CIRCLE, 2, 2.0)
    possible = set()
    for first, stop in product(range(5), range(6)):
        for other in ("", "blue square"):
            if first < stop:
                there = first <= 2 < stop
                named = [name for name in ("red circle" if there else "", other) if name]
                names = " and ".join(named) or "nothing"
                possible.add((f"{first}.0 s", f"{stop}.0 s", "yes" if there else "no", names))
    names = ("nothing", "red circle", "blue square", "red circle and blue square")
    seconds = [f"{n}.0 s" for n in range(6)]
    for answers in product(seconds[:5], seconds, ("yes", "no"), names):
        assert consistent(asked, answers) == (answers in possible)


@pytest.mark.parametrize(
    ("answers", "right", "holds"),
    [
        (TRUTH, 4, 1),
        (("3.5 s", "9.0 s", "yes", "red circle and blue square"), 4, 1),  # within half a second
        (("3.6 s", "9.5 s", "no", "blue square"), 1, 1),
        (("3.0 s", "9.5 s", "no", "blue square"), 2, 0),
        (("3.0 s", "9.5 s", "yes", "red circle"), 3, 1),
        (("", "", "", ""), 0, 0),
    ],
)
def test_group_scores(answers: tuple[str, ...], right: int, holds: float) -> None:
    parts = {"share": right / 4, "square": right**2 / 16, "all": float(right == 4), "consistent": holds}
    assert group_score(group(), answers) == parts


def test_a_group_has_four_answers() -> None:
    with pytest.raises(ValueError, match="expected 4 answers to a group, got 3"):
        group_score(group(), TRUTH[:3])


def test_independent_answers_by_counting_all_outcomes() -> None:
    shares = (0.9, 0.5, 0.75, 0.2)
    expected = 0.0
    for outcome in product((0, 1), repeat=4):
        likely = 1.0
        for p, right in zip(shares, outcome, strict=True):
            likely *= p if right else 1 - p
        expected += likely * (sum(outcome) / 4) ** 2
    assert independent_square(shares) == pytest.approx(expected)
    assert independent_square([0.5] * 4) == pytest.approx(0.5 / 4 + 3 * 0.25 / 4)


def test_noted_times_are_the_answers() -> None:
    told = Event("thing", "red circle", 8, 19, 4.0, 9.5)
    asked = linked([CIRCLE, SQUARE], CIRCLE, 7, 3.5, told)
    assert [problem.answer for problem in asked] == ["4.0 s", "9.5 s", "yes", "red circle and blue square"]


@given(st.integers(0, 10**6))
def test_a_second_is_read_back(tenths: int) -> None:
    assert parse_second(f"{tenths / 10:.1f} s") == tenths / 10 == parse_second(f" {tenths / 10:.1f}  s\n")


@given(st.lists(st.sampled_from(KINDS), unique=True, max_size=5))
def test_names_are_read_back(names: list[str]) -> None:
    assert parse_names(" and ".join(names) or "nothing") == tuple(names)


@pytest.mark.parametrize("text", ["", "red circle and red circle", "red circle, blue square", "nothing and red circle"])
def test_what_names_no_things(text: str) -> None:
    assert parse_names(text) is None


def test_seconds_are_right_within_half_a_second() -> None:
    problem = group().come
    said = {"3.0 s": (1, 1), "3.5 s": (1, 0), "2.5 s": (1, 0), "3.6 s": (0, 0), "3.0": (0, 0), "yes": (0, 0)}
    assert {text: tuple(score(problem, text).values()) for text in said} == said
