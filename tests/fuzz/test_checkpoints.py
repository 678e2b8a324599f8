"""Checkpoints that are not what they claim: mutated folders give a model or one clear error, never anything else.

300 of them in every test run, the same each time. Thousands, and others, by hand:

    MINIKEYE_FUZZ=5000 MINIKEYE_FUZZ_SEED=7 .venv/bin/pytest tests/fuzz/test_checkpoints.py
"""

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minikeye import KeyeVL, Processor
from minikeye.checkpoint.fake import fake_config, write_fake_checkpoint
from minikeye.inputs import rendering

CASES = int(os.environ.get("MINIKEYE_FUZZ", "300"))
SEED = int(os.environ.get("MINIKEYE_FUZZ_SEED", "0"))
SECONDS = 60  # within which a folder must have been read or refused
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which digit?"}]
INDEX = "model.safetensors.index.json"
SETTINGS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json")
STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, 7, 2**31, 2**63, 10**30, -(10**30), 1e308, 1e-308, math.nan, math.inf),
    *(
        "",
        "x",
        "<|im_end|>",
        "../x",
        "\0",
        "\ud800",
        "é" * 300,
        [],
        {},
        [[]],
        [None],
        ["a", 1],
        {"a": {}},
        {"type": "x"},
    ),
]
SNIPPETS = [
    *("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 3000000000 }}"),
    *(
        "{{ messages[0].x.y }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ raise_exception('no') }}",
        "{{ eos_token * 9 }}",
    ),
    *("<|image_pad|>", "{{ messages }}", "{%", "}}", "{#", "{{ self }}", "{{ cycler.__init__.__globals__ }}"),
    *(
        "{{ '%0999999999d' % 1 }}",
        "{% set messages = [] %}",
        "{{ (" * 300,
        "\U0010f0a00\U0010f0a1",
        "{{ messages|tojson }}",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    write_fake_checkpoint(folder, fake_config(1, 1, small=True), max_shard_bytes=150_000, dtype=torch.float32)
    return folder


# ------------------------------------------------------------------------------------------------------------ mutators


def somewhere(draw: random.Random, content: Any) -> tuple[Any, Any]:
    """A part of nested JSON and one of its keys, at any depth."""
    while True:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = draw.choice(keys)
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            return content, key
        content = inner


def change_json(draw: random.Random, path: Path) -> None:
    """Another value, another name, one key less or one more."""
    content = json.loads(path.read_text(encoding="utf-8"))
    part, key = somewhere(draw, content)
    kind = draw.choice(["value", "value", "value", "number", "delete", "rename", "copy"])
    if kind == "number" and isinstance(part[key], int | float):
        part[key] = part[key] * draw.choice([-1, 0, 2, 0.5, 1000, 2**40]) + draw.choice([0, 1, -1])
    elif kind == "delete":
        del part[key]
    elif kind in ("rename", "copy") and isinstance(part, dict):
        other, name = somewhere(draw, content)
        part[name if isinstance(name, str) else "x"] = part.pop(key) if kind == "rename" else other[name]
    else:
        part[key] = draw.choice(STRANGE)
    path.write_text(json.dumps(content), encoding="utf-8")


def change_bytes(draw: random.Random, path: Path) -> None:
    """Flip, cut, repeat or insert, mostly near the beginning, where headers are."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(min(len(data), draw.choice([16, 2000, len(data)])))
    match draw.choice(["flip", "cut", "insert", "drop"]):
        case "flip":
            data[at] ^= 1 << draw.randrange(8)
        case "cut":
            del data[at:]
        case "insert":
            data[at:at] = draw.choice([b"\0" * 9, b"\xff", b"[" * 5000, b'{"a":', data[: draw.randrange(99)]])
        case "drop":
            del data[at : at + draw.randrange(1, 99)]
    path.write_bytes(data)


def change_template(draw: random.Random, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    at = draw.randrange(len(text))
    if draw.random() < 0.6:
        text = text[:at] + draw.choice(SNIPPETS) + text[at:]
    else:
        text = text[:at] + text[at + draw.randrange(1, 40) :]
    path.write_text(text, encoding="utf-8")


def change_weights(draw: random.Random, folder: Path) -> None:
    """One number of one tensor that is none; another dtype or shape."""
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    held = load_file(path)
    name = draw.choice(sorted(held))
    match draw.choice(["number", "dtype", "shape", "name"]):
        case "number":
            held[name].view(-1)[draw.randrange(held[name].numel())] = draw.choice([math.nan, math.inf, -math.inf])
        case "dtype":
            held[name] = held[name].to(draw.choice([torch.int32, torch.float64, torch.bool, torch.float8_e4m3fn]))
        case "shape":
            held[name] = held[name].flatten()[draw.randrange(2) :].clone()
        case "name":
            held[draw.choice(["x", "lm_head.weight", "\ud7ff", "a" * 999])] = held.pop(name)
    save_file(held, path)


def change_file(draw: random.Random, path: Path) -> None:
    """Nothing, a folder, a link out of the folder or in a circle in its place."""
    outside = path.parent.parent / f"outside-{path.name}"
    shutil.copy(path, outside)
    path.unlink()
    match draw.choice(["absent", "empty", "folder", "link", "circle"]):
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(outside)
        case "circle":
            path.symlink_to(path.name)


def change_index(draw: random.Random, folder: Path) -> None:
    """Names that lead elsewhere, to a file that would do; entries that nobody holds."""
    content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    where = content["weight_map"]
    name = draw.choice(sorted(where))
    shutil.copy(folder / where[name], folder.parent / where[name])
    outside = [
        f"../{where[name]}",
        str((folder / where[name]).resolve()),
        f"./{where[name]}",
        "/dev/zero",
        "config.json",
    ]
    where[draw.choice([name, name, "x"])] = draw.choice([*outside, draw.choice(sorted(where.values())), 3, None])
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def mutate(draw: random.Random, folder: Path) -> str:
    """One to three changes; returns what was done."""
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
        path = draw.choice(files)
        kind = draw.choice(["json", "json", "json", "tokenizer", "bytes", "template", "weights", "file", "index"])
        try:
            match kind:
                case "json":
                    change_json(draw, path := folder / draw.choice(SETTINGS))
                case "tokenizer":
                    change_json(draw, path := folder / "tokenizer.json")
                case "bytes":
                    change_bytes(draw, path)
                case "template":
                    change_template(draw, path := folder / "chat_template.jinja")
                case "weights":
                    change_weights(draw, folder)
                case "file":
                    change_file(draw, path)
                case "index":
                    change_index(draw, folder)
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue  # an earlier change left nothing to change
        except Exception as error:  # safetensors' own, for a shard that is damaged already
            if type(error).__name__ != "SafetensorError":
                raise
            continue
        done.append(f"{kind} {path.name}")
    return ", ".join(done)


# ------------------------------------------------------------------------------------------------------------ outcomes


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """TimeoutError in the block when it takes longer."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@torch.no_grad()
def outcome(folder: Path, streaming: bool) -> str:
    """ "answers", or the one clear error; everything else is raised."""
    try:
        inputs = Processor(folder)(QUESTION)
        model = KeyeVL.from_pretrained(folder, streaming=streaming)
        logits = model({"input_ids": inputs["input_ids"]}).logits
    except (ValueError, FileNotFoundError) as error:
        assert str(error), "an error without a message"
        return f"{type(error).__name__}: {error}"
    assert logits.isfinite().all(), "answers that are no numbers"
    return "answers"


@pytest.mark.slow
def test_mutated_folders(whole, tmp_path, monkeypatch):
    """Every folder is read or refused in time, by one message. Both happen often, or the mutations are of no use."""
    monkeypatch.setattr(rendering, "SECONDS", 1)
    found = []
    for case in range(CASES):
        draw, folder = random.Random(f"{SEED}:{case}"), tmp_path / str(case) / "model"
        shutil.copytree(whole, folder)
        done = mutate(draw, folder)
        try:
            with alarm(SECONDS):
                found.append(outcome(folder, draw.random() < 0.3))
        except BaseException as error:
            raise AssertionError(f"case {case} of seed {SEED}: {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder.parent)
    answers = found.count("answers")
    assert CASES / 10 < answers < CASES * 9 / 10, f"{answers} of {CASES} answer"


@pytest.mark.parametrize("change", ["link", "../", "absolute"])
def test_nothing_is_read_outside(whole, tmp_path, change):
    """A file that would do lies outside; a reader that opened it would answer."""
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shard = index["weight_map"]["model.norm.weight"]
    (folder / shard).rename(tmp_path / shard)
    if change == "link":
        (folder / shard).symlink_to(tmp_path / shard)
    else:
        name = f"../{shard}" if change == "../" else str(tmp_path / shard)
        index["weight_map"] = {n: name if file == shard else file for n, file in index["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert outcome(folder, False).startswith("CheckpointError: ")
