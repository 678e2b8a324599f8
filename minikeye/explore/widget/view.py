"""What the explorer's controls are set to, and what is then to be seen, in words.

Axes: l recorded layer, t recorded query (one here), f frame.
"""

from dataclasses import dataclass, replace

from minikeye.explore.selection import FrameCounts
from minikeye.explore.words import at_times, percent, when


@dataclass(frozen=True)
class Query:
    """A token that can be asked which keys it selected."""

    position: int  # in prompt and answer, from 0; in a plain record: number of the query within it
    name: str  # short, beside a slider: "1 “7”"
    place: str  # in a sentence: "the query that writes “7”, token 1 of 11 of the answer"
    sees: int  # frames of the videos, or tokens of a text, that stand before it in the prompt


@dataclass(frozen=True)
class View:
    """A selection looked at: one layer of it, some of its frames."""

    query: Query
    layer: int  # row of the selection
    first: int  # first frame shown
    last: int  # last frame shown
    how: str  # how the keys were chosen: "all 4 heads, k = 256"


def recorded(s: FrameCounts) -> list[Query]:
    """The queries of a selection, which stand behind all of its frames; `of_query` gives what each of them selected."""
    total, sees = s.counts.shape[1], len(s.seconds)
    if s.labels:
        return [writes(n, n, total, quoted(label), sees) for n, label in enumerate(s.labels)]
    return [Query(n, f"{n + 1}", f"recorded query {n + 1} of {total}", sees) for n in range(total)]


def writes(position: int, n: int, total: int, token: str, sees: int) -> Query:
    """The query at `position` that writes token `n` of the answer's `total`."""
    place = f"the query that writes {token}, token {n + 1} of {total} of the answer"
    return Query(position, f"{n + 1} {token}", place, sees)


def quoted(text: str) -> str:
    """A token's text in quotation marks, with signs for what cannot be seen."""
    return f"“{text.replace(chr(10), '⏎').replace(' ', '␣') or '?'}”"


def of_query(s: FrameCounts, number: int) -> FrameCounts:
    """The selection of that one of its queries alone."""
    n = slice(number, number + 1)
    rest = {"kept": s.kept[:, n], "labels": s.labels[n], "whole": None if s.whole is None else s.whole[:, n]}
    return replace(s, counts=s.counts[:, n], keys=s.keys[:, n], mass=s.mass[:, n], **rest)


def as_recorded(s: FrameCounts, layer: int, number: int) -> str:
    """How the keys of a record were chosen, in words."""
    return f"as recorded, k = {int(s.keys[layer, number])}"


def check(s: FrameCounts, v: View) -> None:
    """Raise ValueError unless the selection has one query and the view's layer and frames."""
    layers, queries, frames = s.counts.shape
    if queries != 1 or not 0 <= v.layer < layers or not 0 <= v.first <= v.last < frames:
        raise ValueError(
            f"expected one query, a layer row of 0 to {layers - 1} and frames within 0 to {frames - 1}; "
            f"got {queries} queries, row {v.layer}, frames {v.first} to {v.last}"
        )


def heading(s: FrameCounts, v: View) -> str:
    """The settings: "Layer 3, all 4 heads, k = 256, for the query that writes “7”, ..."."""
    return f"Layer {s.layers[v.layer]}, {v.how}, for {v.query.place}"


def sentence(s: FrameCounts, v: View) -> str:
    """The settings and what they show, with numbers. Raises ValueError where view and selection do not fit."""
    check(s, v)
    return " ".join([*asked(s), *settings(s, v), reads(s, v), *findings(s, v)])


def settings(s: FrameCounts, v: View) -> list[str]:
    """The sentences that say what is looked at."""
    return [f"{heading(s, v)}.", *_sight(s, v)]


def findings(s: FrameCounts, v: View) -> list[str]:
    """The sentences on what a layer reads, whichever frames are shown."""
    return [*_truth(s, v), _kept(s, v)]


def asked(s: FrameCounts, longest: int = 200) -> list[str]:
    """Question and answer as a sentence, each of at most `longest` characters; none where they are not known."""
    question, answer = (z if len(z) <= longest else f"{z[: longest - 1].rstrip()}…" for z in (s.question, s.answer))
    return [f"Asked “{question}”, the model answers “{answer}”."] if question else []


def picture(s: FrameCounts, v: View) -> str:
    """What kind of picture the explorer draws, for readers who do not see it; `sentence` says what is in it."""
    layers, frames = len(s.layers), v.last - v.first + 1
    strip = "A strip of video frames over a heat map" if s.thumbnails is not None else "A heat map"
    size = f"{layers} layer{'s' * (layers > 1)} by {frames} frame{'s' * (frames > 1)}"
    bars = f"below, bars for layer {s.layers[v.layer]}: its keys upwards, its attention downwards"
    lighter = (
        "lighter where more of a layer's attention goes" if s.reads_all else "lighter where more of a layer's keys lie"
    )
    return f"{strip} of {size}, {lighter}; {bars}."


def _sight(s: FrameCounts, v: View) -> list[str]:
    sees, frames = v.query.sees, len(s.seconds)
    if sees == frames:
        return []
    before = "all frames and sees none" if not sees else f"the frame at {when(s, sees)} and sees {sees} of {frames}"
    return [f"It stands before {before}."]


def reads(s: FrameCounts, v: View) -> str:
    counts, mass = (x[v.layer, 0, v.first : v.last + 1] for x in (s.counts, s.mass))
    total, inside, most = int(s.keys[v.layer, 0]), int(counts.sum()), int(counts.max())
    place = f"the frame at {when(s, v.first)}"
    if v.last > v.first:
        place = f"the {v.last - v.first + 1} frames from {when(s, v.first)} to {when(s, v.last)}"
    if not inside:
        return f"{f'None of its {total} keys lies' if total != 1 else 'Its only key does not lie'} in {place}."
    reads = f"{inside} of its {total} keys ({percent(inside / total)}) {'lies' if inside == 1 else 'lie'} in {place}"
    if s.reads_all:
        most = v.first + int(mass.argmax())
        attention, every = (
            percent(s.mass[v.layer, 0, most].item()),
            "it reads every key that it sees, nothing is selected",
        )
        return f"{reads}: {every}. The frame at {when(s, most)} gets most attention: {attention}."
    tied = (counts == most).nonzero().flatten().tolist()
    top = max(tied, key=lambda n: mass[n].item())  # the first of equals
    if len(counts) == 1:
        return f"{reads}, with {percent(mass[0].item())} of the attention."
    attention, where = percent(mass[top].item()), f"the frame at {when(s, v.first + top)}"
    if len(tied) == 1:
        return f"{reads}, most in {where}: {most} with {attention} of the attention."
    each = f"{len(tied)} frames have most, {most} each"
    return f"{reads}; {each}, and of these {where} gets most attention, {attention}."


def _truth(s: FrameCounts, v: View) -> list[str]:
    if not s.truth:
        return []
    frames = list(s.truth)
    keys, attention = int(s.counts[v.layer, 0, frames].sum()), percent(s.mass[v.layer, 0, frames].sum().item())
    subject = s.subject or ("the answer's frame" if len(frames) == 1 else "the answer's frames")
    name = f"{subject[0].upper()}{subject[1:]} {at_times(s, frames)}"
    return [f"{name}: {keys or 'no'} key{'s' * (keys != 1)}, {attention} of the attention."]


def _kept(s: FrameCounts, v: View) -> str:
    return f"The keys hold {percent(s.kept[v.layer, 0].item())} of what dense attention would spend."
