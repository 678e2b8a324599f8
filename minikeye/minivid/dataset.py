"""Batches of synthetic videos with their events and questions, and of labelled stills for the vision tower.

Axes: b video, f frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.draws import Draws
from minikeye.minivid.scene import PLAIN, Difficulty, VideoSpec, draw_stills, draw_videos, frame_labels, render
from minikeye.minivid.tasks import Event, Problem, grounding, named, naming, needle, presence, things_of

MIN_STEP, MAX_STEP = 0.25, 1.0  # seconds between two frames of plain videos
MIN_HARD_STEP, MAX_HARD_STEP = 0.1, 2.5  # of hard ones: from a slow motion to an hour in 1,440 frames


@dataclass(frozen=True)
class MiniVideos:
    """A batch of videos: what is to be seen, when, and what can be asked. `scene.render` gives the pixels."""

    spec: VideoSpec
    seconds: Float[Tensor, "b f"]  # float64, time of each frame, rounded to one decimal
    events: tuple[tuple[Event, ...], ...]  # of each video: the card, then its things, then a second card
    problems: tuple[tuple[Problem, ...], ...]  # of each video: one N, a G for each thing, a D, two Y


def make_videos(
    seed: int,
    indices: Sequence[int],
    frames: int,
    split: Split = "train",
    dt: float | int | None = None,
    difficulty: Difficulty = PLAIN,
) -> MiniVideos:
    """The videos of the given numbers, e.g. `range(96)`. Video n of (seed, split, frames) is the same in
    every batch.

    frames: per video, at least 4.  dt: seconds between two frames; None draws it for each video,
    from 0.25..1, of hard videos from 0.1..2.5.
    difficulty: how hard they are; plain ones by default.
    Raises ValueError for too few frames, an unknown split, or a `dt` below 0.1 (times would no longer differ).
    """
    if dt is not None and not 0.1 <= dt < float("inf"):
        raise ValueError(f"dt must be at least 0.1 s, because times have one decimal; it is {dt}")
    draws = Draws.of_samples(seed, split, indices)
    step = draws.uniform(0, 1, 1)
    if difficulty.hard:
        step = MIN_HARD_STEP * (MAX_HARD_STEP / MIN_HARD_STEP) ** step
    else:
        step = MIN_STEP + (MAX_STEP - MIN_STEP) * step
    if dt is not None:
        step = torch.full_like(step, dt)
    spec = draw_videos(draws, frames, split, difficulty)
    times = torch.round(step * torch.arange(frames + 1), decimals=1)  # one more: where the last frame ends
    events = _events(spec, times.tolist())
    # Of a generator of their own: a question must not change the pixels.
    asked = Draws.of_samples(seed, f"{split} questions", indices).uniform(0, 1, 8).tolist()
    problems = tuple(_problems(*row) for row in zip(events, times.tolist(), asked, strict=True))
    return MiniVideos(spec, times[:, :-1], events, problems)


def make_stills(
    seed: int,
    step: int,
    count: int,
    split: Split = "train",
    height: int = 56,
    width: int = 56,
    device: torch.device | str = "cpu",
    difficulty: Difficulty = PLAIN,
) -> tuple[UInt8[Tensor, "b 3 {height} {width}"], Int[Tensor, "b"], Bool[Tensor, "b kinds"]]:
    """`count` unrelated single frames and what is in them, all on `device`.

    60 % show a card; none, one and two things are equally frequent. Returns frames, digit (10: no card) and, for each
    of `things.KINDS`, whether it is there. Deterministic in (seed, step, count, split).
    """
    spec = draw_stills(Draws.of_batch(count, seed, "stills", split, step), split, difficulty)
    digit, things = frame_labels(spec)
    return render(spec, height, width, device)[:, 0], digit[:, 0].to(device), things[:, 0].to(device)


def _problems(events: tuple[Event, ...], clock: list[float], asked: list[float]) -> tuple[Problem, ...]:
    """The questions about one video; `asked` are uniform numbers that pick the frames and things in question.

    D: four times of five about a frame that shows something. Y: once about a frame with the thing, once about one
    without it, either of them first: who answers yes always is right half of the time.
    """
    card, things = events[0], things_of(events)

    def frame_of(thing: Event, share: float) -> int:
        return thing.first + int(share * (thing.stop - thing.first))

    def pick(share: float) -> Event:
        return things[int(share * len(things))]

    anywhere = int(asked[2] * (len(clock) - 1))
    frame = frame_of(pick(asked[1]), asked[2]) if asked[0] < 0.8 else anywhere
    seen, missed = pick(asked[3]), pick(asked[5])
    there = frame_of(seen, asked[4])
    gone = int(asked[6] * (len(clock) - 1 - (missed.stop - missed.first)))  # among the frames without it
    gone += (missed.stop - missed.first) * (gone >= missed.first)
    pair = presence(seen, there, clock[there]), presence(missed, gone, clock[gone])
    questions = [needle(card), *map(grounding, things), naming(named(things), frame, clock[frame])]
    return *questions, *(pair if asked[7] < 0.5 else reversed(pair))


def _events(spec: VideoSpec, times: list[list[float]]) -> tuple[tuple[Event, ...], ...]:
    """Cards and things of every video, read off the spec."""
    card_first, _ = _interval(spec.cards.shown)
    thing_first, thing_stop = _interval(spec.things.shown)
    columns = (card_first, spec.cards.digit[:, 0], thing_first, thing_stop, spec.things.kind[:, 0])
    events = []
    for clock, card, digit, firsts, stops, kinds in zip(times, *(column.tolist() for column in columns), strict=True):
        of_video = [Event("card", str(digit), card, card + 1, clock[card], clock[card + 1])]
        for first, stop, kind in zip(firsts, stops, kinds, strict=True):
            if stop > first:
                of_video.append(Event("thing", KINDS[kind], first, stop, clock[first], clock[stop]))
        events.append(of_video)
    if (later := spec.later) is not None:
        first, _ = _interval(later.shown)
        for row, frame in enumerate(first.tolist()):
            if later.shown[row, frame]:
                clock = times[row]
                digit = str(int(later.digit[row, frame]))
                events[row].append(Event("card", digit, frame, frame + 1, clock[frame], clock[frame + 1]))
    return tuple(map(tuple, events))


def _interval(shown: Bool[Tensor, "b f ..."]) -> tuple[Int[Tensor, "b ..."], Int[Tensor, "b ..."]]:
    """First frame with it, and the frame after the last; equal where it is never shown."""
    first = shown.int().argmax(1)
    return first, first + shown.sum(1)
