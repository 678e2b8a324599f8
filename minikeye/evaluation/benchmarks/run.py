"""Asking all questions of a benchmark: one line of JSONL an answer, as it comes.

    FOLDER/settings.json   what is asked of whom, and how; another setting in the same folder is refused
    FOLDER/answers.jsonl   an `Answer` a line; a run that was killed goes on behind the last whole one

The same without the videos (`blind`) is blind-settings.json and blind-answers.jsonl, beside them.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_type_hints

from minikeye.evaluation.benchmarks import long_video_bench, mlvu, timelens, video_mme
from minikeye.evaluation.benchmarks.question import Benchmark, Question
from minikeye.files import write_whole

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (timelens.BENCHMARK, video_mme.BENCHMARK, long_video_bench.BENCHMARK, mlvu.BENCHMARK)
}
EVERY = 10.0  # seconds between two lines of progress
EDGE = 2**16  # bytes at either end of a file of weights that tell it from another


@dataclass(frozen=True)
class Answer:
    """What a model said to one question. Nothing of it depends on when or how fast."""

    key: str  # of the question
    text: str  # the whole reply, with its thought; "" after an error
    error: str = ""  # why the question could not be put: then it counts as wrong
    frames: int = 0  # that the model saw
    frame_tokens: int = 0  # visual tokens of each
    prompt_tokens: int = 0
    reply_tokens: int = 0
    forced: bool | None = None  # whether each token of the true answer is the most likely one; None: not asked


# What a line of answers.jsonl must hold, as JSON gives it back.
KINDS = {name: get_args(kind) or (kind,) for name, kind in get_type_hints(Answer).items()}
Ask = Callable[[Question], Answer]
Tell = Callable[[str], None]


def ask_all(
    questions: Sequence[Question],
    ask: Ask,
    folder: Path,
    settings: Mapping[str, Any],
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> list[Answer]:
    """An answer for each question, in their order; those that the folder holds are not asked again.

    tell: gets lines for the user: what goes wrong, and how far it is. Raises ValueError for a folder that holds other
    settings or broken lines, BlockingIOError where another run writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = "blind-" if settings["blind"] else ""
    with open(folder / f"{before}answers.jsonl", "a+b") as file:
        _lock(file)
        _require_same(folder / f"{before}settings.json", settings, os.fstat(file.fileno()).st_size > 0)
        answers = _kept(file)
        left = [one for one in questions if one.key not in answers]
        if answers:
            tell(f"{len(questions) - len(left)} of {len(questions)} answers are in {file.name} already")
        begun = told = clock()
        for n, question in enumerate(left, 1):
            answers[question.key] = answer = ask(question)
            file.write(json.dumps(asdict(answer)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            if answer.error:
                tell(f"{question.key}: {answer.error}")
            if n in (1, len(left)) or clock() - told >= EVERY:
                told = clock()
                tell(pace(len(questions) - len(left) + n, len(questions), n, told - begun))
    return [answers[one.key] for one in questions]


def answers_in(folder: Path, settings: Mapping[str, Any]) -> dict[str, Answer]:
    """The answers that a folder holds under these settings, by key; empty where it holds none, or under others."""
    before = "blind-" if settings["blind"] else ""
    settled = folder / f"{before}settings.json"
    if not settled.is_file() or _settled(settled) != _plain(settings):
        return {}
    with open(folder / f"{before}answers.jsonl", "rb") as file:
        return _read(file.name, file.read())


def pace(done: int, total: int, fresh: int, seconds: float) -> str:
    """How far a run is, and how long the rest will take if it takes as long as the `fresh` answers did."""
    each = seconds / fresh
    rest = each * (total - done)
    left = f"about {rest / 3600:.1f} h left" if rest >= 3600 else f"about {rest / 60:.0f} min left"
    return f"{done} of {total} answered, {each:.1f} s each, {left if rest >= 60 else f'about {rest:.0f} s left'}"


def digest(questions: Sequence[Question]) -> str:
    """Of what is asked and what is right: the same data, whatever folder it lies in."""
    lines = [[one.key, one.system, one.prompt, one.letters, one.truth, dict(one.splits)] for one in questions]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]


def weights_digest(folder: Path) -> str:
    """Of a checkpoint: names and sizes of its files and both ends of each, which training changes; never all 62 GB."""
    state = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")):
        size = path.stat().st_size
        state.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            state.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            state.update(file.read(EDGE))
    return state.hexdigest()[:16]


def _lock(file: BinaryIO) -> None:
    """For as long as it is open. Raises BlockingIOError where another process holds it."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(f"another run writes to {file.name}: wait for it, or take another --out") from error


def _plain(settings: Mapping[str, Any]) -> Any:
    """As they come back from a file."""
    return json.loads(json.dumps(settings))


def _settled(path: Path) -> dict[str, Any]:
    """What settings.json holds. Raises ValueError, naming the file, for what no run wrote."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise ValueError(f"{path} is damaged: expected the settings of a run. Take another --out")
    return held


def _require_same(path: Path, settings: Mapping[str, Any], begun: bool) -> None:
    """Write the settings where there are none. Raises ValueError, naming what differs, where there are others."""
    if not path.is_file():
        if begun:
            raise ValueError(f"{path.parent} holds answers without {path.name}: take another --out")
        write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())
        return
    held, asked = _settled(path), _plain(settings)
    differ = [name for name in {**held, **asked} if held.get(name) != asked.get(name)]
    if differ:
        what = "; ".join(f"{name} was {held.get(name)!r:.60}, now {asked.get(name)!r:.60}" for name in differ)
        raise ValueError(f"{path} is of another run: {what}. Take another --out, or ask as before to go on")


def _kept(file: BinaryIO) -> dict[str, Answer]:
    """The answers in the file; half a line at its end, which a kill may leave, is cut off."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    file.truncate(whole)
    return _read(file.name, data[:whole])


def _read(name: str, data: bytes) -> dict[str, Answer]:
    """Raises ValueError, naming file and line, for what is no answer, and for a second answer to one question."""
    answers = dict[str, Answer]()
    for n, line in enumerate(data.splitlines(), 1):
        try:
            held = json.loads(line)
        except ValueError:
            held = None
        fit = isinstance(held, dict) and held.keys() == KINDS.keys()
        if not fit or any(type(held[one]) not in KINDS[one] for one in KINDS) or held["key"] in answers:
            raise ValueError(f"{name}, line {n}: expected one answer to a question of its own, got {line!r:.80}")
        answers[held["key"]] = Answer(**held)
    return answers
