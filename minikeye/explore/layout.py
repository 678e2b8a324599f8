"""Where things go in the picture of a FrameCounts: which frames, which columns, which ticks. Nothing is drawn here.

Axes: f frame, n column of the heat map.
"""

import numpy as np
from jaxtyping import Float64
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from minikeye.explore.selection import FrameCounts
from minikeye.explore.words import percent

MAX_COLUMNS = 256  # at 1,000 pixels more would be narrower than four pixels


def columns(values: Float64[np.ndarray, "*rows f"]) -> tuple[Float64[np.ndarray, "*rows n"], int]:
    """At most MAX_COLUMNS columns, and the frames per column. Each shows its strongest frame: no peak is lost."""
    step = -(-values.shape[-1] // MAX_COLUMNS)
    return np.maximum.reduceat(values, np.arange(0, values.shape[-1], step), axis=-1), step


def choose_frames(share: Float64[np.ndarray, " f"], truth: tuple[int, ...], count: int) -> list[int]:
    """Up to `count` frames to show, ascending: truth, then peaks of `share` apart from each other, then the gaps.

    A third may go to truth (evenly thinned), two thirds to truth and peaks; each further one falls in the widest gap.
    """
    f = len(share)
    if f <= count:
        return list(range(f))
    some = np.linspace(0, len(truth) - 1, min(len(truth), max(1, count // 3))).round().astype(int)
    chosen = [truth[n] for n in some]
    apart = max(1, f // (3 * count))
    for n in np.argsort(-share, kind="stable").tolist():
        if len(chosen) < 2 * count // 3 and share[n] > 0 and all(abs(n - c) > apart for c in chosen):
            chosen.append(n)
    while len(chosen) < count:
        distance = np.abs(np.arange(f)[:, None] - np.array(chosen or [-f])).min(axis=1)
        chosen.append(int(distance.argmax()))
    return sorted(chosen)


def spread(wishes: list[float], width: float, gutter: float, room: float) -> Float64[np.ndarray, " n"]:
    """Centres of boxes of `width` within `room`: each as near to its wish as the others let it, without overlap."""
    steps = min(width + gutter, (room - width) / max(len(wishes) - 1, 1)) * np.arange(len(wishes))
    free = isotonic_regression(np.array(wishes) - steps).x
    return np.clip(free, width / 2, room - width / 2 - steps[-1]) + steps


def runs(frames: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending numbers as runs of neighbours: (1, 2, 3, 7) -> [(1, 3), (7, 7)]."""
    return list(
        zip((f for f in frames if f - 1 not in frames), (f for f in frames if f + 1 not in frames), strict=True)
    )


def round_number(value: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten, by ratio."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(min((n * power for n in (1, 2, 5, 10)), key=lambda n: abs(np.log(n / value))))


def scale_ticks(top: float, gamma: float, width: float) -> list[float]:
    """Shares to name on a colour bar `width` inches wide, on which a share s lies at (s / top) ** gamma of the width.

    0, two round numbers, and `top`; a round number whose name would lie over another's is left out.
    """
    letter, gap = 0.07, 0.1  # inches, of a name at 8 points
    kept, free = [top], width - letter * len(percent(top)) - gap
    for share in sorted({round_number(part * top) for part in (0.13, 0.43)}, reverse=True):
        middle, half = width * (share / top) ** gamma, letter * len(percent(share)) / 2
        if middle + half <= free and middle - half >= letter + gap:
            kept.append(share)
            free = middle - half - gap
    return [0.0, *kept[::-1]]


def time_ticks(s: FrameCounts) -> tuple[list[float], list[str], str]:
    """Places, names and unit of the ticks: seconds of one video, or the first frame of each of several."""
    seconds = np.array(s.seconds)
    if len(set(s.videos)) > 1:
        first: list[int] = []
        for n, video in enumerate(s.videos):  # names need room: that of a video of few frames gives way to the next one
            if n == 0 or video != s.videos[n - 1]:
                first = [*(m for m in first if n - m >= len(seconds) / 12), n]
        return (
            [float(n) for n in first],
            [f"video {s.videos[n] + 1}" for n in first],
            "frames in the order of the prompt",
        )
    unit = "time in the video (s)"
    if len(seconds) <= 12 or (np.diff(seconds) <= 0).any():
        few = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), 12)).astype(int))
        return few.astype(float).tolist(), [f"{seconds[n]:.1f}" for n in few], unit
    ticks = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(seconds[0], seconds[-1])
    ticks = [t for t in ticks if seconds[0] - 1e-9 <= t <= seconds[-1] + 1e-9]
    return np.interp(ticks, seconds, np.arange(len(seconds))).tolist(), [f"{t:g}" for t in ticks], unit
