"""The gather of sparse attention, as a function that kernels inline: rows of K and V that an index list names."""

import triton
import triton.language as tl


@triton.jit
def gather(k, v, row, at, stop, k_s, v_s, width, UPCAST: tl.constexpr):
    """Which of the slots `at` of an index row hold a key, and those keys and values [slot, e].

    -1, and every slot from `stop` on, is no key and reads nothing. k and v point at the rows of one KV head.
    """
    s = tl.load(row + at, mask=at < stop, other=-1).to(tl.int32)
    is_key = s >= 0
    keys = tl.load(k + s[:, None] * k_s + width[None, :], mask=is_key[:, None], other=0.0)
    values = tl.load(v + s[:, None] * v_s + width[None, :], mask=is_key[:, None], other=0.0)
    if UPCAST:
        keys, values = keys.to(tl.float32), values.to(tl.float32)
    return is_key, keys, values
