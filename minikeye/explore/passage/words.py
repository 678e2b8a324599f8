"""A PassageCounts in words: its lines, how often the truth was selected, the sentence.

Axes: a chosen layers, b chosen queries, p piece. Numbers are means over the chosen layers and queries.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from minikeye.explore.passage.counts import PassageCounts, Rows
from minikeye.explore.widget.view import quoted
from minikeye.explore.words import listed, percent

MOST = 3  # lines that a sentence names


@dataclass(frozen=True)
class Line:
    """A line of the passage, and what was read of it. Shares are of 1."""

    number: int  # in its file, from 1
    text: str
    keys: float  # share of the selected keys that lie in it
    attention: float | None  # share of the attention; None for an indexer head alone, which attends to nothing
    chance: float  # its share of the tokens that the query sees: of as many keys drawn at random
    truth: bool  # whether it holds some of the truth
    first: int  # its first piece
    stop: int  # behind its last piece; `first` where it has none


def lines(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> list[Line]:
    """Every line of the passage, in order.

    layer, query: a row or several of the record, None: all. head: that indexer head alone. Raises ValueError for what
    is not there.
    """
    layers, queries = s.rows(layer, query)
    counts, keys = s.counted(layer, query, head)
    share = torch.einsum("abp,ab->p", counts.double(), 1 / keys.clamp(min=1).double()) / keys.numel()
    chance = torch.stack([s.visible(n).double() / s.seen[n] for n in queries]).mean(dim=0)
    mass = s.attention(layers, queries).double()
    summed = zip(*(_by_line(s, values) for values in (share, mass, chance)), strict=True)
    held, found = set(s.truth_pieces), []
    for n, ((text, a, b), (of_keys, attention, drawn)) in enumerate(zip(s.line_pieces, summed, strict=True)):
        truth = not held.isdisjoint(range(a, b))
        spent = attention if head is None else None
        found.append(Line(s.first_line + n, text, of_keys, spent, drawn, truth, a, b))
    return found


def most_read(
    s: PassageCounts, count: int, layer: Rows = None, query: Rows = None, head: int | None = None
) -> list[Line]:
    """Up to `count` lines that are read at all, most first: by attention, of a head alone by keys above chance.

    Raises ValueError for count < 0, and as `lines`.
    """
    if count < 0:
        raise ValueError(f"expected a number of lines, got {count}")
    read = [line for line in lines(s, layer, query, head) if line.keys > 0 and line.text.strip()]
    by = (lambda line: line.attention) if head is None else (lambda line: line.keys - line.chance)
    return sorted(read, key=lambda line: (-by(line), line.number))[:count]


def truth_share(
    s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None
) -> tuple[float, float]:
    """Share of the truth's tokens that a query selects, and that of as many keys drawn at random among those in sight.

    Raises ValueError without truth, and as `lines`.
    """
    if not s.truth:
        raise ValueError("expected to know where the answer stands: pass truth=[(first, stop)] to from_record")
    counts, keys = s.counted(layer, query, head)
    _, queries = s.rows(layer, query)
    at = list(s.truth_pieces)
    tokens = sum(s.tokens[n] for n in at)
    reachable = torch.stack([s.visible(n)[at].sum() / s.seen[n] for n in queries])
    chance = (keys * reachable.double()).mean().item()
    return counts[..., at].sum(dim=-1).double().mean().item() / tokens, chance / tokens


def heading(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> str:
    """What is looked at: "All 30 layers, mean over 8 queries" or "Layer 3, indexer head 1 alone, the query of “4”"."""
    layers, queries = s.rows(layer, query)
    numbers = [str(s.layers[n]) for n in layers]
    if len(numbers) == len(s.layers) > 1:
        where = f"All {len(numbers)} layers"
    else:
        where = f"Layer {numbers[0]}" if len(numbers) == 1 else f"Layers {listed(numbers)}"
    alone = "" if head is None else f", indexer head {head} alone"
    if len(queries) > 1:
        return f"{where}{alone}, mean over {len(queries)} queries"
    return f"{where}{alone}, {place(s, queries[0])}"


def place(s: PassageCounts, query: int) -> str:
    """One query: "the query that writes “4”, 2 of 8"."""
    label = s.labels[query] if s.labels else ""
    name = f"the query that writes {quoted(label)}" if label else f"the query at token {s.seen[query] - 1}"
    return f"{name}, {query + 1} of {len(s.seen)}" if len(s.seen) > 1 else name


def asked(s: PassageCounts, longest: int = 200) -> list[str]:
    """Question and answer as a sentence, each of at most `longest` characters; none where they are not known."""
    question, answer = (z if len(z) <= longest else f"{z[: longest - 1].rstrip()}…" for z in (s.question, s.answer))
    return [f"Asked “{question}”, the model answers “{answer}”."] if question else []


def sentence(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> str:
    """What is seen: how many keys are read, in which lines, how often the truth, and what chance would give.

    layer, query: a row or several of the record, None: all. head: that indexer head alone. Raises ValueError for what
    is not there.
    """
    layers, queries = s.rows(layer, query)
    counts, keys = s.counted(layer, query, head)
    full = reads_all(s, layer, query)
    inside = (counts.sum(dim=-1).double() / keys.clamp(min=1)).mean().item()
    read = (keys.double() / torch.tensor([s.seen[n] for n in queries])).mean().item()
    parts = [f"{heading(s, layer, query, head)}."]
    if full:
        why = "as in prompts of at most k tokens, or with dense attention"
        parts.append(f"Every key in sight is read and nothing is selected, {why}.")
    else:
        parts.append(f"{percent(read)} of the keys in sight are read; {percent(inside)} of these lie in the text.")
    best = most_read(s, MOST, layer, query, head)
    if not best:
        parts.append("No line is read.")
    elif head is None:
        named = [f"{_line(z)} with {percent(z.attention)}" for z in best]
        more = "" if full else f"; {_line(best[0])} holds {_against(best[0])}"
        parts.append(f"Most attention goes to {listed(named)}{more}.")
    else:
        parts.append(f"Most keys above chance lie in {listed([f'{_line(z)}, {_against(z)}' for z in best])}.")
    parts += _truth(s, layer, query, head, full)
    if head is None and not full:
        kept = s.kept[layers][:, queries].mean().item()
        parts.append(f"The keys hold {percent(kept)} of what dense attention would spend.")
    return " ".join(parts)


def alt(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> str:
    """For those who do not see the picture: its kind, and the sentence."""
    shade = "attention it gets" if shown_by(s, layer, query, head) == "attention" else "layers and queries select it"
    kind = f"Lines of a text, each token the darker and the thicker underlined the more {shade}."
    return " ".join([kind, *asked(s), sentence(s, layer, query, head)])


def token(s: PassageCounts, piece: int, layer: Rows = None, query: Rows = None, head: int | None = None) -> str:
    """One piece of the text: "“␣needle”, line 4: selected 12 times of 21 (57 %), 3.1 % of the attention."."""
    counts, keys = s.counted(layer, query, head)
    times, most = int(counts[..., piece].sum()), keys.numel() * s.tokens[piece]
    number = s.first_line + next(n for n, (_, a, b) in enumerate(s.line_pieces) if a <= piece < b)
    spent = f", {percent(s.attention(layer, query)[piece].item())} of the attention" * (head is None)
    several = f" ({s.tokens[piece]} tokens)" * (s.tokens[piece] > 1)
    name = f"{quoted(s.pieces[piece])}{several}, line {number}"
    return f"{name}: selected {times} times of {most} ({percent(times / most)}){spent}."


def reads_all(s: PassageCounts, layer: Rows = None, query: Rows = None) -> bool:
    """Whether every chosen query selected every key that it sees, in every chosen layer."""
    layers, queries = s.rows(layer, query)
    return s.whole is not None and bool(s.whole[layers][:, queries].all())


def shown_by(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> str:
    """What shades go by: "keys", or "attention" where every key is read, because then all would be alike."""
    return "attention" if head is None and reads_all(s, layer, query) else "keys"


def _by_line(s: PassageCounts, values: Float64[Tensor, " p"]) -> list[float]:
    """Sums over the pieces of each line."""
    upto = torch.cat((values.new_zeros(1), values.cumsum(0)))
    return (upto[s.line_ends[:, 1]] - upto[s.line_ends[:, 0]]).clamp(min=0).tolist()


def _line(line: Line) -> str:
    return f"line {line.number}"


def _against(line: Line) -> str:
    return f"{percent(line.keys)} of the keys, {percent(line.chance)} by chance"


def _truth(s: PassageCounts, layer: Rows, query: Rows, head: int | None, full: bool) -> list[str]:
    if not s.truth:
        return []
    held = set(s.truth_pieces)
    numbers = [str(s.first_line + n) for n, (_, a, b) in enumerate(s.line_pieces) if held & set(range(a, b))]
    where = (
        f"line{'s' * (len(numbers) > 1)} {listed(numbers) if len(numbers) < 5 else f'{numbers[0]} to {numbers[-1]}'}"
    )
    name = s.subject or "the answer's place"
    share, chance = truth_share(s, layer, query, head)
    selected = "" if full else f"{percent(share)} of its tokens are selected, {percent(chance)} by chance"
    at = list(s.truth_pieces)
    spent = f"it gets {percent(s.attention(layer, query)[at].sum().item())} of the attention" * (head is None)
    return [f"{name[0].upper()}{name[1:]} ({where}): {'; '.join(filter(None, (selected, spent)))}."]
