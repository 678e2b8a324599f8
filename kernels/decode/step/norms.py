"""The residual stream, what a layer's products left to be added to it, and its norm: one launch.

Axes: b batch, d width.

    x[b] = residual[b] + sum over parts of parts[p, b]        z[b] = RMSNorm(x[b])

The sum is float32 and rounds once, to the stream's dtype; the norm is of what was rounded, as in PyTorch. 2.7 us on an
H200 prototype with 8 parts. Done again in every program of the product that follows, it cost 18 us more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.launch import launch

LAUNCH = {"sm_90": {"num_warps": 8}, "sm_80": {"num_warps": 8}, "interpreter": {}}


@triton.jit
def residual_norm(x, parts, scale, b, B, k, eps, D: tl.constexpr, PARTS: tl.constexpr):
    """Channels k of row b: the sum, rounded, and its norm, float32. scale: the norm's weights; zeros from D on."""
    there = k < D
    total = tl.load(x + b * D + k, mask=there, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + (part * B + b) * D + k, mask=there, other=0.0)
    total = total.to(x.dtype.element_ty)
    wide = total.to(tl.float32)
    return total, wide * (1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / D + eps)) * scale


@triton.jit
def add_norm_kernel(
    x, parts, weight, x_out, z_out, B, eps, D: tl.constexpr, PARTS: tl.constexpr, BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (b)."""
    b, k = tl.program_id(0), tl.arange(0, BLOCK_D)
    scale = tl.load(weight + k, mask=k < D, other=0.0).to(tl.float32)
    release(PDL)
    wait(PDL)
    total, z = residual_norm(x, parts, scale, b, B, k, eps, D, PARTS)
    tl.store(x_out + b * D + k, total, mask=k < D)
    tl.store(z_out + b * D + k, z.to(z_out.dtype.element_ty), mask=k < D)


def add_norm(x: Tensor, parts: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [b d] plus parts float32 [p b d], and the RMSNorm of that: both [b d] in x's dtype."""
    b, d = x.shape
    total, z = torch.empty_like(x), torch.empty_like(x)
    add_norm_kernel[(b,)](
        x, parts, weight, total, z, b, eps, D=d, PARTS=0 if parts is None else len(parts),
        BLOCK_D=triton.next_power_of_2(d), **launch(LAUNCH, x.device), **dependent(x.device),
    )  # fmt: skip
    return total, z
