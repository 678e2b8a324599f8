"""Methods are tools, whatever a model calls is answered, and every budget ends."""

import json
import re

import pytest
import torch
from transformers.utils import get_json_schema
from worlds import Door

from minikeye.inference.calling.calls import Call, announced, written
from minikeye.inference.calling.functions import schemas_of, shortened
from minikeye.inputs.processor import Clip
from minikeye.rl.agent.environment import Budget, Environment, Episode, tools_of


def turn(digit: int) -> str:
    return written(Call("turn", {"digit": digit}))


def test_tools_by_hand():
    """The public methods in order, without what the contract reserves; types, defaults and words from each method."""
    tools = schemas_of(tools_of(Door()))
    assert list(tools) == ["turn", "read", "count"]
    assert tools["turn"] == {
        "type": "function",
        "function": {
            "name": "turn",
            "description": "Turn the lock to a digit.",
            "parameters": {
                "type": "object",
                "properties": {
                    "digit": {"type": "integer", "description": "0 to 9"},
                    "way": {"type": "string", "enum": ["left", "right"], "description": "which way round"},
                },
                "required": ["digit"],
            },
        },
    }
    lines = {"lines": {"type": "array", "items": {"type": "number"}}, "aloud": {"type": "boolean"}}
    assert tools["read"]["function"]["parameters"] == {"type": "object", "properties": lines, "required": ["lines"]}
    assert tools["count"]["function"]["parameters"] == {"type": "object", "properties": {}, "required": []}


def test_tools_are_those_of_transformers():
    """Which reads the docstrings of Google's style, and adds what comes back: else the same schema."""

    class Other(Door):
        def look(self, start: float, names: list[str], twice: bool = False) -> str:
            """
            Look again.

            Args:
                start: first second
                names: whom to look for
                twice: whether to look twice
            """
            return ""

    oracle = get_json_schema(Other().look)
    assert oracle["function"].pop("return") == {"type": "string"}
    assert schemas_of(tools_of(Other()))["look"] == oracle


def other(method) -> Environment:
    return type("Other", (Door,), {"tool": method})()


def test_what_is_no_tool_is_refused():
    def silent(self, digit: int) -> str:
        return ""

    def untyped(self, digit) -> str:
        """Turn."""

    def strange(self, digit: dict) -> str:
        """Turn."""

    def anything(self, *digits: int) -> str:
        """Turn."""

    def within(self, digits: list[bytes]) -> str:
        """Turn."""

    for method, words in (
        (silent, "expected a docstring of the tool tool"),
        (untyped, "expected named parameters with a type in the tool tool, got digit"),
        (strange, "for digit of tool, got <class 'dict'>"),
        (anything, "expected named parameters with a type in the tool tool, got *digits"),
        (within, "for digits of tool, got <class 'bytes'>"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            Episode(other(method), 0, Budget())


def test_an_episode_by_hand():
    """The first call fails, the second is too low, the third opens; the answer ends it."""
    episode = Episode(Door(), 7, Budget(turns=5))
    assert episode.asked == [
        {"role": "system", "content": announced(episode.schemas)},
        {"role": "user", "content": "Open the door."},
    ]
    assert Episode(Door(), 7, Budget(), listed=False).asked == episode.asked[1:]
    assert episode.hear(turn(12)) == ["error: ValueError: the lock has no 12"]
    assert episode.hear("It is higher." + turn(3)) == ["higher"] and episode.reward() == 0
    assert episode.hear(turn(7) + written(Call("count", {}))) == ["open", '{"tries": 3}'] and episode.reward() == 0.5
    assert not episode.over
    assert episode.hear("<think>It is open.</think>\n\ndone\n") == []
    assert episode.over and episode.environment.answer == "done" and episode.reward() == 1
    assert (episode.turns, episode.calls, episode.invalid, episode.raised) == (4, 4, 0, 1)
    with pytest.raises(ValueError, match="after its end"):
        episode.hear("done")


def test_invalid_calls_are_answered_and_change_nothing():
    episode = Episode(Door(), 7, Budget(turns=9))
    for said, told in (
        (written(Call("turn", {})), "error: turn needs digit"),
        (written(Call("turn", {"digit": "7"})), "error: digit of turn must be integer, got '7'"),
        (written(Call("reset", {"number": 3})), "error: no tool is called 'reset'; there are turn, read, count"),
        (written(Call("get_reward", {})), "error: no tool is called 'get_reward'"),
        (written(Call("_code", {})), "error: no tool is called '_code'"),
        (written(Call("answer", {})), "error: no tool is called 'answer'"),
        ("<tool_call>turn(7)</tool_call>", "error: expected JSON"),
    ):
        (observation,) = episode.hear(said)
        assert observation.startswith(told)
    assert episode.invalid == episode.calls == 7 and episode.environment.tries == 0 and not episode.over


def test_a_call_in_a_thought_is_not_carried_out():
    episode = Episode(Door(), 7, Budget())
    assert episode.hear(f"<think>{turn(7)}</think>no") == []
    assert episode.over and episode.environment.answer == "no" and episode.environment.tries == 0


def test_turns_end():
    """In the last turn there is nobody left to read a result: its call is not carried out, and it is no answer."""
    episode = Episode(Door(), 7, Budget(turns=2))
    assert episode.hear(turn(3)) == ["higher"]
    assert episode.hear(turn(7)) == [] and episode.over
    assert episode.environment.tries == 1 and episode.environment.answer == "" and episode.reward() == 0


def test_an_answer_of_before_does_not_count():
    world = Door()
    Episode(world, 7, Budget()).hear("done")
    assert world.get_reward() == 0.5
    assert Episode(world, 7, Budget()).reward() == 0


def test_long_results_are_cut():
    (text,) = Episode(Door(), 0, Budget(observation=20)).hear(written(Call("read", {"lines": [1, 2.5]})))
    assert text == "words words words wo... (the first 20 of 600000 characters)"
    assert shortened("abc", 3) == "abc"


def test_whatever_a_tool_does_is_something_to_read():
    """Results that JSON does not have, errors of any kind; but Ctrl-C is Ctrl-C."""
    results = {
        "nothing": (lambda: None, "null"),
        "a set": (lambda: {1}, "error: TypeError: Object of type set is not JSON serializable"),
        "division": (lambda: 1 / 0, "error: ZeroDivisionError: division by zero"),
        "recursion": (deeper, "error: RecursionError"),
        "text": (lambda: "é\n", "é\n"),
    }

    def tool(self) -> str:
        """Try."""
        return self.give()

    for give, told in results.values():
        world = other(tool)
        world.give = give
        (text,) = Episode(world, 0, Budget()).hear(written(Call("tool", {})))
        assert text.startswith(told)

    def interrupted(self) -> str:
        """Try."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Episode(other(interrupted), 0, Budget()).hear(written(Call("tool", {})))


def deeper() -> str:
    return deeper()


def test_budgets_are_checked():
    for bad in ({"turns": 0}, {"tokens": 0}, {"observation": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            Budget(**bad)


def test_schemas_are_json():
    schemas = schemas_of(tools_of(Door()))
    assert json.loads(json.dumps(schemas)) == schemas


@pytest.mark.parametrize(
    ("frames", "seconds", "words"),
    [
        (torch.zeros(0, 3, 28, 28, dtype=torch.uint8), [], "expected frames uint8"),
        (torch.zeros(1, 3, 28, 28), [0.0], "expected frames uint8"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), [0.0], "a finite second for each of 2 frames"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), [float("nan")], "a finite second for each of 1 frames"),
    ],
)
def test_a_clip_that_cannot_be_shown_is_an_error_to_read(unchecked, frames, seconds, words):
    def tool(self) -> Clip:
        """Look."""
        return Clip(frames, seconds)

    episode = Episode(other(tool), 0, Budget())
    (told,) = episode.hear(written(Call("tool", {})))
    assert told.startswith("error: ValueError: ") and words in told and episode.environment.misses == [True]


@pytest.mark.parametrize("reward", [None, "x", float("nan")])
def test_a_reward_is_a_number(reward):
    world = type("Other", (Door,), {"get_reward": lambda self: reward})()
    with pytest.raises(ValueError, match="expected a finite number of get_reward"):
        Episode(world, 0, Budget()).reward()
