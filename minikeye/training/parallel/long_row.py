"""One pass of the model over rows that many ranks share. The model knows nothing of it.

Axes: b batch, t token of one rank's share, s token of the whole row.
A layer puts its new keys behind those that a cache holds, and selects by a rule where one is set. So the cache here
hands out the keys of all ranks, and the rule selects for the pieces of a share. What is done to each token alone
(embedding, norms, experts) needs nobody else.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.keye import KeyeVL
from minikeye.model.cache import Cache, LayerCache
from minikeye.model.decoder import ruled
from minikeye.model.step import AttentionTrace, Mode, Observer
from minikeye.training.parallel.context import Share, gather
from minikeye.training.parallel.zigzag import Zigzag, cut


class GatheredKeys(LayerCache):
    """Stands where a layer's cache would: returns the keys of all ranks in the order of the row, and remembers none."""

    def __init__(self, zigzag: Zigzag, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.zigzag, self.group = zigzag, group

    def slots(self, k: Tensor, v: Tensor, index_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Room for this rank's keys, which `extend` sends."""
        self._stores = [torch.empty_like(new) for new in (k, v, index_k)]
        return self.stores

    def extend(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """[b t ...] of every rank -> [b s ...]."""
        own, self._stores = self._stores, []
        k, v, index_k = gather(own, self.zigzag, self.group)
        return k, v, index_k


def read_row(
    model: KeyeVL,
    tokens: Mapping[str, Tensor],
    group: dist.ProcessGroup,
    attention: Mode = "sparse",
    observer: Observer | None = None,
    visual: Float[Tensor, "n d"] | None = None,
) -> tuple[Float[Tensor, "b t v"], dict[str, Tensor]]:
    """Logits of this rank's share of the tokens, and what goes with them, labels and weights, cut alike.

    tokens: the whole rows, the same on every rank, as `zigzag.cut` takes them; the rest as in `read_share`. Raises
    ValueError as `cut` does, and for tokens without ids.
    """
    if "input_ids" not in tokens:
        raise ValueError(
            f"expected input_ids and positions of whole rows, got {sorted(tokens)}: there is nothing to read"
        )
    zigzag = Zigzag(tokens["input_ids"].shape[1], group.size())
    part = cut(tokens, zigzag, group.rank())
    return read_share(model, part, zigzag, group, attention, observer, visual), part


def read_share(
    model: KeyeVL,
    part: Mapping[str, Tensor],
    zigzag: Zigzag,
    group: dist.ProcessGroup,
    attention: Mode = "sparse",
    observer: Observer | None = None,
    visual: Float[Tensor, "n d"] | None = None,
) -> Float[Tensor, "b t v"]:
    """Logits of this rank's share of rows, `part` of `zigzag.cut`. Every rank of the group calls it.

    attention: "dense" reads all keys of the document by a mask ("masked" and a rule), since a share is no run of
    tokens; the others as in the model. observer: sees queries of the share with keys of the row; padding selects
    nothing, and is routed to experts all the same (`dsa.Portion` leaves it out). visual: the visual tokens of the
    placeholders of the share, in its order; `samples.Part` finds them. Losses are sums over a share: divide by counts
    of the whole row, then add up the gradients of all ranks.
    """
    share = Share(zigzag, group.rank(), part.get("start"))

    def rule(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
        if attention == "dense":
            return share.everything(trace.q)
        return share.select(trace.index_q, trace.index_k, trace.index_w, topk)

    layers = model.config.text.layers
    cache = Cache([GatheredKeys(zigzag, group) for _ in range(layers)])
    mode = "masked" if attention == "dense" else attention
    with ruled(model.model, keys=[rule] * layers):
        inputs = {name: part[name] for name in ("input_ids", "positions")}
        inputs |= {} if visual is None else {"visual": visual}
        return model(inputs, cache, mode, observer=observer).logits
