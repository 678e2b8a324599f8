"""How kernels are timed, and what the card itself can do: medians, peak memory, ceilings, the dense rivals."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minikeye.evaluation.kernels.decoding import copied

DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def median_ms(run: Callable[[], object], graph: bool = True, seconds: float = 1.0) -> float:
    """Median milliseconds of `run`, after one to warm up: at least 3 times, then as often as fits `seconds`.

    graph: replays of a CUDA graph, so that no time of the CPU is in it.
    """
    run()
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        run = captured.replay
        run()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < seconds and len(times) < 100):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def extra_mib(run: Callable[[], object]) -> float:
    """Peak memory of `run` beyond what was allocated before, MiB."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def dense(q: Tensor, k: Tensor, v: Tensor, method: str, causal: bool = True) -> Tensor:
    """torch's fused attention, [b t h e] in and [b h t e] out. method: a key of DENSE."""
    with sdpa_kernel(DENSE[method]):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """torch's FlexAttention, causal, compiled: a call that gives [b h t e]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t = q.shape[1]
    mask = create_block_mask(lambda b, h, q_at, k_at: q_at >= k_at, None, None, t, t, device=q.device)
    attend = torch.compile(flex_attention, dynamic=False)
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)


@triton.jit
def gather_kernel(x, rows, out, COUNT: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Adds up COUNT rows of x that `rows` names: as attention reads keys, without the arithmetic."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, COUNT, BLOCK):
        row = tl.load(rows + program * COUNT + first + tl.arange(0, BLOCK))
        total += tl.load(x + row[:, None] * WIDTH + column[None, :]).to(tl.float32)
    tl.store(out + program * WIDTH + column, tl.sum(total, axis=0))


def ceilings() -> Iterator[dict]:
    """The card's matrix product, copy, and gather of random rows of 256 bytes from buffers of three sizes."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    yield {"what": "matrix product of 8192, bf16", "tflops": 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9}
    # Not `median_ms`: replayed from a CUDA graph a copy of 4 GiB reached 2.7 TB/s on an H200, called 4.2. Why is open.
    yield {"what": "copy, bytes read and written", "tb_s": copied(torch.device("cuda"))}
    programs, count, width = 8192, 2048, 128
    out = torch.empty(programs, width, device="cuda")
    for mib in (32, 64, 512):
        x = torch.randn(mib * 2**20 // (2 * width), width, device="cuda").bfloat16()
        rows = torch.randint(0, len(x), (programs, count), device="cuda", dtype=torch.int32)

        def run(x: Tensor = x, rows: Tensor = rows) -> None:
            gather_kernel[(programs,)](x, rows, out, COUNT=count, BLOCK=32, WIDTH=width, num_warps=4)

        yield {"what": f"gather of rows from {mib} MiB", "tb_s": programs * count * 2 * width / median_ms(run) / 1e9}
