"""config.json: from a dictionary to dataclasses of numbers and back, each number of the right kind and within a range.

The dataclasses and the released names of their fields are in `minikeye.config`. A message says which key, what was
expected and what came; whoever read the file adds its name.
"""

import reprlib
from dataclasses import asdict, fields
from typing import Any, TypeVar

Part = TypeVar("Part")
# The largest value of a number by its field, our choice: far above any model, and small enough that sizes of tensors
# can be worked out without overflow. LARGEST for all others; the least is 1.
LARGEST = 2**20
LARGEST_OF = {
    **{"layers": 1024, "heads": 4096, "kv_heads": 4096, "merge": 16, "patch_size": 1024, "experts": 2**16},
    **{"vocab": 2**24, "packing_positions": 2**24, "max_positions": 2**31, "topk": 2**31},
    **{"video_tokens": 2**31, "min_image_tokens": 2**31, "max_image_tokens": 2**31},
}
# The same for numbers that need not be whole.
SPANS = {"rope_theta": (1.0, 1e12), "fps": (1e-3, 1e3)}
SMALL = (1e-12, 1.0)  # what norms add to a variance
WORDS = {"adaptive": ("off", "paper", "released"), "frame_size": ("released", "fitting")}


def shown(value: Any) -> str:
    """A value for a message, cut where it is long or deep."""
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_numbers(part: Any) -> None:
    """Raise ValueError for a number of a config that is not finite, below its least value or above its largest."""
    for f in fields(type(part)):
        check_value(f.name, f.default, getattr(part, f.name), f.name)


def check_value(name: str, default: Any, value: Any, called: str) -> None:
    """Raise ValueError where a field cannot have this value. default: one that it can have. called: in the message."""
    most = LARGEST_OF.get(name, LARGEST)
    if isinstance(default, tuple):
        numbers = isinstance(value, list | tuple) and len(value) == len(default)
        fits = numbers and all(_whole(n) and 1 <= n <= most for n in value)
        expected = f"like {list(default)}: {len(default)} whole numbers from 1 to {most}"
    elif isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        least, most = SPANS.get(name, SMALL)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        expected = f"like {default!r}: a number from {least:g} to {most:g}"
    elif isinstance(default, int):
        fits, expected = _whole(value) and 1 <= value <= most, f"like {default!r}: a whole number from 1 to {most}"
    else:
        fits, expected = isinstance(value, str) and value in WORDS[name], f"one of {', '.join(WORDS[name])}"
    require(fits, f"{called} must be {expected}; got {shown(value)}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def names(kind: type, renamed: dict[str, str]) -> dict[str, str]:
    """minikeye's field -> the key of the released config.json; a field that is not renamed keeps its name."""
    return {f.name: renamed.get(f.name, f.name) for f in fields(kind)}


def read_part(kind: type[Part], keys: dict[str, str], d: dict[str, Any], where: str) -> Part:
    """The dataclass with what `d` states; what it does not state stays at its default. where: dotted, for messages."""
    values = {}
    for name, key in keys.items():
        if key in d:
            default = getattr(kind, name)
            check_value(name, default, d[key], f"config key '{where}{key}'")
            values[name] = type(default)(d[key])  # JSON writes 1e7 as 10000000 and a tuple as a list
    return kind(**values)


def write_part(keys: dict[str, str], config: Any) -> dict[str, Any]:
    """What `read_part` reads, in JSON's types."""
    values = asdict(config)
    return {key: list(v) if isinstance(v := values[name], tuple) else v for name, key in keys.items()}


def token_id(d: dict[str, Any], key: str, default: int) -> int:
    """A token's id, `default` where none is stated."""
    value = d.get(key, default)
    require(_whole(value) and 0 <= value < 2**31, f"config key {key!r} must be a token's id; got {shown(value)}")
    return value


def object_at(d: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The object under a key. None where there is none: transformers writes null for a part that is absent."""
    value = d.get(key)
    require(value is None or isinstance(value, dict), f"config key {key!r} must be an object; got {shown(value)}")
    return value


def tower_of(d: dict[str, Any]) -> dict[str, Any] | None:
    """The vision part. None where `vision_config` is false, a model for text alone; absent or null: as released."""
    return None if d.get("vision_config") is False else object_at(d, "vision_config") or {}


def text_of(d: dict[str, Any]) -> dict[str, Any]:
    """The text part: under `text_config`, or at the top."""
    nested = object_at(d, "text_config")
    return d if nested is None else nested


def sparse_of(d: dict[str, Any]) -> dict[str, Any]:
    """The numbers of DSA: `sa_config` of the text part or at the top."""
    found = [sa for part in (text_of(d), d) if (sa := object_at(part, "sa_config")) is not None]
    require(not found or found[0] == found[-1], "config key 'sa_config' stands in two places that disagree")
    return found[0] if found else {}


def rope_of(text: dict[str, Any]) -> dict[str, Any]:
    """What a text part states on RoPE, under `rope_scaling`, `rope_parameters` (the newer name) or `rope_theta` alone.

    Raises ValueError where two of them disagree.
    """
    rope: dict[str, Any] = {}
    theta = {"rope_theta": text["rope_theta"]} if "rope_theta" in text else {}
    for part in (theta, object_at(text, "rope_scaling") or {}, object_at(text, "rope_parameters") or {}):
        for key, value in part.items():
            known = rope.setdefault(key, value)
            places = f"{shown(known)} in one place, {shown(value)} in another"
            require(known is value or known == value, f"config key '{key}' of RoPE is {places}")
    return rope
