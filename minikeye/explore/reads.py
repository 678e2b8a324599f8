"""What a selection of frames and one of text have in common: which of a record, whether all was read, versioned JSON.

Axes: t recorded query, k selected key, n frame or piece of text.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye.model.record import Record


def chosen(numbers: Sequence[int] | None, total: int, what: str) -> list[int]:
    """The chosen numbers as a list, all of `total` for None. Raises ValueError for none, and for others than there are.

    what: "layers" or "queries", for the message.
    """
    numbers = list(range(total)) if numbers is None else [int(n) for n in numbers]
    if not numbers or any(not 0 <= n < total for n in numbers):
        raise ValueError(f"expected at least one of the recorded {what} 0 to {total - 1}, got {numbers}")
    return numbers


def check_record(record: Record, row: int) -> None:
    """Raise ValueError for a record without layers, or without such a row."""
    if not record.layers:
        raise ValueError("expected a record with layers, got an empty one: run the model with record=True")
    rows = len(record.layers[0].indices)
    if not 0 <= row < rows:
        raise ValueError(f"expected a row from 0 to {rows - 1}, as the record has {rows}, got {row}")


def whole(at: Int[Tensor, "t k"], places: Int[Tensor, " t"]) -> Bool[Tensor, " t"]:
    """Whether the keys at `at` are all that the queries at `places` see.

    They are where they leave no gap between the first one and the query, and the first is the row's first token: token
    0, or, after padding on the left, the first of fewer keys than there are places for.
    """
    there = at >= 0
    first = torch.where(there, at, places[:, None] + 1).amin(dim=-1)
    return (there.sum(dim=-1) == places - first + 1) & ((first == 0) | ~there.all(dim=-1)) & there.any(dim=-1)


def rounded(values: list) -> list:
    """Nested lists of numbers, rounded to 6 decimals."""
    return [rounded(v) if isinstance(v, list) else round(v, 6) for v in values]


def sparse_row(counts: Int[Tensor, " n"], mass: Float[Tensor, " n"]) -> list[list]:
    """Three lists of equal length: where there is any key, how many keys, attention."""
    at = counts.nonzero().flatten()
    return [at.tolist(), counts[at].tolist(), rounded(mass[at].tolist())]


def dense_rows(reads: list[list[list[list]]], n: int) -> tuple[Int[Tensor, "l t n"], Float[Tensor, "l t n"]]:
    """Counts and attention of rows that `sparse_row` wrote, by layer and query."""
    counts = torch.zeros(len(reads), len(reads[0]), n, dtype=torch.int32)
    mass = torch.zeros(counts.shape)
    for layer, queries in enumerate(reads):
        for query, (at, keys, masses) in enumerate(queries):
            counts[layer, query, at] = torch.tensor(keys, dtype=torch.int32)
            mass[layer, query, at] = torch.tensor(masses, dtype=torch.float32)
    return counts, mass


def to_text(document: dict[str, Any]) -> str:
    """JSON on one line, words as they are."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str, kind: tuple[str, int], writer: str) -> dict[str, Any]:
    """The document that `to_text` wrote. kind: its format and version. writer: what writes it, for the message.

    Raises ValueError for anything else, or for another version of the format.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON written by {writer}, got other text: {error}") from error
    found = (document.get("format"), document.get("version")) if isinstance(document, dict) else type(document)
    if found != kind:
        raise ValueError(f"expected {kind}, got {found}: write the file again with this minikeye")
    return document
