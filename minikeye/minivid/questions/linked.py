"""Task V: four questions about one thing of a video whose answers hang together, and a score for the four.

| | question | answer | task |
|---|---|---|---|
| come | At which second does the red circle come? | 3.0 s | V |
| gone | At which second is the red circle gone? | 9.5 s | V |
| there | Is the red circle visible at 3.5 s? | yes | Y |
| names | What is visible at 3.5 s? | red circle and blue square | D |

Each is asked by itself. A model that has seen the video does not say that a thing comes at 3.0 s, is gone at 9.5 s,
and is not there at 3.5 s. Video-MME-v2 (arXiv 2604.05015) scores groups of four by (N / 4)^2, N the number of right
answers, so that four right answers in one group are worth more than four in four groups.

`consistent` looks at the answers alone: whether they can all be true of one video, whichever it is. It is no measure of
being right: who always answers 0.0 s, 0.1 s, no and nothing hardly ever contradicts itself. Report it beside the share
of right answers, and "square" beside `independent_square`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.tasks import Event, Problem, naming, presence
from minikeye.minivid.tasks import score as score_simple
from minikeye.scores import SECONDS_TOLERANCE

_SECOND = re.compile(r"\s*([0-9]{1,9}\.[0-9])\s+s\s*")


class Group(NamedTuple):
    """Four problems that hang together."""

    come: Problem
    gone: Problem
    there: Problem
    names: Problem


def linked(things: Sequence[Event], thing: Event, frame: int, seconds: float, noted: Event | None = None) -> Group:
    """Task V about one thing of a video and the frame at `seconds`.

    things: all of the video, in the order in which they are named.  noted: the thing with the times that an annotator
    gave it; whether it is there, and what is, stays true: noted groups may contradict themselves.
    """
    told = noted or thing
    come = f"The {thing.name} comes in frame {told.first} at {told.start:.1f} s."
    gone = f"The {thing.name} is gone in frame {told.stop} at {told.end:.1f} s."
    return Group(
        Problem("V", f"At which second does the {thing.name} come?", f"{told.start:.1f} s", come),
        Problem("V", f"At which second is the {thing.name} gone?", f"{told.end:.1f} s", gone),
        presence(thing, frame, seconds),
        naming(things, frame, seconds),
    )


def parse_second(text: str) -> float | None:
    """The second of an answer to come or gone; None for any other text. Only white space may differ."""
    match = _SECOND.fullmatch(text)
    return float(match[1]) if match else None


def parse_names(text: str) -> tuple[str, ...] | None:
    """The things that an answer to task D names, none for "nothing"; None for a text that names other than things."""
    names = () if text == "nothing" else tuple(text.split(" and "))
    return names if set(names) <= set(KINDS) and len(set(names)) == len(names) else None


def score(problem: Problem, answer: str) -> dict[str, float]:
    """Come and gone: "second", within 0.5 s; "exact", whether it is the expected text."""
    said, truth = parse_second(answer), parse_second(problem.answer)
    near = said is not None and abs(said - truth) <= SECONDS_TOLERANCE + 1e-9
    return {"second": float(near), "exact": float(answer == problem.answer)}


def consistent(group: Group, answers: Sequence[str]) -> bool:
    """Whether four answers can be true together; the true ones do not matter. What cannot be read contradicts.

    It comes before it is gone; it is there from one to the other and at no other time; it is named where it is there.
    Raises ValueError for another number of answers.
    """
    if len(answers) != len(group):
        raise ValueError(f"expected {len(group)} answers to a group, got {len(answers)}")
    name, at = re.fullmatch(r"Is the (.*) visible at (.*) s\?", group.there.question).groups()
    come, gone, names = parse_second(answers[0]), parse_second(answers[1]), parse_names(answers[3])
    if come is None or gone is None or names is None or answers[2] not in ("yes", "no"):
        return False
    there = answers[2] == "yes"
    return come < gone and there == (come <= float(at) < gone) == (name in names)


def group_score(group: Group, answers: Sequence[str]) -> dict[str, float]:
    """ "share" of right answers N / 4; "square", its square; "all", whether all are right; "consistent".

    Seconds are right within 0.5 s, the rest to the letter. So four right answers may be inconsistent, where a second
    that is off by less than 0.5 s moves the frame in question out of the interval. Raises as `consistent` does.
    """
    held = consistent(group, answers)
    right = [score(problem, answer)["second"] for problem, answer in zip(group[:2], answers[:2], strict=True)]
    right += [score_simple(problem, answer)["exact"] for problem, answer in zip(group[2:], answers[2:], strict=True)]
    share = sum(right) / len(group)
    return {"share": share, "square": share**2, "all": float(share == 1), "consistent": float(held)}


def independent_square(shares: Sequence[float]) -> float:
    """Mean "square" of groups whose four answers are right independently of each other, with these probabilities.

    E[N^2] / 16 = (sum p (1 - p) + (sum p)^2) / 16; with one p for all p / 4 + 3 p^2 / 4. What is above hangs together.
    """
    return (sum(p * (1 - p) for p in shares) + sum(shares) ** 2) / len(shares) ** 2
