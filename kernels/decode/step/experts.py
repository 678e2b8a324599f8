"""The experts of 2 to 16 tokens: two launches over the experts that anybody chose, each read once.

Axes: b batch, d width, x expert, m hidden channel of an expert, n slot of an awake expert.

    h[n, b] = weight[b, n] silu(z[b] Wgate[n]) * (z[b] Wup[n])        y[b] = sum over n of h[n, b] Wdown[n]

All tokens go through every awake expert, as the rows of one product that costs what one row costs; the routing weight
of a token that did not choose it is 0. The weight goes in before h rounds, so that what follows is a plain sum over
slots, in parts: no sorting, no gathering, no atomics. The grid has a slot for as many experts as may be awake, and
programs beyond the count return.

At batch 16 on an H200 prototype (82 of 128 experts awake) 123 us (limit 122) and 64 (61); torch's grouped products took
143 each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.decode.step.expert import gate_up_product
from minikeye.kernels.decode.step.products import ROWS, tile
from minikeye.kernels.launch import launch

GATE_UP = {
    "sm_90": {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 5},
    "sm_80": {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 5},
    "interpreter": {"BLOCK_M": 32, "BLOCK_K": 32},
}
DOWN = {
    "sm_90": {"BLOCK_D": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "sm_80": {"BLOCK_D": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "interpreter": {"BLOCK_D": 32, "BLOCK_K": 32},
}
PARTS = 8  # of the sum over slots


@triton.jit
def gate_up_kernel(
    z, weights, awake, count, w, hidden, B, X,
    D: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (m, slot). hidden [slot ROWS m]: weighted, rounded."""
    slot, row = tl.program_id(1), tl.arange(0, ROWS)
    column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    wait(PDL)
    if slot >= tl.load(count):
        return
    expert = tl.load(awake + slot)
    weight = tl.load(weights + row * X + expert)
    w += expert.to(tl.int64) * (D * 2 * M)
    gate, up = gate_up_product(z, w, column, 0, D, B, D, M, False, BLOCK_M, BLOCK_K)
    release(PDL)
    out = gate / (1.0 + tl.exp(-gate)) * up * weight[:, None]
    tl.store(hidden + (slot * ROWS + row[:, None]) * M + column[None, :], out.to(hidden.dtype.element_ty))


@triton.jit
def down_kernel(
    hidden, awake, count, w, out, B,
    D: tl.constexpr, M: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (d, part): out float32 [part b d], the sum over slots part, part + PARTS, ..."""
    part, row = tl.program_id(1), tl.arange(0, ROWS)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    wait(PDL)
    slots = tl.load(count)
    for slot in range(part, slots, PARTS):
        matrix = w + tl.load(awake + slot).to(tl.int64) * (M * D)
        for first in range(0, M, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            tokens = tl.load(hidden + (slot * ROWS + row[:, None]) * M + k[None, :])
            w_down = tl.load(matrix + k[:, None] * D + column[None, :])
            total = tl.dot(tokens, w_down, total, input_precision="ieee")
    release(PDL)
    tl.store(out + (part * B + row[:, None]) * D + column[None, :], total, mask=(row < B)[:, None])


def batch_experts(z: Tensor, chosen: tuple[Tensor, Tensor, Tensor], gate_up: Tensor, down: Tensor, most: int) -> Tensor:
    """Of tokens z [b d]: float32 [part b d], to be added over the parts.

    chosen: as route.awake_experts gives it. gate_up [x d 2m], down [x m d] in z's dtype; d and m multiples of 16. most:
    experts that may be awake.
    """
    (weights, awake, count), (experts, m, d), device = chosen, down.shape, z.device
    hidden = torch.empty(most, ROWS.value, m, dtype=z.dtype, device=device)
    out = torch.empty(PARTS, len(z), d, dtype=torch.float32, device=device)
    table, follow = launch(GATE_UP, device), dependent(device)
    tiles = {"BLOCK_M": tile(m, table["BLOCK_M"]), "BLOCK_K": tile(d, table["BLOCK_K"])}
    gate_up_kernel[(m // tiles["BLOCK_M"], most)](
        z, weights, awake, count, gate_up, hidden, len(z), experts, D=d, M=m, **table | tiles, **follow
    )
    table = launch(DOWN, device)
    tiles = {"BLOCK_D": tile(d, table["BLOCK_D"]), "BLOCK_K": tile(m, table["BLOCK_K"])}
    down_kernel[(d // tiles["BLOCK_D"], PARTS)](
        hidden, awake, count, down, out, len(z), D=d, M=m, PARTS=PARTS, **table | tiles, **follow
    )
    return out
