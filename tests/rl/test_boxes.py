"""Box rewards against pairing by hand, cells of a grid, and boxes that are none."""

import doctest
import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.rl import boxes
from minikeye.rl.boxes import box_ious, grounding_reward, matched, perception_reward

side = st.tuples(st.integers(0, 15), st.integers(1, 8))
box = st.tuples(side, side).map(
    lambda p: (float(p[0][0]), float(p[1][0]), float(p[0][0] + p[0][1]), float(p[1][0] + p[1][1]))
)
anything = st.tuples(*[st.floats()] * 4)
A, B = (0.0, 0.0, 100.0, 100.0), (500.0, 500.0, 600.0, 600.0)


def cells(of) -> set[tuple[int, int]]:
    """Unit squares inside a box with whole corners."""
    left, top, right, bottom = map(int, of)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def iou(a, b) -> float:
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def test_the_tables_of_examples_are_right():
    done = doctest.testmod(boxes)
    assert done.failed == 0 and done.attempted > 5


@given(st.lists(box, min_size=1, max_size=3), st.lists(box, min_size=1, max_size=3))
def test_iou_counts_cells(a, b):
    assert box_ious(a, b) == pytest.approx(np.array([[iou(x, y) for y in b] for x in a]))


@given(st.lists(box, max_size=5), st.lists(box, max_size=5))
def test_pairing_is_the_best_of_all(said, truth):
    """Against every way to pair the boxes that are no near-copies."""
    distinct = []
    for one in said:
        if all(iou(one, other) < 0.9 for other in distinct):
            distinct.append(one)
    few, many = sorted((distinct, truth), key=len)
    best = max(sum(iou(x, y) for x, y in zip(few, order, strict=False)) for order in permutations(many, len(few)))
    match = matched(said, truth)
    assert sum(match.ious) == pytest.approx(best) and len(match.ious) == len(few)
    assert (match.said, match.true, match.copies) == (len(distinct), len(truth), len(said) - len(distinct))


@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=4))
def test_rewards_are_their_formulas(said, truth):
    match = matched(said, truth)
    us, places = match.ious, max(match.said, match.true)
    slots = us + [0.0] * (places - len(us))
    value = sum(slots) / places / 2 + 0.5 * (min(slots) >= 0.5) - 0.1 * match.copies
    assert grounding_reward(said, truth) == pytest.approx(min(1.0, max(0.0, value)))
    precision, recall = sum(us) / match.said, sum(us) / match.true
    f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    weights = {"f_weight": 0.7, "iou_weight": 0.2, "penalty": 0.3}
    expected = 0.7 * f + 0.2 * sum(us) / places - 0.3 * match.copies
    assert perception_reward(said, truth, **weights) == pytest.approx(expected)


@given(st.none() | st.lists(anything | box, max_size=4), st.lists(box, max_size=3))
def test_no_answer_leaves_its_range(said, truth):
    """0..1 for grounding; -lambda_D a box to lambda_F + lambda_I for perception."""
    assert 0.0 <= grounding_reward(said, truth) <= 1.0
    assert -0.1 * len(said or []) <= perception_reward(said, truth) <= 1.0 + 1e-12


@pytest.mark.parametrize(
    "none",
    [(9.0, 0.0, 1.0, 5.0), (0.0, 0.0, 0.0, 5.0), (0.0, 0.0, 1001.0, 5.0), (-1.0, 0.0, 5.0, 5.0), (math.nan,) * 4],
)
def test_a_box_that_is_none_supports_nothing(none):
    """It takes a place, as a box far away would; as a truth it is refused."""
    far = (900.0, 0.0, 999.0, 50.0)
    for reward in (grounding_reward, perception_reward):
        assert reward([none, A], [A]) == reward([far, A], [A]) < reward([A], [A])
        assert reward([none, A], [A, B]) == reward([far, A], [A, B])
        assert reward([none], []) == reward([far], []) <= 0.0
        with pytest.raises(ValueError, match="expected true boxes"):
            reward([A], [none])


def test_near_copies_are_told_from_neighbours():
    """0.95 of the same box is said twice, and the first one stays; 0.85 is another box."""
    near, other = (0.0, 0.0, 100.0, 95.0), (0.0, 0.0, 100.0, 85.0)
    assert matched([near, A], [A]) == ([0.95], 1, 1, 1)
    assert matched([other, A], [A]) == ([1.0], 2, 1, 0)


def test_gate_and_penalty():
    """Just above the gate is worth much more than just below; copies cost, and cannot push grounding below 0."""
    above, below = (0.0, 0.0, 100.0, 50.0), (0.0, 0.0, 100.0, 49.0)
    assert grounding_reward([above], [A]) == pytest.approx(0.75)
    assert grounding_reward([below], [A]) == pytest.approx(0.245)
    assert grounding_reward([A, below, B], [A, B]) == pytest.approx(1 / 3)  # a third box: the least is 0
    assert grounding_reward([A] * 50, [A]) == 0.0
    assert perception_reward([A] * 50, [A]) == pytest.approx(1 - 4.9)
    for bad in ({"gate": 0.0}, {"gate": 1.1}, {"gate": math.nan}, {"penalty": -0.1}, {"penalty": math.inf}):
        with pytest.raises(ValueError, match="expected a gate"):
            grounding_reward([A], [A], **bad)
    for bad in ({"f_weight": -1.0}, {"iou_weight": math.nan}, {"penalty": math.inf}):
        with pytest.raises(ValueError, match="expected weights"):
            perception_reward([A], [A], **bad)
