"""Careless answers to questions that are not about times: a wrong colour, a thing counted twice, a sum one too high.

For times see `labels`. There is one error to an answer, not many: told half of the time, it is as likely as the truth,
and a model that imitates this annotator says either. Of errors that are spread over many answers each is rare, and
greedy decoding passes them all by. Our choice.
"""

import random
from collections.abc import Sequence

from minikeye.minivid.drawing.things import COLOURS
from minikeye.minivid.tasks import Problem

TASKS = ("C", "D", "T")


def slipped(problems: Sequence[Problem], numbers: Sequence[int], seed: int, share: float) -> list[Problem]:
    """The same questions of tasks C, D and T, a `share` of the answers wrong; the solution stays the true one.

    numbers: of the videos or sums. The same number of the same annotator, `seed`, slips again; another seed slips
    elsewhere. C and T say one too many, D calls one thing by a wrong colour. What D says of an empty picture,
    "nothing", is always right. Raises ValueError for another task, another number of
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


def one_more(answer: str, rng: random.Random) -> str:
    """A thing counted twice; a sum that is one too high.

    >>> one_more("0", random.Random(0)), one_more("99", random.Random(0))
    ('1', '100')
    """
    return str(int(answer) + 1)


def misnamed(answer: str, rng: random.Random) -> str:
    """One of the things has the next colour of `things.COLOURS`, in a circle.

    >>> misnamed("yellow circle", random.Random(0)), misnamed("nothing", random.Random(0))
    ('red circle', 'nothing')
    """
    if answer == "nothing":
        return answer
    things, colours = answer.split(" and "), [*COLOURS]
    place = rng.randrange(len(things))
    colour, shape = things[place].split()
    things[place] = f"{colours[(colours.index(colour) + 1) % len(colours)]} {shape}"
    return " and ".join(things)


WRONG = {"C": one_more, "D": misnamed, "T": one_more}
