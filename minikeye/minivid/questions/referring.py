"""Task R: what is asked about is not called by its name but found by what it does.

| form | question | answer |
|---|---|---|
| names | What is visible when the card comes? | red circle and blue square |
| with | From when to when is the thing visible that is there when the card comes? | [[3.0, 9.5]] |
| after | From when to when is the thing visible that comes next after the red circle? | [[3.0, 9.5]] |
| before | From when to when is the thing visible that comes last before the red circle? | [[3.0, 9.5]] |

Two steps: find the moment, then look there, as LongVideoBench (arXiv 2407.15754) asks. Answers are those of tasks D and
G. "next after" and "last before" go by when things come, not by when they go. The evidence is the step between: the
second of the card, or the interval of the thing that is called by name.

A question is asked only where exactly one thing is meant: `referring` knows all that a video allows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from minikeye.minivid.tasks import Event, Evidence, Problem, Solved, named, parse_interval, things_of
from minikeye.scores import temporal_iou

Form = Literal["names", "with", "after", "before"]

_SIDES = {"after": "comes next after", "before": "comes last before"}


def referring(events: Sequence[Event], noted: Sequence[Event] | None = None) -> Mapping[Form, list[Solved]]:
    """All questions of task R about a video, by form; a form that asks for nothing, or for more than one, has none.

    noted: the same events with the times that an annotator gave them: which thing is meant, and what is visible, stays
    true; the times of answer and evidence are the noted ones. Raises ValueError where they are not as many.
    """
    if noted is not None and len(noted) != len(events):
        raise ValueError(f"expected the noted times of {len(events)} events, got {len(noted)}")
    told = dict(zip(events, noted or events, strict=True))
    things, cards = things_of(events), [event for event in events if event.kind == "card"]
    asked: dict[Form, list[Solved]] = {"names": [], "with": [], "after": [], "before": []}
    if cards:
        card = min(cards, key=lambda card: card.first)
        there = [thing for thing in things if thing.first <= card.first < thing.stop]
        asked["names"].append(_names(told[card], named(there)))
        if len(there) == 1:
            asked["with"].append(_with_card(told[card], told[there[0]]))
    for known in things:
        for side in _SIDES:
            if (meant := _neighbour(known, things, side)) is not None:
                asked[side].append(_beside(told[known], told[meant], side))
    return asked


def score(problem: Problem, answer: str) -> dict[str, float]:
    """Task R: "tiou" where an interval is asked for, and "exact", whether it is the expected text."""
    exact = {"exact": float(answer == problem.answer)}
    truth = parse_interval(problem.answer)
    return exact if truth is None else {"tiou": temporal_iou(parse_interval(answer), truth)} | exact


def _names(card: Event, there: Sequence[Event]) -> Solved:
    answer = " and ".join(thing.name for thing in there) or "nothing"
    solution = f"The card comes at {card.start:.1f} s. What is visible then: {answer}."
    return Solved(Problem("R", "What is visible when the card comes?", answer, solution), Evidence((), (card.start,)))


def _with_card(card: Event, thing: Event) -> Solved:
    question = "From when to when is the thing visible that is there when the card comes?"
    solution = f"The card comes at {card.start:.1f} s. There then is the {_visible(thing)}."
    return Solved(Problem("R", question, _interval(thing), solution), Evidence((), (card.start,)))


def _beside(known: Event, meant: Event, side: Form) -> Solved:
    question = f"From when to when is the thing visible that {_SIDES[side]} the {known.name}?"
    solution = f"The {_visible(known)}. What {_SIDES[side]} it is the {_visible(meant)}."
    return Solved(Problem("R", question, _interval(meant), solution), Evidence(((known.start, known.end),)))


def _neighbour(known: Event, things: Sequence[Event], side: Form) -> Event | None:
    """The one thing that comes next after `known`, or last before it; None where there is none, or two."""
    step = 1 if side == "after" else -1
    others = [(step * (thing.first - known.first), thing) for thing in things if step * (thing.first - known.first) > 0]
    nearest = [thing for gap, thing in others if gap == min(gap for gap, _ in others)]
    return nearest[0] if len(nearest) == 1 else None


def _visible(thing: Event) -> str:
    return f"{thing.name}, visible from {thing.start:.1f} s to {thing.end:.1f} s"


def _interval(thing: Event) -> str:
    return f"[[{thing.start:.1f}, {thing.end:.1f}]]"
