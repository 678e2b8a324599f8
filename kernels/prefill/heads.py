"""What lies between a layer's projections and its attention, in one kernel: split, normalise, rotate, put away.

Axes: b batch, t new token, h query head, g KV head, e head width, j indexer head, i indexer width. Report, section 2.
Of each token's projections q [h e], k [g e], v [g e], index q [j i] with gates [j], index k [i], for each head x:

    RMSNorm      y = x / sqrt(mean(x^2) + eps) * weight                                          q, k, index q
    LayerNorm    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias                          index k
    M-RoPE       out[c] = y[c] cos[c] - y[c + e/2] sin[c]     out[c + e/2] = y[c + e/2] cos[c] + y[c] sin[c]

v is copied, gates are widened to float32. k, v and index k go where the cache has room for them: any strides between
tokens and rows. Norms and rotation need of a head its two halves and no exchange between channels, so a head is loaded
as two tiles. All of it is float32 from load to store; PyTorch rounds q and k to bfloat16 between norm and rotation.

One program a token, all loads before the first sum: they are on their way together. A prototype on an H200, 16,384
tokens at released widths: norm, projections and this 3.15 -> 0.74 ms, of them 0.19 here; PyTorch moves every head
several times, in float32. Not fused with the projections: a tile of a product would have to hold whole heads, and a
product of thousands of rows waits for arithmetic, not for memory. Nor does x's own norm lie here with the addition
before it: for 16,384 tokens PyTorch's two kernels move 336 MB, one would move 268, which is 0.02 ms (reckoned).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import launch, runs_on

LAUNCH = {"sm_80": {"num_warps": 4}, "sm_90": {"num_warps": 4}, "interpreter": {}}


@triton.jit
def halves_at(COUNT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Where the first halves of COUNT contiguous heads lie, [HEADS HALF], and which of these places are theirs."""
    head, c = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    return head * WIDTH + c, (head < COUNT) & (c < WIDTH // 2)


@triton.jit
def load_halves(x, COUNT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    at, there = halves_at(COUNT, WIDTH, HEADS, HALF)
    return tl.load(x + at, mask=there, other=0.0), tl.load(x + at + WIDTH // 2, mask=there, other=0.0)


@triton.jit
def store_halves(out, a, b, COUNT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):
    at, there = halves_at(COUNT, WIDTH, HEADS, HALF)
    tl.store(out + at, a.to(out.dtype.element_ty), mask=there)
    tl.store(out + at + WIDTH // 2, b.to(out.dtype.element_ty), mask=there)


@triton.jit
def rms_norm(a, b, weight, eps, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """Both halves of heads, normalised: float32."""
    a, b = a.to(tl.float32), b.to(tl.float32)
    scale = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / WIDTH + eps)[:, None]
    first, second = load_halves(weight, 1, WIDTH, 1, HALF)
    return a * scale * first.to(tl.float32), b * scale * second.to(tl.float32)


@triton.jit
def layer_norm(a, b, weight, bias, eps, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """Both halves of one head, normalised: float32. The variance is that of the differences from the mean."""
    a, b = a.to(tl.float32), b.to(tl.float32)
    _, there = halves_at(1, WIDTH, 1, HALF)
    mean = ((tl.sum(a, axis=1) + tl.sum(b, axis=1)) / WIDTH)[:, None]
    a, b = tl.where(there, a - mean, 0.0), tl.where(there, b - mean, 0.0)
    scale = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / WIDTH + eps)[:, None]
    first, second = load_halves(weight, 1, WIDTH, 1, HALF)
    plus_first, plus_second = load_halves(bias, 1, WIDTH, 1, HALF)
    a = a * scale * first.to(tl.float32) + plus_first.to(tl.float32)
    return a, b * scale * second.to(tl.float32) + plus_second.to(tl.float32)


@triton.jit
def angles(cos, sin, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """cos and sin of a token, [1 HALF]: the second half of a row says the same again."""
    at, there = halves_at(1, WIDTH, 1, HALF)
    return tl.load(cos + at, mask=there, other=0.0), tl.load(sin + at, mask=there, other=0.0)


@triton.jit
def place_heads_kernel(
    q, k, v, index_q, index_k,
    q_norm, k_norm, index_q_norm, index_k_norm, index_k_bias,
    cos, sin, index_cos, index_sin,
    q_out, k_out, v_out, index_q_out, index_k_out, gates,
    eps, index_eps,
    cos_b, cos_t, sin_b, sin_t, index_cos_b, index_cos_t, index_sin_b, index_sin_t,
    k_b, k_t, v_b, v_t, index_b, index_t,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, J: tl.constexpr, I: tl.constexpr,  # noqa: E741 - the axis letter
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, VALUES: tl.constexpr,
    INDEX_HEADS: tl.constexpr, INDEX_HALF: tl.constexpr,
):  # fmt: skip
    """Grid (token, row). Capitals without a letter of their own are powers of two that hold the numbers above them."""
    t, b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    token = b * tl.num_programs(0) + t
    index_q += token * (J * I + J)
    head = tl.arange(0, INDEX_HEADS)
    channel = tl.arange(0, VALUES)

    q1, q2 = load_halves(q + token * H * E, H, E, HEADS, HALF)
    k1, k2 = load_halves(k + token * G * E, G, E, GROUPS, HALF)
    values = tl.load(v + token * G * E + channel, mask=channel < G * E, other=0.0)
    i1, i2 = load_halves(index_q, J, I, INDEX_HEADS, INDEX_HALF)
    gate = tl.load(index_q + J * I + head, mask=head < J, other=0.0)
    j1, j2 = load_halves(index_k + token * I, 1, I, 1, INDEX_HALF)
    c, s = angles(cos + b * cos_b + t * cos_t, sin + b * sin_b + t * sin_t, E, HALF)
    ic, is_ = angles(
        index_cos + b * index_cos_b + t * index_cos_t, index_sin + b * index_sin_b + t * index_sin_t, I, INDEX_HALF
    )

    q1, q2 = rms_norm(q1, q2, q_norm, eps, E, HALF)
    store_halves(q_out + token * H * E, q1 * c - q2 * s, q2 * c + q1 * s, H, E, HEADS, HALF)
    k1, k2 = rms_norm(k1, k2, k_norm, eps, E, HALF)
    store_halves(k_out + b * k_b + t * k_t, k1 * c - k2 * s, k2 * c + k1 * s, G, E, GROUPS, HALF)
    tl.store(v_out + b * v_b + t * v_t + channel, values, mask=channel < G * E)
    i1, i2 = rms_norm(i1, i2, index_q_norm, index_eps, I, INDEX_HALF)
    store_halves(
        index_q_out + token * J * I, i1 * ic - i2 * is_, i2 * ic + i1 * is_, J, I, INDEX_HEADS, INDEX_HALF
    )  # fmt: skip
    tl.store(gates + token * J + head, gate.to(tl.float32), mask=head < J)
    j1, j2 = layer_norm(j1, j2, index_k_norm, index_k_bias, index_eps, I, INDEX_HALF)
    index_k_out += b * index_b + t * index_t
    store_halves(index_k_out, j1 * ic - j2 * is_, j2 * ic + j1 * is_, 1, I, 1, INDEX_HALF)


def sizes(h: int, g: int, e: int, j: int, i: int) -> dict[str, int]:
    """The kernel's constants: numbers of heads, their widths, and the powers of two that hold them."""
    power = triton.next_power_of_2
    given = {"H": h, "G": g, "E": e, "J": j, "I": i}
    held = {"HEADS": h, "GROUPS": g, "HALF": e // 2, "VALUES": g * e, "INDEX_HEADS": j, "INDEX_HALF": i // 2}
    return given | {name: power(number) for name, number in held.items()}


@torch.no_grad()
def place_heads(
    projected: tuple[Tensor, ...],
    norms: tuple[Tensor, ...],
    rotation: tuple[Tensor, Tensor],
    index_rotation: tuple[Tensor, Tensor],
    slots: tuple[Tensor, Tensor, Tensor],
    eps: float,
    index_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [b t h e], index q [b t j i] and gates float32 [b t j]; k, v and index k are written to `slots`.

    projected: q [b t (h e)], k, v [b t (g e)], index q [b t (j i + j)] and index k [b t i], of one dtype; norms:
    weights of q, k [e], of index q, index k [i], and the bias of the last; rotations: cos and sin float32 [b t e] and
    [b t i], each angle twice; slots: [b t g e], [b t g e], [b t i], a token's channels side by side. eps: of q and k;
    index_eps: of index q and k. Shapes are checked at the door of ops. Raises ValueError off a GPU and for slots that
    have gaps.
    """
    q, k, v, index_q, index_k = (x.contiguous() for x in projected)
    if not runs_on(q.device):
        raise ValueError(f"place_heads needs a CUDA device, got {q.device}: let the modules project one by one")
    (b, t), e, i = q.shape[:2], len(norms[0]), len(norms[2])
    if q.numel() and not all(x[0, 0].is_contiguous() for x in slots):
        raise ValueError(f"slots must have a token's channels side by side, got strides {[x.stride() for x in slots]}")
    h, g, j = q.shape[2] // e, k.shape[2] // e, index_q.shape[2] // (i + 1)
    q_out = torch.empty(b, t, h, e, dtype=q.dtype, device=q.device)
    index_q_out = torch.empty(b, t, j, i, dtype=q.dtype, device=q.device)
    gates = torch.empty(b, t, j, dtype=torch.float32, device=q.device)
    turns = [x if x.stride(-1) == 1 else x.contiguous() for x in (*rotation, *index_rotation)]
    if q.numel():
        place_heads_kernel[(t, b)](
            q, k, v, index_q, index_k, *(x.contiguous() for x in norms), *turns,
            q_out, slots[0], slots[1], index_q_out, slots[2], gates, eps, index_eps,
            *(n for x in turns for n in x.stride()[:2]), *(n for x in slots for n in x.stride()[:2]),
            **sizes(h, g, e, j, i), **launch(LAUNCH, q.device),
        )  # fmt: skip
    return q_out, index_q_out, gates
