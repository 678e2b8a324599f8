"""Inputs to prove and time the kernels on: shapes of the released model, index vectors that move slowly or not.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, h query head, g KV head, e head width.
How much neighbouring queries share decides the speed of the union tiles. Queries and gates of the indexer follow an
AR(1) process of coefficient rho along t: 0 gives the worst case, sets that have little in common. The "sinks" data has,
besides, four first keys that every query wants and keys that near queries want: what trained models show. In "smooth"
data the keys resemble their neighbours as much as the queries do, as where one layer's vectors make both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One layer; the defaults are the released model's."""

    heads: int = 32
    kv_heads: int = 4
    width: int = 128  # of a head
    index_heads: int = 16
    index_width: int = 64
    topk: int = 2048


RELEASED = Shape()
# Names: union of 16 sets at 128K, in sets of k.
RHO = {"random": 0.0, "u4": 0.955, "u2": 0.9925, "sinks": 0.955, "smooth": 0.9925}


def process(t: int, width: int, rho: float, device: str, batch: int = 1) -> Tensor:
    """x[t] = rho x[t - 1] + sqrt(1 - rho^2) noise, every x[t] of variance 1: float32 [b t width]."""
    x = torch.randn(batch, t, width, device=device)
    x[:, 1:] *= math.sqrt(1 - rho**2)
    reach = 1  # x[t] holds the noise of `reach` steps
    while reach < t and rho**reach > 1e-6:
        x[:, reach:] += rho**reach * x[:, :-reach].clone()
        reach *= 2
    return x


def index_inputs(
    data: str,
    t: int,
    device: str = "cuda",
    shape: Shape = RELEASED,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Index queries [b t j i], keys [b t i] and gates [b t j]."""
    j, i, rho = shape.index_heads, shape.index_width, RHO[data]
    q = process(t, j * i, rho, device, batch).view(batch, t, j, i)
    w = 1 + 0.5 * process(t, j, rho, device, batch)
    k = torch.randn(batch, t, i, device=device)
    if data == "smooth":
        k = process(t, i, rho, device, batch)
    if data == "sinks":
        common = torch.randn(i, device=device)
        q += common
        k += 0.5 * q.mean(dim=2) * math.sqrt(j)
        k[:, :4] = 4 * common
    return q.to(dtype), k.to(dtype), w.to(dtype)


def attention_inputs(
    t: int, s: int, device: str = "cuda", shape: Shape = RELEASED, batch: int = 1, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """q [b t h e], k and v [b s g e], all independent and normal."""
    return (
        torch.randn(batch, t, shape.heads, shape.width, device=device, dtype=dtype),
        torch.randn(batch, s, shape.kv_heads, shape.width, device=device, dtype=dtype),
        torch.randn(batch, s, shape.kv_heads, shape.width, device=device, dtype=dtype),
    )


def union_factor(indices: Tensor, queries: int, tiles: int = 64) -> float:
    """Mean |union of the sets of `queries` neighbours| / k, over up to `tiles` tiles spread evenly. indices [b t k]."""
    topk = indices.shape[2]
    rows = indices[0, : indices.shape[1] // queries * queries].view(-1, queries * topk)
    rows = rows[torch.linspace(0, len(rows) - 1, min(tiles, len(rows)), device=rows.device).long()]
    return sum(len(row[row >= 0].unique()) for row in rows) / len(rows) / topk
