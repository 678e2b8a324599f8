"""Task S: the whole video in one short caption, everything with its time.

| question | answer |
|---|---|
| What is visible in the video, and from when to when? | 0.0-3.5 red circle; 3.0-9.5 blue square; 7.5 card 4 |

Grammar: items joined by "; ", each "START-END THING" or "SECOND card DIGIT", in the order in which they come; of those
that come together things are first, in the order of `things.KINDS`. Times as everywhere: one decimal, an interval ends
at the first frame without the thing. Every card with a digit is told, the second too. White space may differ.

Said and true items are paired so that the sum of what the pairs are worth is largest: a thing is worth the temporal IoU
with the one of its name, a card with the right digit within 0.5 s is worth 1. Captions are scored by F1 over that, so
that more than there is costs as much as less. Our choice: the report has dense captions judged by a model.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.tasks import Event, Evidence, Problem, Solved
from minikeye.scores import SECONDS_TOLERANCE, temporal_iou

CAPTION_QUESTION = "What is visible in the video, and from when to when?"

_TIME = r"([0-9]{1,9}\.[0-9])"
_THING = re.compile(rf"\s*{_TIME}\s*-\s*{_TIME}\s+([a-z]+\s+[a-z]+)\s*")
_CARD = re.compile(rf"\s*{_TIME}\s+(card\s+[0-9])\s*")


class Item(NamedTuple):
    """Something that a caption tells."""

    name: str  # "red circle", "card 4"
    start: float  # seconds
    end: float | None  # seconds; None for a card, which is there for one frame


def caption(events: Sequence[Event]) -> Solved:
    """Task S about a video. events: as they happened, or as an annotator noted them."""
    items = [_item(event) for event in sorted(events, key=_order)]
    told = [
        f"the {i.name} {f'at {i.start:.1f} s' if i.end is None else f'from {i.start:.1f} s to {i.end:.1f} s'}"
        for i in items
    ]
    solution = f"In the order in which they come: {', '.join(told)}."
    intervals = tuple((item.start, item.end) for item in items if item.end is not None)
    moments = tuple(item.start for item in items if item.end is None)
    return Solved(Problem("S", CAPTION_QUESTION, format_caption(items), solution), Evidence(intervals, moments))


def format_caption(items: Sequence[Item]) -> str:
    """The text of a caption."""
    return "; ".join(f"{i.start:.1f}{'' if i.end is None else f'-{i.end:.1f}'} {i.name}" for i in items)


def parse_caption(text: str) -> list[Item] | None:
    """What a caption tells, in its own order; None where a part of it is no item, or ends before it starts.

    Names may be such as no video shows.
    """
    items = [_read(part) for part in text.split(";")]
    return None if None in items else items


def score(problem: Problem, answer: str) -> dict[str, float]:
    """Task S: "f1", names and times; "names", the same where times do not count; "exact", the expected text."""
    said, truth = parse_caption(answer) or [], parse_caption(problem.answer)
    return {
        "f1": _f1(said, truth, _worth),
        "names": _f1(said, truth, lambda a, b: float(a.name == b.name)),
        "exact": float(answer == problem.answer),
    }


def _item(event: Event) -> Item:
    return (
        Item(f"card {event.name}", event.start, None)
        if event.kind == "card"
        else Item(event.name, event.start, event.end)
    )


def _order(event: Event) -> tuple[int, int]:
    return event.first, len(KINDS) if event.kind == "card" else KINDS.index(event.name)


def _read(part: str) -> Item | None:
    if match := _CARD.fullmatch(part):
        return Item(" ".join(match[2].split()), float(match[1]), None)
    if (match := _THING.fullmatch(part)) and float(match[1]) < float(match[2]):
        return Item(" ".join(match[3].split()), float(match[1]), float(match[2]))
    return None


def _worth(said: Item, true: Item) -> float:
    """What a pair of items is worth, 0..1."""
    if said.name != true.name:
        return 0.0
    if true.end is None:
        return float(abs(said.start - true.start) <= SECONDS_TOLERANCE + 1e-9)
    return temporal_iou([(said.start, said.end)], [(true.start, true.end)])


def _f1(said: Sequence[Item], truth: Sequence[Item], worth: Callable[[Item, Item], float]) -> float:
    """Twice the worth of the best pairing, over the number of all items."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and wanted here alone

    values = [[worth(a, b) for b in truth] for a in said]
    if not values:
        return 0.0
    rows, columns = linear_sum_assignment(values, maximize=True)
    return 2 * sum(values[a][b] for a, b in zip(rows, columns, strict=True)) / (len(said) + len(truth))
