"""Labels as annotators give them: moved by a few frames. What reward learning is for, and what imitation repeats.

Public sets of temporal grounding are annotated this carelessly. A model that imitates such
labels draws one noisy token after another; the middle of them is what a graded reward likes best.
"""

import random
from dataclasses import replace

from minikeye.minivid.dataset import MiniVideos
from minikeye.minivid.tasks import Event, Problem, grounding, needle, order

SPAN, SPOT = 3, 1  # frames by which an end of an interval, and the frame of a card, may be off


def annotated(videos: MiniVideos, task: str, seed: int, span: int = SPAN, spot: int = SPOT) -> list[Problem]:
    """A question of task N, G or P about each video, with the answer of a careless annotator.

    G and P ask about the first thing. span, spot: how many frames the ends of its interval, and the card, are off at
    most, drawn evenly; with 0 and 0 the labels are true. The same video gets the same label again; another seed is
    another annotator. The word of P is always right. Raises ValueError for another task or a number below 0.
    """
    if task not in ("N", "G", "P") or min(span, spot) < 0:
        raise ValueError(f"expected task N, G or P, and span and spot of at least 0, got {task}, {span} and {spot}")
    problems = []
    for events, clock in zip(videos.events, videos.seconds.tolist(), strict=True):
        rng = random.Random(repr((seed, events)))
        card, thing = moved(events[0], clock, rng, spot), moved(events[1], clock, rng, span)
        noted = {"N": needle(card), "G": grounding(thing), "P": order(events[0], events[1], (card, thing))}
        problems.append(noted[task])
    return problems


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
