"""Products of one token a row with a weight, split over the weight's columns and over the sum.

Axes: b batch (1 to 16), n output channel, k input channel.

    y[split, b, n] = sum over the split's share of k of x[b, k] w[n, k]        x, w as stored, y float32

What is read is the weight, once; the rest must not be in the way. Sixteen rows are the least that tensor cores take, so
that a batch of up to 16 costs what one token costs, and one token is loaded once and stands in all rows: no lane is
idle and nothing is masked. The splits are added by who reads them (norms.py): no atomics, the same bits every time.

One launch for all projections of a layer (6,224 rows, packed): on an H200 prototype 8.7 us for 26 MB, where cuBLAS took
42 for the six of them. Norm and partial sums inside this loop: 27 us instead of 8.7 + 2.7. Weights brought into L2 by
a prefetch before the wait: +2 us.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.launch import launch

ROWS = tl.constexpr(16)  # of a product: the batch, padded
ONE = {  # BLOCK_N output channels a program, BLOCK_K input channels at a time; for one token
    "sm_90": {"BLOCK_N": 16, "BLOCK_K": 256, "num_warps": 2, "num_stages": 4},
    "sm_80": {"BLOCK_N": 32, "BLOCK_K": 256, "num_warps": 4, "num_stages": 4},
    "interpreter": {"BLOCK_N": 32, "BLOCK_K": 64},
}
MANY = {  # for more
    "sm_90": {"BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "sm_80": {"BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
    "interpreter": {"BLOCK_N": 32, "BLOCK_K": 32},
}
SPLIT = {"BLOCK_N": 16}  # for one token, where the sum is split: fewer columns, twice the programs


@triton.jit
def token_rows(x, k, K: tl.constexpr, B, SINGLE: tl.constexpr, BLOCK_K: tl.constexpr):
    """x[b, k] of a contiguous [b, K] as ROWS rows: zeros beyond the batch, or one token in all of them."""
    if SINGLE:
        rows = tl.broadcast_to(tl.load(x + k)[None, :], (ROWS, BLOCK_K))
    else:
        row = tl.arange(0, ROWS)
        rows = tl.load(x + row[:, None] * K + k[None, :], mask=(row < B)[:, None], other=0.0)
    return rows


@triton.jit
def product_kernel(
    x, w, y, B,
    K: tl.constexpr, N: tl.constexpr, SHARE: tl.constexpr, SINGLE: tl.constexpr, ROUNDED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (columns, splits)."""
    split, row = tl.program_id(1), tl.arange(0, ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.minimum(n, N - 1)  # the last one again rather than a mask
    total = tl.zeros([ROWS, BLOCK_N], tl.float32)
    wait(PDL)
    for first in range(split * SHARE, (split + 1) * SHARE, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        weights = tl.load(w + channel[:, None] * K + k[None, :])
        tokens = token_rows(x, k, K, B, SINGLE, BLOCK_K)
        total = tl.dot(tokens, tl.trans(weights), total, input_precision="ieee")
    if ROUNDED:
        total = total.to(w.dtype.element_ty).to(tl.float32)
    release(PDL)
    tl.store(y + (split * B + row[:, None]) * N + n[None, :], total, mask=(row < B)[:, None] & (n < N)[None, :])


def product(x: Tensor, w: Tensor, splits: int = 1, rounded: bool = False) -> Tensor:
    """x [b k] times w [n k]: float32 [split b n], to be added over the splits; 16 divides a split's share of k."""
    (b, k), n = x.shape, w.shape[0]  # rounded: to the dtype of w, as PyTorch's product is
    y = torch.empty(splits, b, n, dtype=torch.float32, device=x.device)
    table = launch(ONE if b == 1 else MANY, x.device) | (SPLIT if b == 1 and splits > 1 else {})
    tiles = {"BLOCK_K": tile(k // splits, table["BLOCK_K"])}
    product_kernel[(triton.cdiv(n, table["BLOCK_N"]), splits)](
        x, w, y, b, K=k, N=n, SHARE=k // splits, SINGLE=b == 1, ROUNDED=rounded, **table | tiles, **dependent(x.device)
    )
    return y


def tile(width: int, most: int) -> int:
    """The largest power of two up to `most` that divides width."""
    return min(width & -width, most)
