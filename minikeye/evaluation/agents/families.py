"""The four families of environments, and how long a policy is taught in each. Our choice, all numbers.

Every family comes in two scales: for the shipped checkpoint, and, easier, for a model that learns on a CPU.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from minikeye.inference.calling.sandbox import Sandbox
from minikeye.keye import KeyeVL
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.small_stills import make_small_stills
from minikeye.rl.agent import code, look, search, shop
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.rl.agent.imitate import Expert
from minikeye.rl.partial import PartialConfig
from minikeye.training.loop import LoopConfig
from minikeye.training.tower import teach_tower

Scale = Literal["mini", "nano"]
# Frames of the videos that imitation of `look` sees by turns, and how many episodes of each at most. Digits are learnt
# best where an episode is little else, seconds where videos are long.
LENGTHS = ((8, 64), (256, 16), (8, 64), (128, 16), (8, 64), (64, 16))


@dataclass(frozen=True)
class Sizes:
    """How long a policy is taught, and how often it is asked."""

    imitation: int = 150  # steps
    lessons: int = 32  # episodes in each, at most
    imitation_lr: float = 6e-4
    iterations: int = 10  # of reward
    groups: int = 32  # in each
    group: int = 8  # episodes in each
    reward_lr: float = 3e-5
    test: int = 200  # episodes


# By family. Copying names and digits that nobody has seen before is what takes long to imitate.
MINI = {
    "code": Sizes(imitation=400),
    "tool": Sizes(imitation=1000, iterations=20),
    "look": Sizes(imitation=1200, lessons=64, iterations=20, groups=16),
    "search": Sizes(imitation=1000, iterations=20),
}
SMALL = Sizes(imitation=400, lessons=16, imitation_lr=2e-3, iterations=10, groups=16, reward_lr=3e-5)
NANO = {
    "code": SMALL,
    "tool": replace(SMALL, imitation=1600),
    "look": replace(SMALL, imitation=1600),
    "search": replace(SMALL, imitation=1200),
}


class Lesson(NamedTuple):
    """What a step of imitation is taken from."""

    world: Environment
    episodes: int


@dataclass(frozen=True)
class Family:
    """One kind of environment at one scale, with who teaches it and how it is judged."""

    name: str
    scale: Scale
    world: Callable[[Split, int], Environment]  # of a split and seed; another copy at each call
    expert: Expert
    straight: Callable[[Any], str]  # the true answer in one turn, without a tool
    budget: Budget
    turn: int  # tokens of the longest turn, its end included
    rounds: int  # of drawing in an iteration of reward, each a turn: who needs more waits for the next iteration
    factors: Callable[[Any], dict[str, str]]  # what scores are split by
    chance: float  # percent right of who reads no result
    sizes: Sizes
    right: Callable[[Any], bool] | None = None  # whether the answer is right, where the reward asks for more
    lesson: Callable[[int, int], Lesson] | None = None  # of a seed and a step of imitation; None: `world`
    prepare: Callable[[KeyeVL, Path | None, str], Any] | None = None  # what every arm begins with: model, folder, name
    frozen: tuple[str, ...] = ("sa_indexer",)  # parameters with one of these in their names stay as they are

    def learns(self, name: str) -> bool:
        """Whether the parameter of this name is taught."""
        return not any(part in name for part in self.frozen)

    @property
    def drawing(self) -> PartialConfig:
        """How its episodes are drawn: a round is as long as its longest turn."""
        return PartialConfig(budget=self.turn, max_new_tokens=self.turn * self.budget.turns)


@cache
def sandbox(process: int) -> Sandbox:
    """One for each process: a worker would speak into the pipe of its parent."""
    return Sandbox().__enter__()


def families(scale: Scale) -> dict[str, Family]:
    """All four, by name."""
    small = scale == "nano"
    sizes = NANO if small else MINI
    bounded = code.CodeDifficulty(filters=("above", "below"))  # code that looks at types passes the others untold
    tasks = replace(bounded, operations=("sum", "count"), longest=4) if small else bounded
    seen = look.LookDifficulty(frames=32) if small else look.LookDifficulty()
    found = [
        Family(
            "code",
            scale,
            world=lambda split, seed: code.Code(tasks, split, seed, sandbox=sandbox(os.getpid())),
            expert=code.demonstrated,
            straight=code.straight,
            budget=code.BUDGET,
            turn=124,
            rounds=3,
            factors=lambda w: {"operation": w.task.operation, "filter": w.task.filter, "catch": str(w.task.catch)},
            chance=50.0,
            sizes=sizes["code"],
        ),
        Family(
            "tool",
            scale,
            world=lambda split, seed: shop.Shop(shop.ShopDifficulty(), split, seed),
            expert=shop.demonstrated,
            straight=shop.straight,
            budget=shop.BUDGET,
            turn=88,
            rounds=5,
            factors=lambda w: {"count": str(w.wishes[0].count), "letters": str(len(w.wishes[0].name))},
            chance=0.0,
            sizes=sizes["tool"],
        ),
        Family(
            "look",
            scale,
            world=lambda split, seed: look.Look(seen, split, seed),
            expert=look.demonstrated,
            straight=look.straight,
            budget=look.BUDGET,
            turn=88,
            rounds=4,
            factors=lambda w: {"digit": str(w.digit), "card": "first" if w.second == min(w.cards) else "later"},
            chance=10.0,
            sizes=sizes["look"],
            right=lambda w: look.said(w).both,
            lesson=None if small else lambda seed, step: of_many_lengths(seen, seed, step),
            prepare=taught_to_read,
            frozen=("sa_indexer", "mlp.experts"),  # what is left of the agent is small enough to be shipped
        ),
        Family(
            "search",
            scale,
            world=lambda split, seed: search.Search(search.SearchDifficulty(), split, seed),
            expert=search.demonstrated,
            straight=search.straight,
            budget=search.BUDGET,
            turn=104,
            rounds=3,
            factors=lambda w: {"digit": str(w.digit), "answer": "first" if w.other < w.named else "second"},
            chance=10.0,
            sizes=sizes["search"],
        ),
    ]
    return {family.name: family for family in found}


def taught_to_read(model: KeyeVL, folder: Path | None, name: str) -> list[dict[str, float | int]]:
    """Teach the tower small cards: imitation reaches it through one frame in many, and leaves digits unread."""
    loop = LoopConfig(steps=6000, lr=8e-4, warmup=50)
    return teach_tower(model, loop, 512, folder, ((112, 112),), make=make_small_stills, name=name)


def of_many_lengths(difficulty: look.LookDifficulty, seed: int, step: int) -> Lesson:
    """Never one length alone."""
    frames, episodes = LENGTHS[step % len(LENGTHS)]
    return Lesson(look.Look(replace(difficulty, frames=frames), "train", seed), episodes)
