"""decode_attention in Triton's interpreter. test_interpreted_attention.py runs this file elsewhere.

Axes: b batch, s key position, h query head, g KV head, e head width, k selected keys.
Oracle: ops.sparse_attention (torch) in float64, and as near as error_bounds.py says. What a kernel leaves unwritten is
nan: see `poison`.
"""

import pytest
import torch
from error_bounds import assert_within
from error_bounds import attention as bounds_of

from minikeye import ops
from minikeye.kernels.decode import decode_attention as attention
from minikeye.kernels.decode.decode_attention import decode_attention
from minikeye.kernels.decode.decode_select import decode_select
from minikeye.kernels.launch import INTERPRETED

pytestmark = pytest.mark.usefixtures("poison")


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


def inputs(b=2, s=60, h=4, g=2, e=16, dtype=torch.float32):
    return tuple(torch.randn(shape).to(dtype) for shape in ((b, 1, h, e), (b, s, g, e), (b, s, g, e)))


def picked(b=2, s=60, topk=40, counts=None):
    """Ascending random positions, the first counts[b] slots of a row, -1 behind."""
    out = torch.full((b, 1, topk), -1, dtype=torch.int32)
    for row, count in zip(out[:, 0], [min(topk, s)] * b if counts is None else counts, strict=True):
        row[:count] = torch.randperm(s)[:count].sort().values
    return out


def assert_near_float64(qkv, indices, scale=None, splits=None):
    got = decode_attention(*qkv, indices, scale, splits)
    truth = ops.sparse_attention(*(x.double() for x in qkv), indices, scale, backend="torch")
    assert [x.dtype for x in got] == [qkv[0].dtype, torch.float32]
    for name, a, x, bound in zip(("out", "lse"), got, truth, bounds_of(*qkv, indices, scale), strict=True):
        assert_within(a, x, bound.error, name)
    return got


@pytest.mark.parametrize(("h", "g"), [(1, 1), (4, 2), (6, 2), (5, 1), (16, 2), (16, 1), (4, 4)])
def test_heads_of_a_group(h, g) -> None:
    assert_near_float64(inputs(h=h, g=g), picked())


@pytest.mark.parametrize(
    ("e", "dtype"),
    [(16, torch.bfloat16), (32, torch.float16), (64, torch.bfloat16), (64, torch.float32), (128, torch.float16)],
)
def test_head_widths(e, dtype) -> None:
    assert_near_float64(inputs(e=e, dtype=dtype), picked())


@pytest.mark.parametrize(("b", "splits"), [(1, None), (1, 1), (1, 3), (1, 5), (1, 99), (3, None), (3, 3)])
@pytest.mark.parametrize("topk", [1, 17, 40])
def test_splits(b, splits, topk) -> None:
    assert_near_float64(inputs(b=b), picked(b=b, topk=topk), splits=splits)


@pytest.mark.parametrize("splits", [1, 3])
def test_the_same_bits_again(splits) -> None:
    qkv, indices = inputs(), picked()
    first, again = (decode_attention(*qkv, indices, splits=splits) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("splits", [1, 4])
def test_short_rows_rows_without_keys_and_minus_one_anywhere(splits) -> None:
    indices = picked(b=5, counts=[0, 1, 7, 20, 40])
    indices[3, 0] = indices[3, 0, torch.randperm(40)]
    indices[4, 0, 8:16] = -1  # a whole block; at 4 splits, parts are 16 slots
    indices[4, 0, [0, 39]] = -1
    indices[2, 0] = indices[2, 0].roll(33)  # the only keys in the last slots
    out, lse = assert_near_float64(inputs(b=5), indices, splits=splits)
    assert out[0].eq(0).all() and lse[0].isneginf().all() and lse[1:].isfinite().all()
    assert_near_float64(inputs(b=5), indices.long(), splits=splits)


def test_a_key_listed_twice_counts_twice() -> None:
    indices = torch.tensor([[[7, 7, 3, 7, -1, 3, 9, 9, 9, 7]]])
    assert_near_float64(inputs(b=1), indices, splits=2)


def test_one_key_has_all_the_weight() -> None:
    q, k, v = inputs(h=2, g=1)
    indices = torch.full((2, 1, 40), -1)
    indices[:, 0, 30] = 5
    out, lse = decode_attention(q, k, v, indices)
    assert out.equal(v[:, 5:6].expand(2, 1, 2, 16))
    logits = torch.einsum("bthe,be->bth", q.double(), k[:, 5, 0].double()) / 4
    assert_within(lse, logits, bounds_of(q, k, v, indices)[1].error)


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_scale(scale) -> None:
    assert_near_float64(inputs(), picked(), scale=scale)


def test_parts_whose_logits_lie_far_apart() -> None:
    """exp of a logit of 300 is infinite, exp of -300 is 0: only the parts' maxima keep them apart."""
    q, k, v = inputs(b=1, h=2, g=1)
    k = q[:, :, :1].expand(1, 60, 1, 16) * torch.linspace(-300, 300, 60)[:, None, None] / q[0, 0, 0].square().sum() * 4
    indices = torch.arange(0, 60).reshape(1, 1, 60)
    for order in (indices, indices.flip(-1)):
        assert assert_near_float64((q, k, v), order, splits=6)[1].max() > 299
    low = (q, k[:, :20], v[:, :20])  # nothing but small ones: no part may count as empty
    assert assert_near_float64(low, indices[..., :20], splits=2)[1].min() < -100


def test_rows_outside_the_set_are_not_read() -> None:
    """They hold nan, which no mask can hide. Row 0, where padding could point, is one of them."""
    q, k, v = inputs()
    indices = picked(s=59, topk=24, counts=[20, 3])
    indices[indices >= 0] += 1
    for b in range(2):
        unread = torch.ones(60, dtype=torch.bool)
        unread[indices[b, 0][indices[b, 0] >= 0].long()] = False
        assert unread[0]
        k[b, unread], v[b, unread] = torch.nan, torch.nan
    for splits in (1, 3):
        assert all(x.isfinite().all() for x in decode_attention(q, k, v, indices, splits=splits))


def test_views_of_a_cache() -> None:
    """Heads in front of time, a slice of the capacity, query heads that are a slice: strides as they come."""
    q = torch.randn(2, 3, 8, 16)[:, 1:2, ::2]
    cache = torch.randn(2, 2, 2, 90, 16)
    k, v = (x.transpose(1, 2)[:, 5:65] for x in cache)
    indices = picked(topk=50)[..., 3:37]
    views = q, k, v, indices
    assert not any(x.is_contiguous() for x in views)
    for splits in (1, 4):
        expected = decode_attention(*(x.contiguous() for x in views), splits=splits)
        assert all(map(torch.equal, decode_attention(*views, splits=splits), expected))


def test_the_grid_stays_a_few_hundred_programs() -> None:
    assert [attention._splits(4 * b) for b in (1, 8, 16, 32, 64, 128)] == [32, 16, 8, 4, 2, 1]
    for programs in range(1, 257):
        assert programs * attention._splits(programs) <= 512
    for topk in range(1, 300):
        for splits in (1, 3, 16):
            part, parts = attention.parts_of(topk, splits, 32)
            assert part % 32 == 0 and parts <= splits and (parts - 1) * part < topk <= parts * part


def test_nothing_to_attend_to() -> None:
    for b, s, topk in ((0, 5, 3), (3, 0, 2), (3, 5, 0)):
        out, lse = decode_attention(*inputs(b=b, s=s), torch.full((b, 1, topk), -1, dtype=torch.int32))
        assert out.shape == (b, 1, 4, 16) and out.eq(0).all() and lse.isneginf().all()


def test_wrong_attention_input_is_refused_by_name() -> None:
    q, k, v = inputs()
    indices = picked()
    bad = {
        "one query a batch row": (q.expand(2, 3, 4, 16), k, v, indices.expand(2, 3, 40)),
        "keys and values of one shape": (q, k[:1], v, indices),
        "must share one dtype": (q, k.half(), v, indices),
        "indices must be int32 or int64": (q, k, v, indices.float()),
        "must have stride 1": (q, k.mT.contiguous().mT, v, indices),
        "splits must be at least 1, got 0": (q, k, v, indices, None, 0),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            decode_attention(*arguments)


def test_select_then_attend_is_one_step_of_decoding() -> None:
    """Both, on one cache that grows in place, against ops on the tokens so far."""
    iq, ik, iw = (torch.randint(-2, 3, shape).float() for shape in ((2, 1, 4, 16), (2, 50, 16), (2, 1, 4)))
    q, k, v = inputs(s=50)
    start, lengths = torch.tensor([0, 6]), torch.tensor([4, 7], dtype=torch.int32)
    for _ in range(4):
        indices = decode_select(iq, ik, iw, 12, lengths, start)
        for b in range(2):
            row, length = slice(b, b + 1), int(lengths[b])
            tokens = iq[row], ik[row, :length], iw[row], 12, length - 1, start[row]
            assert torch.equal(indices[row], ops.select_topk(*tokens, backend="torch"))
        assert_near_float64((q, k, v), indices)
        lengths += 13
