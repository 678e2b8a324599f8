"""What the layers of one forward pass share, and what one layer shows to those who watch.

Axes: b batch, t query position, s key position, h query head, g KV head, e head width, j indexer head, i indexer width,
k selected key, x expert, c chosen expert of a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.config import KeyeConfig
from minikeye.model.rope import mrope

Mode = Literal["sparse", "dense", "masked"]
MODES = ("sparse", "dense", "masked")


@dataclass
class AttentionTrace:
    """What one attention layer worked with; handed to an observer. Keys are those of all tokens so far."""

    q: Float[Tensor, "b t h e"]
    k: Float[Tensor, "b s g e"]
    index_q: Float[Tensor, "b t j i"]
    index_k: Float[Tensor, "b s i"]
    index_w: Float[Tensor, "b t j"]
    indices: Int[Tensor, "b t k"] | None  # None in dense mode
    offset: int  # absolute position of the first query
    start: Int[Tensor, " b"] | None  # first real token of each row
    later: int = 0  # queries of the same pass that are still to come: a prompt may be read in chunks
    lengths: Int[Tensor, " b"] | None = None  # see Step

    def indexer_choice(self, topk: int, first: int = 0, backend: str = "auto") -> Int[Tensor, "b t k"]:
        """The indexer's topk keys (all there are, where they are fewer) for the queries from number `first` on."""
        index = self.index_q[:, first:], self.index_k, self.index_w[:, first:]
        return index_choice(index, topk, self.offset + first, self.start, self.lengths, backend)


def index_choice(
    index: tuple[Float[Tensor, "b t j i"], Float[Tensor, "b s i"], Float[Tensor, "b t j"]],
    topk: int,
    offset: int,
    start: Int[Tensor, " b"] | None,
    lengths: Int[Tensor, " b"] | None,
    backend: str,
) -> Int[Tensor, "b t k"]:
    """The keys with the topk highest index scores of each query; all there are, where they are fewer.

    index: index queries, index keys, gates. offset, start, lengths: see `Step`.
    """
    topk = min(topk, index[1].shape[1])  # no more columns than there are keys
    if lengths is not None:
        return ops.select_decode(*index, topk, lengths, start, backend)
    return ops.select_topk(*index, topk, offset, start, backend)


@runtime_checkable
class Observer(Protocol):
    """Sees every layer as it runs. Training reads its losses here, the explorer its selections."""

    def attention(self, layer: int, trace: AttentionTrace) -> None: ...

    def routing(self, layer: int, probabilities: Float[Tensor, "b t x"], chosen: Int[Tensor, "b t c"]) -> None: ...


@dataclass(frozen=True)
class Step:
    """All that the layers of one forward pass share."""

    rotation: tuple[Tensor, Tensor]  # cos, sin [b t e] of the attention heads
    index_rotation: tuple[Tensor, Tensor]  # cos, sin [b t i] of the indexer
    offset: int  # absolute position of the first query
    start: Int[Tensor, " b"] | None  # first real token of each row; None: no padding
    mode: Mode
    backend: str
    observer: Observer | None
    later: int = 0  # queries of the same pass that are still to come
    lengths: Int[Tensor, " b"] | None = None  # int32: tokens of each row, this one counted; None: as offset says

    @classmethod
    def of(cls, config: KeyeConfig, positions: Int[Tensor, "3 b t"], **rest) -> "Step":
        """Work out the two rotations from the 3D positions. The indexer turns by the same positions and theta."""
        text = config.text
        main = mrope(positions, text.head_width, text.rope_theta, text.mrope_section)
        index = mrope(positions, config.indexer.width, text.rope_theta, config.indexer_section)
        return cls(rotation=main, index_rotation=index, **rest)

    def chunks(self, size: int) -> Iterator[tuple[slice, "Step"]]:
        """The same pass in pieces of at most `size` queries, in order."""
        t = self.rotation[0].shape[1]
        for first in range(0, t, size):
            part = slice(first, min(first + size, t))
            main, index = ((cos[:, part], sin[:, part]) for cos, sin in (self.rotation, self.index_rotation))
            yield (
                part,
                replace(self, rotation=main, index_rotation=index, offset=self.offset + first, later=t - part.stop),
            )

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Step":
        """The same on another device, for a model whose layers lie on several."""
        move = lambda z: z if z is None else z.to(device, non_blocking=non_blocking)  # noqa: E731
        main, index = (tuple(map(move, pair)) for pair in (self.rotation, self.index_rotation))
        start, lengths = move(self.start), move(self.lengths)
        return replace(self, rotation=main, index_rotation=index, start=start, lengths=lengths)
