"""Sparse attention of the kernels in Triton's interpreter. test_interpreted_attention.py runs this file elsewhere.

Oracle: ops.sparse_attention (torch) in float64, and as near as error_bounds.py says. What a kernel leaves unwritten is
nan: see `poison`.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from error_bounds import assert_within, attention
from torch.testing import assert_close

from minikeye import ops
from minikeye.kernels.attention import sparse_attention as door
from minikeye.kernels.attention import sparse_backward, sparse_forward, sparse_union, union_lists
from minikeye.kernels.attention.sparse_attention import sparse_attention

pytestmark = pytest.mark.usefixtures("poison")
NAMES = ("out", "lse", "dq", "dk", "dv")


def inputs(b=1, t=9, s=40, h=4, g=2, e=16, dtype=torch.float32):
    shapes = (b, t, h, e), (b, s, g, e), (b, s, g, e)
    return tuple(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)


def selection(b=1, t=9, s=40, topk=20, offset=None, start=None, levels=None):
    """What select_topk gives for a slowly moving random query: neighbours share keys. levels: so many score values."""
    scores = 2 * torch.randn(b, 1, s) + torch.randn(b, t, s)
    scores = scores if levels is None else (scores * levels / 4).round()
    valid = ops.valid_keys(t, s, s - t if offset is None else offset, start)
    return ops.topk_positions(scores.masked_fill(~valid, -torch.inf), topk)


def union_attention(q, k, v, indices, scale=None, pays=math.inf):
    """The union kernel alone, in any dtype. The tiles that it leaves stay nan."""
    queries = union_lists.tile_queries(q.shape[2] // k.shape[2])
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    unions = union_lists.build_unions(indices, k.shape[1], queries, pays)
    sparse_union.sparse_union(q, k, v, unions, q.shape[3] ** -0.5 if scale is None else scale, out, lse, queries)
    return out, lse


def run(function, qkv, indices, weight, **options):
    """out, lse and the gradients of (out * weight).sum(), if there is a weight"""
    out, lse = function(*qkv, indices, **options)
    if weight is None:
        return out, lse
    return out, lse, *torch.autograd.grad((out * weight).sum(), qkv)


def assert_near_float64(qkv, indices, gradients=True, scale=None, function=sparse_attention, **options):
    """Kernels, deterministic unless told otherwise: as near to float64 as their arithmetic allows."""
    weight = torch.randn_like(qkv[0]) if gradients else None
    wide = [x.detach().double().requires_grad_() for x in qkv]
    truth = run(ops.sparse_attention, wide, indices, weight, scale=scale)
    bounds = attention(*(x.detach() for x in qkv), indices, scale, weight)
    got = run(function, qkv, indices, weight, scale=scale, **options)
    assert [x.dtype for x in got] == [qkv[0].dtype, torch.float32, *(x.dtype for x in qkv if gradients)]
    for name, a, x, bound in zip(NAMES, got, truth, bounds, strict=False):
        assert_within(a, x, bound.error, name)


GROUPS = [(1, 1), (4, 2), (6, 2), (5, 1), (16, 2), (16, 1)]  # heads and KV heads; 1, 2, 3, 5, 8 and 16 heads a group


@pytest.mark.parametrize(("h", "g"), GROUPS)
def test_heads_of_a_group(h, g):
    assert_near_float64(inputs(h=h, g=g), selection())


@pytest.mark.parametrize(("h", "g"), GROUPS)
def test_union_alone(h, g):
    with torch.no_grad():
        assert_near_float64(inputs(h=h, g=g), selection(), gradients=False, function=union_attention)


@pytest.mark.parametrize(
    ("e", "dtype"), [(16, torch.bfloat16), (32, torch.float16), (64, torch.bfloat16), (128, torch.float16)]
)
def test_head_widths(e, dtype):
    assert_near_float64(inputs(e=e, dtype=dtype), selection())


CASES = {
    "ties": dict(levels=2),
    "one key": dict(topk=1),
    "k of 17": dict(topk=17),
    "rows shorter than k": dict(offset=0),
    "k beyond the length": dict(topk=50),
    "an offset": dict(offset=13),
    "a start a row": dict(b=2, offset=5, start=torch.tensor([0, 9])),  # 4 queries of row 1 have no key
    "a start a query": dict(b=2, offset=9, start=torch.arange(18).reshape(2, 9) % 7),
    "one token": dict(t=1),
    "a tile and a half": dict(t=12),
    "one key in the cache": dict(t=1, s=1, topk=1),
    "an odd length": dict(s=37),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_selection_semantics(case, dtype):
    sizes = {name: value for name, value in CASES[case].items() if name in ("b", "t", "s")}
    indices = selection(**CASES[case])
    if case == "a start a row":
        assert (indices[1, :4] == -1).all() and (indices[1, 4, 0] == 9)
    # float32 is gathered query by query, float16 in unions where they pay; the backward pass knows no difference.
    assert_near_float64(inputs(dtype=dtype, **sizes), indices, gradients=dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_no_selection_gives(dtype):
    """A key listed twice, no order, -1 in front and in the middle, no key at all; int64. Two tiles are in order."""
    indices = selection(b=2).long()
    indices[0, 0, :4] = torch.tensor([7, 7, 3, 7])
    indices[0, 2] = indices[0, 2].flip(0)
    indices[0, 5, [0, 3, 4]] = -1
    indices[1, 8] = -1
    indices[1, 8, 3] = 4
    sizes = union_lists.build_unions(indices, 40, 8, math.inf)[1]
    assert sizes[0, 0] == -1 and sizes[1, 1] == -1 and sizes[1, 0] > 0 and sizes[0, 1] > 0
    assert_near_float64(inputs(b=2, dtype=dtype), indices, gradients=dtype == torch.float32)


def test_one_key_only():
    """A weight of 1, exactly so where the one logit is the reference; a log-sum-exp that is the logit."""
    q, k, v = (x.detach() for x in inputs(t=8, h=2, g=1))
    indices = torch.arange(8).reshape(1, 8, 1)
    logits = torch.einsum("bthe,bte->bth", q.double(), k[:, :8, 0].double()) / 4
    (out_bound, lse_bound), exact = attention(q, k, v, indices), v[:, :8].expand(1, 8, 2, 16)
    assert sparse_attention(q, k, v, indices)[0].equal(exact)
    for out, lse in (sparse_attention(q, k, v, indices), union_attention(q, k, v, indices)):
        assert_within(out, exact.double(), out_bound.error)
        assert_within(lse, logits, lse_bound.error)


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_scale(scale):
    assert_near_float64(inputs(), selection(), scale=scale)


@pytest.mark.parametrize("function", [sparse_attention, union_attention])
def test_large_logits(function):
    """The running maximum: exp of a logit of 300 is infinite."""
    q, k, v = (x.detach() for x in inputs())
    indices = selection()
    assert ops.sparse_attention(q, 100 * k, v, indices, backend="torch")[1].max() > 300
    with np.errstate(over="ignore", invalid="ignore"):  # unions find the infinity, and do the tile again
        assert_near_float64((q, 100 * k, v), indices, gradients=False, function=function)


def test_nothing_to_attend_to():
    for t, s, topk in ((0, 5, 3), (3, 0, 2), (3, 5, 0)):
        qkv = inputs(t=t, s=s)
        out, lse = sparse_attention(*qkv, torch.full((1, t, topk), -1, dtype=torch.int32))
        assert out.shape == qkv[0].shape and out.eq(0).all() and lse.isneginf().all()
        assert all(x.eq(0).all() for x in torch.autograd.grad(out.sum(), qkv))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_tile_without_keys(deterministic):
    """Eight queries that select nothing, beside others: zeros, no gradient, and no complaint about their order."""
    qkv, indices = inputs(t=16, dtype=torch.float16), selection(t=16)
    indices[0, :8] = -1
    out, lse = sparse_attention(*qkv, indices, deterministic=deterministic)
    dq, *_ = torch.autograd.grad(out.float().square().sum(), qkv)
    assert out[0, :8].eq(0).all() and lse[0, :8].isneginf().all() and dq[0, :8].eq(0).all()
    assert out[0, 8:].ne(0).any() and dq[0, 8:].ne(0).any()


@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float32, True), (torch.float16, False)])
def test_rows_outside_the_set_are_not_read(dtype, deterministic):
    """They hold nan, which no mask can hide: 0 x nan is nan. Row 0, where padding could point, is one of them."""
    q, k, v = inputs(dtype=dtype)  # float32 goes through the gather per query, float16 through unions
    indices = selection(start=torch.tensor([1]), offset=2, topk=12)
    unread = torch.ones(1, 40, dtype=torch.bool)
    unread[0, indices[indices >= 0].long()] = False
    assert unread[:, 0].all() and unread.sum() > 20
    for x in (k, v):
        x.data[unread] = torch.nan
    got = run(sparse_attention, (q, k, v), indices, torch.randn_like(q), deterministic=deterministic)
    assert all(x.isfinite().all() for x in (got[0], *got[2:]))
    assert all(x[unread].eq(0).all() for x in got[3:])


def test_views():
    """A slice of a longer cache, heads in front of time, every second query: strides are taken as they come."""
    q = torch.randn(2, 10, 4, 16, dtype=torch.float16)[:, ::2]
    cache = torch.randn(2, 2, 2, 60, 16, dtype=torch.float16)
    k, v = (x.transpose(1, 2)[:, 5:45] for x in cache)
    indices = selection(b=2, t=5, topk=30)[..., :20]
    views = [x.requires_grad_() for x in (q, k, v)]
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    assert not any(x.is_contiguous() for x in (*views, indices))
    weight = torch.ones(())  # its gradient reaches the kernels as one number with strides of 0
    for deterministic in (True, False):
        got, expected = (
            run(sparse_attention, x, indices, weight, deterministic=deterministic) for x in (views, copies)
        )
        assert_close(got, expected, atol=0, rtol=0)


def test_slabs_equal_whole(monkeypatch):
    """float16, since a forward pass in float32 has no slabs."""
    qkv, indices = inputs(b=2, dtype=torch.float16), selection(b=2)
    weight = torch.randn_like(qkv[0])
    whole = run(sparse_attention, qkv, indices, weight)
    bounds = attention(*(x.detach() for x in qkv), indices, None, weight)
    monkeypatch.setattr(door, "SLAB", 1)  # a tile at a time
    monkeypatch.setattr(sparse_backward, "PAIRS", 2 * 20 * 5)  # five queries at a time
    parts = run(sparse_attention, qkv, indices, weight)
    assert_close(parts[:3], whole[:3], atol=0, rtol=0)
    for n in (3, 4):  # dk and dv are summed in another order
        assert_within(parts[n], whole[n].double(), 2 * bounds[n].error, NAMES[n])


def test_no_gradient_through_lse():
    out, lse = sparse_attention(*inputs(t=1), selection(t=1))
    assert out.requires_grad and not lse.requires_grad


# ---------------------------------------------------------------------------------------------------- unions


@pytest.mark.parametrize(
    ("queries", "s", "offset"),
    [(8, 40, None), (4, 40, None), (8, 37, None), (8, 301, None), (8, 301, 3)],
)
def test_unions_are_unions_of_sets(queries, s, offset):
    """301 keys are listed in eight parts; with an offset of 3 the keys of some row end in the first of them."""
    indices = selection(b=2, s=s, topk=9, offset=offset)
    indices[1, 3] = -1
    entries, sizes = union_lists.build_unions(indices, s, queries, math.inf)
    assert entries.dtype == sizes.dtype == torch.int32 and sizes.shape == (2, -(-9 // queries))
    for b in range(2):
        for n, rows in enumerate(indices[b].split(queries)):
            expected = {}
            for query, row in enumerate(rows.tolist()):
                for key in row:
                    if key >= 0:
                        expected[key] = expected.get(key, 0) | 1 << query
            got = entries[b, n, : sizes[b, n]].tolist()
            assert got == [key * 256 + members for key, members in sorted(expected.items())]
            filling = entries[b, n, sizes[b, n] : sizes[b, n] + union_lists.FILL]
            assert filling.eq(max(expected) * 256).all() and len(filling) == union_lists.FILL


def test_a_union_that_does_not_pay_is_left_out():
    """8 equal rows: the union is one average set. 8 disjoint rows: it is eight."""
    equal = torch.arange(4).expand(8, 4)
    disjoint = torch.arange(32).reshape(8, 4)
    indices = torch.cat([equal, disjoint])[None].int()
    for pays, expected in ((8, [4, 32]), (7.9, [4, -1]), (0.9, [-1, -1])):
        assert union_lists.build_unions(indices, 40, 8, pays)[1].tolist() == [expected]


def test_each_tile_is_answered_by_one_kernel(monkeypatch):
    """The union kernel leaves the tiles that are not its own as they were, the other kernel too."""
    q, k, v = (x.detach() for x in inputs(t=16, dtype=torch.float16))
    indices = torch.cat([torch.arange(4).expand(8, 4), torch.arange(32).reshape(8, 4)])[None].int()
    expected = ops.sparse_attention(q.double(), k.double(), v.double(), indices)
    bounds = attention(q, k, v, indices)
    union = union_attention(q, k, v, indices, pays=2)
    assert union[0][:, 8:].isnan().all() and union[1][:, 8:].isnan().all()
    rest = torch.empty_like(q), torch.empty(q.shape[:3])
    sizes = union_lists.build_unions(indices, 40, 8, 2)[1]
    sparse_forward.sparse_forward(q, k, v, indices, 0.25, *rest, sizes, 8)
    assert rest[0][:, :8].isnan().all() and rest[1][:, :8].isnan().all()
    for part, got in ((slice(0, 8), union), (slice(8, 16), rest)):
        for a, x, bound in zip(got, expected, bounds, strict=True):
            assert_within(a[:, part], x[:, part], bound.error[:, part])
    monkeypatch.setattr(door, "PAYS", 2)
    both = sparse_attention(q, k, v, indices)
    assert all(x[:, :8].equal(y[:, :8]) and x[:, 8:].equal(z[:, 8:]) for x, y, z in zip(both, union, rest, strict=True))


# ------------------------------------------------------------------- the fixed reference of a union, and doing it again


def tiles_done_again(monkeypatch):
    """Collects the marks [b tiles g] that the launch with a running maximum finds; None for a launch without."""
    marks, launch = [], sparse_union._launch

    def spied(*arguments, fixed):
        if not fixed:
            marks.append(None if arguments[4] is None else arguments[4].clone())
        launch(*arguments, fixed=fixed)

    monkeypatch.setattr(sparse_union, "_launch", spied)
    return marks


def two_tiles(dtype):
    """16 queries, 2 KV heads of 2 heads, 40 keys: odd queries select the first 20, even ones 20 from key 18 on.

    So even queries select none of the first block, keys 0 to 15. q is 1 in the first channel and k is 0 there: what a
    test puts into k is added to the logits, where the scale is 1.
    """
    q, k, v = (x.detach() for x in inputs(t=16, dtype=dtype))
    q[..., 0], k[..., 0] = 1.0, 0.0
    rows = [torch.arange(20) + (18 if t % 2 == 0 else 0) for t in range(16)]
    return (q, k, v), torch.stack(rows)[None].int()


LEVELS = {  # logit added to which keys, and whether the tile must be done again
    "alike": (0.0, slice(0, 40), False),
    "later and larger by 20": (20.0, slice(30, 40), False),
    "later and smaller by 30": (-30.0, slice(30, 40), False),
    "later and larger by 60": (60.0, slice(30, 40), True),
    "later and larger by 100": (100.0, slice(30, 40), True),  # infinite in float32
    "first block larger by 60": (60.0, slice(0, 16), True),
    "first block larger by 200": (200.0, slice(0, 16), True),  # the weights of the even queries become 0
    "first block smaller by 200": (-200.0, slice(0, 16), True),
    "one key of the first block larger by 100": (100.0, slice(3, 4), True),
    "the last key larger by 300": (300.0, slice(37, 38), True),
    "all larger by 300": (300.0, slice(0, 40), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("level", LEVELS)
def test_a_reference_that_does_not_do(level, dtype, monkeypatch):
    """As exact as ever; and only the tile and the KV head whose sums leave the range are done again."""
    more, keys, wanted = LEVELS[level]
    (q, k, v), indices = two_tiles(dtype)
    k[0, keys, 0, 0] = more
    q[:, 8:, :, 0] = 0.0  # the second tile's queries do not see the difference
    marks = tiles_done_again(monkeypatch)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_near_float64((q, k, v), indices, gradients=False, scale=1.0, function=union_attention)
    assert marks[0].tolist() == [[[int(wanted), 0], [0, 0]]]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_key_of_another_query_that_is_not_finite(bad, monkeypatch):
    (q, k, v), indices = two_tiles(torch.bfloat16)
    k[0, 3, 0] = bad  # odd queries alone select it
    marks = tiles_done_again(monkeypatch)
    with np.errstate(all="ignore"):
        got = union_attention(q, k, v, indices)
    assert marks[0].tolist() == [[[1, 0], [1, 0]]]
    k[0, 3, 0] = 0.0
    want = ops.sparse_attention(q.double(), k.double(), v.double(), indices)
    for a, x, bound in zip(got, want, attention(q, k, v, indices), strict=True):
        assert_within(a[:, ::2], x[:, ::2], bound.error[:, ::2])
        assert a[:, 1::2, :2].isnan().all()


def test_values_near_the_end_of_their_range(monkeypatch):
    """With a weight of 2^40 before it is divided, a value of 1e38 is infinite."""
    (q, k, v), indices = two_tiles(torch.bfloat16)
    k[0, 30:, 0, 0], v[0, :, 0] = 28.0, 1e37
    marks = tiles_done_again(monkeypatch)
    with np.errstate(all="ignore"):
        assert_near_float64((q, k, v), indices, gradients=False, scale=1.0, function=union_attention)
    assert marks[0].tolist() == [[[1, 0], [1, 0]]]


def test_a_tile_without_keys_is_done_again_and_float16_never_has_a_fixed_reference(monkeypatch):
    marks = tiles_done_again(monkeypatch)
    for dtype in (torch.bfloat16, torch.float16):
        (q, k, v), indices = two_tiles(dtype)
        indices[0, 8:] = -1
        out, lse = union_attention(q, k, v, indices)
        assert out[0, 8:].eq(0).all() and lse[0, 8:].isneginf().all()
        assert out[0, :8].ne(0).any() and lse[0, :8].isfinite().all()
    assert marks[0].tolist() == [[[0, 0], [1, 1]]] and marks[1] is None


# ---------------------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("s", [40, 37])
def test_transposed_lists(s):
    """Replayed as a loop: who selected which key, with multiplicity; queries ascend inside a block."""
    indices = selection(b=2, s=s, topk=9)
    indices[0, 4, :3] = torch.tensor([5, 5, 2])
    indices[1, 1] = -1
    queries, members, begins = sparse_backward.transpose_lists(indices, s)
    blocks = -(-s // sparse_backward.KEYS)
    assert len(begins) == 2 * blocks + 1 and begins[0] == 0
    got = []
    for n, (begin, end) in enumerate(pairwise(begins.tolist())):
        assert queries[begin:end].tolist() == sorted(queries[begin:end].tolist())
        for query, member in zip(queries[begin:end].tolist(), members[begin:end].tolist(), strict=True):
            keys = [n % blocks * 16 + bit for bit in range(16) if member >> bit & 1]
            got += [(n // blocks, query, key) for key in keys]
    expected = [(b, t, key) for b in range(2) for t in range(9) for key in indices[b, t].tolist() if key >= 0]
    assert sorted(got) == sorted(expected)
    assert begins[-1] < len(expected)  # a query stands once for all its keys of a block


@pytest.mark.parametrize(("h", "g"), GROUPS)
def test_atomic_gradients(h, g):
    assert_near_float64(inputs(h=h, g=g), selection(), deterministic=False)


def test_atomic_gradients_of_short_rows_and_slabs(monkeypatch):
    monkeypatch.setattr(door, "SLAB", 1)
    assert_near_float64(inputs(b=2), selection(b=2, offset=5, start=torch.tensor([0, 9])), deterministic=False)


def test_atomic_gradients_refuse_rows_out_of_order():
    indices = selection()
    indices[0, 3, 1] = indices[0, 3, 0]
    out, _ = sparse_attention(*inputs(), indices, deterministic=False)
    with pytest.raises(ValueError, match="strictly ascending"):
        out.sum().backward()


# ---------------------------------------------------------------------------------------------------- the door

WRONG = {
    "g dividing 4": lambda q, k, v, n: (q, k[:, :, :1].repeat(1, 1, 3, 1), v[:, :, :1].repeat(1, 1, 3, 1), n),
    "keys and values of one shape": lambda q, k, v, n: (q, k, v[:, :-1], n),
    "must be \\[b t h e\\]": lambda q, k, v, n: (q[0], k, v, n),
    "indices must be \\[b t k\\]": lambda q, k, v, n: (q, k, v, n[0]),
    "indices must be int32": lambda q, k, v, n: (q, k, v, n.float()),
    "int32 or int64 \\[2, 9, k\\]": lambda q, k, v, n: (q, k, v, n[:, 1:]),
    "last axis of k must have stride 1": lambda q, k, v, n: (q, k.mT.contiguous().mT, v, n),
    "1 to 16 heads a group": lambda q, k, v, n: (q.repeat(1, 1, 9, 1), k, v, n),
    "head widths": lambda q, k, v, n: (q[..., :12], k[..., :12], v[..., :12], n),
    "share one dtype": lambda q, k, v, n: (q, k.half(), v, n),
    "one dtype of": lambda q, k, v, n: (q.double(), k.double(), v.double(), n),
    "on the device of q": lambda q, k, v, n: (q, k.to("meta"), v, n),
    "must fit 31 bits": lambda q, k, v, n: (q, *(x[:, :1].expand(2, 2**23, 2, 16) for x in (k, v)), n),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_door(message):
    with pytest.raises(ValueError, match=message):
        sparse_attention(*WRONG[message](*(x.detach() for x in inputs(b=2)), selection(b=2)))
