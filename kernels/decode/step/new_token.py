"""What a new token's raw projections become: heads normalised and rotated where they are read, and rows of the cache.

Axes: b batch, h head (of queries, keys or the indexer), e channel of a head.

    x[e] <- x[e] / sqrt(mean x^2 + eps) * weight[e]        then        x[e] cos[e] + turned[e] sin[e]
    turned[e] = -x[e + half] in the first half of a head, x[e - half] in the second

Two loads of a head, of its channels and of those half a head away, give both without any exchange between threads. Done
again in each of 64 to 250 programs that need the same head it costs nothing that could be measured, and saves four
launches.
"""

import triton
import triton.language as tl


@triton.jit
def away(e, E: tl.constexpr):
    """Channels that turn with channels e, and the sign they enter with in the place of e."""
    return (e + E // 2) % E, tl.where(e < E // 2, -1.0, 1.0)


@triton.jit
def turned_heads(raw, head, there, weight, cos, sin, eps, E: tl.constexpr):
    """RMSNorm and rotation of the heads [h, E] at raw + head * E, float32; zeros where a head is not there."""
    e = tl.arange(0, E)
    other, sign = away(e, E)
    at = raw + (head * E)[:, None]
    x = tl.load(at + e[None, :], mask=there[:, None], other=0.0)
    y = tl.load(at + other[None, :], mask=there[:, None], other=0.0)
    size = (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / E + eps))[:, None]
    x = x * size * tl.load(weight + e).to(tl.float32)[None, :]
    y = y * size * (tl.load(weight + other).to(tl.float32) * sign)[None, :]
    return x * tl.load(cos + e)[None, :] + y * tl.load(sin + e)[None, :]


@triton.jit
def turned_index_key(raw, weight, bias, cos, sin, eps, I: tl.constexpr):  # noqa: E741 - the width's letter
    """LayerNorm and rotation of the one index key [I] at raw, float32."""
    i = tl.arange(0, I)
    other, sign = away(i, I)
    x = tl.load(raw + i)
    y = tl.load(raw + other)
    mean = tl.sum(x, axis=0) / I
    size = 1.0 / tl.sqrt(tl.sum((x - mean) * (x - mean), axis=0) / I + eps)
    x = (x - mean) * size * tl.load(weight + i).to(tl.float32) + tl.load(bias + i).to(tl.float32)
    y = ((y - mean) * size * tl.load(weight + other).to(tl.float32) + tl.load(bias + other).to(tl.float32)) * sign
    return x * tl.load(cos + i) + y * tl.load(sin + i)


@triton.jit
def new_key_value(y, head, there, weight, cos, sin, eps, K_AT: tl.constexpr, V_AT: tl.constexpr, E: tl.constexpr):
    """Keys and values [h, E] of the KV heads `head` of a token's projections y, float32."""
    e = tl.arange(0, E)
    key = turned_heads(y + K_AT, head, there, weight, cos, sin, eps, E)
    value = tl.load(y + V_AT + (head * E)[:, None] + e[None, :], mask=there[:, None], other=0.0)
    return key, value
