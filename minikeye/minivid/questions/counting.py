"""Task C: how many things there are, all of them or those of a colour or a shape.

| question | answer |
|---|---|
| How many things are visible in the video? | 3 |
| How many red things are visible in the video? | 1 |
| How many circles are visible in the video? | 0 |

A thing counts once however long it is there; no two things of a video are the same. A card is no thing. The answer is a
whole number and nothing else, as the report's counting expert is gated. The evidence is when each of them is there:
none for a count of 0.
"""

import re
from collections.abc import Sequence

from minikeye.minivid.drawing.things import COLOURS, SHAPES
from minikeye.minivid.tasks import Event, Evidence, Problem, Solved, named

ALL = "thing"
WANTED = (ALL, *COLOURS, *SHAPES)  # what can be counted

_COUNT = re.compile(r"\s*([0-9]{1,18})\s*")  # int() refuses thousands of digits: such an answer is no count either


def counting(things: Sequence[Event], wanted: str = ALL) -> Solved:
    """Task C about the things of a video. wanted: one of WANTED. Raises ValueError for another word."""
    if wanted not in WANTED:
        raise ValueError(f"expected one of {', '.join(WANTED)} to count, got {wanted!r}")
    counted = named([thing for thing in things if wanted == ALL or wanted in thing.name.split()])
    what = f"{wanted} things" if wanted in COLOURS else f"{wanted}s"
    when = [f"the {thing.name} from {thing.start:.1f} s to {thing.end:.1f} s" for thing in counted]
    solution = f"Of the {what} in the video there is {', '.join(when) or 'none'}: {len(counted)}."
    problem = Problem("C", f"How many {what} are visible in the video?", str(len(counted)), solution)
    return Solved(problem, Evidence(tuple(sorted((thing.start, thing.end) for thing in counted))))


def parse_count(text: str) -> int | None:
    """The number of an answer to task C; None for any other text. White space and leading zeros may differ."""
    match = _COUNT.fullmatch(text)
    return int(match[1]) if match else None


def score(problem: Problem, answer: str) -> dict[str, float]:
    """Task C: "count", whether it is the right number; "exact", whether it is the expected text."""
    said = parse_count(answer)
    return {"count": float(said == parse_count(problem.answer)), "exact": float(answer == problem.answer)}
