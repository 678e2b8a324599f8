"""Which lengths, shapes and kinds of video come when, and the batches made from them.

The numbers are those that the shipped checkpoint was taught by: our choice, all of them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from minikeye.config import KeyeConfig
from minikeye.minivid.lessons import Lesson, Lessons, Size, batches
from minikeye.minivid.scene import Difficulty

# Frames, height and width in pixels, and how often. The longest need the most steps. 56x84 is what footage of 4:3 and
# of 16:9 comes as; all other shapes that the processor makes of 1:8 to 8:1 are there too (inputs/sampling.py).
SIZES = (
    (4, 56, 56, 0.3),
    (8, 56, 84, 0.5),
    (16, 56, 84, 0.7),
    (64, 28, 168, 0.05),
    (64, 28, 196, 0.05),
    (64, 28, 224, 0.05),
    (64, 140, 28, 0.05),
    (64, 168, 28, 0.05),
    (64, 196, 28, 0.05),
    (64, 224, 28, 0.05),
    (32, 56, 84, 0.6),
    (64, 56, 56, 0.5),
    (64, 56, 84, 0.7),
    (64, 84, 56, 0.4),
    (64, 56, 112, 0.2),
    (64, 112, 56, 0.15),
    (64, 28, 112, 0.2),
    (64, 28, 140, 0.1),
    (64, 112, 28, 0.1),
    (128, 56, 84, 0.6),
    (256, 56, 56, 0.8),
    (256, 56, 84, 1.2),
    (512, 56, 56, 0.6),
    (512, 56, 84, 0.8),
    (1024, 56, 56, 1.5),
    (1024, 56, 84, 2.5),
)
TURNS = 8  # questions about each video, at most

# Longest video until that share of a stage. With four frames a quarter of an attention that knows nothing yet already
# falls on the right one: that is where finding begins; from sixteen frames on it does not begin at all.
NAMING_CAPS = ((4, 0.4), (8, 0.7), (16, 1.0))
DENSE_CAPS = ((16, 0.06), (32, 0.12), (64, 0.22), (128, 0.32), (256, 0.44), (512, 0.56))

# What the videos hold, and how often. Crowds teach which thing was asked for: where a video has one or two, "the thing"
# is a good answer without knowing its name. Plain videos are the ones that results are compared on.
CROWD, PLAIN = Difficulty(crowd=True), Difficulty()
HARD_CROWD, HARD = (replace(kind, hard=True, second_card=0.3) for kind in (CROWD, PLAIN))
NAMING_KINDS = ((CROWD, 0.5), (HARD_CROWD, 0.4), (PLAIN, 0.1))
KINDS = ((CROWD, 0.2), (HARD_CROWD, 0.35), (PLAIN, 0.15), (HARD, 0.3))


@dataclass(frozen=True)
class Curriculum:
    """Lengths are mixed in every phase, never switched."""

    frames: int = 4096  # video frames of 56x56 pixels a step, about 40,000 tokens
    longest: int = 1024  # frames
    sizes: tuple[tuple[int, int, int, float], ...] = SIZES
    kinds: tuple[tuple[Difficulty, float], ...] = KINDS
    caps: tuple[tuple[int, float], ...] = ()  # longest video until that share of the stage, then `longest`
    photographs: str | None = None  # folder of more backgrounds

    def __post_init__(self) -> None:
        shortest = min((size[0] for size in self.sizes), default=0)
        if self.frames < 1 or not 1 <= shortest <= self.longest:
            raise ValueError(
                f"expected frames >= 1 and a size of 1 to longest frames, got frames = {self.frames}, longest = "
                f"{self.longest} and a shortest size of {shortest}"
            )
        if not self.kinds:
            raise ValueError("expected kinds of videos with how often they come, got none")
        if low := [cap for cap, _ in self.caps if cap < shortest]:
            raise ValueError(
                f"expected caps of at least the shortest size, {shortest} frames, got {low}: no video would be left"
            )
        shares = [until for _, until in self.caps]
        if shares != sorted(shares):
            raise ValueError(f"expected caps with growing shares of the stage, got {shares}")

    def size_at(self, step: int, steps: int) -> Size:
        """The size of the batch of that step of `steps`; it depends on nothing else."""
        rng = random.Random(f"size {step}")
        if rng.random() < 0.03:
            return Size(0, 64)
        cap = next((n for n, until in self.caps if step < until * steps), self.longest)
        sizes = [size for size in self.sizes if size[0] <= min(cap, self.longest)]
        frames, height, width, _ = rng.choices(sizes, [size[-1] for size in sizes])[0]
        kind = rng.choices([kind for kind, _ in self.kinds], [often for _, often in self.kinds])[0]
        videos = max(1, min(64, self.frames * 56 * 56 // (frames * height * width)))
        return Size(
            frames, videos, height, width, TURNS, replace(kind, photographs=self.photographs or kind.photographs)
        )

    def lessons_from(
        self, config: KeyeConfig, steps: int, seed: int, workers: int
    ) -> Callable[[int], Iterator[Lesson]]:
        """For `stage.teach`: the lessons of step n to the last, for any n, made ahead by worker processes."""
        return lambda n: batches(Lessons(config, partial(self.size_at, steps=steps), range(n, steps), seed), workers)
