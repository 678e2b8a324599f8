"""Needles in one film, for any checkpoint: what `minikeye evaluate niah` asks, and what its answers score.

The film is shown as N frames, evenly spread over all of it. One of them, within JITTER of the depth, is the needle: the
frame with a card painted on it (`minivid.needle`), or a picture of a list in LongVA's form, fitted in over black.

Axes: f frame.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from minikeye.evaluation.benchmarks.answers import without_thoughts
from minikeye.evaluation.benchmarks.choice_scores import niah_cells, niah_mean
from minikeye.evaluation.benchmarks.question import Question, Row, load_rows, require_own_keys
from minikeye.evaluation.benchmarks.run import Answer
from minikeye.evaluation.niah.haystack import JITTER, THIRDS
from minikeye.evaluation.niah.heat_map import Map
from minikeye.inputs.pixels import picture, resize
from minikeye.minivid.draws import generator
from minikeye.minivid.needle import card
from minikeye.minivid.tasks import NEEDLE_QUESTION, Event, needle
from minikeye.scores import SECONDS_TOLERANCE, needle_score

FORM = ' Answer in the form "3 at 12.5 s".'  # for checkpoints that were not taught the question
RULE = (
    "V-NIAH as LongVA has it, asked both ways: written, greedily, and given the true answer, each of whose tokens must "
    "be the most likely one (LongVA's rule). Written answers: a card's digit and its second within "
    f"{SECONDS_TOLERANCE} s; a picture's answer in the same words, without case and punctuation. One frame in "
    f"{2 * JITTER:g} of the length around each depth is the needle and takes the place of that frame (LongVA: in "
    "addition, exactly at the depth). What cannot be read is wrong"
)
_SAID = re.compile(r"(?<!\d)(\d)\s+at\s+(\d+(?:\.\d+)?)\s*s")


@dataclass(frozen=True)
class Picture:
    """A needle of a list: a picture, a question that only it answers, and the answer."""

    path: Path
    prompt: str
    answer: str


def read_pictures(file: Path) -> list[Picture]:
    """A JSON list of {"path", "prompt", "answer"}, paths beside the file: LongVA's form.

    Raises ValueError, naming file, row and field, also for a picture that cannot be read and an answer without a letter
    or digit, which nothing written would equal; FileNotFoundError for a list or a picture that is not there.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: --needles-json names a JSON list of pictures, prompts and answers")
    out = []
    for n, content in enumerate(load_rows(file)):
        row = Row.of(file, f"row {n}", content, ("path", "prompt", "answer"))
        path = row.path("path", file.parent)
        if not path.is_file():
            raise FileNotFoundError(f"{file}, row {n}: no picture {path}")
        try:
            picture(path)
        except ValueError as error:
            raise row.error("path", f"names no picture: {error}") from error
        if not _plain(row.text("answer")):
            raise row.error("answer", f"must hold a letter or digit, got {row.text('answer')!r:.80}")
        out.append(Picture(path, row.text("prompt"), row.text("answer").strip()))
    return out


def questions(
    film: Path,
    clocks: Mapping[int, Sequence[float]],
    depths: Sequence[float],
    count: int,
    pictures: Sequence[Picture],
    form: str,
) -> list[Question]:
    """`count` needles for each length and depth. clocks: length -> times of its frames. Without pictures: cards.

    form: said behind the question about a card.
    """
    out = []
    for frames, clock in sorted(clocks.items()):
        for depth in depths:
            random = generator("niah film", frames, str(depth))
            jitter = torch.rand(count, generator=random, dtype=torch.float64).tolist()
            for n in range(count):
                at = min(1.0, max(0.0, depth + JITTER * (2 * jitter[n] - 1)))
                where = {"frames": frames, "depth": depth, "frame": round(at * (frames - 1))}
                out.append(_question(film, clock, where, n, pictures, form))
    return require_own_keys(out, film)


def _question(
    film: Path, clock: Sequence[float], where: dict[str, Any], n: int, pictures: Sequence[Picture], form: str
) -> Question:
    key = f"{where['frames']}/{where['depth']:g}/{n}"
    if pictures:
        one = pictures[n % len(pictures)]
        details = {**where, "picture": str(one.path)}
        return Question("niah", key, film, one.prompt, "", one.answer, {"needle": one.path.name}, details=details)
    digit, second = n % 10, clock[where["frame"]]
    drawn = card(digit, n)
    splits = {"digit": str(digit)} | {
        factor: names[min(2, int(1.5 * (place + 1)))]
        for (factor, names), place in zip(THIRDS.items(), drawn.place, strict=True)
    }
    near = sum(abs(t - second) <= SECONDS_TOLERANCE + 1e-9 for t in clock) / len(clock)
    details = {**where, "digit": digit, "seed": n, "second": round(second, 1), "chance": near / 10}
    truth = needle(Event("card", str(digit), where["frame"], where["frame"] + 1, second, second)).answer
    return Question("niah", key, film, NEEDLE_QUESTION + form, "", truth, splits, details=details)


def hide(question: Question, frames: UInt8[Tensor, "f 3 h w"]) -> UInt8[Tensor, "f 3 h w"]:
    """A copy of the film's frames with the needle of this question."""
    details = question.details
    if "digit" in details:
        return card(details["digit"], details["seed"]).into(frames, details["frame"])
    out = frames.clone()
    out[details["frame"]] = fitted(Path(details["picture"]), *frames.shape[-2:])
    return out


def fitted(path: Path, height: int, width: int) -> UInt8[Tensor, "3 {height} {width}"]:
    """A picture, whole, in the middle of a frame, black around it."""
    seen = torch.from_numpy(picture(path).copy()).permute(2, 0, 1)[None]
    scale = min(height / seen.shape[2], width / seen.shape[3])
    high, wide = (max(1, round(scale * side)) for side in seen.shape[-2:])
    top, left = (height - high) // 2, (width - wide) // 2
    return F.pad(resize(seen, high, wide)[0], (left, width - wide - left, top, height - high - top))


# ---------------------------------------------------------------------------------------------------------- the scores


def found(question: Question, answer: Answer) -> bool | None:
    """Whether the written answer is right; None where it cannot be read."""
    words = without_thoughts(answer.text)
    if "digit" in question.details:
        said = _SAID.search(words)
        if said is None:
            return None
        truth = question.details["digit"], question.details["second"]
        return needle_score((int(said[1]), float(said[2])), truth).both
    return _plain(words) == _plain(str(question.truth)) if _plain(words) else None


def _plain(words: str) -> str:
    return " ".join(re.findall(r"\w+", words.lower()))


def maps(asked: Sequence[Question], answers: Sequence[Answer]) -> list[Map]:
    """The two heat maps: written, and by teacher forcing."""
    pairs = list(zip(asked, answers, strict=True))
    where = [(one.details["frames"], one.details["depth"]) for one in asked]
    written = [bool(found(one, answer)) for one, answer in pairs]
    forced = [bool(answer.forced) for _, answer in pairs]
    return [
        Map(title, niah_cells([(*cell, right) for cell, right in zip(where, rights, strict=True)]))
        for title, rights in (("written", written), ("teacher forcing", forced))
    ]


def report(
    asked: Sequence[Question], answers: Sequence[Answer], settings: Mapping[str, Any], blind: Mapping[str, Answer]
) -> dict[str, Any]:
    """What report.json holds. blind: answers to all these questions without the film, by key, or none of them."""
    out: dict[str, Any] = {"benchmark": "niah", "rule": settings["rule"], "settings": dict(settings)}
    readings = [found(one, answer) for one, answer in zip(asked, answers, strict=True)]
    out |= {"questions": len(asked), "unparsed": sum(one is None for one in readings)}
    out["errors"] = sum(bool(answer.error) for answer in answers)
    both = maps(asked, answers)
    unseen = maps(asked, [blind[one.key] for one in asked]) if all(one.key in blind for one in asked) else []
    out["means"] = {one.title: round(niah_mean(one.cells), 2) for one in both}
    out["blind"] = {one.title: round(niah_mean(one.cells), 2) for one in unseen} or None
    commonest = Counter(one.truth for one in asked).most_common(1)[0][1] / len(asked)
    chances = [one.details.get("chance", commonest) for one in asked]
    out["chance"] = round(100 * sum(chances) / len(chances), 3)
    out["cells"] = [
        {"frames": frames, "depth": depth, **{one.title: asdict(one.cells[frames, depth]) for one in both}}
        for frames, depth in both[0].cells
    ]
    levels: dict[str, dict[str, list[int]]] = defaultdict(dict)  # how many, found, found by forcing
    for one, answer, right in zip(asked, answers, readings, strict=True):
        for factor, level in one.splits.items():
            held = levels[factor].setdefault(level, [0, 0, 0])
            held[:] = held[0] + 1, held[1] + bool(right), held[2] + bool(answer.forced)
    return out | {"levels": {factor: dict(sorted(part.items())) for factor, part in levels.items()}}
