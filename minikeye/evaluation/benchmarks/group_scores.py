"""Scores of Video-MME-v2, whose four questions about a video count together.

In a "relevance" group all four ask about one thing, and a share of right answers counts as its square. In a "logic"
group the questions are the steps of one chain, some side by side: `[1, [2, 3], 4]` asks 2 and 3 in one step. A chain
ends with the first step that is not wholly right; the right answers of that step still count, later ones never do. An
answer of step n weighs 2n - 1, which makes 1, 4, 9, 16 of 16 of a chain without pairs: the squares again.
"""

import json
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

CHAINS = ([1, 2, 3, 4], [1, [2, 3], 4], [[1, 2], 3, 4])


def group_score(right: Sequence[bool], structure: str | list[Any] | None, kind: str) -> float:
    """Score, 0..1, of the four answers to one video, in the order of the questions.

    structure: one of CHAINS or its text ("[1, [2, 3], 4]"); a relevance group has none, and it is not looked at. kind:
    "relevance" or "logic". Raises ValueError for another number of answers, structure or kind.
    """
    if len(right) != 4:
        raise ValueError(f"a group is four answers, got {len(right)}: a score without the others would be another one")
    if kind == "relevance":
        return (sum(right) / 4) ** 2
    if kind != "logic":
        raise ValueError(f'the kind of a group is "relevance" or "logic", got {kind!r}')
    earned = total = 0
    ended = False
    for weight, step in zip((1, 3, 5, 7), _steps(structure), strict=False):
        hits = 0 if ended else sum(right[question - 1] for question in step)
        earned, total = earned + weight * hits, total + weight * len(step)
        ended = hits < len(step)
    return earned / total


def non_linear(groups: Sequence[float]) -> float:
    """Percent: the mean of `group_score` over groups, the benchmark's "Non-Lin". Raises ValueError without groups, or
    for a score outside 0..1."""
    if not groups or not all(0 <= score <= 1 for score in groups):
        raise ValueError(f"expected the scores of at least one group, each from 0 to 1, got {list(groups)[:8]}")
    return 100 * sum(groups) / len(groups)


def expected_score(chances: Sequence[float], structure: str | list[Any] | None, kind: str) -> float:
    """Mean score, 0..1, of a group whose four answers are each right with its chance, whatever the others are.

    With 1/8, of eight options, it is what guessing scores. With the accuracy that was measured it is what the score
    would be without consistency: the excess is worth a look. Raises ValueError for a chance outside 0..1, and as
    `group_score` does.
    """
    if not all(0 <= chance <= 1 for chance in chances):
        raise ValueError(f"expected chances from 0 to 1, got {list(chances)}")
    total = 0.0
    for right in product((False, True), repeat=len(chances)):
        likely = prod(chance if hit else 1 - chance for hit, chance in zip(right, chances, strict=True))
        total += likely * group_score(right, structure, kind)
    return total


def _steps(structure: str | list[Any] | None) -> list[list[int]]:
    """The questions, from 1, of each step of a chain."""
    try:
        chain = json.loads(structure) if isinstance(structure, str) else structure
    except json.JSONDecodeError:
        chain = None
    if chain not in CHAINS:
        raise ValueError(f"the structure of a logic group is one of {', '.join(map(str, CHAINS))}, got {structure!r}")
    return [step if isinstance(step, list) else [step] for step in chain]
