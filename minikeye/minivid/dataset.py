"""Batches of synthetic videos with their events and questions, and of labelled stills for the vision tower.

Axes: b video, f frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from minikeye.minivid.draws import Draws
from minikeye.minivid.pictures import Split
from minikeye.minivid.scene import VideoSpec, draw_stills, draw_videos, frame_labels, render
from minikeye.minivid.tasks import Event, Problem, grounding, needle
from minikeye.minivid.things import KINDS

MIN_STEP, MAX_STEP = 0.25, 1.0  # seconds between two frames


@dataclass(frozen=True)
class MiniVideos:
    """A batch of videos: what is to be seen, when, and what can be asked. `scene.render` gives the pixels."""

    spec: VideoSpec
    seconds: Float[Tensor, "b f"]  # float64, time of each frame, rounded to one decimal
    events: tuple[tuple[Event, ...], ...]  # of each video: the card, then its one or two things
    problems: tuple[tuple[Problem, ...], ...]  # of each video: one N, then a G for each thing


def make_videos(
    seed: int, indices: Sequence[int], frames: int, split: Split = "train", dt: float | int | None = None
) -> MiniVideos:
    """The videos of the given numbers, e.g. `range(96)`. Video n of (seed, split, frames) is the same in
    every batch.

    frames: per video, at least 4.  dt: seconds between two frames; None draws it from 0.25..1 for each video.
    Raises ValueError for too few frames, an unknown split, or a `dt` below 0.1 (times would no longer differ).
    """
    if dt is not None and not 0.1 <= dt < float("inf"):
        raise ValueError(f"dt must be at least 0.1 s, because times have one decimal; it is {dt}")
    draws = Draws.of_samples(seed, split, indices)
    step = draws.uniform(MIN_STEP, MAX_STEP, 1)
    if dt is not None:
        step = torch.full_like(step, dt)
    spec = draw_videos(draws, frames, split)
    times = torch.round(step * torch.arange(frames + 1), decimals=1)  # one more: where the last frame ends
    events = _events(spec, times.tolist())
    problems = tuple((needle(card), *map(grounding, things)) for card, *things in events)
    return MiniVideos(spec, times[:, :-1], events, problems)


def make_stills(
    seed: int,
    step: int,
    count: int,
    split: Split = "train",
    height: int = 56,
    width: int = 56,
    device: torch.device | str = "cpu",
) -> tuple[UInt8[Tensor, "b 3 {height} {width}"], Int[Tensor, "b"], Bool[Tensor, "b kinds"]]:
    """`count` unrelated single frames and what is in them, all on `device`.

    60 % show a card; none, one and two things are equally frequent. Returns frames, digit (10: no card) and, for each
    of `things.KINDS`, whether it is there. Deterministic in (seed, step, count, split).
    """
    spec = draw_stills(Draws.of_batch(count, seed, "stills", split, step), split)
    digit, things = frame_labels(spec)
    return render(spec, height, width, device)[:, 0], digit[:, 0].to(device), things[:, 0].to(device)


def _events(spec: VideoSpec, times: list[list[float]]) -> tuple[tuple[Event, ...], ...]:
    """Card and things of every video, read off the spec."""
    card_first, _ = _interval(spec.cards.shown)
    thing_first, thing_stop = _interval(spec.things.shown)
    columns = (card_first, spec.cards.digit[:, 0], thing_first, thing_stop, spec.things.kind[:, 0])
    events = []
    for clock, card, digit, firsts, stops, kinds in zip(times, *(column.tolist() for column in columns), strict=True):
        of_video = [Event("card", str(digit), card, card + 1, clock[card], clock[card + 1])]
        for first, stop, kind in zip(firsts, stops, kinds, strict=True):
            if stop > first:
                of_video.append(Event("thing", KINDS[kind], first, stop, clock[first], clock[stop]))
        events.append(tuple(of_video))
    return tuple(events)


def _interval(shown: Bool[Tensor, "b f ..."]) -> tuple[Int[Tensor, "b ..."], Int[Tensor, "b ..."]]:
    """First frame with it, and the frame after the last; equal where it is never shown."""
    first = shown.int().argmax(1)
    return first, first + shown.sum(1)
