"""The router of one token a row: residual sum, norm and logits in one launch, and which experts anybody chose.

Axes: b batch, d width, x expert, c chosen expert of a token. Report, section 2 (Qwen3-MoE).

    x[b] = residual[b] + sum of parts        z[b] = RMSNorm(x[b])        logits[b, n] = z[b] . w[n]    in float32
    weights[b, n] = exp(logits[b, n]) / sum over the c chosen, for the c largest; ties go to the smaller number

A program has a few experts of one token, whose weights it loads before it waits for the kernel before; sum and norm are
done again in each. For one token that is all: expert.py counts ranks where it needs them. In a batch, one small kernel
lists the experts that are awake, so that each expert's weights are read once for all tokens.

2.5 us for one token on an H200 prototype; 4.4 and 4.9 for the list at batch 16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LOWEST
from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.decode.step.norms import residual_norm
from minikeye.kernels.decode.step.products import ROWS
from minikeye.kernels.launch import launch

ROUTE = {  # experts of a program
    "sm_90": {"BLOCK_X": 4, "num_warps": 8},
    "sm_80": {"BLOCK_X": 4, "num_warps": 8},
    "interpreter": {"BLOCK_X": 4},
}
AWAKE = {"sm_90": {"num_warps": 8}, "sm_80": {"num_warps": 8}, "interpreter": {}}


@triton.jit
def route_kernel(
    x, parts, norm, w, x_out, z_out, logits, B, X, eps,
    D: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_X: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (experts, b)."""
    b, k = tl.program_id(1), tl.arange(0, BLOCK_D)
    expert = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    weights = tl.load(w + expert[:, None] * D + k[None, :], mask=(expert < X)[:, None] & (k < D)[None, :], other=0.0)
    scale = tl.load(norm + k, mask=k < D, other=0.0).to(tl.float32)
    release(PDL)
    wait(PDL)
    total, z = residual_norm(x, parts, scale, b, B, k, eps, D, PARTS)
    z = z.to(z_out.dtype.element_ty)
    logit = tl.sum(weights.to(tl.float32) * z.to(tl.float32)[None, :], axis=1)
    tl.store(logits + b * X + expert, logit, mask=expert < X)
    if tl.program_id(0) == 0:
        tl.store(x_out + b * D + k, total, mask=k < D)
        tl.store(z_out + b * D + k, z, mask=k < D)


@triton.jit
def awake_kernel(
    logits, weights, awake, count, B, X, CHOSEN: tl.constexpr, BLOCK_X: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """One program. weights [ROWS x]: 0 for what a row did not choose; awake [x]: ascending, `count` of them."""
    row, expert = tl.arange(0, ROWS), tl.arange(0, BLOCK_X)
    there = (row < B)[:, None] & (expert < X)[None, :]
    release(PDL)
    wait(PDL)
    logit = tl.load(logits + row[:, None] * X + expert[None, :], mask=there, other=float("-inf"))
    unsound = tl.sum(tl.where(there, logit, 0.0) * 0.0, axis=1)  # 0, or nan for a logit that is nan or infinite
    rest = tl.where((expert < X)[None, :] & (row >= B)[:, None], 0.0, logit)  # rows of no token: any numbers
    rest = tl.where(rest == rest, rest, float("-inf"))  # a nan ranks last, so that experts are experts
    most = tl.maximum(tl.max(rest, axis=1), LOWEST)  # finite: -inf less -inf is none
    mine = tl.zeros([ROWS, BLOCK_X], tl.int32)
    for _ in tl.static_range(CHOSEN):
        best = expert[None, :] == tl.argmax(rest, axis=1)[:, None]
        mine = tl.maximum(mine, best.to(tl.int32))
        rest = tl.where(best, float("-inf"), rest)
    mine = tl.where((row < B)[:, None], mine, 0)
    weight = tl.where(mine > 0, tl.exp(logit - most[:, None]), 0.0)
    total = tl.sum(weight, axis=1)
    weight = weight / tl.where(total > 0.0, total, 1.0)[:, None] + tl.where(mine > 0, unsound[:, None], 0.0)
    anybody = tl.max(mine, axis=0)
    tl.store(awake + tl.cumsum(anybody, axis=0) - 1, expert, mask=anybody > 0)
    tl.store(count, tl.sum(anybody, axis=0))
    tl.store(weights + row[:, None] * X + expert[None, :], weight, mask=(expert < X)[None, :])


def route(x: Tensor, parts: Tensor, norm: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [b d] plus parts float32 [p b d], its RMSNorm, both in x's dtype, and the router's logits float32 [b x]."""
    (b, d), experts, table = x.shape, len(w), launch(ROUTE, x.device)
    total, z = torch.empty_like(x), torch.empty_like(x)
    logits = torch.empty(b, experts, dtype=torch.float32, device=x.device)
    route_kernel[(triton.cdiv(experts, table["BLOCK_X"]), b)](
        x, parts, norm, w, total, z, logits, b, experts, eps, D=d, PARTS=len(parts),
        BLOCK_D=triton.next_power_of_2(d), **table, **dependent(x.device),
    )  # fmt: skip
    return total, z, logits


def awake_experts(logits: Tensor, chosen: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits [b x]: routing weights float32 [16 x], the experts that a row chose int32 [x], and how many [1]."""
    (b, experts), device = logits.shape, logits.device
    weights = torch.empty(ROWS.value, experts, dtype=torch.float32, device=device)
    awake = torch.empty(experts, dtype=torch.int32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    awake_kernel[(1,)](
        logits, weights, awake, count, b, experts, CHOSEN=chosen, BLOCK_X=triton.next_power_of_2(experts),
        **launch(AWAKE, device), **dependent(device),
    )  # fmt: skip
    return weights, awake, count
