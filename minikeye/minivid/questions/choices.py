"""Task O: which of some things comes first, or last. The answer is a letter.

| question | answer |
|---|---|
| Which of these comes first? A red circle, B blue square, C card | B |
| Which of these comes last? A red circle, B blue square, C card | C |

What counts is the first frame with it. An option that is not in the video never comes: it is neither first nor last.
"card" is the first card with a digit. The evidence is when those that come do so.

A letter can be guessed, and so can the card, which every video has: `scoring.chance` says how well. `rotations` moves
the options on, each of them once to every letter, so that a letter that is always said is right exactly once. VNBench
(arXiv 2406.09367) counts a question only where all rotations are right.
"""

import re
from collections.abc import Sequence

from minikeye.minivid.tasks import Event, Evidence, Problem, Solved

LETTERS = "ABCD"
CARD = "card"  # how the card is called among the options

_CHOICE = re.compile(rf"\s*([{LETTERS}])\s*")
_QUESTION = re.compile(r"(Which of these comes (?:first|last)\?) (.*)")
_LETTER = re.compile(rf"[{LETTERS}]\.$")


def ordering(events: Sequence[Event], options: Sequence[str], word: str = "first") -> Solved:
    """Task O about a video. options: names of things, or "card", in the order of their letters. word: first or last.

    Raises ValueError for fewer than 2 or more than 4 options, for the same one twice, for another word, and where no
    single one of them is the first (last) to come.
    """
    if word not in ("first", "last") or not 2 <= len(set(options)) == len(options) <= len(LETTERS):
        raise ValueError(f"expected first or last, and 2 to 4 different options, got {word!r} and {list(options)}")
    coming = comings(events)
    came = sorted((name for name in options if name in coming), key=lambda name: coming[name].first)
    # In the order of time, not of the letters: turning the options leaves the sentence as it is.
    told = [f"the {name} at {coming[name].start:.1f} s" for name in came]
    told += [f"the {name} never" for name in sorted(options) if name not in coming]
    right, *others = came[:: 1 if word == "first" else -1] or [None]
    if right is None or (others and coming[right].first == coming[others[0]].first):
        raise ValueError(f"expected one of {list(options)} to come {word} in this video, but {', '.join(told)}")
    letter = LETTERS[options.index(right)]
    solution = f"Of these comes {', '.join(told)}. The {right} comes {word}: {letter}."
    moments = tuple(coming[name].start for name in came)
    return Solved(Problem("O", _question(word, options), letter, solution), Evidence(moments=moments))


def comings(events: Sequence[Event]) -> dict[str, Event]:
    """What can be an option because it comes: the things, by name, and the first card."""
    coming: dict[str, Event] = {}
    for event in sorted(events, key=lambda event: event.first):
        coming.setdefault(CARD if event.kind == "card" else event.name, event)
    return coming


def rotations(problem: Problem) -> list[Problem]:
    """A problem of task O with its options moved on by 0, 1, 2, ... letters: the first of them is the problem itself.

    Raises ValueError for a problem of another task.
    """
    names = options_of(problem)
    out = []
    for turn in range(len(names)):
        turned = names[-turn:] + names[:-turn] if turn else names
        letter = LETTERS[(LETTERS.index(problem.answer) + turn) % len(names)]
        word = _QUESTION.fullmatch(problem.question)[1].split()[-1].removesuffix("?")
        out.append(Problem("O", _question(word, turned), letter, _LETTER.sub(f"{letter}.", problem.solution)))
    return out


def options_of(problem: Problem) -> list[str]:
    """The options of a problem of task O, in the order of their letters. Raises ValueError for another task."""
    match = _QUESTION.fullmatch(problem.question)
    if problem.task != "O" or not match:
        raise ValueError(f"expected a problem of task O, got {problem.task}: {problem.question!r}")
    return [option.split(" ", 1)[1] for option in match[2].split(", ")]


def parse_choice(text: str) -> str | None:
    """The letter of an answer to task O; None for any other text. Only white space may differ."""
    match = _CHOICE.fullmatch(text)
    return match[1] if match else None


def score(problem: Problem, answer: str) -> dict[str, float]:
    """Task O: "letter", whether it is the right one; "exact", whether it is the expected text."""
    return {"letter": float(parse_choice(answer) == problem.answer), "exact": float(answer == problem.answer)}


def rotation_score(turned: Sequence[Problem], answers: Sequence[str]) -> dict[str, float]:
    """Answers to all rotations of one problem.

    "letter": share that is right. "all": whether all are (circular evaluation). "same": whether all mean one option,
    the right one or not: without it what was said hung on the letters. Raises ValueError for other than all rotations.
    """
    if not turned or list(turned) != rotations(turned[0]) or len(answers) != len(turned):
        raise ValueError(f"expected the rotations of a problem, an answer each, got {len(turned)} and {len(answers)}")
    right = [score(problem, answer)["letter"] for problem, answer in zip(turned, answers, strict=True)]
    meant = {_meant(problem, answer) for problem, answer in zip(turned, answers, strict=True)}
    same = len(meant) == 1 and None not in meant
    return {"letter": sum(right) / len(right), "all": float(all(right)), "same": float(same)}


def _question(word: str, options: Sequence[str]) -> str:
    listed = ", ".join(f"{letter} {name}" for letter, name in zip(LETTERS, options, strict=False))
    return f"Which of these comes {word}? {listed}"


def _meant(problem: Problem, answer: str) -> str | None:
    """The option that an answer names; None where it names none."""
    options, letter = options_of(problem), parse_choice(answer)
    place = len(options) if letter is None else LETTERS.index(letter)
    return options[place] if place < len(options) else None
