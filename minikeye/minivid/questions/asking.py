"""Which question of a task a video is asked, drawn for it: the same in any batch, and drawn beside all that was before.

| task | what is drawn |
|---|---|
| C | all things or, half of the time, those of a colour or shape: three times of four one that is in the video |
| O | first or last, and three options of what comes at different times; what is missing is not in the video |
| S | nothing |
| R | one of the forms that the video allows, each as often, and of that form one question |
| V | the thing, and a frame with it or, half of the time, one without it |

How hard and how long the videos are is `make_videos`' business. The numbers come from a generator that is named by
seed, split, task and the video's events: no pixel, and none of the questions in `MiniVideos.problems`, depends on it.
Shares and numbers: our choice.

What videos are good for: in plain ones, of one or two things, a count is guessed two times of three, and what is
visible with the card is mostly nothing. Crowds leave less to guess: `scoring.chance` measures it.
"""

import random
from collections.abc import Sequence

from minikeye.minivid.dataset import MiniVideos
from minikeye.minivid.drawing.things import COLOURS, KINDS, SHAPES
from minikeye.minivid.questions.captions import caption
from minikeye.minivid.questions.choices import comings, ordering
from minikeye.minivid.questions.counting import ALL, counting
from minikeye.minivid.questions.linked import Group, linked
from minikeye.minivid.questions.referring import referring
from minikeye.minivid.tasks import Event, Problem, Solved, named, things_of

TASKS = ("C", "O", "S", "R")  # tasks of one question a video; V has four
OPTIONS = 3  # of task O

Noted = Sequence[Sequence[Event]]  # of each video its events with the times that an annotator gave them


def problems_of(videos: MiniVideos, task: str, seed: int, noted: Noted | None = None) -> list[Problem]:
    """A problem of task C, O, S or R for each video. Arguments and errors: as of `solved`."""
    return [each.problem for each in solved(videos, task, seed, noted)]


def solved(videos: MiniVideos, task: str, seed: int, noted: Noted | None = None) -> list[Solved]:
    """A problem of task C, O, S or R for each video, with the evidence for its answer.

    seed: another seed asks other questions.  noted: as `labels.noted` gives them; which question is asked, what it
    means, counts and letters stay true, all times of S and R are the noted ones. Raises ValueError for another task,
    and for R about a video that allows no such question: one without a card, and without a first and a second thing.
    """
    if task not in TASKS:
        raise ValueError(f"expected task {', '.join(TASKS)}, got {task!r}: V comes in groups, ask groups_of")
    out = []
    for events, told in zip(videos.events, _told(videos, noted), strict=True):
        rng = _numbers(videos, task, seed, events)
        if task == "C":
            out.append(counting(things_of(events), _wanted(rng, things_of(events))))
        elif task == "O":
            out.append(_ordering(rng, events))
        elif task == "S":
            out.append(caption(told))
        else:
            out.append(_referring(rng, events, told))
    return out


def groups_of(videos: MiniVideos, seed: int, noted: Noted | None = None) -> list[Group]:
    """A group of task V for each video. seed, noted: as of `solved`."""
    out = []
    for events, told, clock in zip(videos.events, _told(videos, noted), videos.seconds.tolist(), strict=True):
        rng = _numbers(videos, "V", seed, events)
        things = things_of(events)
        place = rng.randrange(len(things))
        thing = things[place]
        there = [frame for frame in range(len(clock)) if thing.first <= frame < thing.stop]
        gone = [frame for frame in range(len(clock)) if frame not in there]
        frame = rng.choice(there if rng.random() < 0.5 else gone)
        out.append(linked(named(things), thing, frame, clock[frame], things_of(told)[place]))
    return out


def _told(videos: MiniVideos, noted: Noted | None) -> Noted:
    if noted is not None and list(map(len, noted)) != list(map(len, videos.events)):
        raise ValueError(f"expected noted times of every event of {len(videos.events)} videos, got another number")
    return videos.events if noted is None else noted


def _numbers(videos: MiniVideos, task: str, seed: int, events: Sequence[Event]) -> random.Random:
    """Random numbers of one video for one task."""
    return random.Random(repr((seed, videos.spec.split, task, tuple(events))))


def _wanted(rng: random.Random, things: Sequence[Event]) -> str:
    if rng.random() < 0.5:
        return ALL
    known = rng.choice(things).name.split() if rng.random() < 0.75 else [*COLOURS, *SHAPES]
    return rng.choice(known)


def _ordering(rng: random.Random, events: Sequence[Event]) -> Solved:
    """Of two that come together one is no option: whichever is asked for, there is one answer."""
    coming, options, taken = comings(events), [], set()
    for name in rng.sample(sorted(coming), len(coming)):
        if len(options) < OPTIONS and coming[name].first not in taken:
            options.append(name)
            taken.add(coming[name].first)
    absent = [name for name in KINDS if name not in coming]
    options += rng.sample(absent, OPTIONS - len(options))
    return ordering(events, rng.sample(options, OPTIONS), rng.choice(("first", "last")))


def _referring(rng: random.Random, events: Sequence[Event], told: Sequence[Event]) -> Solved:
    allowed = [asked for asked in referring(events, told).values() if asked]
    if not allowed:
        raise ValueError("expected videos with a card or with two things that come one after the other for task R")
    return rng.choice(rng.choice(allowed))
