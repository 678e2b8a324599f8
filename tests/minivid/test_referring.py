"""Task R: the thing that is meant is found by what it does."""

from collections import Counter

import pytest

from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.referring import referring, score
from minikeye.minivid.scene import Difficulty, frame_labels
from minikeye.minivid.tasks import Event, parse_interval

CARD = Event("card", "3", 15, 16, 7.5, 8.0)
CIRCLE, SQUARE = Event("thing", "red circle", 6, 18, 3.0, 9.0), Event("thing", "blue square", 2, 12, 1.0, 6.0)


def test_each_form_by_hand() -> None:
    asked = referring((CARD, CIRCLE, SQUARE))
    [names], [together], [after], [before] = (asked[form] for form in ("names", "with", "after", "before"))
    assert names.problem[:3] == ("R", "What is visible when the card comes?", "red circle")
    assert names.problem.solution == "The card comes at 7.5 s. What is visible then: red circle."
    assert names.evidence == ((), (7.5,)) == together.evidence
    start = "From when to when is the thing visible that"
    assert together.problem[1:3] == (f"{start} is there when the card comes?", "[[3.0, 9.0]]")
    circle, square = "red circle, visible from 3.0 s to 9.0 s", "blue square, visible from 1.0 s to 6.0 s"
    assert together.problem.solution == f"The card comes at 7.5 s. There then is the {circle}."
    assert after.problem[1:3] == (f"{start} comes next after the blue square?", "[[3.0, 9.0]]")
    assert after.problem.solution == f"The {square}. What comes next after it is the {circle}."
    assert after.evidence == (((1.0, 6.0),), ())
    assert before.problem[1:3] == (f"{start} comes last before the red circle?", "[[1.0, 6.0]]")
    assert before.problem.solution == f"The {circle}. What comes last before it is the {square}."
    assert before.evidence == (((3.0, 9.0),), ())


def test_nothing_is_asked_that_means_none_or_two() -> None:
    early = Event("card", "3", 0, 1, 0.0, 0.5)
    asked = referring((early, CIRCLE))
    assert [len(asked[form]) for form in ("names", "with", "after", "before")] == [1, 0, 0, 0]
    assert asked["names"][0].problem.answer == "nothing"
    both = referring((Event("card", "3", 8, 9, 4.0, 4.5), CIRCLE, SQUARE))
    assert both["names"][0].problem.answer == "red circle and blue square" and not both["with"]
    twin = Event("thing", "green circle", 6, 9, 3.0, 4.5)  # comes with the circle: after the square there are two
    tied = referring((early, CIRCLE, SQUARE, twin))
    assert not tied["after"] and len(tied["before"]) == 2
    assert referring((CIRCLE,)) == {"names": [], "with": [], "after": [], "before": []}


def test_the_first_card_is_meant() -> None:
    later = Event("card", "9", 20, 21, 10.0, 10.5)
    for events in ((later, CARD, CIRCLE), (CARD, CIRCLE, later)):
        assert referring(events)["names"][0].evidence.moments == (7.5,)


def test_the_labels_of_the_frames_agree() -> None:
    """A loop over the frames: who is there with the card, who comes next."""
    videos = make_videos(2, range(60), 16, difficulty=Difficulty(crowd=True))
    digits, kinds = frame_labels(videos.spec)
    counts = Counter()
    for video, events in enumerate(videos.events):
        rows = [{name for name, there in zip(KINDS, row, strict=True) if there} for row in kinds[video].tolist()]
        clock = videos.seconds[video].tolist()
        first = {name: next(f for f, row in enumerate(rows) if name in row) for row in rows for name in row}
        by_start = {(clock[frame], name) for name, frame in first.items()}
        card = next(frame for frame, digit in enumerate(digits[video].tolist()) if digit < 10)
        asked = referring(events)
        said = asked["names"][0].problem.answer
        assert (set(said.split(" and ")) if said != "nothing" else set()) == rows[card]
        assert len(asked["with"]) == (len(rows[card]) == 1)
        for form, problems in asked.items():
            counts[form] += len(problems)
            for problem, _ in problems if form != "names" else ():
                ((start, end),) = parse_interval(problem.answer)
                [name] = {
                    name
                    for at, name in by_start
                    if at == start and problem_means(form, problem.question, name, first, rows[card])
                }
                assert sum(start <= at < end for at in clock) == sum(name in row for row in rows)
    assert min(counts.values()) > 10


def problem_means(form: str, question: str, name: str, first: dict[str, int], with_card: set[str]) -> bool:
    """Whether the question means the thing of this name."""
    if form == "with":
        return name in with_card
    known = question.split(f"{form} the ")[1].removesuffix("?")
    others = [n for n in first if (first[n] > first[known] if form == "after" else first[n] < first[known])]
    nearest = min(first[n] for n in others) if form == "after" else max(first[n] for n in others)
    return first[name] == nearest


def test_noted_times_move_the_answer_and_not_what_is_meant() -> None:
    """The annotator's circle comes before the square: still it is the one that comes next after it."""
    told = Event("thing", "red circle", 1, 4, 0.5, 2.0)
    asked = referring((CARD, CIRCLE, SQUARE), (CARD, told, SQUARE))
    assert asked["after"][0].problem[1:3] == (
        "From when to when is the thing visible that comes next after the blue square?", "[[0.5, 2.0]]",
    )  # fmt: skip
    assert asked["names"][0].problem.answer == "red circle"  # at the true card
    with pytest.raises(ValueError, match="noted times of 2 events, got 1"):
        referring((CARD, CIRCLE), (CARD,))


def test_scores_are_those_of_naming_and_grounding() -> None:
    asked = referring((CARD, CIRCLE, SQUARE))
    after, names = asked["after"][0].problem, asked["names"][0].problem
    assert score(after, "[[3.0, 9.0]]") == {"tiou": 1, "exact": 1}
    assert score(after, "[[3.0, 6.0]]") == {"tiou": 0.5, "exact": 0}
    assert score(after, "red circle") == {"tiou": 0, "exact": 0}
    assert score(names, "red circle") == {"exact": 1} and score(names, "[[3.0, 9.0]]") == {"exact": 0}
