"""Checkers of notebook 12, Video-RL."""

import math

from minikeye.exercises import checker, written
from minikeye.scores import temporal_iou

TRUTH = (4.0, 8.0)


@checker
def check_set_reward(answer):
    """answer(pairs or None, truth) -> temporal IoU of the pairs as a set of moments; 0 where one is no interval."""
    got = answer([TRUTH], TRUTH)
    written(got, "set_reward")

    def says(pairs, wanted: float, mistake: str) -> None:
        try:
            got = answer(pairs, TRUTH)
        except ZeroDivisionError:
            got = "a division by zero"
        assert isinstance(got, int | float) and math.isclose(got, wanted, abs_tol=1e-6), (
            f"{mistake}: {pairs} against {TRUTH} should earn {wanted:.3f}, got {got}"
        )

    says([TRUTH], 1.0, "the truth itself is right")
    whole = answer([(0.0, 12.0)], TRUTH)
    assert whole != 1.0, (
        "this pays for coverage alone, and the whole video wins without a look at it: divide by what answer and truth "
        "cover together, not by the truth"
    )
    says([(0.0, 12.0)], 1 / 3, "4 of 12 seconds")
    assert answer([(5.0, 6.0)], TRUTH) != 1.0, (
        "this pays for precision alone, and a sliver in the middle wins: divide by what answer and truth cover together"
    )
    says([(5.0, 6.0)], 0.25, "1 of 4 seconds")
    says([(9.0, 11.0)], 0.0, "nothing is shared: a length is never below 0")
    says([(4.0, 5.0), (6.0, 8.0)], 0.75, "all pairs count, and the gap between them does not")
    says([TRUTH, TRUTH], 1.0, "each moment counts once, however often it is said")
    says([(5.0, 9.0), (3.0, 6.0)], 4 / 6, "pairs may overlap and come in any order: merge them before you add lengths")
    says([(4.0, 8.0), (5.0, 6.0)], 1.0, "a pair inside another adds nothing, and takes nothing away")
    says([(8.0, 4.0)], 0.0, "a pair that ends before it starts is no interval, not one to be turned round")
    says([TRUTH, (9.0, 9.0)], 0.0, "one pair that is no interval, and the answer earns nothing")
    for nothing in ([], None):
        says(nothing, 0.0, "no pairs, no reward")


@checker
def check_best_constant(answer):
    """answer(truths, durations) -> ((a, b), mean temporal IoU) of the best share of the video, in twentieths."""
    durations = [10.0, 40.0, 20.0, 10.0, 30.0]
    truths = [(2.0, 6.0), (10.0, 22.0), (4.0, 9.0), (8.0, 9.5), (6.0, 15.0)]
    got = answer(list(truths), list(durations))
    written(got, "best_constant")
    try:
        (a, b), value = got
    except (TypeError, ValueError):
        raise AssertionError(f"expected ((a, b), mean temporal IoU), got {got}") from None
    grid = {(x / 20, y / 20): 0.0 for y in range(21) for x in range(y)}
    for share in grid:
        scores = [
            temporal_iou([(share[0] * d, share[1] * d)], [truth]) for truth, d in zip(truths, durations, strict=True)
        ]
        grid[share] = sum(scores) / len(scores)
    best = max(grid, key=grid.get)
    assert 0 <= a < b, f"a share that ends after it starts, got {a} to {b}"
    assert b <= 1, f"{a} to {b} are seconds: return shares of the video, 0 to 1, since videos differ in length"
    assert value <= 1, f"the mean temporal IoU is a number from 0 to 1, got {value}"
    assert not math.isclose(value, sum(grid.values()) / len(grid), abs_tol=1e-6), "this is the mean over all shares"
    where = f"{best[0]:.2f} to {best[1]:.2f} with {grid[best]:.3f}"
    near = math.isclose(a, best[0], abs_tol=1e-6) and math.isclose(b, best[1], abs_tol=1e-6)
    assert near, (
        f"the best share is {where}, got {a:.2f} to {b:.2f}: the middle of the truths is not the share with the best "
        f"score, and a truth is a share of its own video's duration"
    )
    assert math.isclose(value, grid[best], abs_tol=1e-6), (
        f"right share, wrong score: average the temporal IoU over the videos, {grid[best]:.3f}; got {value:.3f}"
    )
    one = answer([(0.0, 5.0)], [5.0])
    assert one[0] == (0, 1) and math.isclose(one[1], 1.0), (
        f"a thing that is there all the time is found by the whole video, share 0 to 1: got {one}"
    )
