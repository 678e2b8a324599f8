"""The needles of a cell of the heat map, each in its own haystack: what is hidden where, and what is asked.

A needle is one frame that shows a card with a handwritten digit ("card": which digit, and at which second?) or a
coloured thing ("thing": from when to when?), the two things that `mini` was taught to find. Haystacks are

    generator   videos of the generator without their cards, half of them plain, half of the hard kind, whose signs,
                cards without a digit and digits without a card mislead
    real        clips that somebody filmed, slowed to the length: whoever made the questions did not make these

Handwriting, backgrounds and clips are none that the checkpoint was taught. The frame lies within JITTER of the depth:
at exactly one frame a whole cell would share its second, and a lucky guess would fill it. The cards are the same in all
cells: what differs is where they are. The needle takes the place of
its frame, so that a haystack of N frames has N frames (LongVA puts the needle's in addition to them).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from minikeye.evaluation.real_clips import Footage
from minikeye.minivid.controls import without_card
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.draws import generator
from minikeye.minivid.needle import Needle, card, thing
from minikeye.minivid.scene import BLANK, PLAIN, Difficulty, render
from minikeye.minivid.tasks import Event, Problem, grounding, needle
from minikeye.scores import SECONDS_TOLERANCE

SEED = 19  # of the generator's videos
NEEDLES, HAYSTACKS, CONTROLS = ("card", "thing"), ("generator", "real"), ("", "blank")
KINDS_OF_VIDEO = {"plain": PLAIN, "hard": Difficulty(hard=True)}
HEIGHT, WIDTH = 56, 84  # pixels of the generator's videos: what footage of 4:3 and of 16:9 becomes
JITTER = 0.05  # of the length, either way
THIRDS = {"across": ("left", "middle", "right"), "down": ("top", "middle", "bottom")}
LARGER = {"card": 0.43, "thing": 0.38}  # half a height in halves of the short side, about the middle of what is drawn


@dataclass(frozen=True)
class Cell:
    """One square of the heat map, or the control beside one."""

    needle: str  # one of NEEDLES
    haystack: str  # one of HAYSTACKS
    frames: int
    depth: float  # 0 the first frame, 1 the last; of a control: 0.5, and its needles lie anywhere
    control: str = ""  # "blank": every frame is grey, the needle's too

    def __post_init__(self) -> None:
        for name, known in (("needle", NEEDLES), ("haystack", HAYSTACKS), ("control", CONTROLS)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected a {name} of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if self.frames < 4 or not 0 <= self.depth <= 1:
            raise ValueError(f"expected at least 4 frames and a depth from 0 to 1, got {self.frames} and {self.depth}")


@dataclass(frozen=True)
class Case:
    """One needle in one haystack, with its question."""

    number: int  # of the needle in its cell; a card of one number is the same card in every cell
    clip: Footage  # without the needle
    needle: Needle
    frame: int  # that shows it
    problem: Problem
    levels: dict[str, str]  # factor: level

    @property
    def chance(self) -> float:
        """How likely an answer is right that names any digit and any frame's second, or any one frame's interval."""
        clock = self.clip.seconds
        if self.problem.task == "G":
            return 1 / len(clock)
        near = sum(abs(t - clock[self.frame]) <= SECONDS_TOLERANCE + 1e-9 for t in clock)
        return near / len(clock) / 10

    def frames(self, blank: bool = False) -> UInt8[Tensor, "f 3 h w"]:
        """What is seen. blank: grey frames, the control that must fail."""
        frames = self.clip.frames
        return torch.full_like(frames, BLANK) if blank else self.needle.into(frames, self.frame)


def cases(
    cell: Cell, count: int, clips: Sequence[Footage], device: torch.device | str, most: int
) -> Iterator[list[Case]]:
    """`count` needles of a cell, in lists of at most `most` whose frames are equally large. The same in every run.

    clips: of a "real" haystack, in turn. Raises ValueError where that has none.
    """
    if cell.haystack == "real" and not clips:
        raise ValueError("a real haystack needs clips, got none: --clips")
    groups: dict[str | tuple[int, ...], list[int]] = defaultdict(list)
    for n in range(count):
        kind = list(KINDS_OF_VIDEO)[n % 2]
        groups[kind if cell.haystack == "generator" else tuple(clips[n % len(clips)].frames.shape[-2:])].append(n)
    random = generator("niah", cell.needle, cell.haystack, cell.frames, str(cell.depth))
    jitter = (2 * torch.rand(count, generator=random, dtype=torch.float64) - 1).tolist()
    for group, numbers in groups.items():
        parts = -(-len(numbers) // most)  # equally long ones
        for part in range(parts):
            some = numbers[part::parts]
            if cell.haystack == "generator":
                hay = _generated(cell, group, some, device)
            else:
                hay = [(clips[n % len(clips)].slowed(cell.frames).on(device), ()) for n in some]
            depths = [(n / max(1, count - 1) if cell.control else cell.depth) + JITTER * jitter[n] for n in some]
            yield [_case(cell, *one, *where) for *one, where in zip(some, depths, hay, strict=True)]


def _generated(
    cell: Cell, kind: str, numbers: Sequence[int], device: torch.device | str
) -> list[tuple[Footage, tuple[str, ...]]]:
    """Videos without cards, and what is to be seen in each."""
    first = 100_000 * NEEDLES.index(cell.needle) + round(10_000 * cell.depth)  # no two cells share a video
    videos = without_card(
        make_videos(SEED, [first * 1000 + n for n in numbers], cell.frames, "test", difficulty=KINDS_OF_VIDEO[kind])
    )
    frames = render(videos.spec, HEIGHT, WIDTH, device)
    return [
        (Footage(kind, frames[n], tuple(videos.seconds[n].tolist())), tuple(event.name for event in videos.events[n]))
        for n in range(len(numbers))
    ]


def _case(cell: Cell, number: int, depth: float, clip: Footage, there: Sequence[str]) -> Case:
    """there: names of the things that the haystack shows already, of which the needle is none."""
    length = len(clip.seconds)
    last = length - 1 - (cell.needle == "thing")  # a thing was never taught to end after the last frame
    frame = round(min(1.0, max(0.0, depth)) * last)
    if cell.needle == "card":
        hidden = card(number % 10, number)
    else:
        absent = [kind for kind, name in enumerate(KINDS) if name not in there]
        hidden = thing(absent[number % len(absent)], number)
    end = clip.seconds[min(frame + 1, length - 1)]
    event = Event(cell.needle, hidden.name, frame, frame + 1, clip.seconds[frame], end)
    problem = needle(event) if cell.needle == "card" else grounding(event)
    return Case(number, clip, hidden, frame, problem, _levels(cell.needle, hidden, clip))


def _levels(kind: str, hidden: Needle, clip: Footage) -> dict[str, str]:
    """All that is drawn: what it is, where in the frame, how large, in which footage and shape of frame."""
    height, width = clip.frames.shape[-2:]
    levels = {"name": hidden.name, "footage": clip.name, "shape": f"{height}x{width}"}
    for (factor, names), place in zip(THIRDS.items(), hidden.place, strict=True):
        levels[factor] = names[min(2, int(1.5 * (place + 1)))]
    return levels | {"size": "larger" if hidden.half >= LARGER[kind] else "smaller"}
