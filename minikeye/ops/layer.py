"""What surrounds attention in a layer: the router's product, the experts' activation and sum, heads put in place.

Axes: n token, d width, x expert, c chosen expert of a token, r row (a token's copy for one of its experts, sorted by
expert), m hidden channel of an expert, b batch, t query position, h query head, g KV head, e head width, j indexer
head, i indexer width. Report, section 2. `fused` decides: where it says yes, kernels answer, else PyTorch, which is the
specification.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.ops.backend import fused, learning
from minikeye.ops.checks import check_heads, check_sum


def wide_product(x: Float[Tensor, "n d"], w: Float[Tensor, "x d"], backend: str = "auto") -> Float[Tensor, "n x"]:
    """x w^T in float32, whatever their dtype and whether autocast is on.

    A product of two bfloat16 numbers is exact in float32, so the tensor cores that add such products up in float32 need
    no float32 copy of x: the same sum in another order.
    """
    if fused(backend, x, w) and x.dtype != torch.float32:
        return torch.mm(x, w.mT, out_dtype=torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), w.float())


def choose_experts(
    logits: Float[Tensor, "n x"], count: int
) -> tuple[Float[Tensor, "n x"], Float[Tensor, "n c"], Int[Tensor, "n c"]]:
    """Probabilities of all experts, weights of the `count` likeliest, which sum to 1, and their numbers.

    By a kernel, so only where `fused` says yes of what made the logits: the specification is `Router.forward`. Experts
    come likeliest first; of equal ones the smaller number, which torch leaves open. Raises ValueError for logits that
    are not float32, or a count that is not 1..x.
    """
    from minikeye.kernels.prefill import router

    return router.choose_experts(logits, count)


def swiglu(gate_up: Float[Tensor, "r two_m"], backend: str = "auto") -> Float[Tensor, "r m"]:
    """silu(gate) * up of rows that hold gate channels first, then as many of up. Raises ValueError for an odd width."""
    if gate_up.shape[1] % 2:
        raise ValueError(f"expected gate channels and as many of up, got {gate_up.shape[1]} in all")
    if fused(backend, gate_up):
        from minikeye.kernels.prefill import experts

        return experts.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def weighted_sum(
    y: Float[Tensor, "r d"],
    place: Int[Tensor, "n c"],
    weights: Float[Tensor, "n c"],
    dtype: torch.dtype,
    residual: Float[Tensor, "n d"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "n d"]:
    """sum_c weights[n, c] y[place[n, c]], added up in float32, as `dtype`; with a residual, that plus the residual.

    place: where the rows of a token's experts lie, each 0..r-1, which is not checked. By kernels sum and residual are
    rounded once. Raises ValueError where shapes do not fit.
    """
    check_sum(y, place, weights, residual)
    if fused(backend, y, *(() if residual is None else (residual,))) and not learning(weights):
        from minikeye.kernels.prefill import experts

        return experts.weighted_sum(y, place, weights, residual, dtype)
    rows = rearrange(y[place.flatten()], "(n c) d -> n c d", c=place.shape[1])
    with torch.autocast(y.device.type, enabled=False):
        total = torch.einsum("nc,ncd->nd", weights, rows.float()).to(dtype)
    return total if residual is None else residual + total


class Projected(NamedTuple):
    """What a layer's projections make of new tokens: nothing normalised, nothing rotated yet."""

    q: Float[Tensor, "b t he"]
    k: Float[Tensor, "b t ge"]
    v: Float[Tensor, "b t ge"]
    index_q: Float[Tensor, "b t ji_and_j"]  # the indexer's queries, then one gate a head
    index_k: Float[Tensor, "b t i"]


class Norms(NamedTuple):
    """Weights of the norms of single heads: RMSNorm of q, k and index queries, LayerNorm of index keys."""

    q: Float[Tensor, " e"]
    k: Float[Tensor, " e"]
    index_q: Float[Tensor, " i"]
    index_k: Float[Tensor, " i"]
    index_k_bias: Float[Tensor, " i"]
    eps: float  # of the first two
    index_eps: float


def place_heads(
    projected: Projected,
    norms: Norms,
    rotation: tuple[Float[Tensor, "b t e"], Float[Tensor, "b t e"]],
    index_rotation: tuple[Float[Tensor, "b t i"], Float[Tensor, "b t i"]],
    slots: tuple[Float[Tensor, "b t g e"], Float[Tensor, "b t g e"], Float[Tensor, "b t i"]],
) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b t j i"], Float[Tensor, "b t j"]]:
    """Split into heads, normalise, rotate: queries, index queries and float32 gates are returned; keys, values and
    index keys are written to `slots`, which may be room in a cache.

    By a kernel, so only where `fused` says yes: the specification is `Attention.project` and `Indexer.forward`.
    rotation: cos and sin, which hold every angle twice, as `rope.rotation` makes them. Raises ValueError where shapes
    do not fit.
    """
    check_heads(projected, norms, rotation, index_rotation, slots)
    from minikeye.kernels.prefill.heads import place_heads as place

    return place(projected, norms[:5], rotation, index_rotation, slots, norms.eps, norms.index_eps)
