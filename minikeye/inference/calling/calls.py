"""Calls in the form of the released template (Hermes, as Qwen3 has it): what a model asks for, and how it is told.

    <tool_call>
    {"name": "look", "arguments": {"start": 3, "end": 5}}
    </tool_call>

comes back, in a user's turn, as

    <tool_response>
    ...
    </tool_response>

A call that cannot be carried out is no exception: it is a value, `Invalid`, whose words the model reads in the place of
a result, so that it may call again. The words depend on the call alone, not on the version of Python.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minikeye.inputs.processor import Clip
from minikeye.inputs.prompt import RESPONDED, RESPONSE, THINK, THOUGHT

CALL, CALLED = "<tool_call>", "</tool_call>"
LONGEST = 20_000  # characters of a call; our choice, like the next
MOST = 8  # calls of a turn
FORM = '{"name": ..., "arguments": {...}}'

Schema = Mapping[str, Any]  # of a tool, as chat templates take it: {"type": "function", "function": {...}}
Result = str | Clip  # of a call: what a model is told, or shown


@dataclass(frozen=True)
class Call:
    """A tool and what it is given."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Invalid:
    """A call that is none."""

    why: str  # what the model is told


def outside_thoughts(turn: str) -> str:
    """What a model said aloud: its turn without what stands between <think> and </think>.

    A thought without an end takes all that follows; an end that nothing began ends a thought that began with the turn.
    """
    aloud, pieces = list[str](), re.split(f"({THINK}|{THOUGHT})", turn)
    thinking = False
    for piece in pieces:
        if piece == THOUGHT and not thinking:
            aloud.clear()
        elif piece not in (THINK, THOUGHT) and not thinking:
            aloud.append(piece)
        thinking = piece == THINK or (thinking and piece != THOUGHT)
    return "".join(aloud)


def read_calls(turn: str) -> list[Call | Invalid]:
    """The calls of a turn, in order; empty where it has none, which makes it an answer. Nothing is raised for any text.

    Calls inside a thought are thoughts; text around calls is left alone. A tag that is not closed is an invalid call
    (our choice): taken for an answer, it would end the episode without a word about why.
    """
    aloud, found, at = outside_thoughts(turn), list[Call | Invalid](), 0
    while (start := aloud.find(CALL, at)) >= 0:
        if len(found) == MOST:
            return [*found, Invalid(f"expected at most {MOST} calls in a turn; those after them were not carried out")]
        start += len(CALL)
        stop = aloud.find(CALLED, start)
        if stop < 0:
            return [*found, Invalid(f"expected {CALLED} after {CALL}{FORM}")]
        found.append(_call(aloud[start:stop]) if stop - start <= LONGEST else _too_long(stop - start))
        at = stop + len(CALLED)
    return found


def fitted(call: Call | Invalid, schemas: Mapping[str, Schema]) -> Call | Invalid:
    """The call, where a tool of that name takes such arguments; else what is wrong with it.

    schemas: by name, as of `functions.schemas_of`.
    """
    if isinstance(call, Invalid):
        return call
    if call.name not in schemas:
        return Invalid(f"no tool is called {call.name!r:.80}; there are {', '.join(schemas) or 'none'}")
    parameters = schemas[call.name]["function"]["parameters"]
    known, given = parameters["properties"], call.arguments
    if absent := [name for name in parameters["required"] if name not in given]:
        return Invalid(f"{call.name} needs {', '.join(absent)}")
    if strange := [name for name in given if name not in known]:
        return Invalid(f"{call.name} takes {', '.join(known) or 'no arguments'}; got {strange[0]!r:.80}")
    for name, value in given.items():
        if not _is_a(value, known[name]):
            return Invalid(f"{name} of {call.name} must be {_shown(known[name])}, got {value!r:.80}")
    return call


def written(call: Call) -> str:
    """A call in a model's words: what `read_calls` reads. Raises ValueError for arguments that JSON does not have."""
    words = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False, allow_nan=False)
    return f"{CALL}\n{words}\n{CALLED}"


def response(results: Sequence[Result]) -> str | list[dict[str, Any]]:
    """Content of the user's turn that tells a model what its calls gave, in their order: text, or parts with videos.

    A result cannot close its own response, or open another: its tags get the backslash that JSON allows before a slash
    (our choice). Halves of surrogate pairs, which JSON can name and UTF-8 cannot write, become question marks. A clip
    stands where text would (our choice, as templates of this family place an image that a tool gives).
    """
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"{RESPONSE}\n"}]
    for n, result in enumerate(results):
        said = f"\n{RESPONDED}\n{RESPONSE}\n" if n else ""
        if isinstance(result, Clip):
            parts += [{"type": "text", "text": said}] * bool(said) + [{"type": "video", "video": result}]
        else:
            clean = re.sub("<(/?tool_response>)", r"<\\\1", result.encode(errors="replace").decode())
            parts.append({"type": "text", "text": said + clean})
    parts.append({"type": "text", "text": f"\n{RESPONDED}"})
    shown = any(part["type"] == "video" for part in parts)
    return parts if shown else "".join(part["text"] for part in parts)


def announced(schemas: Mapping[str, Schema]) -> str:
    """A system's words that name the tools, as Qwen3's template writes them."""
    lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas.values())
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{CALL}{CALLED} XML tags:\n"
        f'{CALL}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CALLED}'
    )


def _call(body: str) -> Call | Invalid:
    """What stands between the tags. Arguments that are JSON once more, in a string, are taken too: models write them"""
    try:
        said = _json(body)
        if isinstance(said, dict) and isinstance(said.get("arguments"), str):
            said["arguments"] = _json(said["arguments"])
    except (ValueError, RecursionError):
        return Invalid(f"expected JSON, {FORM}, between {CALL} and {CALLED}")
    match said:
        case {"name": str(name), "arguments": dict(arguments), **rest} if not rest:
            return Call(name, arguments)
    return Invalid(f"expected {FORM} between {CALL} and {CALLED}, a text and an object, and nothing else")


def _json(text: str) -> Any:
    """JSON as its standard has it: Python reads NaN and Infinity too, and 1e999 as infinity. Raises ValueError."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"expected a finite number, got {text}")
    return number


def _too_long(length: int) -> Invalid:
    return Invalid(f"expected a call of at most {LONGEST} characters, got {length}")


def _is_a(value: Any, kind: Mapping[str, Any]) -> bool:
    """Whether a value of JSON is of a kind that `functions.schemas_of` writes. True is no number."""
    types = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list}
    right = isinstance(value, types[kind["type"]]) and isinstance(value, bool) == (kind["type"] == "boolean")
    if kind["type"] == "array":
        return right and all(_is_a(item, kind["items"]) for item in value)
    return right and value in kind.get("enum", [value])


def _shown(kind: Mapping[str, Any]) -> str:
    """A kind in words."""
    if "enum" in kind:
        return "one of " + ", ".join(map(repr, kind["enum"]))
    return f"array of {_shown(kind['items'])}" if kind["type"] == "array" else kind["type"]
