"""Environments: a world that asks something, public methods that are its tools, and a reward at the end.

    class Shop(Environment):
        def reset(self, number: int) -> str: ...      # the question of episode `number`
        def pay(self, order: int, way: Literal["card", "cash"]) -> str:
            \"\"\"Pay an order.

            order: its number
            way: how it is paid
            \"\"\"
        def get_reward(self) -> float: ...            # of the world as it is now, and of `self.answer`

The contract of TRL: `reset`, `get_reward`, and typed methods with docstrings, from which the schemas come that a chat
template shows. An `Episode` is one way through a world: it carries out a turn's calls and gives back what the model is
to read, or to see: a tool may give a `Clip`. A call that is invalid, or a tool that raises, is something to read, too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from minikeye.inference.calling.calls import Call, Invalid, Result, announced, outside_thoughts, read_calls
from minikeye.inference.calling.functions import carried_out, schemas_of

RESERVED = ("reset", "get_reward")


class Environment(ABC):
    """A world. It must be a function of its number and of the calls: an episode can then be played again."""

    answer: str = ""  # the model's last words, outside of thoughts; set when the episode ends by them
    misses: list[bool]  # of each call so far whether it failed, or brought not what it was for; a tool may append
    slipped: bool = False  # the first try of what decides the episode failed or missed; for the world to say

    @abstractmethod
    def reset(self, number: int) -> str | list[dict[str, Any]]:
        """Begin episode `number`, the same for the same number; what the user asks, as a message's content."""

    @abstractmethod
    def get_reward(self) -> float:
        """What the episode has earned, from the state of the world and the answer."""


@dataclass(frozen=True)
class Budget:
    """How far an episode goes."""

    turns: int = 4  # of the model, the answer included: a call in the last one is not carried out
    tokens: int = 1024  # that it may be told in all; those that the policy draws are `PartialConfig.max_new_tokens`
    observation: int = 512  # characters of one result; what is longer is cut, and says so

    def __post_init__(self) -> None:
        if min(self.turns, self.tokens, self.observation) < 1:
            raise ValueError(f"expected turns, tokens and observation of at least 1, got {self}")


class Episode:
    """One way through an environment, turn by turn.

    listed: whether the system's words name the tools; False for a model that was taught them, for which these words
    would be most of what it reads. Raises ValueError for an environment whose methods are no tools (`schemas_of`).
    """

    def __init__(self, environment: Environment, number: int, budget: Budget, listed: bool = True):
        self.environment, self.budget = environment, budget
        self.tools = tools_of(environment)
        self.schemas = schemas_of(self.tools)
        environment.answer, environment.misses = "", []
        system = [{"role": "system", "content": announced(self.schemas)}] if listed else []
        self.asked = [*system, {"role": "user", "content": environment.reset(number)}]  # messages of `Processor`
        self.turns = self.calls = self.invalid = self.raised = 0
        self.over = False

    def hear(self, turn: str) -> list[Result]:
        """A whole turn of the model: its calls are carried out, and their results are what it is to read.

        Without calls it is the answer, and the episode is over; so it is in the last turn of the budget. Then there is
        nothing to read. Raises ValueError for a turn after the end.
        """
        if self.over:
            raise ValueError("expected a turn of an episode that goes on, got one after its end: begin another episode")
        self.turns += 1
        calls = read_calls(turn)
        if not calls:
            self.environment.answer = outside_thoughts(turn).strip()
        if not calls or self.turns == self.budget.turns:
            self.over = True
            return []
        return [self._result(call) for call in calls]

    def reward(self) -> float:
        """What it has earned so far. An episode that was cut has no answer. Raises ValueError for no finite number."""
        reward = self.environment.get_reward()
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise ValueError(f"expected a finite number of get_reward, got {reward!r:.80}: mend the environment")
        return float(reward)

    def _result(self, call: Call | Invalid) -> Result:
        done = carried_out(call, self.tools, self.schemas, self.budget.observation)
        self.calls += 1
        self.invalid += done.error == "invalid"
        self.raised += done.error == "raised"
        if len(self.environment.misses) < self.calls:
            self.environment.misses.append(bool(done.error))
        return done.result


def tools_of(environment: Environment) -> dict[str, Callable[..., Any]]:
    """Its tools by name, in the order of definition: the public methods but `reset` and `get_reward`."""
    names = [
        name
        for kind in reversed(type(environment).__mro__)
        for name, member in vars(kind).items()
        if isinstance(member, FunctionType) and not name.startswith("_") and name not in RESERVED
    ]
    return {name: getattr(environment, name) for name in dict.fromkeys(names)}
