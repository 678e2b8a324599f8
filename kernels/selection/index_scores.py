"""Index scores, written into a slab of query rows.

    I[t, s] = i^-1/2 * sum_j w[t, j] * ReLU(q[t, j] . k[s])        where start[t] <= s <= offset + t, else -inf

Axes: b batch, t query position, s key position, j indexer head, i indexer width. Report, section 2.3.

One program takes 8 adjacent queries and a chunk of keys. Its queries, all heads of all 8, lie side by side as the
columns of one matrix, the query running fastest: column = head * 8 + query. Keys are the rows:

    z     [KEYS, HEADS * 8] = k tile [KEYS, i] @ queries [i, HEADS * 8]       one matrix product
    score [KEYS, 8]         = sum over heads of w * ReLU(z)                   reshape to [KEYS, HEADS, 8] and add

Why this way round: on a Hopper tensor core a thread owns the columns 8 n + 2 (lane mod 4) of a product and the columns
after them, for all n. With the query fastest these are all the heads of two queries: the sum over heads stays inside a
thread and no value changes lanes.

No query of a group sees a key past offset + its last query, or a key before the smallest start: tiles outside that span
are not computed. Nothing but scores of valid keys is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import INTERPRETED, architecture, launch, runs_on

QUERIES = 8  # a thread's two columns of every eight are two queries; with fewer, the sum over heads changes lanes
MOST_COLUMNS = 256
MOST_QUERY_BYTES = 2**16  # of one program's queries, which stay in shared memory

# Keys in a tile, keys a program goes through, pipeline stages, by columns = heads * queries.
LAUNCH = {
    128: {
        "sm_90": {"KEYS": 64, "CHUNK": 4096, "STAGES": 3, "num_warps": 4},
        "sm_80": {"KEYS": 64, "CHUNK": 4096, "STAGES": 3, "num_warps": 4},
        "interpreter": {"KEYS": 16, "CHUNK": 64, "STAGES": 1},  # small, so that small tests cross tiles and chunks
    },
    256: {
        "sm_90": {"KEYS": 64, "CHUNK": 4096, "STAGES": 3, "num_warps": 8},
        "sm_80": {"KEYS": 64, "CHUNK": 4096, "STAGES": 2, "num_warps": 8},
        "interpreter": {"KEYS": 16, "CHUNK": 64, "STAGES": 1},
    },
}


@triton.jit
def twice_relu(z):
    """2 max(z, 0), as z + |z|: on Hopper an addition with |.| in it is one instruction at twice the rate of a maximum.

    Both are exact, and so is half a gate: (2 z) (w / 2) is z w to the bit, rounded once or, with |z| above half of
    float32's largest, infinite. z = -inf gives nan, where a maximum gives 0: finite q and k whose product is beyond
    float32 in some head have no score. A gate below 2^-125 loses its last bit.
    """
    return z + tl.abs(z)


@triton.jit
def index_scores_kernel(
    q,  # [b t j i]
    k,  # [b s i]
    w,  # [b t j]
    start,  # int [b t], or None
    out,  # float32 [b t s]
    t_count,
    s_count,
    offset,
    scale,
    q_b, q_t, q_j,
    k_b, k_s,
    w_b, w_t, w_j,
    start_b, start_t,
    out_b, out_t,
    J: tl.constexpr,
    I: tl.constexpr,  # noqa: E741 - the axis letter of the width
    HEADS: tl.constexpr,  # J and I rounded up to powers of two
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,  # 16-bit operands to float32: the interpreter cannot multiply bfloat16
):  # fmt: skip
    first = tl.program_id(0) * QUERIES  # first query of the group
    chunk = tl.program_id(1) * CHUNK
    b = tl.program_id(2).to(tl.int64)
    i = tl.arange(0, WIDTH)

    # The queries and their gates, column = head * QUERIES + query. Gates of absent heads are 0.
    column = tl.arange(0, HEADS * QUERIES)
    head = column // QUERIES
    column_t = first + column % QUERIES
    present = (head < J) & (column_t < t_count)
    q_at = q + b * q_b + column_t.to(tl.int64) * q_t + head * q_j
    queries = tl.load(q_at[None, :] + i[:, None], mask=present[None, :] & (i < I)[:, None], other=0.0)
    gate = tl.load(w + b * w_b + column_t.to(tl.int64) * w_t + head * w_j, mask=present, other=0.0).to(tl.float32)
    gate *= 0.5  # for twice_relu
    if UPCAST:
        queries = queries.to(tl.float32)

    # The keys that at least one query of the group may see, in whole tiles.
    t = first + tl.arange(0, QUERIES)
    stop = tl.minimum(tl.minimum(chunk + CHUNK, s_count), offset + tl.minimum(first + QUERIES, t_count))
    begin = chunk
    if start is not None:
        row_start = tl.load(start + b * start_b + t * start_t, mask=t < t_count, other=s_count).to(tl.int32)
        begin = tl.maximum(chunk, tl.min(row_start, axis=0) // KEYS * KEYS)

    last = tl.where(t < t_count, tl.minimum(offset + t, s_count - 1), -1)
    # 32-bit offsets from here on: a thread has few registers to spare, and a pointer takes two.
    k += b * k_b
    out += b * out_b + first.to(tl.int64) * out_t
    row = tl.arange(0, QUERIES) * out_t
    for tile in tl.range(begin, stop, KEYS, num_stages=STAGES):
        s = tile + tl.arange(0, KEYS)
        keys = tl.load(k + (s * k_s)[:, None] + i[None, :], mask=(s < s_count)[:, None] & (i < I)[None, :], other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        z = tl.dot(keys, queries, input_precision="ieee")
        weighed = twice_relu(z) * gate[None, :]
        score = tl.sum(tl.reshape(weighed, (KEYS, HEADS, QUERIES)), axis=1) * scale
        valid = s[:, None] <= last[None, :]
        if start is not None:
            valid &= s[:, None] >= row_start[None, :]
        tl.store(out + row[None, :] + s[:, None], score, mask=valid)


def index_scores(
    q: Tensor, k: Tensor, w: Tensor, offset: int = 0, start: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Scores of queries q [b t j i] for keys k [b s i] with gates w [b t j]: float32 [b t s].

    offset: absolute position of the first query; start: int [b] or [b t], the first key that a query may see.
    Without `out`: a new tensor, -inf wherever query t may not see key s. With `out` [b t s], a buffer to be used again:
    only scores of valid keys are written. What `out` held elsewhere stays: a reader keeps to start <= s <= offset + t.
    Sums are float32 for every dtype of q and k. No gradients.
    Raises ValueError for shapes, dtypes, strides or devices that do not fit.
    """
    check_index(q, k, w, start)
    b, t, j, i = q.shape
    s = k.shape[1]
    if out is None:
        out = torch.full((b, t, s), -torch.inf, dtype=torch.float32, device=q.device)
    elif out.shape != (b, t, s) or out.dtype != torch.float32 or out.device != q.device or out.stride(-1) != 1:
        raise ValueError(
            f"out must be float32 [{b}, {t}, {s}] with unit last stride on {q.device}; "
            f"got {out.dtype} {list(out.shape)}, strides {out.stride()}, on {out.device}"
        )
    if out.numel() == 0:
        return out
    heads, width = triton.next_power_of_2(j), max(16, triton.next_power_of_2(i))
    queries = queries_of_program(heads, width, q.element_size())
    table = launch(LAUNCH[128 if queries * heads <= 128 else 256], q.device)
    table |= most_registers(queries * heads, width, architecture(q.device))
    grid = (triton.cdiv(t, queries), triton.cdiv(s, table["CHUNK"]), b)
    index_scores_kernel[grid](
        q, k, w, start, out, t, s, offset, i**-0.5,
        *q.stride()[:3], *k.stride()[:2], *w.stride(), *start_strides(start), *out.stride()[:2],
        J=j, I=i, HEADS=heads, WIDTH=width, QUERIES=queries, UPCAST=INTERPRETED, **table,
    )  # fmt: skip
    return out


def most_registers(columns: int, width: int, architecture: str) -> dict[str, int]:
    """The limit of registers a thread, if any, for so many columns of heads so wide.

    Four programs of 128 registers and 42 KiB share a multiprocessor of Hopper's: while one adds up its heads, another
    multiplies. More columns or wider heads leave no room for that, and the compiler does as it likes.
    """
    return {"maxnreg": 128} if architecture == "sm_90" and columns <= 128 and width <= 64 else {}


def queries_of_program(heads: int, width: int, bytes_each: int) -> int:
    """8, or fewer where many heads or wide ones leave no room."""
    return max(1, min(QUERIES, MOST_COLUMNS // heads, MOST_QUERY_BYTES // (heads * width * bytes_each)))


def start_strides(start: Tensor | None) -> tuple[int, int]:
    """Strides of `start` over b and t; 0 where one first key serves all queries of a batch row."""
    return (0, 0) if start is None else (start.stride(0), start.stride(1) if start.ndim == 2 else 0)


def check_index(q: Tensor, k: Tensor, w: Tensor, start: Tensor | None) -> None:
    """One ValueError for whatever the kernel could not read rightly."""
    if q.ndim != 4 or k.ndim != 3 or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[3] or w.shape != q.shape[:3]:
        raise ValueError(
            f"expected q [b t j i], k [b s i], w [b t j]; got {list(q.shape)}, {list(k.shape)} and {list(w.shape)}"
        )
    if not 1 <= q.shape[2] <= MOST_COLUMNS or not 1 <= q.shape[3] <= 256:
        raise ValueError(
            f"the kernel takes 1 to {MOST_COLUMNS} heads of width 1 to 256; got {q.shape[2]} of width {q.shape[3]}"
        )
    if q.dtype == torch.float32 and q.shape[3] > 128:
        raise ValueError(f"in float32 the kernel takes heads up to 128 wide, no more fits; got {q.shape[3]}")
    if q.dtype != k.dtype or q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q and k must share one of float32, float16, bfloat16; got {q.dtype} and {k.dtype}")
    if not w.is_floating_point() or w.dtype == torch.float64:
        raise ValueError(f"w must be float32, float16 or bfloat16; got {w.dtype}")
    if q.stride(-1) != 1 or k.stride(-1) != 1:
        raise ValueError(f"the last axis of q and k must have stride 1; got {q.stride()} and {k.stride()}")
    if k.shape[1] * k.stride(1) >= 2**31 or k.shape[1] >= 2**28:
        raise ValueError(
            f"the keys of a batch row must span fewer than 2^31 elements; got {list(k.shape)}, stride {k.stride(1)}"
        )
    if k.device != q.device or w.device != q.device or not runs_on(q.device):
        raise ValueError(f"q, k, w must be on one CUDA device; got {q.device}, {k.device} and {w.device}")
    check_start(start, q)


def check_start(start: Tensor | None, rows: Tensor) -> None:
    """start must be int [b] or [b t], on the device of the rows [b t ...]."""
    if start is None:
        return
    b, t = rows.shape[:2]
    if tuple(start.shape) not in ((b,), (b, t)) or start.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"start must be int32 or int64 [{b}] or [{b}, {t}]; got {start.dtype} {list(start.shape)}")
    if start.device != rows.device:
        raise ValueError(f"start must be on {rows.device}, got {start.device}")
