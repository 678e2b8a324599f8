"""Scores of Video-MME-v2, whose four questions about a video count together.

In a "relevance" group all four ask about one thing, and a share of right answers counts as its square. In a "logic"
group the questions are the steps of one chain, some side by side: `[1, [2, 3], 4]` asks 2 and 3 in one step. A chain
ends with the first step that is not wholly right; the right answers of that step still count, later ones never do. An
answer of step n weighs 2n - 1, which makes 1, 4, 9, 16 of 16 of a chain without pairs: the squares again.
"""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

CHAINS = ([1, 2, 3, 4], [1, [2, 3], 4], [[1, 2], 3, 4])
Group = tuple[Sequence[bool], str | list[Any] | None, str]  # right, structure, kind: as `group_score` takes them


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


def non_linear(groups: Sequence[Group]) -> float:
    """Percent: mean score of groups (right, structure, kind), the benchmark's "Non-Lin". Raises as `group_score` does,
    and ValueError without groups."""
    if not groups:
        raise ValueError("expected at least one group of four answers, got none")
    return 100 * sum(group_score(*group) for group in groups) / len(groups)


def expected_score(p: float, structure: str | list[Any] | None, kind: str) -> float:
    """Mean score, 0..1, of a group whose answers are right with probability p each, whatever the others are.

    Chance is p = 1/8, of eight options. With p the accuracy measured, what a score has above this is consistency.
    Raises ValueError for p outside 0..1, and as `group_score` does.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"expected a probability from 0 to 1, got {p}")
    patterns = list(product((False, True), repeat=4))
    return sum(
        p ** sum(right) * (1 - p) ** (4 - sum(right)) * group_score(right, structure, kind) for right in patterns
    )


def _steps(structure: str | list[Any] | None) -> list[list[int]]:
    """The questions, from 1, of each step of a chain."""
    try:
        chain = json.loads(structure) if isinstance(structure, str) else structure
    except json.JSONDecodeError:
        chain = None
    if chain not in CHAINS:
        raise ValueError(f"the structure of a logic group is one of {', '.join(map(str, CHAINS))}, got {structure!r}")
    return [step if isinstance(step, list) else [step] for step in chain]
