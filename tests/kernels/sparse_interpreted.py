"""Sparse attention of the kernels in Triton's interpreter. test_interpreted_attention.py runs this file elsewhere.

Oracle: ops.sparse_attention (torch) in float64, and as near as error_bounds.py says. What a kernel leaves unwritten is
nan: see `poison`.
"""

import math
import warnings

import numpy as np
import pytest
import torch
from error_bounds import assert_within, attention
from torch.testing import assert_close

from minikeye import ops
from minikeye.kernels import integer_sums
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
    # float32 is gathered query by query, float16 in unions where they pay; backward, all go through unions.
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
    """float16, since a forward pass in float32 has no slabs. Sums of integers are the same, slab by slab or at once."""
    qkv, indices = inputs(b=2, dtype=torch.float16), selection(b=2)
    weight = torch.randn_like(qkv[0])
    whole = run(sparse_attention, qkv, indices, weight)
    monkeypatch.setattr(door, "SLAB", 1)  # a tile at a time
    assert_close(run(sparse_attention, qkv, indices, weight), whole, atol=0, rtol=0)


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


@pytest.mark.parametrize(("h", "g"), [(4, 2), (16, 1)])
def test_gradients_as_sums_of_floats(h, g):
    assert_near_float64(inputs(h=h, g=g), selection(), deterministic=False)


@pytest.mark.parametrize("topk", [1, 9])
def test_lists_of_single_queries(topk):
    """As a loop: the keys of a query in their order, its last key without a member where there is none, and behind."""
    indices = selection(b=2, t=11, topk=topk).long()
    indices[0, 3, 0] = indices[1, 4] = -1
    sizes = torch.tensor(
        [[-1, 5], [7, -1]], dtype=torch.int32
    )  # queries 0 to 7 of the first row, 8 to 10 of the second
    entries, counts = sparse_backward.single_lists(indices, sizes, 8)
    assert entries.dtype == counts.dtype == torch.int32 and entries.shape == (2, 11, topk + union_lists.FILL)
    for b in range(2):
        for t in range(11):
            row = indices[b, t].tolist()
            alone = (b == 0) == (t < 8)
            assert counts[b, t] == (-1 if not alone else topk if max(row) >= 0 else 0)
            wanted = [key * 256 + 1 if key >= 0 else max(row) * 256 for key in row] + [
                max(row) * 256
            ] * union_lists.FILL
            assert entries[b, t].tolist() == wanted


def tile_by_tile(order):
    """In the place of the door's slabs: one tile after another, in that order."""
    return lambda k, indices, queries: (slice(n * queries, (n + 1) * queries) for n in order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_any_order_of_tiles(dtype, monkeypatch):
    """Whatever runs first on a GPU. Sums of floats are another number in some of these orders."""
    qkv, indices = inputs(t=64, dtype=dtype), selection(t=64)
    indices[0, 20, :2] = indices[0, 20, 0]  # a tile of single queries among the others
    weight = torch.randn_like(qkv[0])
    found = {True: [], False: []}
    for n in range(4):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(n)).tolist()
        monkeypatch.setattr(door, "_slabs", tile_by_tile(order))
        for deterministic, results in found.items():
            out, _ = sparse_attention(*qkv, indices, deterministic=deterministic)
            results.append(torch.autograd.grad((out * weight).sum(), qkv))
    first, *others = found[True]
    assert all(x.equal(y) for other in others for x, y in zip(first, other, strict=True))
    if dtype == torch.float32:
        first, *others = found[False]
        assert not all(x.equal(y) for other in others for x, y in zip(first, other, strict=True))


def spied_sums(monkeypatch):
    """Collects the KeyGradients that the backward pass makes."""
    made = []

    class Spied(sparse_backward.KeyGradients):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(door, "KeyGradients", Spied)
    return made


@pytest.mark.parametrize("size", [2.0**-110, 1.0, 2.0**-15, 2.0**100])
def test_sums_that_reach_their_bound(size, monkeypatch):
    """Every query puts all its weight on key 0, every dout is alike: dv of key 0 is 16 * 4 dout, which is B of dv."""
    q, k, v = inputs(t=16, h=8, g=2)
    indices = torch.zeros(1, 16, 1, dtype=torch.int32)
    made = spied_sums(monkeypatch)
    out, _ = sparse_attention(q, k, v, indices)
    weight = torch.full_like(out, size)
    dv = torch.autograd.grad(out, v, weight)[0]
    assert dv[0, 0].equal(64 * weight[0, 0, :2]) and dv[0, 1:].eq(0).all()
    sums = made[0].dv.sums[0].abs()
    assert sums.max() <= 2**62
    assert sums[0, 0].min() >= (2**61 if size > 1e-20 else 2**21), "a bound that is twice too large loses a bit"


def test_the_largest_gradients_of_keys(monkeypatch):
    """Two keys of weight 1/2 whose values are opposite, so that out is 0: dl is half of scale dout . v, everywhere."""
    q, k, v = (torch.ones_like(x) for x in inputs(t=16, h=8, g=2))
    v[:, 1] = -1.0
    k[:, 1] = k[:, 0]
    q, k, v = (x.requires_grad_() for x in (1000 * q, k, 1e12 * v))
    indices = torch.tensor([0, 1], dtype=torch.int32).expand(1, 16, 2).contiguous()
    made = spied_sums(monkeypatch)
    out, _ = sparse_attention(q, k, v, indices)
    dk = torch.autograd.grad(out, k, torch.full_like(out, 1e10))[0]
    exact = 64 * 0.25 / 2 * (16 * 1e12 * 1e10) * 1000 * torch.tensor([1.0, -1.0]).double()  # rows scale p dp q
    assert_close(dk[0, :2].double(), exact[:, None, None].expand(2, 2, 16), rtol=1e-6, atol=0)
    sums = made[0].dk.sums.abs()
    assert 2**59 <= sums.max() <= 2**61  # p is 1/2


def test_the_bounds_as_a_loop():
    q, _, v = (x.detach() for x in inputs(b=2, t=3, s=5))
    out, dout = torch.randn_like(q), torch.randn_like(q)
    v[0, 2, 1, 3] = torch.nan  # a row that nobody selected, or out would tell
    got = sparse_backward.bounds(q, v, out, dout, 0.3)
    for b in range(2):
        for g in range(2):
            most = max(float(row.abs().max()) for row in v[b, :, g] if row.isfinite().all())
            dk = dv = 0.0
            for t in range(3):
                for h in (2 * g, 2 * g + 1):
                    do, o = dout[b, t, h].double(), out[b, t, h].double()
                    dk += 0.3 * float(do.abs().sum()) * (most + float(o.abs().max())) * float(q[b, t, h].abs().max())
                    dv += float(do.abs().max())
            assert [float(x[b, g]) for x in got] == pytest.approx([dk, dv], rel=1e-6)


def test_units_are_powers_of_two():
    q, k, v = (x.detach() for x in inputs(b=2))
    dout = torch.randn_like(q)
    keys = sparse_backward.KeyGradients(q, k, v, q, dout, 0.25)
    for most, sums in zip(sparse_backward.bounds(q, v, q, dout, 0.25), (keys.dk, keys.dv), strict=True):
        assert sums.unit.frexp().mantissa.eq(0.5).all() and sums.finite.all()
        assert (most < 2.0**62 * sums.unit).all() and (most >= 2.0**61 * sums.unit).all()
    exponents = torch.arange(-126, 128)
    assert integer_sums.power_of_two(exponents).double().equal(2.0 ** exponents.double())


def test_weights_do_not_exceed_1():
    """Even where lse is too small, by which p of the one key would be e: the bound relies on it."""
    q, k, v = (x.detach() for x in inputs(t=8, h=2, g=1))
    indices = torch.zeros(1, 8, 1, dtype=torch.int32)
    out, lse = sparse_attention(q, k, v, indices)
    keys = sparse_backward.KeyGradients(q, k, v, out, torch.ones_like(q), 0.25)
    unions = union_lists.build_unions(indices, 40, 8, math.inf)
    sparse_backward.add_tiles(q, k, v, unions, out, lse - 1, torch.ones_like(q), 0.25, 8, torch.empty_like(q), keys)
    assert keys.dv.finish(torch.float32)[0, 0].eq(16).all()


BAD = {  # what is not finite, and where
    "dout": (torch.nan, lambda q, k, v, dout: dout[1, 4, 3]),
    "an infinite dout": (torch.inf, lambda q, k, v, dout: dout[1, 4, 3, :1]),
    "q": (torch.nan, lambda q, k, v, dout: q[1, 4, 3, :1]),
    "an infinite q": (-torch.inf, lambda q, k, v, dout: q[1, 4, 3, :1]),
    "a selected key": (torch.nan, lambda q, k, v, dout: k[1, 7, 1, :1]),
    "an infinite key": (torch.inf, lambda q, k, v, dout: k[1, 7, 1]),
    "a selected value": (torch.nan, lambda q, k, v, dout: v[1, 7, 1, :1]),
    "an infinite value": (torch.inf, lambda q, k, v, dout: v[1, 7, 1, :1]),
    "sums beyond float32": (3e38, lambda q, k, v, dout: dout[1, 4, 3]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_finite_is_told(case):
    """dk and dv of that batch row and KV head are nan, as torch has nan somewhere; the others are what they were."""
    qkv, indices = [x.detach() for x in inputs(b=2)], selection(b=2)
    indices[1, 4] = torch.arange(20)  # key 7 is selected
    dout = torch.randn_like(qkv[0])
    fine = torch.autograd.grad(sparse_attention(*(x.requires_grad_() for x in qkv), indices)[0], qkv, dout)
    bad, where = BAD[case]
    with torch.no_grad():
        where(*qkv, dout).fill_(bad)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        got = torch.autograd.grad(sparse_attention(*qkv, indices)[0], qkv, dout)
    for x, y in zip(got[1:], fine[1:], strict=True):
        assert x[1, :, 1].isnan().all() and x[0].equal(y[0]) and x[1, :, 0].equal(y[1, :, 0])
    if case != "sums beyond float32":
        truth = torch.autograd.grad(ops.sparse_attention(*qkv, indices, backend="torch")[0], qkv, dout)
        assert not all(x.isfinite().all() for x in truth)


def test_weights_that_are_nan_are_told():
    """All logits are -inf, and so is lse, though q, k and out are finite: exp(-inf + inf)."""
    q, k, v = (x.detach() for x in inputs(t=8, h=2, g=1))
    q, k = (torch.full_like(q, -1e25).requires_grad_(), torch.full_like(k, 1e25).requires_grad_())
    v.requires_grad_()
    with np.errstate(all="ignore"):
        out, lse = sparse_attention(q, k, v, torch.zeros(1, 8, 1, dtype=torch.int32))
        got = torch.autograd.grad(out.sum(), (q, k, v))
    assert out.isfinite().all() and lse.isneginf().all() and all(x.isnan().all() for x in got)


def test_no_gradient_at_all():
    qkv = inputs()
    out, _ = sparse_attention(*qkv, selection())
    assert all(x.eq(0).all() for x in torch.autograd.grad(out, qkv, torch.zeros_like(out)))


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
