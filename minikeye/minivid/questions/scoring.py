"""One door to the scores of all tasks, and what an answer that looks at nothing would score.

Which part of a score is the one number that a task is judged by:

| N | G | D, Y, T, A | P | C | O | S | R | V |
|---|---|---|---|---|---|---|---|---|
| both | tiou | exact | word | count | letter | f1 | tiou or exact | second |

The blind baseline knows how a question is put, but not the video: of all questions that are put alike, which constant
answer scores best? Times of a constant are shares of the duration, which the timestamps in a prompt give away.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from minikeye.minivid import tasks
from minikeye.minivid.drawing.things import COLOURS, KINDS, SHAPES
from minikeye.minivid.questions import absent, captions, choices, counting, linked, referring
from minikeye.minivid.tasks import Problem

SCORES = {
    "A": absent.score,
    "C": counting.score,
    "O": choices.score,
    "R": referring.score,
    "S": captions.score,
    "V": linked.score,
}
PARTS = {"N": "both", "G": "tiou", "P": "word", "C": "count", "O": "letter", "S": "f1", "V": "second"}
WIDTH = 1000.0  # duration that constants are stretched from
STEPS = 20  # ends of constant intervals: this many parts of the duration
MOST = 100  # other constants that are tried for questions put alike, the most frequent first

_TIME = re.compile(r"[0-9]+\.[0-9]")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_NAME = re.compile("|".join((*KINDS, *(f"{colour} things" for colour in COLOURS), *(f"{shape}s" for shape in SHAPES))))


def score(problem: Problem, answer: str) -> dict[str, float]:
    """What is right about an answer to a problem of any task, each part from 0 to 1."""
    return SCORES.get(problem.task, tasks.score)(problem, answer)


def value(problem: Problem, answer: str) -> float:
    """The one number of a score, 0..1, that the task of the problem is judged by."""
    parts = score(problem, answer)
    return parts.get("tiou", parts["exact"]) if problem.task == "R" else parts[PARTS.get(problem.task, "exact")]


def form(problem: Problem) -> str:
    """A question without the names and the numbers that are in it: questions of one form are put alike."""
    return _NUMBER.sub("#", _NAME.sub("*", problem.question))


def blind_answers(problems: Sequence[Problem], durations: Sequence[float]) -> list[str]:
    """What the best constant says to each problem. durations: of its video, in seconds.

    Tried are the answers to all problems of the same form (the MOST frequent) and, where intervals are asked for, all
    between twentieths of the duration. It is fitted to these very problems: ask a few hundred of a form, or it knows
    them too well. Raises ValueError for another number of durations, or one of 0 or less.
    """
    if len(durations) != len(problems) or min(durations, default=1) <= 0:
        raise ValueError(f"expected {len(problems)} durations above 0 s, got {list(durations)}")
    alike = defaultdict(list)
    for n, problem in enumerate(problems):
        alike[problem.task, form(problem)].append(n)
    answers = [""] * len(problems)
    for numbers in alike.values():
        asked = [(problems[n], durations[n]) for n in numbers]
        best = max(_constants(asked), key=lambda said: sum(value(p, _stretched(said, d / WIDTH)) for p, d in asked))
        for n, (_, duration) in zip(numbers, asked, strict=True):
            answers[n] = _stretched(best, duration / WIDTH)
    return answers


def chance(problems: Sequence[Problem], durations: Sequence[float]) -> float:
    """Mean value, 0..1, of the best constant. Raises as `blind_answers` does, and ValueError without problems."""
    if not problems:
        raise ValueError("expected at least one problem")
    said = blind_answers(problems, durations)
    return sum(map(value, problems, said)) / len(problems)


def _constants(asked: Sequence[tuple[Problem, float]]) -> list[str]:
    """Constants to try, their times as if a video took WIDTH seconds."""
    counts = Counter(_stretched(problem.answer, WIDTH / duration) for problem, duration in asked)
    tried = [said for said, _ in counts.most_common(MOST)]
    if tasks.parse_interval(asked[0][0].answer) is not None:
        step = WIDTH / STEPS
        tried += [f"[[{a * step:.1f}, {b * step:.1f}]]" for b in range(STEPS + 1) for a in range(b)]
    return tried


def _stretched(text: str, factor: float) -> str:
    """The text with all its times multiplied."""
    return _TIME.sub(lambda match: f"{float(match[0]) * factor:.1f}", text)
