"""One door to all scores, and constants that look at nothing."""

import pytest

from minikeye.minivid.dataset import make_videos
from minikeye.minivid.questions.asking import groups_of, problems_of
from minikeye.minivid.questions.linked import group_score
from minikeye.minivid.questions.scoring import SCORES, blind_answers, chance, form, score, value
from minikeye.minivid.scene import Difficulty
from minikeye.minivid.tasks import Event, Problem, grounding, naming, needle, order, presence, text_sums
from minikeye.minivid.tasks import score as score_simple
from minikeye.scores import temporal_iou

CROWD = Difficulty(crowd=True)
CARD, CIRCLE = Event("card", "3", 15, 16, 7.5, 8.0), Event("thing", "red circle", 6, 18, 3.0, 9.0)
SIMPLE = [
    needle(CARD), grounding(CIRCLE), naming([CIRCLE], 6, 3.0), presence(CIRCLE, 6, 3.0), order(CARD, CIRCLE),
    *text_sums(0, [0], "test"),
]  # fmt: skip


@pytest.mark.parametrize("problem", SIMPLE, ids=lambda problem: problem.task)
def test_the_six_tasks_are_scored_as_ever(problem: Problem) -> None:
    for answer in (problem.answer, "3 at 7.9 s", "[[3.0, 6.0]]", "[[3.0, 6.0]] 7.5 during", "yes", ""):
        assert score(problem, answer) == score_simple(problem, answer)
    assert value(problem, problem.answer) == 1 and value(problem, "?") == 0
    assert problem.task not in SCORES


@pytest.mark.parametrize(
    ("problem", "answer", "expected"),
    [
        (needle(CARD), "3 at 9.0 s", 0),  # the digit alone is not enough
        (grounding(CIRCLE), "[[3.0, 6.0]]", 0.5),
        (order(CARD, CIRCLE), "[[0.0, 1.0]] 0.0 during", 1),  # the word
        (Problem("R", "", "[[3.0, 9.0]]", ""), "[[3.0, 6.0]]", 0.5),
        (Problem("R", "", "nothing", ""), "red circle", 0),
        (Problem("C", "", "2", ""), " 2", 1),
        (Problem("O", "", "B", ""), " B", 1),
        (Problem("S", "", "7.5 card 4; 0.0-1.0 red circle", ""), "7.5 card 4", 2 / 3),
        (Problem("V", "", "3.0 s", ""), "3.4 s", 1),
        (Problem("A", "", "never", ""), "[[3.0, 6.0]]", 0),
    ],
)
def test_the_one_number_of_each_task(problem: Problem, answer: str, expected: float) -> None:
    assert value(problem, answer) == pytest.approx(expected)


def test_questions_put_alike() -> None:
    assert form(grounding(CIRCLE)) == "From when to when is the * visible?"
    assert form(presence(CIRCLE, 6, 3.0)) == "Is the * visible at # s?"
    assert form(text_sums(0, [0], "test")[0]) == "What is #+#?"
    counted = {form(problem) for problem in problems_of(make_videos(0, range(200), 8, difficulty=CROWD), "C", 0)}
    assert counted == {"How many things are visible in the video?", "How many * are visible in the video?"}
    chosen = {form(problem) for problem in problems_of(make_videos(0, range(200), 8, difficulty=CROWD), "O", 0)}
    listed = ["A *, B *, C *", "A card, B *, C *", "A *, B card, C *", "A *, B *, C card"]
    assert chosen == {f"Which of these comes {word}? {options}" for word in ("first", "last") for options in listed}


def test_chance_by_hand() -> None:
    """Two thirds say 2 to one question, half say 0 to the other; a constant knows which is asked."""
    problems = [Problem("C", "How many things are visible in the video?", n, "") for n in "221"]
    problems += [Problem("C", "How many red things are visible in the video?", n, "") for n in "01"]
    assert blind_answers(problems, [5.0] * 5) == ["2", "2", "2", "0", "0"]
    assert chance(problems, [5.0] * 5) == pytest.approx(3 / 5)


def test_times_of_a_constant_are_shares_of_the_duration() -> None:
    """Always the second quarter, of videos of 8, 20 and 40 seconds: the constant is right every time."""
    durations = [8.0, 20.0, 40.0]
    problems = [Problem("G", "", f"[[{d / 4:.1f}, {d / 2:.1f}]]", "") for d in durations]
    assert blind_answers(problems, durations) == [problem.answer for problem in problems]
    seconds = [Problem("V", "", f"{d / 4:.1f} s", "") for d in durations]
    assert chance(seconds, durations) == 1
    captions = [Problem("S", "", f"{d / 4:.1f}-{d / 2:.1f} red circle; {d / 2:.1f} card 4", "") for d in durations]
    assert chance(captions, durations) == 1


def test_a_constant_may_be_none_of_the_answers() -> None:
    """From 4 to 7 s, which none of them says; of all intervals between half seconds none does better."""
    truths = [(5.0, 7.0), (0.0, 7.0), (4.0, 6.0), (4.0, 10.0)]
    problems = [Problem("G", "", f"[[{start}, {end}]]", "") for start, end in truths]
    pairs = [(a / 2, b / 2) for b in range(21) for a in range(b)]
    best = max(sum(temporal_iou([pair], [truth]) for truth in truths) / 4 for pair in pairs)
    assert chance(problems, [10.0] * 4) == pytest.approx(best)
    assert blind_answers(problems, [10.0] * 4) == ["[[4.0, 7.0]]"] * 4


@pytest.mark.parametrize("task", ["C", "O", "S", "R"])
def test_chance_of_real_questions(task: str) -> None:
    """Below 1, and no constant that a loop tries for all videos does better."""
    n = 40 if task == "S" else 150  # captions take long to match
    videos = make_videos(0, range(n), 12, "test", difficulty=CROWD)
    problems, durations = problems_of(videos, task, 0), videos.seconds[:, -1].tolist()
    blind = chance(problems, durations)
    tried = {problem.answer for problem in problems[:40]}
    assert max(sum(value(problem, said) for problem in problems) / n for said in tried) <= blind + 1e-9
    assert {"C": 0.3, "O": 0.33, "S": 0.03, "R": 0.2}[task] < blind < {"C": 0.8, "O": 0.6, "S": 0.4, "R": 0.6}[task]


def test_chance_of_a_group() -> None:
    """The constants of its four questions, scored as a group: hardly ever all right."""
    videos = make_videos(0, range(150), 16, "test", difficulty=CROWD)
    groups, durations = groups_of(videos, 0), videos.seconds[:, -1].tolist()
    flat = [problem for group in groups for problem in group]
    said = blind_answers(flat, [duration for duration in durations for _ in range(4)])
    scores = [group_score(group, said[4 * n : 4 * n + 4]) for n, group in enumerate(groups)]
    means = {part: sum(parts[part] for parts in scores) / 150 for part in scores[0]}
    assert means["all"] < 0.1 and means["square"] < means["share"] < 0.6


def test_what_chance_is_not_asked() -> None:
    problems = [Problem("C", "", "1", "")]
    for durations in ([], [1.0, 2.0], [0.0]):
        with pytest.raises(ValueError, match="expected 1 durations above 0 s, got"):
            blind_answers(problems, durations)
    with pytest.raises(ValueError, match="at least one problem"):
        chance([], [])
