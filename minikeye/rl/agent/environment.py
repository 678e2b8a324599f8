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
to read. A call that is invalid, or a tool that raises, is something to read, too.
"""

import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from minikeye.rl.agent.calls import Call, Invalid, Schema, announced, fitted, outside_thoughts, read_calls

RESERVED = ("reset", "get_reward")
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


class Environment(ABC):
    """A world. It must be a function of its number and of the calls: an episode can then be played again."""

    answer: str = ""  # the model's last words, outside of thoughts; set when the episode ends by them

    @abstractmethod
    def reset(self, number: int) -> str:
        """Begin episode `number`, the same for the same number; what the user asks."""

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
    would be most of what it reads. Raises ValueError for an environment whose methods are no tools (`schemas`).
    """

    def __init__(self, environment: Environment, number: int, budget: Budget, listed: bool = True):
        self.environment, self.budget = environment, budget
        self.schemas = schemas(environment)
        environment.answer = ""
        system = [{"role": "system", "content": announced(self.schemas)}] if listed else []
        self.asked = [*system, {"role": "user", "content": environment.reset(number)}]  # messages of `Processor`
        self.turns = self.calls = self.invalid = self.raised = 0
        self.over = False

    def hear(self, turn: str) -> list[str]:
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
        return [self._result(fitted(call, self.schemas)) for call in calls]

    def reward(self) -> float:
        """What it has earned so far. An episode that was cut has no answer."""
        return float(self.environment.get_reward())

    def _result(self, call: Call | Invalid) -> str:
        self.calls += 1
        if isinstance(call, Invalid):
            self.invalid += 1
            return shortened(f"error: {call.why}", self.budget.observation)
        try:
            text = _text(getattr(self.environment, call.name)(**call.arguments))
        except Exception as error:  # a tool may run into anything; Ctrl-C is none of these
            self.raised += 1
            text = f"error: {type(error).__name__}: {error}"
        return shortened(text, self.budget.observation)


def shortened(text: str, most: int) -> str:
    """The first `most` characters, and where that is not all of them, how many there were."""
    return text if len(text) <= most else f"{text[:most]}... (the first {most} of {len(text)} characters)"


def schemas(environment: Environment) -> dict[str, Schema]:
    """Every tool by its name, in the order of definition: its name, what it does, and the JSON schema of its arguments.

    Tools are the public methods but `reset` and `get_reward`. Raises ValueError for one without a docstring, or with a
    parameter that has no type, one of another type than str, int, float, bool, Literal of texts and lists of these, or
    that takes whatever comes (*args).
    """
    names = [
        name
        for kind in reversed(type(environment).__mro__)
        for name, member in vars(kind).items()
        if isinstance(member, FunctionType) and not name.startswith("_") and name not in RESERVED
    ]
    return {name: _schema(name, getattr(environment, name)) for name in dict.fromkeys(names)}


def _schema(name: str, tool: Callable[..., Any]) -> Schema:
    words = inspect.getdoc(tool)
    if not words:
        raise ValueError(f"expected a docstring of the tool {name}, which tells the model what it does; got none")
    hints, properties, required = get_type_hints(tool), dict[str, Any](), list[str]()
    for parameter in inspect.signature(tool).parameters.values():
        if parameter.name not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"expected named parameters with a type in the tool {name}, got {parameter}")
        properties[parameter.name] = _kind(hints[parameter.name], f"{parameter.name} of {name}")
        if said := re.search(rf"^\s*{parameter.name}: (.+)$", words, re.M):
            properties[parameter.name]["description"] = said[1]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    does = " ".join(words.split("\n\n")[0].split())
    return {"type": "function", "function": {"name": name, "description": does, "parameters": parameters}}


def _kind(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    if hint in KINDS:
        return {"type": KINDS[hint]}
    if get_origin(hint) is list:
        return {"type": "array", "items": _kind(get_args(hint)[0], what)}
    if get_origin(hint) is Literal and all(isinstance(value, str) for value in get_args(hint)):
        return {"type": "string", "enum": list(get_args(hint))}
    raise ValueError(f"expected str, int, float, bool, Literal of texts or a list of these for {what}, got {hint}")


def _text(result: Any) -> str:
    """What a tool gave, in words: text as it is, all else as JSON. Raises what json does for what it cannot write."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
