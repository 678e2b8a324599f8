"""Look again: a video of which every frame is one visual token, and a tool that shows a few frames larger.

    user       256 frames of 28x28, one visual token each. Which digit is on a card, and at which second?
    model      {"name": "look", "arguments": {"start": 43.2, "end": 43.2}}
    tool       that frame again, in 112x112: a card with a scribble
    model      {"name": "look", "arguments": {"start": 97.6, "end": 97.6}}
    tool       a card with a 7
    model      7 at 97.6 s

At one token a card of five pixels is to be found, its writing a smudge of two. At sixteen tokens a digit is eight to
ten pixels high, about as in the 28x28 frames of the plain generator. Other cards, the decoys, carry a scribble
(`drawing.small_cards`), which at one token is hard to tell from a digit: a first look at either card finds the digit
one time in 1 + decoys, and who saw a scribble has to look again. This is our reading of the report's "multimodal
self-correction", which its abstract names and nothing defines.

`flawed_reward` is what a video agent of the report's team was taught by (VideoTemp-o3): answers earn most, and where
they are right the last look earns by its overlap with the truth, which may cost something. Being right without a look
then pays more than being right after a wrong one, and policies learn not to look. `closed_reward`, which is used here,
pays a right answer if the frame that shows its reason was looked at. No look ever costs anything; the budget bounds
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from minikeye.inference.calling.calls import Call, Result, written
from minikeye.inputs.processor import Clip
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.pictures import Split, check_split
from minikeye.minivid.drawing.small_cards import SIDE, draw_small_cards
from minikeye.minivid.draws import Draws, generator
from minikeye.minivid.scene import MIN_FRAMES, VideoSpec, render
from minikeye.minivid.tasks import parse_needle
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.scores import NeedleScore, needle_score

QUESTION = "Which digit is on a card, and at which second?"
STEPS = (0.6, 0.7, 0.8, 0.9, 1.0)  # seconds between two frames: no other frame is within the tolerance of 0.5 s
COARSE = 28  # pixels along each side of a frame of one visual token
MOST_DECOYS = 2

BUDGET = Budget(turns=MOST_DECOYS + 3, tokens=320)  # a look at every card, the answer, one to spare; some 12 frames


@dataclass(frozen=True)
class LookDifficulty:
    """How hard it is. Raises ValueError for what cannot be drawn."""

    frames: int = 256  # of the video
    decoys: int = 1  # cards with a scribble, at most 2
    tokens: int = 16  # visual tokens of a frame that is looked at: 4 (56x56 pixels) or 16 (112x112)
    most: int = 4  # frames that one look may show
    scale: float | int = SIDE  # side of a card, against the cards of the generator

    def __post_init__(self) -> None:
        if self.frames < MIN_FRAMES:
            raise ValueError(f"expected at least {MIN_FRAMES} frames, got {self.frames}")
        if not 0 <= self.decoys <= MOST_DECOYS:
            raise ValueError(f"expected 0 to {MOST_DECOYS} decoys, got {self.decoys}")
        if self.tokens not in (4, 16):
            raise ValueError(f"expected 4 or 16 tokens a frame, got {self.tokens}")
        if self.most < 1:
            raise ValueError(f"expected a look of at least 1 frame, got most={self.most}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"expected a scale in 0..1, above 0, got {self.scale}")


class Look(Environment):
    """One digit card among decoys; the digit is legible in a look alone.

    Earns 1 for a `7 at 12.5 s` with the right digit, within 0.5 s, after a look that showed the card; else 0. Right
    without that look is a guess, and earns 0: `said` tells whether an answer is right. An episode is a function of
    (seed, split, number) and the difficulty; splits differ as those of `make_videos` do.
    """

    digit: int  # the truth
    second: float  # seconds, one decimal: when its card is there, for one frame
    cards: list[float]  # seconds of that card and the decoys, in an order that tells nothing about which is which
    looks: list[list[float]]  # seconds of the frames that each look showed

    def __init__(self, difficulty: LookDifficulty = LookDifficulty(), split: Split = "train", seed: int = 0):
        check_split(split)
        self.difficulty, self._split, self._seed = difficulty, split, seed

    def reset(self, number: int) -> list[dict[str, Any]]:
        self._scene = _scene(self.difficulty, self._split, self._seed, number)
        self.digit, self.second, self.cards = self._scene.digit, self._scene.second, list(self._scene.cards)
        self.looks, self.misses = [], []
        return [{"type": "video", "video": self._scene.clip}, {"type": "text", "text": QUESTION}]

    def look(self, start: float, end: float) -> Clip:
        """Show a few frames of the video larger.

        start: second of the first frame
        end: second of the last frame
        """
        if start > end:
            raise ValueError("start is after end")
        seconds = self._scene.clip.seconds
        found = [frame for frame, second in enumerate(seconds) if start <= second <= end]
        if not found:
            raise ValueError("no frame there")
        if len(found) > self.difficulty.most:
            raise ValueError(f"at most {self.difficulty.most} frames at once")
        side = COARSE * (2 if self.difficulty.tokens == 4 else 4)
        clip = Clip(render(self._scene.spec.take([0], found), side, side)[0], [seconds[frame] for frame in found])
        self.looks.append(clip.seconds)
        self.misses.append(self.second not in clip.seconds)
        return clip

    @property
    def slipped(self) -> bool:
        """Whether the first look missed: it did not show the digit, or was none that could be carried out."""
        return self.misses[:1] == [True]

    def get_reward(self) -> float:
        return closed_reward(said(self).both, self.looks, self.second)


def said(world: Look) -> NeedleScore:
    """What is right about the answer, looked at or not: what a policy without the tool is measured by."""
    return needle_score(parse_needle(world.answer), (world.digit, world.second))


def closed_reward(right: bool, looks: Sequence[Sequence[float]], second: float) -> float:
    """1 for a right answer if any look showed the frame at `second`, else 0.

    looks: seconds of the frames that each showed. Of two episodes with the same answer that which looked more never
    earns less: a look is never worse than none, wherever it goes.
    """
    return float(right and any(second in shown for shown in looks))


def flawed_reward(right: bool, looks: Sequence[Sequence[float]], second: float) -> float:
    """The reward of VideoTemp-o3, as its published code has it: 1 for a right answer, and then something for the look.

    That is clip((IoU - 0.2) / 0.6, 0, 1) of the last look alone, -0.1 where IoU is below 0.1, and nothing for no look.
    IoU: of the frames that it showed with the one at `second`.
    """
    if not right or not looks:
        return float(right)
    iou = (second in looks[-1]) / len({second, *looks[-1]})
    return 1 - 0.1 if iou < 0.1 else 1 + min(max((iou - 0.2) / 0.6, 0.0), 1.0)


def demonstrated(world: Look, heard: Sequence[Sequence[Result]]) -> str:
    """The expert's next turn: a look at one card after the other until one shows a digit, then the answer.

    The order is drawn without regard to the truth: the first look misses in decoys of 1 + decoys episodes.
    """
    seen = {second for results in heard for clip in results if isinstance(clip, Clip) for second in clip.seconds}
    if world.second in seen:
        return straight(world)
    second = next(second for second in world.cards if second not in seen)
    return written(Call("look", {"start": second, "end": second}))


def straight(world: Look) -> str:
    """The answer at once. Who has seen the small frames alone guesses: the digit is right one time in 10, the second
    one time in 1 + decoys, both one time in 10 * (1 + decoys). It earns 0, being no more than said: see `said`."""
    return f"{world.digit} at {world.second:.1f} s"


class _Scene(NamedTuple):
    """What an episode shows."""

    spec: VideoSpec  # of one video
    clip: Clip  # its small frames
    digit: int
    second: float
    cards: tuple[float, ...]


@lru_cache(maxsize=4)  # the worlds of a group show the same
def _scene(difficulty: LookDifficulty, split: Split, seed: int, number: int) -> _Scene:
    chance = generator(seed, "look", split, number)
    step = STEPS[int(torch.randint(len(STEPS), (), generator=chance))]
    count = 1 + difficulty.decoys
    frames = torch.randperm(difficulty.frames, generator=chance)[:count]  # of the digit, then of the decoys
    order = torch.randperm(count, generator=chance).tolist()
    videos = make_videos(seed, [number], difficulty.frames, split, step)
    draws = Draws.of_samples(seed, f"{split} look {number}", range(count))
    cards, scribbles = draw_small_cards(draws, frames, videos.spec.things, split, difficulty.scale)
    spec = replace(videos.spec, later=cards, cards=scribbles)  # painted in this order, and over all else
    seconds = [float(f"{second:.1f}") for second in videos.seconds[0].tolist()]
    clip = Clip(render(spec, COARSE, COARSE)[0], seconds)
    first, *_ = at = [seconds[frame] for frame in frames.tolist()]
    return _Scene(spec, clip, int(cards.digit[0, frames[0]]), first, tuple(at[n] for n in order))
