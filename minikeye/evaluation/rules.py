"""Other ways to choose the keys that a query reads, to compare the lightning indexer with.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
k selected key.
A rule looks at an `AttentionTrace` and gives int32 [b t topk] with the semantics of `ops.select_topk`. Rules that score
keys by position are written as index queries and keys, so that the exact selection of `ops` does the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.keye import KeyeVL
from minikeye.model.attention import Rule
from minikeye.model.decoder import ruled
from minikeye.model.step import AttentionTrace


def random_keys(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
    """topk valid keys drawn anew for every query and layer from torch's global generator."""
    b, t, s = len(trace.q), trace.q.shape[1], trace.k.shape[1]
    out = []
    rows = ops.slab_rows(trace.q.device, b * s)
    for first in range(0, t, rows):
        n = min(rows, t - first)
        scores = torch.rand(b, n, s, device=trace.q.device)
        valid = ops.valid_keys(n, s, trace.offset + first, trace.start, trace.q.device)
        out.append(ops.topk_positions(scores.masked_fill(~valid, -torch.inf), topk))
    return torch.cat(out, dim=1)


def window(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
    """The last topk keys: a key's score is its position."""
    one, position = _ones(trace), _positions(trace)
    return ops.select_topk(one[..., None], position, one, topk, trace.offset, trace.start)


def first_last(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
    """The first and the last topk / 2 keys ("sinks" and a window): a key's score is its distance from the middle.

    An odd topk has one more of the first.
    """
    one, position = _ones(trace), _positions(trace)
    begin = 0 if trace.start is None else trace.start[:, None, None].to(one)
    middle = one * (begin + trace.offset + torch.arange(trace.q.shape[1], device=one.device)[None, :, None]) / 2
    # Two index heads: ReLU(s - middle) + ReLU(middle - s), keys (s, 1).
    heads = torch.stack((torch.cat((one, -middle), dim=-1), torch.cat((-one, middle), dim=-1)), dim=2)
    keys = torch.cat((position, torch.ones_like(position)), dim=-1)
    return ops.select_topk(heads, keys, one.expand(-1, -1, 2), topk, trace.offset, trace.start)


def oracle(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
    """The topk keys that dense attention itself would give most, mean over all heads: what an indexer aims at."""
    b, t, h, e = trace.q.shape
    s, out = trace.k.shape[1], []
    rows = ops.slab_rows(trace.q.device, b * h * s)
    for first in range(0, t, rows):
        q = rearrange(trace.q[:, first : first + rows], "b t (g r) e -> b t g r e", g=trace.k.shape[2])
        end = min(s, trace.offset + first + q.shape[1])  # keys past the slab's last query are not valid
        logits = torch.einsum("btgre,bsge->btgrs", q, trace.k[:, :end]).float().flatten(2, 3) * e**-0.5
        valid = ops.valid_keys(q.shape[1], end, trace.offset + first, trace.start, q.device)
        share = logits.masked_fill(~valid[:, :, None], -torch.inf).softmax(dim=-1).mean(dim=2)
        out.append(ops.topk_positions(share.masked_fill(~valid, -torch.inf), topk))
    return torch.cat(out, dim=1)


RULES: dict[str, Rule] = {"random": random_keys, "window": window, "firstlast": first_last, "oracle": oracle}


@contextmanager
def selecting(model: KeyeVL, rule: Rule | None = None, topk: int | None = None) -> Iterator[None]:
    """Inside the block every layer selects by `rule` (None: its indexer) and topk keys (None: as configured).

        with selecting(model, rules.window, 64):
            model(inputs)

    Raises TypeError for a rule that is no function, ValueError for topk < 1.
    """
    if rule is not None and not callable(rule):
        raise TypeError(f"rule must be a function such as rules.window, got {rule!r}; RULES has them by name")
    if topk is not None and topk < 1:
        raise ValueError(f"topk must be at least 1, or None for the configured one; got {topk}")
    layers = model.model.layers
    with ruled(model.model, keys=[rule] * model.config.text.layers):
        before = [layer.self_attn.topk for layer in layers]
        try:
            for layer in layers:
                layer.self_attn.topk = topk or layer.self_attn.topk
            yield
        finally:
            for layer, k in zip(layers, before, strict=True):
                layer.self_attn.topk = k


@torch.no_grad()
def interleave(model: KeyeVL) -> None:
    """Give every indexer the channel order of an interleaved RoPE, (0, 1), (2, 3), ..., for which it was not taught.

    Moving channel 2n to n and 2n + 1 to n + width / 2 and turning in halves is the same as turning neighbours: the
    wrong layout that a port of an indexer can end up with, as weights. Dot products before the rotation do not change.
    """
    for layer in model.model.layers:
        indexer, width = layer.self_attn.sa_indexer, layer.self_attn.sa_indexer.width
        order = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
        rows = torch.arange(len(indexer.q_proj.weight))
        heads = rows[: indexer.heads * width].view(indexer.heads, width)
        rows[: indexer.heads * width] = heads[:, order].flatten()
        indexer.q_proj.weight.copy_(indexer.q_proj.weight[rows])
        for p in (indexer.k_proj.weight, indexer.q_norm.weight, indexer.k_norm.weight, indexer.k_norm.bias):
            p.copy_(p[order])


def _ones(trace: AttentionTrace) -> Float[Tensor, "b t 1"]:
    return torch.ones(*trace.q.shape[:2], 1, device=trace.q.device)


def _positions(trace: AttentionTrace) -> Float[Tensor, "b s 1"]:
    s = torch.arange(trace.k.shape[1], dtype=torch.float32, device=trace.q.device)
    return s[None, :, None].expand(len(trace.q), -1, -1)
