"""Environments small enough to be looked through: a door whose code is told by a second try, and a window."""

from typing import Literal

import torch

from minikeye.inference.calling.calls import response
from minikeye.inputs.processor import Clip
from minikeye.rl.agent.environment import Budget, Environment, Episode
from minikeye.rl.agent.imitate import Expert


class Door(Environment):
    """Opens by the digit number % 10. Who tries another is told whether it is higher or lower."""

    def reset(self, number: int) -> str:
        self._code, self.open, self.tries = number % 10, False, 0
        return "Open the door."

    def turn(self, digit: int, way: Literal["left", "right"] = "left") -> str:
        """Turn the lock
        to a digit.

        digit: 0 to 9
        way: which way round
        """
        self.tries += 1
        if not 0 <= digit <= 9:
            raise ValueError(f"the lock has no {digit}")
        self.open = digit == self._code
        return "open" if self.open else "higher" if digit < self._code else "lower"

    def read(self, lines: list[float], aloud: bool = False) -> str:
        """Read the sign on the door."""
        return "words " * 10**5

    def count(self) -> dict[str, int]:
        """How often the lock was turned."""
        return {"tries": self.tries}

    def get_reward(self) -> float:
        return 0.5 * self.open + 0.5 * (self.answer == "done")


class Window(Environment):
    """Two frames are shown with the question; a look shows as many as are asked for, of a size that is asked for."""

    def reset(self, number: int):
        self._number, self.looks = number, 0
        return [{"type": "video", "video": clip(number, 2, 28, 28)}, {"type": "text", "text": "What is it?"}]

    def look(self, frames: int, height: int = 28) -> Clip:
        """Look again.

        frames: how many
        height: of each, pixels
        """
        self.looks += 1
        self.misses.append(frames < 2)
        return clip(self._number + self.looks, frames, height, 56)

    def say(self) -> str:
        """Say what it is."""
        return "a window"

    def get_reward(self) -> float:
        return float(self.answer == "yes" and self.looks > 0)


def clip(seed: int, frames: int, height: int, width: int) -> Clip:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (frames, 3, height, width), generator=random, dtype=torch.uint8)
    return Clip(pixels, [0.5 * n for n in range(frames)])


def expert_plays(world: Environment, number: int, expert: Expert, budget: Budget) -> tuple[Episode, list[str]]:
    """An episode of an expert, and all that was said and told in words."""
    episode, heard = Episode(world, number, budget, listed=False), []
    said = [episode.asked[0]["content"]]
    while not episode.over:
        turn = expert(world, heard)
        results = episode.hear(turn)
        said.append(turn)
        if results:
            heard.append(results)
            said.append(response(results))
    return episode, said
