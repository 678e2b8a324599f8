"""Scores of answers, and how sure an average of scores is.

Nothing here knows about models or videos: numbers in, numbers out. `minivid.tasks.parse_needle` and `parse_interval`
read the numbers off an answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]  # start and end in seconds, start < end

SECONDS_TOLERANCE = 0.5  # how far a needle's second may be off


@dataclass(frozen=True)
class NeedleScore:
    """How much of a needle answer is right. `both`: digit and second."""

    digit: bool  # the digit is right
    second: bool  # the second is within the tolerance

    @property
    def both(self) -> bool:
        return self.digit and self.second


@dataclass(frozen=True)
class Estimate:
    """An average with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int  # how many values were averaged


def temporal_iou(prediction: Sequence[Interval] | None, truth: Sequence[Interval]) -> float:
    """Length of what two sets of intervals share, over the length of what they cover together; 0..1.

    Intervals of one set may overlap: each moment counts once. An answer that could not be read (None) scores 0.
    Raises ValueError for an interval of either set that does not end after it starts, or a truth without intervals.
    """
    if not truth:
        raise ValueError("the truth needs at least one (start, end) interval")
    truth = _union(truth)
    prediction = _union(prediction or [])
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in prediction for b in truth)
    together = sum(end - start for start, end in (*prediction, *truth)) - shared
    return shared / together


def iou_recall(ious: Sequence[float], threshold: float) -> "Estimate":
    """Share of answers whose temporal IoU reaches the threshold ("R@1, IoU = 0.5"), with its interval."""
    return wilson(sum(iou >= threshold for iou in ious), len(ious))


def constant_iou(truths: Sequence[Interval], durations: Sequence[float], parts: int = 20) -> float:
    """Mean temporal IoU of the best answer that looks at no video: the same shares of every duration; 0..1.

    Shares are tried in steps of 1 / parts. What any score of grounding is to be held against. Raises ValueError without
    truths, or for another number of durations, or one that is not above 0.
    """
    if not truths or len(truths) != len(durations) or min(durations) <= 0:
        raise ValueError(f"expected truths and as many durations above 0, got {len(truths)} and {len(durations)}")
    shares = [[(a / d, b / d)] for (a, b), d in zip(truths, durations, strict=True)]
    grid = [(a / parts, b / parts) for b in range(parts + 1) for a in range(b)]
    return max(sum(temporal_iou([pair], truth) for truth in shares) for pair in grid) / len(truths)


def needle_score(prediction: tuple[int, float] | None, truth: tuple[int, float]) -> NeedleScore:
    """Score of a (digit, seconds) answer: the digit exactly, the second within 0.5 s. None is wrong in both."""
    if prediction is None:
        return NeedleScore(digit=False, second=False)
    # times have one decimal: the small term keeps a difference of exactly 0.5 from rounding to more
    close = abs(prediction[1] - truth[1]) <= SECONDS_TOLERANCE + 1e-9
    return NeedleScore(digit=prediction[0] == truth[0], second=close)


def wilson(successes: int, count: int) -> Estimate:
    """Share of successes with Wilson's 95 % score interval, which is honest near 0 and 1 too.

    Raises ValueError unless 0 <= successes <= count and count >= 1.
    """
    if not (count >= 1 and 0 <= successes <= count):
        raise ValueError(f"expected 0 <= successes <= count and count >= 1, got {successes} of {count}")
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), count)


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> Estimate:
    """Mean with the 95 % percentile interval of the means of `resamples` draws with replacement.

    For many values that are not yes or no, such as IoUs; for a few seeds there is `student_mean`. Raises ValueError
    without values, or for a table of them.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"expected a flat list of at least one value, got shape {list(array.shape)}")
    rng = np.random.default_rng(seed)
    means = np.array([array[rng.integers(len(array), size=len(array))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def student_mean(values: Sequence[float]) -> Estimate:
    """Mean with the 95 % interval of Student's t: for a handful of seeds, whose means are about normal.

    The interval of one value is infinite. Raises ValueError without values, or for a table of them.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"expected a flat list of at least one value, got shape {list(x.shape)}")
    from scipy.stats import t  # a second to import, and wanted here alone

    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.inf
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def _union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same moments as intervals that are in order and do not touch."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if not start < end:
            raise ValueError(f"an interval must end after it starts, not ({start}, {end})")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
