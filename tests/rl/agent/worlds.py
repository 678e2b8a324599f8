"""An environment small enough to be looked through: a door whose code is told by a second try."""

from typing import Literal

from minikeye.rl.agent.environment import Environment


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
