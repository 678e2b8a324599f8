"""Sparse attention's kernels: at the door, and on a GPU."""

from dataclasses import astuple

import pytest
import torch
from error_bounds import Computed, assert_within, attention

triton = pytest.importorskip("triton")


from minikeye import ops  # noqa: E402 - not before triton is known to be installed
from minikeye.kernels.attention import sparse_attention as door  # noqa: E402 - not before it is known to be installed


def test_without_a_gpu_the_door_says_so():
    q, k = torch.randn(1, 2, 2, 16), torch.randn(1, 3, 1, 16)
    with pytest.raises(ValueError, match="need a CUDA device, got cpu"):
        door.sparse_attention(q, k, k, torch.zeros(1, 2, 1, dtype=torch.int32))


# ---------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(length=4096, topk=512):
    """Released heads in bfloat16; the selection of slowly moving random scores, some keys popular with all queries."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = (1, length, 32, 128), (1, length, 4, 128), (1, length, 4, 128)
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=draw).requires_grad_() for shape in shapes]
    scores = torch.randn(1, length, length, device="cuda", generator=draw).cumsum(dim=1) / 8
    scores = scores.masked_fill(~ops.valid_keys(length, length, 0, None, scores.device), -torch.inf)
    return qkv, ops.topk_positions(scores, topk), torch.randn(shapes[0], device="cuda", generator=draw).bfloat16()


def slab_by_slab(qkv, indices, weight, rows=128):
    """Bounds of out, lse, dq, dk, dv: of few queries at a time, since they take weights of all keys in float64."""
    q, k, v = qkv
    slabs = [
        attention(q[:, part], k, v, indices[:, part], None, weight[:, part], slab=True)
        for part in torch.arange(q.shape[1], device=q.device).split(rows)
    ]
    joined = []
    for parts in zip(*slabs, strict=True):
        of_queries = len(joined) < 3
        exact, error = (torch.cat(x, 1) if of_queries else sum(x) for x in zip(*map(astuple, parts), strict=True))
        bound = Computed(exact, error)
        joined.append(bound if of_queries else bound.rounded(len(parts)).stored(k.dtype))
    return joined


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_as_near_to_float64_as_arithmetic_allows(deterministic):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    qkv, indices, weight = on_gpu()

    def run(function, inputs, **options):
        out, lse = function(*inputs, indices, **options)
        return out, lse, *torch.autograd.grad(out, inputs, weight.to(out.dtype))

    truth = run(ops.sparse_attention, [x.detach().double().requires_grad_() for x in qkv], backend="torch")
    bounds = slab_by_slab([x.detach() for x in qkv], indices, weight)
    runs = [run(door.sparse_attention, qkv, deterministic=deterministic) for _ in range(20)]
    for name, x, bound, *got in zip(("out", "lse", "dq", "dk", "dv"), truth, bounds, *runs, strict=True):
        assert_within(got[0], x, bound.error, name)
        if deterministic or name not in ("dk", "dv"):
            assert all(y.equal(got[0]) for y in got), name


@pytest.mark.gpu
def test_gradients_where_one_tile_is_out_of_order():
    """Queries 800 to 807 go through lists of their own, beside the unions of the others."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    qkv, indices, weight = on_gpu(1024, 128)
    indices[:, 803] = indices[:, 803].flip(-1)
    indices[:, 805, :7] = indices[:, 805, 7:8]  # one key eight times
    q, k, v = (x.detach() for x in qkv)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    truth = torch.autograd.grad(ops.sparse_attention(*wide, indices, backend="torch")[0], wide, weight.double())
    bounds = slab_by_slab((q, k, v), indices, weight)[2:]
    runs = [torch.autograd.grad(door.sparse_attention(*qkv, indices)[0], qkv, weight) for _ in range(5)]
    for name, x, bound, *got in zip(("dq", "dk", "dv"), truth, bounds, *runs, strict=True):
        assert_within(got[0], x, bound.error, name)
        assert all(y.equal(got[0]) for y in got), name


@pytest.mark.gpu
def test_gradients_in_a_graph():
    """Nothing in them waits for the CPU; a replay gives the bits of the eager run."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    qkv, indices, weight = on_gpu(1024, 128)

    def run():
        return torch.autograd.grad(door.sparse_attention(*qkv, indices)[0], qkv, weight)

    expected, graph = run(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        got = run()
    for _ in range(3):
        graph.replay()
        assert all(map(torch.equal, got, expected))


@pytest.mark.gpu
def test_a_gradient_that_is_not_finite_is_told():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    qkv, indices, weight = on_gpu(1024, 128)
    fine = torch.autograd.grad(door.sparse_attention(*qkv, indices)[0], qkv, weight)
    weight[0, 77, 9] = torch.nan  # of KV head 1
    got = torch.autograd.grad(door.sparse_attention(*qkv, indices)[0], qkv, weight)
    for x, y in zip(got[1:], fine[1:], strict=True):
        assert x[:, :, 1].isnan().all() and x[:, :, [0, 2, 3]].equal(y[:, :, [0, 2, 3]])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("keys", "more"), [((0, 32), 140.0), ((0, 32), -140.0), ((700, 1024), 140.0), ((9, 10), 250.0)]
)
def test_logits_far_from_those_of_the_first_block(keys, more):
    """A tile's reference is the largest logit of its first block: here others lie 100 to 180 above it, or below."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    (q, k, v), indices, weight = on_gpu(1024, 256)
    q, k, v = (x.detach() for x in (q, k, v))
    q[..., 0], k[..., 0] = 8.0, 0.0
    k[:, slice(*keys), 0, 0] = more
    truth = ops.sparse_attention(q.double(), k.double(), v.double(), indices, backend="torch")
    bounds = slab_by_slab((q, k, v), indices, weight)
    runs = [door.sparse_attention(q, k, v, indices) for _ in range(5)]
    for name, x, bound, *got in zip(("out", "lse"), truth, bounds, *runs, strict=False):
        assert_within(got[0], x, bound.error, name)
        assert all(y.equal(got[0]) for y in got), name
