"""What can only be shown on a GPU: the kernels against torch and float64 at real shapes, in bfloat16.

Every check draws fresh inputs and raises AssertionError where it fails. Uninitialised memory is nan (the largest
integer) while most run, so that nothing passes which was never written; graphs poison their outputs themselves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minikeye import ops
from minikeye.evaluation.kernels import proof_model
from minikeye.evaluation.kernels.workload import RELEASED, Shape, attention_inputs, index_inputs
from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.decode.decode_attention import decode_attention
from minikeye.kernels.decode.decode_select import decode_select
from minikeye.kernels.selection import select_fast, select_topk
from minikeye.kernels.selection.index_scores import index_scores


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives nan inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def error(x: Tensor, truth: Tensor) -> float:
    """|x - truth| / |truth|, 2-norms; nan if x has one."""
    return float((x.double() - truth).norm() / truth.norm())


def selection_equals_torch(length: int, rows: int, repeats: int) -> dict:
    """The last `rows` queries of `length` keys: set and order of both selections, given the same scores.

    Scores: random; rounded to a few values, so that far more than k tie; all equal; and -inf from the middle on.
    """
    topk, offset = RELEASED.topk, length - rows
    q, k, w = index_inputs("u4", length)
    scores = index_scores(q[:, offset:], k, w[:, offset:], offset)
    spread = scores[scores.isfinite()].std()
    kinds = {
        "random": scores,
        "few values": (scores / spread).round() * spread,
        "all equal": torch.where(scores.isfinite(), 1.0, scores),
        "few valid": scores.masked_fill(torch.arange(length, device=q.device) > topk // 2, -torch.inf),
    }
    for name, table in kinds.items():
        wanted = ops.topk_positions(table, topk)
        for select in (select_topk.select_rows, select_fast.select_rows_fast):
            for _ in range(repeats):
                got = select(table, topk, offset)
                assert torch.equal(got, wanted), f"{select.__name__}, {name}, {length} keys"
    return {"what": "selection equal to torch", "length": length, "rows": rows, "repeats": repeats}


def end_to_end_equals_torch(length: int) -> dict:
    """Whole inputs whose scores float32 holds exactly, in whatever order they are summed: the same positions."""
    shape = Shape()
    q = torch.randint(-3, 4, (1, length, shape.index_heads, shape.index_width), device="cuda").bfloat16()
    k = torch.randint(-3, 4, (1, length, shape.index_width), device="cuda").bfloat16()
    w = torch.randint(-4, 9, (1, length, shape.index_heads), device="cuda").bfloat16() / 4
    wanted = ops.select_topk(q, k, w, shape.topk, backend="torch")
    assert torch.equal(select_fast.select_topk_fast(q, k, w, shape.topk), wanted)
    return {"what": "whole selection equal to torch, exact scores", "length": length}


def scores_near_float64(length: int, rows: int = 64) -> dict:
    """Kernel and torch against float64 on random rows."""
    q, k, w = index_inputs("u2", length)
    at = torch.randint(0, length, (rows,), device="cuda")
    dots = torch.einsum("nji,si->njs", q[0, at].double(), k[0].double()).relu()
    truth = torch.einsum("nj,njs->ns", w[0, at].double(), dots) * q.shape[-1] ** -0.5
    valid = torch.arange(length, device="cuda") <= at[:, None]
    got = torch.stack([index_scores(q[:, n : n + 1], k, w[:, n : n + 1], int(n))[0, 0] for n in at])
    torchs = torch.stack([ops.index_scores(q[:, n : n + 1], k, w[:, n : n + 1], int(n))[0, 0] for n in at])
    assert torch.equal(got.isneginf(), ~valid) and torch.equal(torchs.isneginf(), ~valid)
    ours, theirs = error(got[valid], truth[valid]), error(torchs[valid], truth[valid])
    assert ours <= max(2 * theirs, 1e-6), (ours, theirs)
    return {"what": "index scores, error to float64", "length": length, "kernel": ours, "torch": theirs}


def attention_near_float64(length: int, data: str) -> dict:
    """Output of random rows, selected as the indexer does, no further from float64 than torch in bfloat16."""
    qi, ki, wi = index_inputs(data, length)
    q, k, v = attention_inputs(length, length)
    first = length - 4096
    indices = select_fast.select_topk_fast(qi[:, first:], ki, wi[:, first:], RELEASED.topk, first)
    out, lse = sparse_attention(q[:, first:], k, v, indices)
    at = torch.randint(0, 4096, (64,), device="cuda").sort().values
    few = q[:, first:][:, at], k, v, indices[:, at]
    truth, true_lse = ops.sparse_attention(*(x.double() for x in few[:3]), few[3], backend="torch")
    torchs, torch_lse = ops.sparse_attention(*few, backend="torch")
    ours, theirs = error(out[:, at], truth), error(torchs, truth)
    assert ours <= 1.05 * theirs, (ours, theirs)
    assert error(lse[:, at], true_lse) <= max(2 * error(torch_lse, true_lse), 1e-6)
    return {"what": "attention, error to float64", "length": length, "data": data, "kernel": ours, "torch": theirs}


def gradients_near_float64(length: int, topk: int, deterministic: bool) -> dict:
    """Gradients of all of q, k, v; and 5 repeats, equal to the bit where that is promised."""
    shape = Shape(topk=topk)
    q, k, v = (x.requires_grad_() for x in attention_inputs(length, length, shape=shape))
    indices = select_fast.select_topk_fast(*index_inputs("u4", length, shape=shape), topk)
    weight = torch.randn_like(q)

    def gradients(attend: Callable, *qkv: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((attend(*qkv, indices)[0] * weight.to(qkv[0].dtype)).sum(), qkv)

    def kernel(*args: Tensor) -> tuple[Tensor, Tensor]:
        return sparse_attention(*args, deterministic=deterministic)

    truth = gradients(ops_attention, *(x.detach().double().requires_grad_() for x in (q, k, v)))
    torchs = gradients(ops_attention, q, k, v)
    got = gradients(kernel, q, k, v)
    row = {"what": "gradients, error to float64", "length": length, "k": topk, "deterministic": deterministic}
    for name, a, x, y in zip("qkv", got, truth, torchs, strict=True):
        ours, theirs = error(a, x), error(y, x)
        assert ours <= 1.05 * theirs, (name, ours, theirs)
        row |= {f"kernel d{name}": ours, f"torch d{name}": theirs}
    same = [all(map(torch.equal, got, gradients(kernel, q, k, v))) for _ in range(5)]
    assert all(same) or not deterministic
    return row | {"repeats equal": sum(same)}


def losses_near_float64(stage: str, rows: int, length: int, topk: int) -> dict:
    """The indexer's loss of either stage and its gradients, in bfloat16, beside torch: within 5e-3 of float64, or 1.5
    times torch's distance. Gates' gradients are further than torch's, which adds them up in float32: tf32 products."""
    shape = Shape(topk=topk)
    index = index_inputs("u4", length, shape=shape)
    q, k, _ = attention_inputs(length, length, shape=shape)
    at = torch.randint(0, length, (rows,), device="cuda")
    index = index[0][:, at].clone(), index[1], index[2][:, at].float()
    indices = torch.randint(0, length, (1, rows, topk), device="cuda").sort().values.int()
    loss = ops.warmup_loss if stage == "warmup" else ops.selected_loss
    last = at if stage == "warmup" else indices
    weight = torch.rand(1, rows, device="cuda")

    def run(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        gates = torch.promote_types(dtype, torch.float32)  # the model's are never 16 bits
        leaves = [x.to(d).requires_grad_() for x, d in zip(index, (dtype, dtype, gates), strict=True)]
        value = loss(*leaves, q[:, at].to(dtype), k.to(dtype), last, backend=backend)
        return value, *torch.autograd.grad((value * weight).sum(), leaves)

    truth, torchs = run("torch", torch.float64), run("torch", torch.bfloat16)
    got, again = run("triton", torch.bfloat16), run("triton", torch.bfloat16)
    row = {"what": f"{stage} loss, error to float64", "length": length, "rows": rows, "repeat equal": True}
    for name, a, x, y in zip(("loss", "dq", "dk", "dw"), got, truth, torchs, strict=True):
        ours, theirs = error(a, x), error(y, x)
        assert ours <= max(1.5 * theirs, 5e-3), (stage, name, ours, theirs)
        row |= {f"kernel {name}": ours, f"torch {name}": theirs}
    assert all(map(torch.equal, got, again)), "the same bits at every repeat"
    return row


def decode_equals_torch(batch: int, capacity: int, ties: bool) -> dict:
    """Exact scores, sequences that grow on the device under one captured graph: positions equal, attention near.

    ties: all scores are equal, more than the finish can list, so that every longer row is selected by radix.
    """
    shape = RELEASED
    q = torch.randint(-3, 4, (batch, 1, shape.index_heads, shape.index_width), device="cuda").bfloat16()
    k = torch.randint(-3, 4, (batch, capacity, shape.index_width), device="cuda").bfloat16()
    w = torch.randint(-4, 9, (batch, 1, shape.index_heads), device="cuda").bfloat16() / 4
    if ties:
        k.zero_()
    start = torch.randint(0, 64, (batch,), device="cuda")
    attended = attention_inputs(1, capacity, batch=batch)
    lengths = torch.full((batch,), 1, dtype=torch.int32, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        indices = decode_select(q, k, w, shape.topk, lengths, start)
        return indices, decode_attention(*attended, indices)[0]

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, out = step()
    for length in (1, 2047, 2048, 2049, capacity // 3, capacity):
        lengths.fill_(length)
        indices.fill_(-7)
        out.fill_(torch.nan)
        graph.replay()
        wanted = ops.select_topk(q, k[:, :length], w, shape.topk, length - 1, start, backend="torch")
        assert torch.equal(indices, wanted), (length, ties)
        truth = ops.sparse_attention(*(x.double() for x in attended), wanted, backend="torch")[0]
        assert not wanted.ge(0).any() or error(out, truth) <= 5e-3, (length, ties)
    return {"what": "decode under a CUDA graph equal to torch", "batch": batch, "capacity": capacity, "ties": ties}


def ops_attention(q: Tensor, k: Tensor, v: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The specification."""
    return ops.sparse_attention(q, k, v, indices, backend="torch")


def all_checks() -> Iterator[dict]:
    """One row a check that held."""
    with poisoned():
        for length, rows, repeats in ((4096, 512, 20), (32_768, 256, 20), (131_072, 128, 20)):
            yield selection_equals_torch(length, rows, repeats)
        yield end_to_end_equals_torch(16_384)
        for length in (4096, 131_072):
            yield scores_near_float64(length)
        for length, data in ((8192, "u4"), (131_072, "u2"), (131_072, "u4"), (131_072, "random"), (131_072, "sinks")):
            yield attention_near_float64(length, data)
        for deterministic in (True, False):
            yield gradients_near_float64(4096, 512, deterministic)
        yield losses_near_float64("warmup", 256, 16_384, 2048)
        yield losses_near_float64("sparse", 256, 16_384, 2048)
    for batch in (1, 16):
        for ties in (False, True):
            yield decode_equals_torch(batch, 16_384, ties)
    yield from proof_model.all_checks()
