"""Videos and questions that a model which looks must fail, or must call by what they are.

| control | what is changed | what it shows |
|---|---|---|
| `shuffled` | the frames come in another order | whether order and time are read off the frames |
| `scene.render_blank` | all frames are grey | whether pixels are read at all: what is left is prior |
| `without_card` | no card with a digit | whether an answer is made up where there is none |
| `absent_things` | the question: about a thing that is not there | the same |

Of shuffled videos events, questions and answers are those of the original order, told truthfully: scores must fall to
what is blind (`questions.scoring.chance`) or below. What needs no order stays: which things there are (C, the names of
S), and what is there together with the card (R). Those scores must not fall, which shows that the rest fell for no
other reason. What is honest where something is absent, `questions.absent` says.
"""

import random
from dataclasses import replace

import torch

from minikeye.minivid.dataset import MiniVideos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.absent import absent_card, absent_thing
from minikeye.minivid.tasks import Problem


def shuffled(videos: MiniVideos, seed: int) -> MiniVideos:
    """The same videos, none of their frames where it was; times, events and problems stay those of the original order.

    The order of a video is the same in any batch; another seed is another order.
    """
    frames = videos.seconds.shape[1]
    rows = [_cycle(frames, random.Random(repr((seed, events)))) for events in videos.events]
    return replace(videos, spec=videos.spec.reordered(torch.tensor(rows)))


def without_card(videos: MiniVideos) -> MiniVideos:
    """The same videos without their cards with digits: cards without one, and digits on no card, stay.

    The first problem of each is the question about its card as task A; the others are as they were. Events are things
    alone.
    """
    gone = {
        name: replace(part, shown=torch.zeros_like(part.shown))
        for name in ("cards", "later")
        if (part := getattr(videos.spec, name)) is not None
    }
    events = tuple(tuple(event for event in of_video if event.kind == "thing") for of_video in videos.events)
    problems = tuple(
        (absent_card(things), *(problem for problem in asked if problem.task != "N"))
        for things, asked in zip(events, videos.problems, strict=True)
    )
    return replace(videos, spec=replace(videos.spec, **gone), events=events, problems=problems)


def absent_things(videos: MiniVideos, seed: int) -> list[Problem]:
    """A problem of task A for each video, about a thing that it does not show. Another seed asks for another thing."""
    out = []
    for events in videos.events:
        names = {event.name for event in events}
        absent = [name for name in KINDS if name not in names]
        out.append(absent_thing(events, random.Random(repr((seed, "absent", events))).choice(absent)))
    return out


def _cycle(frames: int, rng: random.Random) -> list[int]:
    """A random order in which every frame is elsewhere: one cycle through all of them (Sattolo's shuffle)."""
    order = list(range(frames))
    for last in range(frames - 1, 0, -1):
        other = rng.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order
