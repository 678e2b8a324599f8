"""Careless answers to questions that are not about times: a wrong colour or shape, a miscount, a slip in a sum.

For times see `labels`. An error is as likely as the truth, or nearly: a model that imitates this annotator says one as
readily as the other, which is what a reward can mend. All shares are our choice.
"""

import random
from collections.abc import Sequence

from minikeye.minivid.drawing.things import COLOURS, SHAPES
from minikeye.minivid.tasks import Problem

TASKS = ("C", "D", "T")


def slipped(problems: Sequence[Problem], numbers: Sequence[int], seed: int, share: float) -> list[Problem]:
    """The same questions of tasks C, D and T, a `share` of the answers wrong; the solution stays the true one.

    numbers: of the videos or sums. The same number of the same annotator, `seed`, slips again; another seed slips
    elsewhere. C is off by one, D calls one thing by a wrong colour or shape, T is off by one or has one wrong digit.
    What D says of an empty picture, "nothing", is always right. Raises ValueError for another task, another number of
    numbers, or a share outside 0..1.
    """
    if not 0 <= share <= 1 or len(numbers) != len(problems) or not {p.task for p in problems} <= {*TASKS}:
        raise ValueError(
            f"expected problems of tasks {', '.join(TASKS)}, a number for each and a share in 0..1, got tasks "
            f"{sorted({p.task for p in problems})}, {len(problems)} problems, {len(numbers)} numbers and {share}"
        )
    out = []
    for problem, number in zip(problems, numbers, strict=True):
        rng = random.Random(f"{seed} {problem.task} {number}")
        wrong = rng.random() < share
        out.append(problem._replace(answer=WRONG[problem.task](problem.answer, rng)) if wrong else problem)
    return out


def miscounted(answer: str, rng: random.Random) -> str:
    """One more or one less, not below 0.

    >>> {miscounted("2", random.Random(n)) for n in range(9)} == {"1", "3"}, miscounted("0", random.Random(0))
    (True, '1')
    """
    count = int(answer)
    return str(count + (rng.choice((-1, 1)) if count else 1))


def misnamed(answer: str, rng: random.Random) -> str:
    """One of the things has another colour or another shape.

    >>> misnamed("nothing", random.Random(0))
    'nothing'
    """
    if answer == "nothing":
        return answer
    things = answer.split(" and ")
    place = rng.randrange(len(things))
    colour, shape = things[place].split()
    if rng.random() < 0.5:
        colour = rng.choice([other for other in COLOURS if other != colour])
    else:
        shape = rng.choice([other for other in SHAPES if other != shape])
    things[place] = f"{colour} {shape}"
    return " and ".join(things)


def misadded(answer: str, rng: random.Random) -> str:
    """Off by one, or one digit is another; the first of several does not become 0."""
    if rng.random() < 0.5:
        return miscounted(answer, rng)
    place = rng.randrange(len(answer))
    digits = [d for d in "0123456789" if d != answer[place] and (d != "0" or place or len(answer) == 1)]
    return answer[:place] + rng.choice(digits) + answer[place + 1 :]


WRONG = {"C": miscounted, "D": misnamed, "T": misadded}
