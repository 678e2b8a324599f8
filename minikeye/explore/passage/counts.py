"""Which pieces of a text the selected keys belong to: a record of key positions becomes counts per piece.

Axes: l recorded layer, t recorded query, p piece of the passage, j indexer head, k selected key.
Report, section 2.3: every query attends only to the keys that the lightning indexer selects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from minikeye.explore import reads
from minikeye.explore.passage.pieces import Pieces
from minikeye.files import write_whole
from minikeye.inputs.tokenizer import Tokenizer
from minikeye.model.record import Record

FORMAT = "minikeye.passage_selection"
VERSION = 1
Rows = int | Sequence[int] | None  # one layer or query, by its row; several; None: all
Spans = Sequence[tuple[int, int]]  # (first, one behind the last) of each


@dataclass(frozen=True, eq=False)
class PassageCounts:
    """How many of the keys that each query selected lie in each piece of a passage. Every tensor is on the CPU.

    `selection.PassageSelection` is this with words and pictures. Keys outside of the passage (a chat's template, the
    question, the answer so far) count in `keys`, and what attention they get is missing in `mass`.
    """

    pieces: tuple[str, ...]  # the passage; each piece is whole text, see `pieces.Pieces`
    tokens: tuple[int, ...]  # tokens of each piece
    first: int  # tokens that stand before the passage
    counts: Int[Tensor, "l t p"]  # selected keys that are tokens of the piece
    keys: Int[Tensor, "l t"]  # selected keys in all
    mass: Float[Tensor, "l t p"]  # share of the attention that goes to those keys, mean over query heads
    kept: Float[Tensor, "l t"]  # share of the dense attention mass that the selection holds
    seen: tuple[int, ...]  # tokens that each query sees, itself counted
    layers: tuple[int, ...]  # number of each recorded layer in the model
    labels: tuple[str, ...] = ()  # text of the token that each query was about to produce; "" or () where not known
    truth: tuple[tuple[int, int], ...] = ()  # pieces (first, stop) that hold the answer; () where not known
    subject: str = ""  # what they are, for the sentence: "the needle"; "" says "the answer's place"
    whole: Bool[Tensor, "l t"] | None = None  # the query selected every key that it sees; None: not known
    heads: Int[Tensor, "j l t p"] | None = None  # `counts`, had each indexer head selected alone
    head_keys: Int[Tensor, "j l t"] | None = None  # `keys` of these
    question: str = ""  # what the model was asked; "" where not known
    answer: str = ""  # what it said; "" where not known
    first_line: int = 1  # number of the passage's first line in its file

    @classmethod
    def from_record(
        cls,
        record: Record,
        ids: Sequence[int],
        tokenizer: Tokenizer,
        *,
        passage: tuple[int, int] | None = None,
        layers: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
        heads: Sequence[Record] = (),
        labels: Sequence[str] | None = None,
        truth: Spans = (),
        subject: str = "",
        question: str = "",
        answer: str = "",
        first_line: int = 1,
        row: int = 0,
    ) -> "PassageCounts":
        """Count the selected keys of one row, without padding, by piece of its text.

        ids: the row's tokens, the prompt's and, where they are known, the answer's behind them. passage: tokens
        (first, stop) of `ids` that are shown and counted, None takes all. layers, queries: numbers from 0 within the
        record, None takes all. heads: a record of the same queries for each indexer head alone. labels: one per chosen
        query; None takes the token that follows it in `ids`. truth: tokens (first, stop) of `ids`; a span that cuts a
        character takes all of it.

            out = model({"input_ids": torch.tensor([ids])}, record=8)  # the last eight queries
            PassageSelection.from_record(out.record, ids, tokenizer, truth=[(120, 131)], subject="the needle")

        Raises ValueError where record, row, layers, queries or heads are not there, where no chosen query stands in
        `ids`, and where passage, labels or truth do not fit. Other tokens than were recorded are not noticed; a query
        with nothing behind it in `ids` gets the label "".
        """
        reads.check_record(record, row)
        layers = reads.chosen(layers, len(record.layers), "layers")
        queries = reads.chosen(queries, record.queries, "queries")
        start, stop = (0, len(ids)) if passage is None else passage
        places = record.first + torch.tensor(queries)
        check_spans([(start, stop)], (0, len(ids)), "passage")
        check_spans(truth, (start, stop), "each span of truth")
        if int(places.min()) >= len(ids):
            raise ValueError(
                f"expected the tokens of the recorded row, whose query {queries[0]} stands at {int(places.min())}, got "
                f"{len(ids)}: pass prompt and answer"
            )
        for one in heads:
            if (one.first, one.queries, len(one.layers)) != (record.first, record.queries, len(record.layers)):
                raise ValueError("expected a record of the same layers and queries for each head alone")
        pieces, tokens = Pieces.of(ids[start:stop], tokenizer), [int(n) for n in ids]
        after = [tokens[at + 1 : at + 2] for at in places.tolist()]
        at = [_of(record, n, "indices", row, queries).long() for n in layers]  # k may differ between layers
        weights = [_of(record, n, "weights", row, queries).float() for n in layers]
        alone = [[_of(one, n, "indices", row, queries).long() for n in layers] for one in heads]
        count = lambda x: _per_piece((x >= 0).int(), x, start, pieces)  # noqa: E731
        return cls(
            pieces=pieces.texts,
            tokens=pieces.tokens,
            first=start,
            counts=torch.stack([count(x) for x in at]),
            keys=torch.stack([_number(x) for x in at]),
            mass=torch.stack([_per_piece(w, x, start, pieces) for w, x in zip(weights, at, strict=True)]),
            kept=torch.stack([_of(record, n, "kept", row, queries).float() for n in layers]),
            seen=tuple(n + 1 for n in places.tolist()),
            layers=tuple(layers),
            labels=tuple(tokenizer.decode(z, skip_special=False) for z in after) if labels is None else tuple(labels),
            truth=tuple(sorted(pieces.holding(a - start, b - start) for a, b in truth)),
            subject=subject,
            whole=torch.stack([reads.whole(x, places) for x in at]),
            heads=torch.stack([torch.stack([count(x) for x in one]) for one in alone]) if alone else None,
            head_keys=torch.stack([torch.stack([_number(x) for x in one]) for one in alone]) if alone else None,
            question=question,
            answer=answer,
            first_line=first_line,
        )

    def __post_init__(self) -> None:
        p, t = len(self.pieces), self.counts.shape[1]
        if self.labels and len(self.labels) != t:
            raise ValueError(f"expected one label for each of {t} queries, got {len(self.labels)}")
        if not len(self.tokens) == self.counts.shape[-1] == p:
            raise ValueError(f"expected tokens and counts for each of {p} pieces, got {len(self.tokens)} and others")
        check_spans(self.truth, (0, p), "truth")

    @cached_property
    def line_pieces(self) -> tuple[tuple[str, int, int], ...]:
        """(text, first piece, piece behind the last) of each line of the passage."""
        return tuple(Pieces(self.pieces, self.tokens).lines())

    @cached_property
    def truth_pieces(self) -> tuple[int, ...]:
        """The pieces of the truth, each once, in order."""
        return tuple(sorted({n for a, b in self.truth for n in range(a, b)}))

    @cached_property
    def line_ends(self) -> Int[Tensor, "n 2"]:
        """The numbers of `line_pieces`."""
        return torch.tensor([[a, b] for _, a, b in self.line_pieces], dtype=torch.long).reshape(-1, 2)

    @cached_property
    def _tokens(self) -> Int[Tensor, " p"]:
        return torch.tensor(self.tokens, dtype=torch.long)

    def visible(self, query: int) -> Int[Tensor, " p"]:
        """How many of each piece's tokens the query, a row of the record, sees. ValueError for one not there."""
        self.rows(query=query)
        begins = self.first + self._tokens.cumsum(0) - self._tokens
        return (self.seen[query] - begins).clamp(min=0).minimum(self._tokens)

    @property
    def reads_all(self) -> bool:
        """Whether every query selected every key that it sees, as in prompts of at most k tokens."""
        return self.whole is not None and bool(self.whole.all())

    def rows(self, layer: Rows = None, query: Rows = None) -> tuple[list[int], list[int]]:
        """A choice as lists of rows. Raises ValueError for rows that are not there."""
        one = lambda z: [z] if isinstance(z, int) else z  # noqa: E731
        return reads.chosen(one(layer), len(self.layers), "layers"), reads.chosen(
            one(query), self.counts.shape[1], "queries"
        )

    def counted(self, layer: Rows, query: Rows, head: int | None) -> tuple[Int[Tensor, "a b p"], Int[Tensor, "a b"]]:
        """`counts` and `keys` of a choice: a layers, b queries. Raises ValueError for what is not there."""
        layers, queries = self.rows(layer, query)
        counts, keys = self.counts, self.keys
        if head is not None:
            if self.heads is None or self.head_keys is None or not 0 <= head < len(self.heads):
                there = "none alone" if self.heads is None else f"0 to {len(self.heads) - 1}"
                raise ValueError(f"expected a recorded indexer head, of which there are {there}, got {head}")
            counts, keys = self.heads[head], self.head_keys[head]
        return counts[layers][:, queries], keys[layers][:, queries]

    def shares(self, layer: Rows = None, query: Rows = None, head: int | None = None) -> Float64[Tensor, " p"]:
        """Share of the chosen layers and queries that select the piece, in 0..1; of several tokens, their mean.

        layer, query: a row or several of the record, None: all. head: that indexer head alone, None: all together.
        Raises ValueError for what is not there.
        """
        counts, _ = self.counted(layer, query, head)
        a, b, _ = counts.shape
        return counts.sum(dim=(0, 1)).double() / (a * b * self._tokens)

    def attention(self, layer: Rows = None, query: Rows = None) -> Float[Tensor, " p"]:
        """Share of the attention that goes to each piece, mean over the chosen layers and queries."""
        layers, queries = self.rows(layer, query)
        return self.mass[layers][:, queries].mean(dim=(0, 1))

    def to_json(self) -> str:
        """Versioned JSON. Counts come back exactly, mass and kept to 6 decimals. "reads": see `reads.sparse_row`."""
        l, t = self.keys.shape  # noqa: E741 - the axis letter
        alone = self.heads
        return reads.to_text(
            {"format": FORMAT, "version": VERSION}
            | {name: getattr(self, name) for name in (*PLAIN, *TUPLES, "truth")}
            | {
                "keys": self.keys.tolist(),
                "kept": reads.rounded(self.kept.tolist()),
                "whole": None if self.whole is None else self.whole.tolist(),
                "reads": [[reads.sparse_row(self.counts[n, q], self.mass[n, q]) for q in range(t)] for n in range(l)],
                "heads": None if alone is None else [[_packed(x) for x in one.flatten(0, 1)] for one in alone],
                "head_keys": None if self.head_keys is None else self.head_keys.tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "PassageCounts":
        """Read what `to_json` wrote. text: the JSON, not a path. Raises ValueError for anything else."""
        document = reads.from_text(text, (FORMAT, VERSION), "PassageSelection.to_json")
        p = len(document["pieces"])
        counts, mass = reads.dense_rows(document["reads"], p)
        full, alone, keys = (document[name] for name in ("whole", "heads", "head_keys"))
        return cls(
            counts=counts,
            mass=mass,
            keys=torch.tensor(document["keys"], dtype=torch.int32),
            kept=torch.tensor(document["kept"], dtype=torch.float32),
            whole=None if full is None else torch.tensor(full, dtype=torch.bool),
            heads=None if alone is None else torch.stack([_unpacked(one, counts) for one in alone]),
            head_keys=None if keys is None else torch.tensor(keys, dtype=torch.int32),
            truth=tuple((a, b) for a, b in document["truth"]),
            **{name: document[name] for name in PLAIN},
            **{name: tuple(document[name]) for name in TUPLES},
        )

    def save(self, path: str | Path) -> None:
        """Write the JSON whole or not at all."""
        write_whole(path, self.to_json().encode("utf-8", "replace"))


PLAIN = ("first", "subject", "question", "answer", "first_line")
TUPLES = ("pieces", "tokens", "seen", "layers", "labels")


def _of(record: Record, layer: int, what: str, row: int, queries: list[int]) -> Tensor:
    return getattr(record.layers[layer], what)[row, queries].cpu()


def _number(at: Int[Tensor, "t k"]) -> Int[Tensor, " t"]:
    return (at >= 0).sum(dim=-1, dtype=torch.int32)


def _per_piece(values: Tensor, at: Int[Tensor, "t k"], start: int, pieces: Pieces) -> Tensor:
    """Sum `values` [t k] of the keys at positions `at` by piece -> [t p]. Other keys fall into a spare column."""
    number = torch.arange(len(pieces.tokens)).repeat_interleave(torch.tensor(pieces.tokens, dtype=torch.long))
    inside = (at >= start) & (at < start + len(number))
    column = torch.where(inside, number[(at - start).clamp(0, len(number) - 1)], len(pieces.tokens))
    out = torch.zeros(len(at), len(pieces.tokens) + 1, dtype=values.dtype)
    return out.scatter_add_(-1, column, values)[:, : len(pieces.tokens)]


def _packed(counts: Int[Tensor, " p"]) -> list[list[int]]:
    at = counts.nonzero().flatten()
    return [at.tolist(), counts[at].tolist()]


def _unpacked(rows: list[list[list[int]]], like: Int[Tensor, "l t p"]) -> Int[Tensor, "l t p"]:
    counts = torch.zeros_like(like).flatten(0, 1)
    for n, (at, keys) in enumerate(rows):
        counts[n, at] = torch.tensor(keys, dtype=torch.int32)
    return counts.view_as(like)


def check_spans(spans: Sequence, within: tuple[int, int], what: str) -> None:
    """Raise ValueError for what are no spans, and for spans that hold nothing or leave `within`."""
    pair = lambda span: isinstance(span, Sequence) and len(span) == 2  # noqa: E731
    wrong = [span for span in spans if not (pair(span) and within[0] <= span[0] < span[1] <= within[1])]
    if wrong:
        raise ValueError(
            f"expected {what} as (first, stop) with {within[0]} <= first < stop <= {within[1]}, got {wrong}"
        )
