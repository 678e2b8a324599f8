"""Scores of TimeLens, of right and wrong answers and of needles, by hand; intervals, by all draws counted."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.evaluation.benchmarks.choice_scores import (
    accuracy,
    bootstrap,
    circular,
    mean_over,
    niah_cells,
    niah_mean,
    soft_count,
)
from minikeye.evaluation.benchmarks.timelens_scores import iou, recalls
from minikeye.scores import bootstrap_mean, temporal_iou, wilson

Y, N = True, False
ticks = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: (pair[0] / 10, pair[1] / 10))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((2.0, 6.0), 1.0),
        ((4.0, 8.0), 1 / 3),
        ((3.0, 5.0), 0.5),
        ((6.0, 8.0), 0.0),
        ((10.0, 12.0), 0.0),
        ((6.0, 2.0), 0.0),  # the end before the start
        ((3.0, 3.0), 0.0),
        ((9.0, 1.0), 0.0),
        (None, 0.0),
    ],
)
def test_iou_by_hand(said, expected):
    assert iou(said, (2.0, 6.0)) == pytest.approx(expected)


@given(said=ticks, truth=ticks)
def test_iou_is_that_of_all_minikeye(said, truth):
    """Backwards intervals score 0; a truth cannot be one."""
    if truth[0] >= truth[1]:
        with pytest.raises(ValueError, match="true interval must end after it starts"):
            iou(said, truth)
    else:
        expected = temporal_iou([said], [truth]) if said[0] < said[1] else 0.0
        assert iou(said, truth) == pytest.approx(expected, abs=1e-12)


def test_recalls_by_hand():
    expected = {"miou": 45.0, "r1@0.3": 75.0, "r1@0.5": 50.0, "r1@0.7": 25.0}
    assert recalls([0.0, 0.3, 0.5, 1.0]) == pytest.approx(expected)  # a threshold is reached at its value
    assert recalls([0.29, 0.49, 0.69, 0.7]) == pytest.approx(
        {"miou": 54.25, "r1@0.3": 75.0, "r1@0.5": 50.0, "r1@0.7": 25.0}
    )


@pytest.mark.parametrize("ious", [[], [0.5, 1.5], [-100.0], [float("nan")]])
def test_recalls_of_what_is_no_iou_are_refused(ious):
    with pytest.raises(ValueError, match="at least one IoU, each from 0 to 1"):
        recalls(ious)


def test_accuracy_and_mean_over_tasks():
    """Four of five questions, but one of two tasks: 80 % of the questions, 50 % of the tasks."""
    tasks = {"plot": [Y, Y, Y, Y], "count": [N]}
    assert mean_over(tasks) == 50.0
    assert accuracy([right for task in tasks.values() for right in task]) == 80.0
    assert mean_over({"plot": [Y, N, N], "count": [Y, Y]}) == pytest.approx((100 / 3 + 100) / 2)


def test_circular_wants_all_rotations():
    asked = [[Y, Y, Y, Y], [Y, Y, Y, N], [N, N, N, N], [Y, Y, Y, Y]]
    assert circular(asked) == 50.0  # where 11 of 16 answers are right
    with pytest.raises(ValueError, match=r"same number of rotations, got \[3, 4\]"):
        circular([[Y, Y, Y, Y], [Y, Y, Y]])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([1, 0, 2], 1.0),
        ([1, 0, 3], 2 / 3),
        ([0, 1, 2], 1 / 3),  # place by place, not as a set
        ([1, 0], 2 / 3),
        ([1, 0, 2, 7], 1.0),
        ([], 0.0),
        (None, 0.0),
    ],
)
def test_soft_count(said, expected):
    assert soft_count(said, [1, 0, 2]) == pytest.approx(expected)


def test_needles_by_cell():
    asked = [(400, 0.0, Y), (200, 1.0, Y), (200, 0.0, N), (200, 0.0, Y), (400, 1.0, N), (400, 0.0, Y), (400, 0.0, N)]
    cells = niah_cells(asked)
    assert list(cells) == [(200, 0.0), (200, 1.0), (400, 0.0), (400, 1.0)]
    assert list(cells.values()) == [wilson(1, 2), wilson(1, 1), wilson(2, 3), wilson(0, 1)]
    # each cell once: not the 4 of 7 needles
    assert niah_mean(cells) == pytest.approx(100 * (1 / 2 + 1 + 2 / 3 + 0) / 4)


def test_a_grid_has_no_holes_and_ends_at_1():
    with pytest.raises(ValueError, match=r"nothing was asked at \[\(400, 0\.5\)\]"):
        niah_cells([(200, 0.0, Y), (200, 0.5, Y), (400, 0.0, Y)])
    for frames, depth in ((0, 0.5), (200, 1.2), (200, -0.2)):
        with pytest.raises(ValueError, match="at least one frame and a depth from 0 to 1"):
            niah_cells([(frames, depth, Y)])


def test_means_of_nothing_are_refused():
    for attempt in (
        lambda: accuracy([]),
        lambda: mean_over({}),
        lambda: mean_over({"plot": [Y], "count": []}),
        lambda: circular([]),
        lambda: circular([[]]),
        lambda: soft_count([1], []),
        lambda: niah_mean(niah_cells([])),
    ):
        with pytest.raises(ValueError, match="expected"):
            attempt()


def test_bootstrap_draws_clusters_whole():
    """Four videos of 1, 2, 1 and 4 questions: their 256 equally likely draws, counted one by one."""
    videos = {"a": [1.0], "b": [0.0, 1.0], "c": [0.0], "d": [1.0, 1.0, 1.0, 0.0]}
    means = []
    for draw in product(videos, repeat=4):
        values = [value for name in draw for value in videos[name]]
        means.append(sum(values) / len(values))
    names, values = zip(*((name, value) for name in "dbac" for value in videos[name]), strict=True)
    assert bootstrap(values, names, seed=0) == pytest.approx(np.quantile(means, (0.025, 0.975)))


def test_bootstrap_by_cluster_knows_what_is_independent():
    """Four equal answers to each video tell as much as one; all of one video tell nothing about others."""
    values = np.random.default_rng(0).integers(0, 2, size=40).astype(float)
    names = [f"{n:02}" for n in range(40)]
    alone = bootstrap_mean(values.tolist(), seed=3)
    assert bootstrap(values.tolist(), names, seed=3) == pytest.approx((alone.low, alone.high))
    assert bootstrap(np.repeat(values, 4).tolist(), names * 4, seed=3) != pytest.approx((alone.low, alone.high))
    repeated = bootstrap(np.repeat(values, 4).tolist(), np.repeat(names, 4).tolist(), seed=3)
    assert repeated == pytest.approx((alone.low, alone.high))
    assert bootstrap([0.0, 1.0, 1.0], ["a"] * 3, seed=0) == pytest.approx((2 / 3, 2 / 3))


def test_bootstrap_wants_a_name_for_each_value():
    for values, names in (([], []), ([1.0, 0.0], ["a"])):
        with pytest.raises(ValueError, match="as many names of clusters"):
            bootstrap(values, names)
