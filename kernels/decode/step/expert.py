"""The experts of one token: two launches, of which the first finds out which experts these are.

Axes: d width, x expert, c chosen expert, m hidden channel of an expert. Report, section 2 (Qwen3-MoE).

    y = sum over c of weight[c] (silu(z Wgate[c]) * (z Wup[c])) Wdown[c]

1. gate_up: program (m tile, slot, split) needs the expert with the slot-th largest logit. The rank of an expert is how
   many have a larger logit, or the same and a smaller number: x * x comparisons and one sum, a microsecond faster than
   eight rounds of argmax. The sum over d is split, so that 8 experts give enough programs; the activation, which needs
   the whole sum, waits for step 2.
2. down: program (d tile, part) has one slot and a share of m. It adds the splits, applies the activation and the
   routing weight in float32, rounds once, and leaves partial sums [part, d] to the next norm: no atomics.

Only the chosen experts' weights are read. On an H200 prototype 17.4 us (limit 11.8; 20 without the split) and 9.0
(5.9); torch's grouped product took 47 for both. Weights stored with a row an output channel: 17.1, so the checkpoint's
layout stays.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LOWEST
from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.decode.step.products import ROWS, tile, token_rows
from minikeye.kernels.launch import launch

GATE_UP = {
    "sm_90": {"BLOCK_M": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 2},
    "sm_80": {"BLOCK_M": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 3},
    "interpreter": {"BLOCK_M": 32, "BLOCK_K": 32},
}
SPLITS = 4  # of the sum over d
DOWN = {
    "sm_90": {"BLOCK_D": 128, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "sm_80": {"BLOCK_D": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "interpreter": {"BLOCK_D": 32, "BLOCK_K": 32},
}


@triton.jit
def ranked_expert(logits, slot, X, CHOSEN: tl.constexpr, BLOCK_X: tl.constexpr):
    """The expert with the slot-th largest logit (slot counts from 0), and its weight among the CHOSEN.

    A nan ranks last, so that experts are experts; weights are nan then, as a softmax's are.
    """
    expert = tl.arange(0, BLOCK_X)
    mine = tl.load(logits + expert, mask=expert < X, other=float("-inf"))[:, None]
    other = tl.load(logits + expert, mask=expert < X, other=float("-inf"))[None, :]
    mine = tl.where(mine == mine, mine, float("-inf"))
    other = tl.where(other == other, other, float("-inf"))
    before = (other > mine) | ((other == mine) & (expert[None, :] < expert[:, None]))
    rank = tl.sum(before.to(tl.int32), axis=1)
    best = tl.sum(tl.where(rank == slot, expert, 0), axis=0)
    again = tl.load(logits + expert, mask=expert < X, other=float("-inf"))
    most = tl.maximum(tl.max(tl.where(again == again, again, LOWEST), axis=0), LOWEST)  # finite, whatever comes
    share = tl.where(rank < CHOSEN, tl.exp(again - most), 0.0)
    unsound = tl.sum(tl.where(expert < X, again, 0.0) * 0.0, axis=0)  # 0, or nan for a logit that is nan or infinite
    return best, tl.exp(tl.load(logits + best) - most) / tl.sum(share, axis=0) + unsound


@triton.jit
def gate_up_product(
    z, w, column, first, end, B, D: tl.constexpr, M: tl.constexpr, SINGLE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gate and up [ROWS, BLOCK_M] of the tokens z by one expert's w [D, 2M], summed over first .. end - 1."""
    gate = tl.zeros([ROWS, BLOCK_M], tl.float32)
    up = tl.zeros([ROWS, BLOCK_M], tl.float32)
    for at in range(first, end, BLOCK_K):
        k = at + tl.arange(0, BLOCK_K)
        tokens = token_rows(z, k, D, B, SINGLE, BLOCK_K)
        w_gate = tl.load(w + k[:, None] * (2 * M) + column[None, :])
        w_up = tl.load(w + k[:, None] * (2 * M) + M + column[None, :])
        gate = tl.dot(tokens, w_gate, gate, input_precision="ieee")
        up = tl.dot(tokens, w_up, up, input_precision="ieee")
    return gate, up


@triton.jit
def one_gate_up_kernel(
    z, logits, w, sums, slots, weights, X,
    D: tl.constexpr, M: tl.constexpr, SHARE: tl.constexpr, CHOSEN: tl.constexpr, BLOCK_X: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (m, slot, split). sums float32 [split c 2m]; slots int32 [c] and weights float32 [c]: what was chosen."""
    slot, split = tl.program_id(1), tl.program_id(2)
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait(PDL)
    expert, weight = ranked_expert(logits, slot, X, CHOSEN, BLOCK_X)
    if (tl.program_id(0) == 0) & (split == 0):
        tl.store(slots + slot, expert)
        tl.store(weights + slot, weight)
    w += expert.to(tl.int64) * (D * 2 * M)
    gate, up = gate_up_product(z, w, column, split * SHARE, (split + 1) * SHARE, 1, D, M, True, BLOCK_M, BLOCK_K)
    release(PDL)
    at = sums + (split * CHOSEN + slot) * (2 * M) + column[None, :] + tl.zeros([ROWS, 1], tl.int32)
    first_row = (tl.arange(0, ROWS) == 0)[:, None] & (column < M)[None, :]
    tl.store(at, gate, mask=first_row)
    tl.store(at + M, up, mask=first_row)


@triton.jit
def one_down_kernel(
    sums, slots, weights, w, out,
    D: tl.constexpr, M: tl.constexpr, CHOSEN: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (d, c): out float32 [c d], what each chosen expert adds."""
    slot = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    wait(PDL)
    w += tl.load(slots + slot).to(tl.int64) * (M * D)
    weight = tl.load(weights + slot)
    for first in range(0, M, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        gate = tl.zeros([BLOCK_K], tl.float32)
        up = tl.zeros([BLOCK_K], tl.float32)
        for split in tl.static_range(SPLITS):
            gate += tl.load(sums + (split * CHOSEN + slot) * (2 * M) + k)
            up += tl.load(sums + (split * CHOSEN + slot) * (2 * M) + M + k)
        hidden = gate / (1.0 + tl.exp(-gate)) * up * weight
        w_down = tl.load(w + k[:, None] * D + column[None, :])
        rows = tl.broadcast_to(hidden.to(w_down.dtype)[None, :], (ROWS, BLOCK_K))
        total = tl.dot(rows, w_down, total, input_precision="ieee")
    release(PDL)
    at = out + slot * D + column[None, :] + tl.zeros([ROWS, 1], tl.int32)
    tl.store(at, total, mask=(tl.arange(0, ROWS) == 0)[:, None] & (column < D)[None, :])


def one_token_experts(z: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, chosen: int) -> Tensor:
    """Of one token z [1 d] with the router's logits float32 [1 x]: float32 [c 1 d], to be added over c.

    gate_up [x d 2m], down [x m d] in z's dtype; d and m multiples of 16.
    """
    (experts, m, d), device = down.shape, z.device
    splits = SPLITS if d % (16 * SPLITS) == 0 else 1
    sums = torch.empty(splits, chosen, 2 * m, dtype=torch.float32, device=device)
    slots = torch.empty(chosen, dtype=torch.int32, device=device)
    weights = torch.empty(chosen, dtype=torch.float32, device=device)
    out = torch.empty(chosen, 1, d, dtype=torch.float32, device=device)
    table, follow = launch(GATE_UP, device), dependent(device)
    tiles = {"BLOCK_M": tile(m, table["BLOCK_M"]), "BLOCK_K": tile(d // splits, table["BLOCK_K"])}
    one_gate_up_kernel[(m // tiles["BLOCK_M"], chosen, splits)](
        z, logits, gate_up, sums, slots, weights, experts, D=d, M=m, SHARE=d // splits, CHOSEN=chosen,
        BLOCK_X=triton.next_power_of_2(experts), **table | tiles, **follow,
    )  # fmt: skip
    table = launch(DOWN, device)
    tiles = {"BLOCK_D": tile(d, table["BLOCK_D"]), "BLOCK_K": tile(m, table["BLOCK_K"])}
    one_down_kernel[(d // tiles["BLOCK_D"], chosen)](
        sums, slots, weights, down, out, D=d, M=m, CHOSEN=chosen, SPLITS=splits, **table | tiles, **follow
    )
    return out
