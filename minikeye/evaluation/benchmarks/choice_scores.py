"""Scores of answers that are right or wrong: shares, means of shares, and how sure a mean over videos is.

An answer that could not be read is a wrong one here (False); how many those were is reported beside the score.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from minikeye.scores import Estimate, wilson


def accuracy(right: Sequence[bool]) -> float:
    """Percent of answers that are right. Raises ValueError without answers."""
    if not right:
        raise ValueError("expected at least one answer, got none")
    return 100 * sum(right) / len(right)


def mean_over(tasks: Mapping[str, Sequence[bool]]) -> float:
    """Percent: mean of the tasks' accuracies, each task counting once however many questions it has (MLVU's M-Avg).

    Raises ValueError without tasks, or for one without answers.
    """
    if not tasks or (empty := [name for name, right in tasks.items() if not right]):
        raise ValueError(f"expected answers to every task, got {f'none to {empty}' if tasks else 'no tasks'}")
    return sum(map(accuracy, tasks.values())) / len(tasks)


def circular(right_by_question: Sequence[Sequence[bool]]) -> float:
    """Percent of questions that are right in all rotations of their options (VNBench; four rotations there).

    Raises ValueError without questions, or where they were not asked equally often: a lost rotation would be a gift.
    """
    asked = {len(right) for right in right_by_question}
    if len(asked) != 1 or 0 in asked:
        raise ValueError(
            f"expected every question in the same number of rotations, got {sorted(asked) or 'no question'}"
        )
    return accuracy([all(right) for right in right_by_question])


def soft_count(said: Sequence[int] | None, true: Sequence[int]) -> float:
    """Share, 0..1, of the true counts that stand in the same place of the list said (MM-NIAH); average over answers.

    A missing count is wrong, one too many is not looked at; a list that could not be read, None, scores 0. Raises
    ValueError without true counts.
    """
    if not true:
        raise ValueError("expected at least one true count, got none")
    return sum(a == b for a, b in zip(said or (), true, strict=False)) / len(true)


def niah_cells(asked: Sequence[tuple[int, float, bool]]) -> dict[tuple[int, float], Estimate]:
    """The heat map of V-NIAH: (frames, depth) -> share of needles found, with its 95 % interval, sorted.

    asked: for each needle the frames of the haystack, its depth (0 the first frame, 1 behind the last) and whether the
    answer was right. Published are 200 to 3,000 frames in steps of 200 and depths 0 to 1 in steps of 0.2, five needles
    a cell; five move a cell by 20 points, so ask 64. Raises ValueError for a depth outside 0..1, and for a grid with
    holes: the mean over cells would be one over other lengths and depths.
    """
    cells = defaultdict(list)
    for frames, depth, right in asked:
        if frames < 1 or not 0 <= depth <= 1:
            raise ValueError(f"expected at least one frame and a depth from 0 to 1, got {frames} and {depth}")
        cells[frames, depth].append(right)
    grid = sorted((frames, depth) for frames in {n for n, _ in cells} for depth in {d for _, d in cells})
    if missing := [cell for cell in grid if cell not in cells]:
        raise ValueError(f"expected every length at every depth, nothing was asked at {missing[:8]}")
    return {cell: wilson(sum(cells[cell]), len(cells[cell])) for cell in grid}


def niah_mean(cells: Mapping[tuple[int, float], Estimate]) -> float:
    """Percent: mean over the cells, each counting once. Raises ValueError without cells."""
    if not cells:
        raise ValueError("expected at least one cell, got none")
    return 100 * sum(cell.mean for cell in cells.values()) / len(cells)


def bootstrap(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval (low, high) of a mean whose values are not independent, such as those of one video.

    Whole clusters are drawn with replacement, as many as there are; a draw is the mean of all values in it. clusters:
    the name of each value's. With one value a cluster this is that of `scores.bootstrap_mean`. Raises ValueError
    without values, or for another number of names.
    """
    if len(values) == 0 or len(clusters) != len(values):
        raise ValueError(f"expected values and as many names of clusters, got {len(values)} and {len(clusters)}")
    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(number, weights=np.asarray(values, dtype=np.float64)), np.bincount(number)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(sums), size=len(sums)) for _ in range(resamples))
    low, high = np.quantile([sums[drawn].sum() / sizes[drawn].sum() for drawn in draws], (0.025, 0.975))
    return float(low), float(high)
