"""Scores of TimeLens-Bench: one interval said, one true. Its three sets are reported apart, never as one number."""

from collections.abc import Sequence

from minikeye.scores import Interval

THRESHOLDS = (0.3, 0.5, 0.7)


def iou(said: Interval | None, truth: Interval) -> float:
    """Length that two intervals share over the length from the first start to the last end; 0..1.

    0 for None and for an interval that does not end after it starts. `scores.temporal_iou` is the same number for
    intervals that touch, up to rounding; here the steps are those of the official script, so that a value on a
    threshold falls on the same side. Raises ValueError for a truth that does not end after it starts.
    """
    if not truth[0] < truth[1]:
        raise ValueError(f"the true interval must end after it starts, not {truth}: look at its row of the file")
    if said is None:
        return 0.0
    shared = min(said[1], truth[1]) - max(said[0], truth[0])
    return max(shared, 0.0) / (max(said[1], truth[1]) - min(said[0], truth[0]))


def recalls(ious: Sequence[float]) -> dict[str, float]:
    """Percent: "miou", the mean of the IoUs, and "r1@0.3", "r1@0.5", "r1@0.7", how many reach a threshold.

    Raises ValueError without IoUs, or for one outside 0..1.
    """
    if not ious or not all(0 <= value <= 1 for value in ious):
        raise ValueError(f"expected at least one IoU, each from 0 to 1, got {list(ious)[:8]}")
    reached = {f"r1@{least}": 100 * sum(value >= least for value in ious) / len(ious) for least in THRESHOLDS}
    return {"miou": 100 * sum(ious) / len(ious)} | reached
