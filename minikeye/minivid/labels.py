"""Labels as annotators give them: moved by a few frames. What reward learning is for, and what imitation repeats.

Public sets of temporal grounding are annotated this carelessly. A model that imitates such
labels draws one noisy token after another; the middle of them is what a graded reward likes best.
"""

import random
from dataclasses import replace

from minikeye.minivid.dataset import MiniVideos
from minikeye.minivid.questions.asking import problems_of
from minikeye.minivid.tasks import Event, Problem, grounding, needle, order

SPAN, SPOT = 3, 1  # frames by which an end of an interval, and the frame of a card, may be off


def annotated(
    videos: MiniVideos, task: str, seed: int, span: int = SPAN, spot: int = SPOT, asked: int = 0
) -> list[Problem]:
    """A question of task N, G, P, R or S about each video, with the answer of a careless annotator.

    G and P ask about the first thing; R asks as `asking.problems_of` with the seed `asked`. seed, span, spot: as of
    `noted`. The word of P and what is meant and named in R are always right, the names and digits of S too. Counts (C)
    and letters (O) hold no times, and groups (V) are had by `asking.groups_of(videos, asked, noted(...))`. Raises
    ValueError for another task or a number below 0.
    """
    if task not in ("N", "G", "P", "R", "S") or min(span, spot) < 0:
        raise ValueError(
            f"expected task N, G, P, R or S, and span and spot of at least 0, got {task}, {span} and {spot}"
        )
    told = noted(videos, seed, span, spot)
    if task in ("R", "S"):
        return problems_of(videos, task, asked, told)
    problems = []
    for events, (card, thing, *_) in zip(videos.events, told, strict=True):
        by_task = {"N": needle(card), "G": grounding(thing), "P": order(events[0], events[1], (card, thing))}
        problems.append(by_task[task])
    return problems


def noted(videos: MiniVideos, seed: int, span: int = SPAN, spot: int = SPOT) -> tuple[tuple[Event, ...], ...]:
    """The events of each video with the times that a careless annotator gave them.

    span, spot: how many frames the ends of a thing's interval, and a card, are off at most, drawn evenly; with 0 and 0
    the labels are true. The same video gets the same times again; another seed is another annotator.
    """
    out = []
    for events, clock in zip(videos.events, videos.seconds.tolist(), strict=True):
        rng = random.Random(repr((seed, events)))
        out.append(tuple(moved(event, clock, rng, spot if event.kind == "card" else span) for event in events))
    return tuple(out)


def moved(event: Event, clock: list[float], rng: random.Random, most: int) -> Event:
    """The event with its ends moved by up to `most` frames, inside the video; a card moves as a whole.

    clock: time of every frame in seconds; the end of the last is one step later.
    """
    ends = [*clock, round(2 * clock[-1] - clock[-2], 1)]
    first = min(max(event.first + rng.randint(-most, most), 0), len(clock) - 1)
    stop = min(max(event.stop + rng.randint(-most, most), first + 1), len(clock))
    if event.kind == "card":
        stop = first + 1
    return replace(event, first=first, stop=stop, start=ends[first], end=ends[stop])
