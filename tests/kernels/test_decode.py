"""Decoding's kernels: compiled for sm_80 and sm_90, and, on a GPU, in a captured graph."""

import pytest
import torch
from error_bounds import assert_within
from error_bounds import attention as bounds_of

triton = pytest.importorskip("triton")

from minikeye import ops  # noqa: E402 - not before triton is known to be there
from minikeye.evaluation.kernels.compiled import compile_case, decode_cases  # noqa: E402
from minikeye.evaluation.kernels.workload import RELEASED, Shape  # noqa: E402
from minikeye.kernels.decode import decode_attention as attention  # noqa: E402
from minikeye.kernels.decode import decode_select as selection  # noqa: E402


def test_without_a_gpu_the_doors_say_so() -> None:
    q, k, w = torch.randn(1, 1, 2, 16), torch.randn(1, 3, 16), torch.randn(1, 1, 2)
    with pytest.raises(ValueError, match="must be on one CUDA device; got cpu"):
        selection.decode_select(q, k, w, 2, torch.zeros(1, dtype=torch.int32))
    q, k = torch.randn(1, 1, 2, 16), torch.randn(1, 3, 1, 16)
    with pytest.raises(ValueError, match="need a CUDA device, got cpu"):
        attention.decode_attention(q, k, k, torch.zeros(1, 1, 1, dtype=torch.int32))


# ---------------------------------------------------------------------------------------------------- compiled


def test_what_makes_them_fast_is_in_the_code() -> None:
    made = {name: compile_case(case, 90) for name, case in decode_cases(90).items()}
    assert "wgmma.mma_async" in made["decode_select, scores"].ptx and "cp.async" in made["decode_select, scores"].ptx
    assert "cp.async" in made["decode_attention"].ptx, "the gather must be pipelined"
    assert "convert_layout" not in made["decode_select, filter"].ttgir, (
        "lists are written without a way round through shared memory"
    )
    finish = made["decode_select, finish"].ttgir
    assert "convert_layout" not in finish[finish.index("tt.gather") :], "nor are they read that way"


OTHERS = [
    (Shape(heads=4, index_heads=1, index_width=16, topk=1), "bf16"),
    (Shape(heads=64, index_heads=64, index_width=128, topk=4096), "fp16"),
    (Shape(heads=20, width=64, index_heads=256, index_width=256, topk=512), "bf16"),
    (Shape(width=16, index_heads=5, index_width=24, topk=64), "fp32"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), OTHERS, ids=str)
def test_other_shapes_compile(shape, dtype) -> None:
    """With a first key for each row, which is more code than without; without one: test_compiled.py."""
    for name, case in decode_cases(90, shape, True, 262_144).items():
        made = compile_case(case, 90, dtype)
        assert made.shared <= 227 * 1024, name
        assert made.spilled == 0 or dtype == "fp32", name


# ---------------------------------------------------------------------------------------------------- on a GPU


def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def whole_numbers(b: int, s: int) -> tuple[torch.Tensor, ...]:
    """q, k, w of the released indexer whose scores float32 holds exactly, in whatever order it adds."""
    shapes, limits = ((b, 1, 16, 64), (b, s, 64), (b, 1, 16)), ((-3, 4), (-3, 4), (-4, 9))
    return tuple(torch.randint(*x, n, device="cuda").bfloat16() for x, n in zip(limits, shapes, strict=True))


@pytest.mark.gpu
def test_a_captured_graph_decodes_while_rows_grow() -> None:
    """One capture, nine replays; a step of the graph itself adds to the lengths. Row 2 is all ties: radix select."""
    needs_a_gpu()
    b, s, topk, grow = 3, 8192, 512, 997
    iq, ik, iw = whole_numbers(b, s)
    ik[2] = 0
    shapes = (b, 1, 32, 128), (b, s, 4, 128), (b, s, 4, 128)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    first, start = [0, 101, 64], torch.tensor([0, 100, 3], device="cuda")
    lengths = torch.tensor(first, dtype=torch.int32, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        indices = selection.decode_select(iq, ik, iw, topk, lengths, start)
        out, lse = attention.decode_attention(q, k, v, indices)
        lengths.add_(grow)
        return indices, out, lse

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, out, lse = step()
    lengths.copy_(torch.tensor(first, dtype=torch.int32))
    for n in range(9):
        for x in (indices, out, lse):
            x.fill_(77)
        graph.replay()
        for row in range(b):
            one, length = slice(row, row + 1), min(s, first[row] + n * grow)
            tokens = iq[one], ik[one, :length], iw[one], topk, length - 1, start[one]
            assert torch.equal(indices[one], ops.select_topk(*tokens, backend="torch")), (n, row)
        truth = ops.sparse_attention(q.double(), k.double(), v.double(), indices, backend="torch")
        for got, x, bound in zip((out, lse), truth, bounds_of(q, k, v, indices), strict=True):
            assert_within(got, x, bound.error, f"replay {n}")


@pytest.mark.gpu
@pytest.mark.parametrize("b", [1, 16])
@pytest.mark.parametrize("kind", ["random", "few values", "all equal"])
def test_the_selection_at_128k_is_the_rule_at_every_repeat(b, kind) -> None:
    needs_a_gpu()
    s, topk = 131_072, RELEASED.topk
    q, k, w = (torch.randn(shape, device="cuda").bfloat16() for shape in ((b, 1, 16, 64), (b, s, 64), (b, 1, 16)))
    if kind == "few values":
        q, k, w = q.sign(), k.sign(), w.sign()
    if kind == "all equal":
        k.zero_()
    lengths = torch.randint(1, s + 1, (b,), dtype=torch.int32, device="cuda")
    start = torch.randint(0, 4096, (b,), device="cuda")
    scores = selection.decode_scores(q, k, w, lengths, start)
    at = torch.arange(scores.shape[1], device="cuda")
    valid = (at >= start[:, None]) & (at < lengths[:, None])
    wanted = ops.topk_positions(scores.masked_fill(~valid, -torch.inf)[:, None], topk)
    for _ in range(20):
        assert torch.equal(selection.decode_select(q, k, w, topk, lengths, start), wanted)
