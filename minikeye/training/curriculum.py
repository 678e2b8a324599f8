"""Which lengths and shapes of video come when, and the batches made from them.

The numbers are those that the shipped checkpoint was taught by: our choice, all of them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from minikeye.config import KeyeConfig
from minikeye.minivid.lessons import Lesson, Lessons, Size, batches

# Frames, height and width in pixels, turns, and how often. The longest need the most steps.
SIZES = (
    (4, 56, 56, 1, 0.2),
    (8, 56, 56, 1, 0.3),
    (16, 56, 56, 4, 0.4),
    (16, 56, 84, 4, 0.3),
    (32, 56, 56, 4, 0.5),
    (64, 56, 56, 4, 0.7),
    (64, 56, 84, 4, 0.5),
    (64, 84, 56, 4, 0.3),
    (64, 56, 112, 4, 0.3),
    (64, 112, 56, 4, 0.2),
    (64, 28, 112, 4, 0.3),
    (128, 56, 56, 4, 0.8),
    (256, 56, 56, 4, 2.0),
    (512, 56, 56, 4, 2.0),
    (1024, 56, 56, 4, 4.0),
)

# Longest video until that share of the dense stage. With four frames a quarter of an attention that knows nothing yet
# already falls on the right one: that is where finding begins; from sixteen frames on it does not begin at all.
CAPS = {4: 0.08, 8: 0.14, 16: 0.18, 32: 0.24, 64: 0.32, 128: 0.40, 256: 0.50, 512: 0.60}


@dataclass(frozen=True)
class Curriculum:
    """Lengths are mixed in every phase, never switched."""

    frames: int = 4096  # video frames of 56x56 pixels a step, about 40,000 tokens
    longest: int = 1024  # frames
    sizes: tuple[tuple[int, int, int, int, float], ...] = SIZES
    growing: bool = False  # whether the cap grows from 4 frames, as in CAPS

    def __post_init__(self) -> None:
        shortest = min((size[0] for size in self.sizes), default=0)
        if self.frames < 1 or not 1 <= shortest <= self.longest:
            raise ValueError(
                f"expected frames >= 1 and a size of 1 to longest frames, got frames = {self.frames}, longest = "
                f"{self.longest} and a shortest size of {shortest}"
            )

    def size_at(self, step: int, steps: int) -> Size:
        """The size of the batch of that step of `steps`; it depends on nothing else."""
        rng = random.Random(f"size {step}")
        if rng.random() < 0.04:
            return Size(0, 64)
        cap = next((n for n, until in CAPS.items() if self.growing and step < until * steps), 1024)
        sizes = [size for size in self.sizes if size[0] <= min(cap, self.longest)]
        frames, height, width, turns, _ = rng.choices(sizes, [size[-1] for size in sizes])[0]
        videos = max(1, min(96 if turns > 1 else 256, self.frames * 56 * 56 // (frames * height * width)))
        return Size(frames, videos, height, width, turns)

    def lessons_from(
        self, config: KeyeConfig, steps: int, seed: int, workers: int
    ) -> Callable[[int], Iterator[Lesson]]:
        """For `stage.teach`: the lessons of step n to the last, for any n, made ahead by worker processes."""
        return lambda n: batches(Lessons(config, partial(self.size_at, steps=steps), range(n, steps), seed), workers)
