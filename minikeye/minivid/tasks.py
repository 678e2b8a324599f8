"""Questions about a video, their answers, a solution that gives the reason, and the way back from text to numbers.

| task | question | answer |
|---|---|---|
| N, needle | Which digit is on the card, and at which second? | 7 at 12.5 s |
| G, grounding | From when to when is the red circle visible? | [[3.0, 9.5]] |
| D, naming | What is visible at 3.5 s? | red circle and blue square |
| Y, presence | Is the red circle visible at 3.5 s? | yes |
| P, order with evidence | Is the card before, during or after the red circle? | [[3.0, 9.5]] 7.5 during |
| T, text only | What is 12+34? | 46 |

All times have one decimal, as the timestamps in the prompt have. An interval ends at the first frame without the thing.
Where a video has two cards with digits, "the card" is the first. Things are named in the order of `things.KINDS`;
"nothing" where none is visible. The evidence of P is the thing's interval and the card's second; the word follows.

These six are what the shipped checkpoints were taught. `questions` holds more: counting (C), what comes first (O),
captions (S), things that are not called by name (R), groups that hang together (V), and what is not there (A).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch

from minikeye.minivid.drawing.pictures import Split, check_split
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.draws import generator
from minikeye.scores import SECONDS_TOLERANCE, needle_score, temporal_iou

NEEDLE_QUESTION = "Which digit is on the card, and at which second?"
TRAIN_SUMS = 9_000  # of the 10,000 pairs of numbers; the rest is the test split

_NEEDLE = re.compile(r"\s*([0-9])\s+at\s+([0-9]+\.[0-9])\s+s\s*")
_PAIR = r"\s*\[\s*([0-9]+\.[0-9])\s*,\s*([0-9]+\.[0-9])\s*\]\s*"
_ORDER = re.compile(r"\s*(\[.*\])\s*([0-9]+\.[0-9])\s+(before|during|after)\s*")
_INTERVALS = re.compile(rf"\s*\[{_PAIR}(?:,{_PAIR})*\]\s*")


@dataclass(frozen=True)
class Event:
    """Something that is in the video from one frame to another."""

    kind: Literal["card", "thing"]
    name: str  # the digit on the card, or the thing, e.g. "red circle"
    first: int  # first frame that shows it, counted from 0
    stop: int  # first frame after `first` that does not show it
    start: float  # time of frame `first`, in seconds, one decimal
    end: float  # time of frame `stop`, in seconds, one decimal


class Problem(NamedTuple):
    """A question with its answer."""

    task: Literal["N", "G", "D", "Y", "P", "T", "C", "O", "S", "R", "V", "A"]
    question: str
    answer: str
    solution: str  # a sentence that gives the reason


class Evidence(NamedTuple):
    """Where in the video the reason for an answer is to be seen: the reference solution in numbers."""

    intervals: tuple[tuple[float, float], ...] = ()  # (start, end) in seconds, in the order of time
    moments: tuple[float, ...] = ()  # seconds, in the order of time


class Solved(NamedTuple):
    """A problem with the evidence for its answer."""

    problem: Problem
    evidence: Evidence


def things_of(events: Sequence[Event]) -> list[Event]:
    """The things of a video, in the order of its events."""
    return [event for event in events if event.kind == "thing"]


def named(things: Sequence[Event]) -> list[Event]:
    """Things in the order in which they are named."""
    return sorted(things, key=lambda thing: KINDS.index(thing.name))


def needle(card: Event) -> Problem:
    """Task N about the card of a video."""
    answer = f"{card.name} at {card.start:.1f} s"
    solution = f"The card is in frame {card.first} at {card.start:.1f} s and shows {card.name}."
    return Problem("N", NEEDLE_QUESTION, answer, solution)


def grounding(thing: Event) -> Problem:
    """Task G about one thing of a video."""
    question = f"From when to when is the {thing.name} visible?"
    solution = (
        f"The {thing.name} comes in frame {thing.first} at {thing.start:.1f} s "
        f"and is gone in frame {thing.stop} at {thing.end:.1f} s."
    )
    return Problem("G", question, f"[[{thing.start:.1f}, {thing.end:.1f}]]", solution)


def naming(things: Sequence[Event], frame: int, seconds: float) -> Problem:
    """Task D about one frame of a video. things: all of the video, in the order in which they are named."""
    names = [thing.name for thing in things if thing.first <= frame < thing.stop]
    answer = " and ".join(names) if names else "nothing"
    return Problem("D", f"What is visible at {seconds:.1f} s?", answer, f"Frame {frame} at {seconds:.1f} s: {answer}.")


def presence(thing: Event, frame: int, seconds: float) -> Problem:
    """Task Y about one thing of a video and one frame."""
    there = thing.first <= frame < thing.stop
    question = f"Is the {thing.name} visible at {seconds:.1f} s?"
    solution = f"The {thing.name} is {'' if there else 'not '}in frame {frame} at {seconds:.1f} s."
    return Problem("Y", question, "yes" if there else "no", solution)


def order(card: Event, thing: Event, noted: tuple[Event, Event] | None = None) -> Problem:
    """Task P: when the card comes, against one thing, after the evidence for it.

    noted: card and thing as the evidence gives them, where an annotator was careless; the word is the true one.
    """
    word = "before" if card.first < thing.first else "after" if card.first >= thing.stop else "during"
    question = f"Is the card before, during or after the {thing.name}?"
    solution = (
        f"The card is in frame {card.first} at {card.start:.1f} s, {word} the {thing.name}, which is visible from "
        f"{thing.start:.1f} s to {thing.end:.1f} s."
    )
    said, seen = noted or (card, thing)
    return Problem("P", question, f"[[{seen.start:.1f}, {seen.end:.1f}]] {said.start:.1f} {word}", solution)


def text_sums(seed: int, indices: Sequence[int], split: Split) -> list[Problem]:
    """Task T: sums of two numbers 0..99, one per index. No pair of numbers is in "test" and in another split.

    Validation asks for pairs of training's, drawn apart: all others are of the test. Raises ValueError for an unknown
    split.
    """
    check_split(split)
    pairs = _pairs()[TRAIN_SUMS:] if split == "test" else _pairs()[:TRAIN_SUMS]
    name = "validation sum" if split == "validation" else "sum"
    picks = [pairs[int(torch.randint(len(pairs), (), generator=generator(seed, name, n)))] for n in indices]
    return [_sum(*divmod(pair, 100)) for pair in picks]


def parse_needle(text: str) -> tuple[int, float] | None:
    """(digit, seconds) of an answer to task N; None for any other text. Only white space may differ."""
    match = _NEEDLE.fullmatch(text)
    return (int(match[1]), float(match[2])) if match else None


def parse_interval(text: str) -> list[tuple[float, float]] | None:
    """The (start, end) pairs, in seconds, of an answer to task G; None for any other text. Only white space may differ.

    A pair that ends before it starts, or when it starts, is no interval: the answer is None.
    """
    if not _INTERVALS.fullmatch(text):
        return None
    pairs = [(float(start), float(end)) for start, end in re.findall(_PAIR, text)]
    return pairs if all(start < end for start, end in pairs) else None


class Order(NamedTuple):
    """What an answer to task P says."""

    interval: list[tuple[float, float]] | None  # of the thing; None where it is no interval
    second: float  # of the card
    word: str  # before, during or after


def parse_order(text: str) -> Order | None:
    """Evidence and word of an answer to task P; None for text of another form."""
    match = _ORDER.fullmatch(text)
    return Order(parse_interval(match[1]), float(match[2]), match[3]) if match else None


def score(problem: Problem, answer: str) -> dict[str, float]:
    """What is right about an answer, each part from 0 to 1; "exact": whether it is the expected text.

    Needle: "digit" exact, "second" within 0.5 s, "both". Grounding: "tiou". Order: "word", "tiou" and "second" of the
    evidence. An answer that cannot be read scores 0.
    """
    exact = {"exact": float(answer == problem.answer)}
    if problem.task == "N":
        parts = needle_score(parse_needle(answer), parse_needle(problem.answer))
        return {"digit": float(parts.digit), "second": float(parts.second), "both": float(parts.both)} | exact
    if problem.task == "G":
        return {"tiou": temporal_iou(parse_interval(answer), parse_interval(problem.answer))} | exact
    if problem.task == "P":
        said, truth = parse_order(answer), parse_order(problem.answer)
        if said is None:
            return {"word": 0.0, "tiou": 0.0, "second": 0.0} | exact
        near = abs(said.second - truth.second) <= SECONDS_TOLERANCE + 1e-9
        tiou = temporal_iou(said.interval, truth.interval)
        return {"word": float(said.word == truth.word), "tiou": tiou, "second": float(near)} | exact
    return exact


def _sum(a: int, b: int) -> Problem:
    return Problem("T", f"What is {a}+{b}?", str(a + b), f"{a} and {b} make {a + b}.")


@cache
def _pairs() -> list[int]:
    """All pairs of numbers 0..99 as 100 * first + second, shuffled once for all."""
    return torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
