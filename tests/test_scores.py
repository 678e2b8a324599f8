"""Scores against hand values, scikit-learn and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import jaccard_score

from minikeye.scores import Estimate, bootstrap_mean, iou_recall, needle_score, student_mean, temporal_iou, wilson

interval = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))
intervals = st.lists(interval, min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ([(3.0, 9.5)], [(3.0, 9.5)], 1.0),
        ([(0.0, 2.0)], [(1.0, 3.0)], 1 / 3),
        ([(0.0, 1.0)], [(1.0, 2.0)], 0.0),
        ([(0.0, 1.0), (2.0, 3.0)], [(0.0, 3.0)], 2 / 3),
        ([(0.0, 2.0), (1.0, 3.0)], [(0.0, 3.0)], 1.0),  # overlapping predictions count once
        (None, [(0.0, 1.0)], 0.0),
        ([], [(0.0, 1.0)], 0.0),
    ],
)
def test_temporal_iou_by_hand(prediction, truth, expected: float) -> None:
    assert temporal_iou(prediction, truth) == pytest.approx(expected)


@given(prediction=intervals, truth=intervals)
def test_temporal_iou_is_the_jaccard_score_of_ticks(prediction, truth) -> None:
    def ticks(of) -> list[bool]:
        return [any(start <= tick < end for start, end in of) for tick in range(80)]

    in_seconds = [[(start / 10, end / 10) for start, end in of] for of in (prediction, truth)]
    assert temporal_iou(*in_seconds) == pytest.approx(jaccard_score(ticks(truth), ticks(prediction)))


def test_intervals_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="must end after it starts"):
        temporal_iou([(2.0, 2.0)], [(0.0, 1.0)])
    with pytest.raises(ValueError, match="at least one"):
        temporal_iou([(2.0, 3.0)], [])


@pytest.mark.parametrize(
    ("prediction", "digit", "second"),
    [
        ((7, 12.5), True, True),
        ((7, 13.0), True, True),
        ((7, 13.1), True, False),
        ((1, 12.0), False, True),
        (None, False, False),
    ],
)
def test_needle_score(prediction, digit: bool, second: bool) -> None:
    score = needle_score(prediction, (7, 12.5))
    assert (score.digit, score.second, score.both) == (digit, second, digit and second)


def test_needle_tolerance_does_not_depend_on_rounding() -> None:
    for tenths in range(5, 3000):
        assert needle_score((1, (tenths - 5) / 10), (1, tenths / 10)).second
        assert not needle_score((1, (tenths + 6) / 10), (1, tenths / 10)).second


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (1, 1), (98, 128), (250, 256)])
def test_wilson_is_scipys(successes: int, count: int) -> None:
    ours = wilson(successes, count)
    theirs = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.mean == successes / count and ours.count == count


def test_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(0).beta(2, 1, size=60)
    ours = bootstrap_mean(values.tolist(), seed=1)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.mean == pytest.approx(values.mean())


def test_iou_recall_counts_what_reaches_the_threshold() -> None:
    recall = iou_recall([0.2, 0.5, 0.9, 1.0], 0.5)
    assert recall.mean == 0.75 and recall.count == 4


def test_averages_of_nothing_are_refused() -> None:
    for attempt in (lambda: wilson(0, 0), lambda: wilson(3, 2), lambda: bootstrap_mean([])):
        with pytest.raises(ValueError):
            attempt()


def test_student_mean_is_scipys():
    values = [97.0, 99.0, 98.0, 100.0, 96.5]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    got = student_mean(values)
    assert (got.mean, got.low, got.high, got.count) == pytest.approx((np.mean(values), low, high, 5))
    assert student_mean([5.0]) == Estimate(5.0, -math.inf, math.inf, 1)
    with pytest.raises(ValueError, match="at least one value, got shape"):
        student_mean([])


@pytest.mark.parametrize("mean", [student_mean, bootstrap_mean])
def test_a_table_is_no_list_of_values(mean):
    with pytest.raises((ValueError, TypeError)):  # TypeError where annotations are enforced
        mean([[1.0, 2.0], [3.0, 4.0]])
