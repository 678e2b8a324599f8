"""Teaching the indexer: dense warm-up and sparse adaptation, read off the model as it runs.

Axes: b batch, t query position, s key position, k selected key.
Report, section 2.3. In the dense warm-up the model stays dense and only the indexer is trained; in the sparse
adaptation everything is, the model by its next-token loss, the indexer by L_sparse: L = L_NTP + lambda * L_sparse.
Lambda, learning rates and which rows are used are not in the report: our choice.

    teacher = IndexerTeacher(rows)
    model(inputs, observer=teacher, attention="dense")  # warm-up; "sparse" in the sparse adaptation
    teacher.indexer_loss().backward()  # warm-up: give the optimiser the `sa_indexer` parameters alone;
                                       # sparse adaptation: add the cross-entropy of the output's logits
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.model.moe import balance_loss, imbalance, tokens_per_expert
from minikeye.model.record import selection_mass
from minikeye.model.step import AttentionTrace


@dataclass(frozen=True)
class Portion:
    """What one rank's pass is of a batch that many ranks share: its losses are then parts, whose sum is the loss."""

    taught: Float[Tensor, " n"]  # 1 for rows that count, 0 for one that is there because no other is
    rows: int  # of all ranks: rows drawn x rows of the batch
    counted: Bool[Tensor, "b t"]  # tokens that count: not those that fill up a share
    tokens: int  # of all ranks
    total: Callable[[Tensor], Tensor]  # the sum over all ranks, without gradient
    positions: Int[Tensor, " n"] | None = None  # in a dense pass over a share: where the rows stand in the whole


class IndexerTeacher:
    """An observer that collects each layer's KL loss on some query rows, and the experts' balance loss.

    The report's losses are sums over all rows; this is a mean over the rows given, each alike (`draw_rows` takes more
    of the answers': our choice). No [t s] matrix is ever held. rows: positions among the queries of the pass, the same
    in every layer; None teaches nothing. start: in the dense warm-up on packed documents, the first key of each query's
    document (`packing.pack`); a sparse pass needs none, its selections keep to their documents. portion: where many
    ranks share a batch; every rank then asks for the same losses, because the experts' shares are those of all.
    """

    def __init__(
        self,
        rows: Int[Tensor, " n"] | None,
        start: Int[Tensor, "b t"] | None = None,
        portion: Portion | None = None,
    ):
        if rows is not None and rows.numel() == 0:
            raise ValueError("expected at least one row, or None to teach nothing; got an empty tensor")
        if rows is not None and ops.readable(rows) and int(rows.min()) < 0:
            raise ValueError(f"expected rows from 0 on, got {int(rows.min())}: they are numbers of queries")
        self.rows, self.start, self.portion = rows, start, portion
        self.indexer: list[Float[Tensor, ""]] = []  # mean KL of a row, one entry a layer
        self.balance: list[Float[Tensor, ""]] = []
        self.routed: list[tuple[Int[Tensor, " x"], Float[Tensor, " x"]]] = []  # of a portion: choices, probabilities

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        require_whole(trace)
        if self.rows is None:
            return
        if (of := self.portion) is None:
            self.indexer.append(row_losses(trace, self.rows, self.start).mean())
        else:
            losses = row_losses(trace, self.rows, self.start, of.positions)
            self.indexer.append((losses * of.taught).sum() / of.rows)

    def routing(self, layer: int, probabilities: Float[Tensor, "b t x"], chosen: Int[Tensor, "b t c"]) -> None:
        if (of := self.portion) is None:
            self.balance.append(balance_loss(probabilities, chosen))
        else:
            likely = (probabilities * of.counted[..., None]).sum(dim=(0, 1)) / of.tokens
            self.routed.append((tokens_per_expert(chosen, len(likely), of.counted), likely))

    def indexer_loss(self) -> Float[Tensor, ""]:
        """Mean over layers of the mean KL of a row; over all passes that were watched. Raises ValueError before one."""
        if not self.indexer:
            raise ValueError("expected a pass with this observer and rows before it, got none: there is no loss yet")
        return torch.stack(self.indexer).mean()

    def balance_loss(self) -> Float[Tensor, ""]:
        """Mean over layers of `moe.balance_loss`. Raises ValueError before a pass."""
        if self.routed:
            choices, likely = (torch.stack(part) for part in zip(*self.routed, strict=True))
            choices = self.portion.total(choices)
            return imbalance(choices / choices.sum(dim=-1, keepdim=True), likely).mean()
        if not self.balance:
            raise ValueError("expected a pass with this observer before it, got none: there is no loss yet")
        return torch.stack(self.balance).mean()


def require_whole(trace: AttentionTrace) -> None:
    """Raise ValueError for a chunk of a pass: rows and queries are numbered within whole passes here."""
    if trace.later:
        raise ValueError("expected a whole pass, got a chunk of one: leave out `chunk` when teaching or measuring")


def draw_rows(answer: Bool[Tensor, "b t"], count: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Random query rows of a right-padded batch: half anywhere, half at answer tokens (our choice).

    Raises ValueError where no token of the batch belongs to an answer, or count < 1.
    """
    if count < 1:
        raise ValueError(f"expected at least one row, got count = {count}")
    spoken = answer.any(dim=0).nonzero().squeeze(-1)
    if not len(spoken):
        raise ValueError("expected answer to be True somewhere, got none: there is nothing to teach from")
    anywhere = torch.randint(0, int(spoken[-1]) + 1, (count - count // 2,), generator=generator)
    return torch.cat((anywhere, spoken[torch.randint(0, len(spoken), (count // 2,), generator=generator)]))


def row_losses(
    trace: AttentionTrace,
    rows: Int[Tensor, " n"],
    start: Int[Tensor, "b t"] | None = None,
    positions: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "b n"]:
    """KL loss of these rows in nats: L_warmup over all valid keys in dense mode, L_sparse over the selected ones else.

    start: first key of each query of a dense pass on packed documents, where a mask of all valid keys stands for dense.
    positions: where these rows stand among the keys, in a dense pass over one rank's share of a row: by a mask, too.

    The sum over KV groups g of KL(p_g || softmax(I)), p_g the attention averaged over the heads of the group, I the
    row's index scores. Gradients reach the indexer alone. A row that sees no key has loss 0.
    """
    index, q, k = (trace.index_q[:, rows], trace.index_k, trace.index_w[:, rows]), trace.q[:, rows], trace.k
    if trace.indices is None or start is not None or positions is not None:
        first = trace.start if start is None else start[:, rows]
        at = trace.offset + rows if positions is None else positions
        return ops.warmup_loss(*index, q, k, at.to(q.device), first)
    return ops.selected_loss(*index, q, k, trace.indices[:, rows])


class RecallMeter:
    """An observer that measures what a selection keeps of the dense attention mass, per layer.

    topk: of the indexer's best topk keys, in any mode; this, not the KL, tells how far it is. None: of the keys that
    the pass really read, by whatever rule; ValueError in dense mode, which selects none.
    `kept`: one tensor a layer, [b last], for the last queries of the pass.
    """

    def __init__(self, topk: int | None, last: int = 32):
        if last < 1 or (topk is not None and topk < 1):
            raise ValueError(f"expected topk >= 1 or None and last >= 1, got {topk} and {last}")
        self.topk, self.last = topk, last
        self.kept: list[Float[Tensor, "b t"]] = []

    @torch.no_grad()
    def attention(self, layer: int, trace: AttentionTrace) -> None:
        require_whole(trace)
        first = max(0, trace.q.shape[1] - self.last)
        offset = trace.offset + first
        if self.topk is None and trace.indices is None:
            raise ValueError("expected a pass that selects keys, got a dense one: give RecallMeter a topk")
        indices = trace.indices[:, first:] if self.topk is None else trace.indexer_choice(self.topk, first)
        self.kept.append(selection_mass(trace.q[:, first:], trace.k, indices, offset, trace.start)[1])

    def routing(self, layer: int, probabilities: Tensor, chosen: Tensor) -> None:
        """Nothing to measure here."""
