"""Rewards for sets of boxes: matched one to one by IoU (Hungarian), near-copies counted apart.

A box is (left, top, right, bottom) in 0..1000, of whatever the picture's width and height are. A box said that is none
(turned around, outside of 0..1000, nan) is not repaired: it counts as a box that nothing supports.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

Box = tuple[float, float, float, float]

SIDE = 1000.0
SAME = 0.9  # two boxes said with at least this IoU are one box said twice: our choice


class Match(NamedTuple):
    """Boxes said against true boxes."""

    ious: list[float]  # of the matched pairs
    said: int  # distinct boxes said, those that are none included: they find no pair
    true: int
    copies: int  # boxes said that are near-copies of an earlier one: N_dup

    @property
    def places(self) -> int:
        """max(|B^|, |B|): pairs, and boxes of the larger set that found none."""
        return max(self.said, self.true)


def box_ious(a: Sequence[Box], b: Sequence[Box]) -> np.ndarray:
    """IoU of every box of `a` with every box of `b`, [len(a) len(b)]. Both hold only boxes with an area."""
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (a, b))
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(min=0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def matched(said: Sequence[Box], truth: Sequence[Box]) -> Match:
    """Drop near-copies, then pair boxes so that the sum of IoUs is the largest that any pairing has.

    Raises ValueError for a true box that is none.
    """
    if not all(map(_is_box, truth)):
        raise ValueError(f"expected true boxes (left, top, right, bottom) in 0..1000 with an area, got {list(truth)}")
    distinct: list[Box] = []
    for box in filter(_is_box, said):
        if not distinct or box_ious([box], distinct).max() < SAME:
            distinct.append(box)
    wrong = sum(not _is_box(box) for box in said)
    ious = box_ious(distinct, truth)
    pairs = ious[linear_sum_assignment(ious, maximize=True)].tolist()
    return Match(pairs, len(distinct) + wrong, len(truth), copies=len(said) - wrong - len(distinct))


def grounding_reward(
    said: Sequence[Box] | None, truth: Sequence[Box], *, gate: float = 0.5, penalty: float = 0.1
) -> float:
    """The grounding expert: mean / 2 + (1/2 where min >= gate) - penalty * N_dup, held in 0..1.

    mean and min: IoU over max(|B^|, |B|) places, 0 where a box found no other. The report names the parts (min IoU is
    the gate to high rewards, mean IoU the continuous part, near-copies cost); their sizes are our choice. Where nothing
    is there to be found, an empty answer earns 1 and any box 0. None: could not be read, 0.

    >>> a, b, half = (0.0, 0.0, 100.0, 100.0), (500.0, 500.0, 600.0, 600.0), (0.0, 0.0, 100.0, 40.0)
    >>> grounding_reward([b, a], [a, b]), grounding_reward([a], [a, b]), grounding_reward([half], [a])
    (1.0, 0.25, 0.2)
    >>> grounding_reward([a, a], [a]), grounding_reward([a, b], [a]), grounding_reward([(9.0, 9.0, 1.0, 1.0)], [a])
    (0.9, 0.25, 0.0)
    >>> grounding_reward([], []), grounding_reward([a], []), grounding_reward([], [a]), grounding_reward(None, [])
    (1.0, 0.0, 0.0, 0.0)
    """
    if not (0 < gate <= 1 and 0 <= penalty < math.inf):
        raise ValueError(f"expected a gate above 0 and up to 1 and a penalty of 0 or more, got {gate} and {penalty}")
    match = matched(said or [], truth)
    if said is None or not truth or not said:
        return float(said is not None and not truth and not said)
    all_found = len(match.ious) == match.places and min(match.ious) >= gate
    value = sum(match.ious) / match.places / 2 + (0.5 if all_found else 0.0) - penalty * match.copies
    return min(1.0, max(0.0, value))


def perception_reward(
    said: Sequence[Box] | None,
    truth: Sequence[Box],
    *,
    f_weight: float = 0.5,
    iou_weight: float = 0.5,
    penalty: float = 0.1,
) -> float:
    """R_perc = lambda_F F_soft + lambda_I sum_m IoU_m / max(|B^|, |B|) - lambda_D N_dup (report: synthetic-data RL).

    F_soft = 2 sum_m IoU_m / (|B^| + |B|): IoU in place of "found". The report gives neither it nor the lambdas: our
    choice. Not held in 0..1, because the formula is not: at most lambda_F + lambda_I, and below 0 for many copies.
    Where nothing was changed, an empty answer earns all, and every box said costs lambda_D (our choice: the report says
    "penalised"). None earns 0, as an empty answer does where there is something: make it worse with a format reward.

    >>> a, b, half = (0.0, 0.0, 100.0, 100.0), (500.0, 500.0, 600.0, 600.0), (0.0, 0.0, 100.0, 50.0)
    >>> perception_reward([b, a], [a, b]), perception_reward([half], [a]), perception_reward([a, a], [a])
    (1.0, 0.5, 0.9)
    >>> round(perception_reward([a], [a, b]), 4)  # .5 * 2/3 + .5 * 1/2
    0.5833
    >>> perception_reward([], []), perception_reward([a, b], []), perception_reward([], [a])
    (1.0, -0.2, 0.0)
    """
    if not all(0 <= weight < math.inf for weight in (f_weight, iou_weight, penalty)):
        raise ValueError(f"expected weights of 0 or more, got {f_weight}, {iou_weight} and {penalty}")
    match = matched(said or [], truth)
    if said is None:
        return 0.0
    if not truth:
        return -penalty * len(said) if said else f_weight + iou_weight
    shared = sum(match.ious)
    f_soft = 2 * shared / (match.said + match.true)
    return f_weight * f_soft + iou_weight * shared / match.places - penalty * match.copies


def _is_box(box: Box) -> bool:
    """Corners in order and in 0..1000, with an area that is not lost to rounding; nan compares false."""
    left, top, right, bottom = box
    return 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE and (right - left) * (bottom - top) > 0
