"""How many frames of a video the model sees, which ones, and how large: arithmetic only, no decoding.

Sources: "report" is the Keye-VL-2.0 report, section 2.2; "released" is the serving code that ships with the model.
One visual token is a square of `factor` pixels a side (patch_size * merge, 28). Budgets are counted in visual tokens.
"""

import math
from dataclasses import dataclass

from minikeye.config import VideoConfig

MAX_ASPECT = 200.0  # released: longer side / shorter side, at most

# (longest duration in seconds, share of the budget). A longer video gets all of it.
PAPER_SHARES = ((256, 0.125), (512, 0.25), (1024, 0.5), (2048, 1.0))  # report, section 2.2
RELEASED_SHARES = ((259, 0.09), (518, 0.18), (1036, 0.36), (2016, 0.7))  # released code; off by default


class VideoError(ValueError):
    """A video that cannot be read, or a request that no reading of it can satisfy."""


@dataclass(frozen=True)
class Sampling:
    """What the model will see of a video, known before a frame of it is decoded."""

    indices: tuple[int, ...]  # of the frames, in order of presentation
    width: int  # pixels of a frame at the model
    height: int
    frame_tokens: int  # visual tokens of a frame
    notes: tuple[str, ...]  # one sentence where that is smaller or sparser than asked


def sample(
    seconds: float | int,
    video_fps: float | int,
    total: int,
    size: tuple[int, int],
    config: VideoConfig,
    factor: int = 28,
    videos: int = 1,
    *,
    fps: float | int | None = None,
    max_frames: int | None = None,
) -> Sampling:
    """The frames of a video of `total` frames of (width, height) pixels: `frame_count`, `frame_indices`, `fit_size`."""
    count = frame_count(seconds, video_fps, total, config, videos=videos, fps=fps, max_frames=max_frames)
    budget = video_budget(seconds, config, videos)
    width, height = fit_size(*size, count, budget, config, factor)
    asked = _asked_frames(seconds, video_fps, total, config.fps if fps is None else fps, max_frames)
    full = fit_size(*size, 1, config.max_frame_tokens, config, factor)
    short = []
    if count < asked:
        short.append(f"{count:,} frames instead of {asked:,}, one every {seconds / count:.2g} s,")
    if width * height < full[0] * full[1]:
        short.append(f"frames of {width}x{height} pixels instead of {full[0]}x{full[1]},")
    notes = (f"the model sees {' '.join(short)} because a video may use {budget:,.0f} tokens",) if short else ()
    return Sampling(tuple(frame_indices(total, count)), width, height, width * height // factor**2, notes)


def video_budget(seconds: float | int, config: VideoConfig, videos: int = 1) -> float:
    """Visual tokens that one video of `seconds` may use when the prompt holds `videos` of them.

    The budget is split evenly (report, section 2.2). `config.adaptive` then scales it by duration: "paper" by the
    report's table, "released" by the released one, which applies to a single video only. Not rounded, as released.
    """
    if videos < 1:
        raise VideoError(f"expected at least 1 video, got {videos}")
    budget = config.video_tokens / videos
    if config.adaptive == "off" or (config.adaptive == "released" and videos > 1):
        return budget
    table = PAPER_SHARES if config.adaptive == "paper" else RELEASED_SHARES
    return budget * next((share for longest, share in table if seconds <= longest), 1.0)


def frame_count(
    seconds: float | int,
    video_fps: float | int,
    total: int,
    config: VideoConfig,
    *,
    videos: int = 1,
    fps: float | int | None = None,
    max_frames: int | None = None,
) -> int:
    """Frames to sample: min(max(int(seconds * min(fps, video_fps)), 2), cap), as released.

    `seconds`, `video_fps` and `total` (frames) describe the video; `fps` replaces `config.fps`. The cap is the least of
    `total`, `max_frames` and budget / min_frame_tokens. Raises VideoError for a bad fps or max_frames, for a video
    without frames, and, unlike the released code, for a budget below one smallest frame.
    """
    rate = config.fps if fps is None else fps
    if not (math.isfinite(rate) and rate > 0):
        raise VideoError(f"fps must be a positive number of frames per second, got {rate}")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames must be at least 1 or None, got {max_frames}")
    if total < 1:
        raise VideoError("expected a video with at least one frame, got none")
    budget = video_budget(seconds, config, videos)
    affordable = math.floor(budget / config.min_frame_tokens)
    if affordable < 1:
        raise VideoError(
            f"a budget of {budget:g} tokens holds no frame of at least {config.min_frame_tokens} tokens: "
            "raise video_tokens, lower min_frame_tokens or pass fewer videos"
        )
    return min(_asked_frames(seconds, video_fps, total, rate, max_frames), affordable)


def _asked_frames(
    seconds: float | int, video_fps: float | int, total: int, rate: float | int, max_frames: int | None
) -> int:
    """Frames to sample where no budget limits them."""
    wanted = max(int(seconds * min(rate, video_fps) + 1e-6), 2)  # 1e-6: a product meant to be whole may fall short
    return min(wanted, total, total if max_frames is None else max_frames)


def frame_indices(total: int, count: int) -> list[int]:
    """Positions of `count` frames among `total`, in order of presentation: round(linspace(0, total - 1, count)).

    Half rounds to even, as in the released code. One frame gives [0].
    """
    if not 1 <= count <= total:
        raise VideoError(f"expected 1 to {total} frames to sample, got {count}")
    return [round(i * (total - 1) / (count - 1)) for i in range(count)] if count > 1 else [0]


def frame_tokens(frames: int, budget: float | int, config: VideoConfig) -> int:
    """Most tokens of a frame, by the released binary search over [min_frame_tokens, max_frame_tokens].

    The search ends on the smallest count that does not fit the budget, or on max_frame_tokens where that fits, so the
    frames may together exceed the budget by less than `frames` tokens. `largest_frame_tokens` is the count that fits.
    """
    low, high = config.min_frame_tokens, config.max_frame_tokens
    while low < high:
        middle = (low + high) // 2
        if frames * middle > budget:
            high = middle
        else:
            low = middle + 1
    return low


def largest_frame_tokens(frames: int, budget: float | int, config: VideoConfig) -> int:
    """Largest count in [min_frame_tokens, max_frame_tokens] that fits: frames * count <= budget, else the minimum."""
    return max(config.min_frame_tokens, min(config.max_frame_tokens, math.floor(budget / frames)))


def smart_resize(width: int, height: int, min_tokens: int, max_tokens: int, factor: int = 28) -> tuple[int, int]:
    """(width, height) in whole visual tokens, near the given size and shape (the rule of Qwen2-VL, as released).

    Sides are rounded to multiples of `factor`. If that is above `max_tokens`, both are scaled down and floored; if it
    is below `min_tokens`, scaled up and ceiled. Never less than one multiple a side. Because both sides are floored, a
    shrunk picture can end below `min_tokens`. Raises VideoError for an empty side or an aspect ratio above 200.
    """
    check_shape(width, height)
    lower, upper = min_tokens * factor**2, max_tokens * factor**2
    new_width, new_height = max(factor, round(width / factor) * factor), max(factor, round(height / factor) * factor)
    if new_width * new_height > upper:
        shrink = math.sqrt(width * height / upper)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_width * new_height < lower:
        grow = math.sqrt(lower / (width * height))
        new_width = math.ceil(width * grow / factor) * factor
        new_height = math.ceil(height * grow / factor) * factor
    return new_width, new_height


def image_size(width: int, height: int, config: VideoConfig, factor: int = 28) -> tuple[int, int]:
    """(width, height) of an image at the model: min_image_tokens to max_image_tokens (released: 4 to 20,480)."""
    return smart_resize(width, height, config.min_image_tokens, config.max_image_tokens, factor)


def fit_size(
    width: int, height: int, frames: int, budget: float | int, config: VideoConfig, factor: int = 28
) -> tuple[int, int]:
    """(width, height) of each of `frames` video frames that share `budget` tokens, by the rule `config.frame_size`.

    "released", with its quirks: a large frame shrinks to `frame_tokens` with floored sides: 720 frames of 16:9 get
    588x336, which is 252 tokens; 2,880 frames get 280x168, which is 60 and below the 64 asked for.
    "fitting" (our choice, for models that cannot read less than min_frame_tokens): never below that minimum, and never
    above the budget. Where rounding misses both, the grid between them that is nearest in shape, the largest of those.
    """
    if config.frame_size == "released":
        return smart_resize(width, height, config.min_frame_tokens, frame_tokens(frames, budget, config), factor)
    least, most = config.min_frame_tokens, largest_frame_tokens(frames, budget, config)
    rounded = smart_resize(width, height, least, most, factor)
    if least <= rounded[0] * rounded[1] // factor**2 <= most:
        return rounded
    grids = [(c, r) for c in range(1, most + 1) for r in range(-(-least // c), most // c + 1)]
    shape = math.log(width / height)
    columns, rows = min(grids, key=lambda g: (round(abs(math.log(g[0] / g[1]) - shape), 9), -g[0] * g[1], g))
    return columns * factor, rows * factor


def check_shape(width: int, height: int) -> None:
    """Raise VideoError for an empty side or an aspect ratio above 200."""
    if width < 1 or height < 1:
        raise VideoError(f"expected sides of at least 1 pixel, got {width}x{height}")
    if max(width, height) / min(width, height) > MAX_ASPECT:
        raise VideoError(f"expected an aspect ratio of up to {MAX_ASPECT:g}, got {width}x{height}: crop it first")
