"""Functions that a model may call: their schemas, and what comes of a call.

    functions = {"look": look, "python": python}       # typed, with docstrings
    schemas = schemas_of(functions)                     # what a chat template shows
    result = carried_out(call, functions, schemas, longest=512)

A function gives back text, a `Clip` that the model is shown, or anything that JSON can write. What goes wrong in it is
something to read, like a call that is invalid.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from minikeye.inference.calling.calls import Call, Invalid, Result, Schema, fitted
from minikeye.inputs.processor import Clip

Functions = Mapping[str, Callable[..., Any]]
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class Done:
    """What came of a call."""

    result: Result  # what the model is told, or shown
    error: Literal["", "invalid", "raised"] = ""


def carried_out(call: Call | Invalid, functions: Functions, schemas: Mapping[str, Schema], longest: int) -> Done:
    """The result of a call, or of why it has none. longest: characters of a text; what is longer is cut, and says so.

    schemas: of these functions, as `schemas_of` gives them. Nothing but Ctrl-C and its like gets through.
    """
    call = fitted(call, schemas)
    if isinstance(call, Invalid):
        return Done(shortened(f"error: {call.why}", longest), "invalid")
    try:
        kinds = schemas[call.name]["function"]["parameters"]["properties"]
        result = functions[call.name](**{name: typed(value, kinds[name]) for name, value in call.arguments.items()})
        return Done(_whole(result) if isinstance(result, Clip) else shortened(_text(result), longest))
    except Exception as error:  # a function may run into anything; Ctrl-C is none of these
        return Done(shortened(f"error: {type(error).__name__}: {error}", longest), "raised")


def named(tools: Any) -> dict[str, Callable[..., Any]]:
    """Functions by their names. Raises ValueError for what is no function, and for two of one name."""
    functions, expected = dict[str, Callable[..., Any]](), "expected tools=[function, ...] of plain functions, got"
    if not isinstance(tools, Iterable):
        raise ValueError(f"{expected} {tools!r:.100}")
    for tool in tools:
        if not inspect.isroutine(tool) or inspect.iscoroutinefunction(tool):
            raise ValueError(f"{expected} {tool!r:.100}")
        if tool.__name__ in functions:
            raise ValueError(f"expected tools of different names, got two that are called {tool.__name__}")
        functions[tool.__name__] = tool
    return functions


def schemas_of(functions: Functions) -> dict[str, Schema]:
    """Every function by its name: what it does, and the JSON schema of its arguments.

    Raises ValueError for one without a docstring, or with a parameter that has no type, one of another type than str,
    int, float, bool, Literal of texts and lists of these, that takes whatever comes (*args) or has no name to a caller.
    """
    return {name: _schema(name, function) for name, function in functions.items()}


def shortened(text: str, most: int) -> str:
    """The first `most` characters, and where that is not all of them, how many there were."""
    return text if len(text) <= most else f"{text[:most]}... (the first {most} of {len(text)} characters)"


def _schema(name: str, tool: Callable[..., Any]) -> Schema:
    words = inspect.getdoc(tool)
    if not words:
        raise ValueError(f"expected a docstring of the tool {name}, which tells the model what it does; got none")
    hints, properties, required = _hints(name, tool), dict[str, Any](), list[str]()
    for parameter in inspect.signature(tool).parameters.values():
        if parameter.name not in hints or parameter.kind not in NAMED:
            raise ValueError(f"expected named parameters with a type in the tool {name}, got {parameter}")
        properties[parameter.name] = _kind(hints[parameter.name], f"{parameter.name} of {name}")
        if said := re.search(rf"^\s*{parameter.name}: (.+)$", words, re.M):
            properties[parameter.name]["description"] = said[1]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    does = " ".join(words.split("\n\n")[0].split())
    return {"type": "function", "function": {"name": name, "description": does, "parameters": parameters}}


def _hints(name: str, tool: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(tool)
    except (NameError, TypeError) as error:
        raise ValueError(f"expected types that are known where the tool {name} is defined: {error}") from error


def typed(value: Any, kind: Mapping[str, Any]) -> Any:
    """A fitting value as its type has it: JSON writes 3 where Python writes 3.0."""
    if kind["type"] == "number":
        return float(value)
    return [typed(item, kind["items"]) for item in value] if kind["type"] == "array" else value


def _kind(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    if hint in KINDS:
        return {"type": KINDS[hint]}
    if get_origin(hint) is list and get_args(hint):
        return {"type": "array", "items": _kind(get_args(hint)[0], what)}
    if get_origin(hint) is Literal and all(isinstance(value, str) for value in get_args(hint)):
        return {"type": "string", "enum": list(get_args(hint))}
    raise ValueError(f"expected str, int, float, bool, Literal of texts or a list of these for {what}, got {hint}")


def _text(result: Any) -> str:
    """What a tool gave, in words: text as it is, all else as JSON. Raises what json does for what it cannot write."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def _whole(clip: Clip) -> Clip:
    """The clip, if it can be shown. Raises ValueError for one without frames, of other pixels, or without its times."""
    frames = clip.frames
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not frames.numel():
        raise ValueError(f"expected frames uint8 [f 3 height width], got {frames.dtype} {list(frames.shape)}")
    if len(clip.seconds) != len(frames) or not all(map(math.isfinite, clip.seconds)):
        raise ValueError(f"expected a finite second for each of {len(frames)} frames, got {clip.seconds!r:.80}")
    return clip
