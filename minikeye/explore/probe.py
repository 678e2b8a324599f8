"""What an observer keeps so that every token can be the query: select again with one indexer head, or another k.

A record holds the outcome of one selection. A probe holds what the selection was made of: index queries, gates and
index keys, and the attention's own queries and keys.

Axes: l layer, b batch (one row), n kept query, t query position, s key position, h query head, g KV head, e head width,
j indexer head, i indexer width, k selected key, c chosen expert of a token.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.model.record import LayerRecord, Record, selection_mass
from minikeye.model.step import AttentionTrace
from minikeye.ops.torch_losses import dense_targets


@dataclass
class _Queries:
    """One layer's kept queries of one forward pass."""

    q: Float[Tensor, "b n h e"]
    index_q: Float[Tensor, "b n j i"]
    index_w: Float[Tensor, "b n j"]
    indices: Int[Tensor, "b n k"] | None  # what the pass selected; None in dense mode
    experts: Int[Tensor, "b n c"] | None = None  # the router speaks after the attention


@dataclass
class _Layer:
    """One layer: its kept queries, pass by pass, and the keys of all tokens so far (the cache's own memory)."""

    k: Float[Tensor, "b s g e"]
    index_k: Float[Tensor, "b s i"]
    passes: list[_Queries] = field(default_factory=list)


class Probe:
    """An observer of one sequence: hand it to `model(...)`, or to `generate(...)`, whose passes it joins.

    topk: the model's own k, `config.indexer.topk`. queries: absolute positions to keep as queries, None keeps all.
    Tensors stay on the model's device in its dtype. Keys take as much memory as the cache's keys; a kept query takes
    l * (h * e + j * i) numbers.
    """

    def __init__(self, topk: int, queries: Collection[int] | None = None):
        self.topk = topk
        self.tokens = 0  # seen so far
        self._wanted = None if queries is None else frozenset(queries)
        self._place: dict[int, tuple[int, int]] = {}  # position of a kept query -> pass, row in that pass
        self._kept: list[int] = []  # rows of the current pass, or chunk of one, that are kept
        self._layers: list[_Layer] = []

    # ------------------------------------------------------------------------------------------- as an observer

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        """Raises ValueError for a batch of several rows, or a pass that does not go on where the last one ended."""
        positions = range(trace.offset, trace.offset + trace.q.shape[1])
        self._kept = [n for n, at in enumerate(positions) if self._wanted is None or at in self._wanted]
        if layer == 0:
            self._begin(trace, positions)
        if layer == len(self._layers):
            self._layers.append(_Layer(trace.k, trace.index_k))
        held, at = self._layers[layer], torch.tensor(self._kept, dtype=torch.long, device=trace.q.device)
        held.k, held.index_k = trace.k, trace.index_k
        indices = trace.indices[:, at] if trace.indices is not None else None
        held.passes.append(_Queries(trace.q[:, at], trace.index_q[:, at], trace.index_w[:, at], indices))

    def routing(self, layer: int, probabilities: Tensor, chosen: Int[Tensor, "b t c"]) -> None:
        self._layers[layer].passes[-1].experts = chosen[:, self._kept]

    def _begin(self, trace: AttentionTrace, positions: range) -> None:
        if len(trace.q) != 1 or trace.start is not None:
            raise ValueError(f"a probe watches one row without padding, got {len(trace.q)}: pass one conversation")
        if trace.offset != self.tokens:
            raise ValueError(
                f"expected a pass that goes on at token {self.tokens}, got one that starts at {trace.offset}: "
                "make a new Probe for each sequence"
            )
        self.tokens = positions.stop
        step = len(self._layers[0].passes) if self._layers else 0
        self._place |= {positions[n]: (step, row) for row, n in enumerate(self._kept)}

    # ------------------------------------------------------------------------------------------------ questions

    @property
    def positions(self) -> list[int]:
        """Absolute positions of the kept queries, ascending."""
        return list(self._place)

    @property
    def heads(self) -> int:
        """Number of indexer heads. Raises ValueError before the first pass."""
        return self._seen()[0].passes[0].index_w.shape[-1]

    @torch.no_grad()
    def scores(self, query: int, head: int | None = None) -> Float[Tensor, "l s"]:
        """Index scores of the keys that the query at position `query` sees (s = query + 1), float32.

        head: w[j] * ReLU(q[j] . k[s]) / sqrt(i) of that indexer head alone; the heads' scores add up to those of None.
        Raises ValueError for a query or head that is not there.
        """
        return torch.cat([ops.index_scores(*self._index(x, query, head), query)[0] for x in self._seen()])

    def gates(self, query: int) -> Float[Tensor, "l j"]:
        """The gate w of each indexer head. A head with a negative gate votes against the keys that it matches."""
        step, row = self._at(query)
        return torch.stack([x.passes[step].index_w[0, row] for x in self._seen()])

    @torch.no_grad()
    def attended(self, query: int) -> Float[Tensor, "l s"]:
        """What dense attention gives each key that the query sees, mean over the query heads; sums to 1."""
        step, row = self._at(query)
        seen = torch.ones(1, 1, query + 1, dtype=torch.bool)
        p = [dense_targets(x.passes[step].q[:, [row]], x.k[:, : query + 1], seen.to(x.k.device)) for x in self._seen()]
        return torch.cat(p)[:, 0].mean(dim=1)  # over the groups, which are equally large

    @torch.no_grad()
    def record(self, query: int, head: int | None = None, topk: int | None = None) -> Record:
        """The record of one query in all layers, had the indexer had only `head` and taken `topk` keys.

        None, None: all heads and the model's k, which is what the pass itself selected, bit by bit. Others follow the
        rule of `ops.select_topk`. Raises ValueError for a query, head or k that is not there.
        """
        step, row = self._at(query)
        topk = self.topk if topk is None else topk
        if topk < 1:
            raise ValueError(f"expected k of at least 1, got {topk}")
        layers = []
        for x in self._seen():
            kept, keys = x.passes[step], x.k[:, : query + 1]
            if head is None and topk == self.topk and kept.indices is not None:
                indices = kept.indices[:, [row]]
            else:
                indices = ops.select_topk(*self._index(x, query, head), min(topk, query + 1), query)
            weights, mass = selection_mass(kept.q[:, [row]], keys, indices, query)
            layers.append(LayerRecord(indices, weights, mass, kept.experts[:, [row]]))
        return Record(layers, first=query)

    def _index(self, layer: _Layer, query: int, head: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Index queries [1 1 j i], keys [1 s i] and gates [1 1 j] of one query, of one head or all."""
        if head is not None and not 0 <= head < self.heads:
            raise ValueError(f"expected an indexer head from 0 to {self.heads - 1}, or None for all, got {head}")
        step, row = self._at(query)
        heads = slice(None) if head is None else [head]
        kept = layer.passes[step]
        return kept.index_q[:, [row]][:, :, heads], layer.index_k[:, : query + 1], kept.index_w[:, [row]][:, :, heads]

    def _at(self, query: int) -> tuple[int, int]:
        if query not in self._place:
            raise ValueError(
                f"expected a query among the {len(self._place)} kept positions, got {query}: see Probe.positions"
            )
        return self._place[query]

    def _seen(self) -> list[_Layer]:
        if not self._layers:
            raise ValueError("this probe has seen nothing yet: run model(inputs, observer=probe) first")
        return self._layers
