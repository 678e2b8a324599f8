"""The indexer's two losses in Triton's interpreter. test_interpreted_losses.py runs this file elsewhere.

Oracles, in float64: training.dsa.row_losses, and autograd of the same equations. Kernels must be as near to them as
error_bounds.py says. What a kernel leaves unwritten is nan: see `poison`.
"""

import math

import numpy as np
import pytest
import torch
from error_bounds import assert_within, indexer_loss, listed
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minikeye import ops
from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.integer_sums import IntegerSums
from minikeye.kernels.losses import selected_backward, warmup_lse
from minikeye.kernels.losses.selected_loss import selected_loss
from minikeye.kernels.losses.warmup_loss import warmup_loss
from minikeye.model.step import AttentionTrace
from minikeye.ops.torch_attention import gather_index_rows
from minikeye.ops.torch_losses import dense_targets, kl_loss, selected_scores, selected_targets
from minikeye.training.dsa import row_losses

pytestmark = pytest.mark.usefixtures("poison")
NAMES = ("loss", "d index_q", "d index_k", "d index_w")


def inputs(b=1, t=5, s=40, j=3, i=24, h=4, g=2, e=16, dtype=torch.float32):
    """index_q, index_k, index_w, q, k: the gates in float32, as the indexer gives them."""
    shapes = (b, t, j, i), (b, s, i), (b, t, j), (b, t, h, e), (b, s, g, e)
    index_q, index_k, index_w, q, k = (torch.randn(shape) for shape in shapes)
    return *(x.to(dtype) for x in (index_q, index_k)), index_w, *(x.to(dtype) for x in (q, k))


def selection(b=1, t=5, s=40, topk=18, offset=None, start=None):
    scores = torch.randn(b, t, s).masked_fill(
        ~ops.valid_keys(t, s, s - t if offset is None else offset, start), -math.inf
    )
    return ops.topk_positions(scores, topk)


def seen(positions, s, b, start=None):
    """Valid keys of rows at these positions, bool [b t s]."""
    key = torch.arange(s)
    valid = (key <= positions[:, None]).expand(b, -1, -1)
    return valid if start is None else valid & (key >= start.reshape(b, -1, 1))


def selected_in_float64(index_q, index_k, index_w, q, k, indices):
    targets = selected_targets(q, ops.gather_rows(k, indices), indices)
    return kl_loss(selected_scores(index_q, gather_index_rows(index_k, indices), index_w, indices), targets)


def warmup_in_float64(index_q, index_k, index_w, q, k, valid):
    dots = torch.einsum("btji,bsi->btjs", index_q, index_k).relu()
    scores = torch.einsum("btj,btjs->bts", index_w, dots) * index_q.shape[-1] ** -0.5
    return kl_loss(scores.masked_fill(~valid, -math.inf), dense_targets(q, k, valid))


def run(function, tensors, *rest, weight=None):
    """The loss, and the gradients of (loss * weight).sum() for the indexer's tensors."""
    learners = [x.detach().requires_grad_() for x in tensors[:3]]
    loss = function(*learners, *tensors[3:], *rest)
    return loss, *torch.autograd.grad((loss * (torch.ones(()) if weight is None else weight)).sum(), learners)


def counted(indices_or_positions, s, b=1, start=None):
    """How often rows list keys: of indices [b t k], or of positions [t], whose rows see every key up to there."""
    if indices_or_positions.ndim == 3:
        return listed(indices_or_positions, s)
    return seen(indices_or_positions, s, b, start).double()


def cut_off(tensors, dloss):
    """What integers cut off of d index_k [b s i]: t terms of less than 2^-61 B each; |dI| adds up to 2 g at most."""
    index_q, _, index_w, _, k = (x.double() for x in tensors)
    of_query = (index_q.abs().amax(dim=-1) * index_w.abs()).sum(dim=-1)
    most = 2 * k.shape[2] * index_q.shape[3] ** -0.5 * (dloss.abs() * of_query).sum(dim=1)
    return index_q.shape[1] * 2.0**-61 * most[:, None, None]


def assert_near_float64(function, oracle, tensors, arguments, oracle_arguments, count):
    weight = torch.randn(tensors[0].shape[:2])
    got = run(function, tensors, *arguments, weight=weight)
    truth = run(oracle, [x.double() for x in tensors], *oracle_arguments, weight=weight)
    assert [x.dtype for x in got] == [torch.float32, *(x.dtype for x in tensors[:3])]
    assert truth[0].isfinite().all()
    for name, a, x, bound in zip(NAMES, got, truth, indexer_loss(*tensors, count, weight), strict=True):
        by_integers = function is selected_loss and name == "d index_k"
        assert_within(a, x.detach(), bound.error + (cut_off(tensors, weight) if by_integers else 0), name)
    return got


def compare_selected(tensors, indices):
    """With a given log-sum-exp, which takes less time; `run` finds it again."""
    q, k = (x.double() for x in tensors[3:])
    lse = ops.sparse_attention(q, k, k, indices, backend="torch")[1].float()
    count = counted(indices, k.shape[1])
    return assert_near_float64(selected_loss, selected_in_float64, tensors, [indices, lse], [indices], count)


def compare_warmup(tensors, positions, start=None):
    valid = seen(positions, tensors[1].shape[1], len(tensors[0]), start)
    return assert_near_float64(warmup_loss, warmup_in_float64, tensors, [positions, start], [valid], valid.double())


# ---------------------------------------------------------------------------------------------------- sparse stage

SHAPES = [
    dict(j=1, i=16, h=1, g=1),
    dict(j=2, i=8, h=4, g=2),
    dict(j=5, i=20, h=6, g=2),
    dict(j=16, i=64, h=16, g=2, e=32),
    dict(j=4, i=16, h=5, g=1),
    dict(j=20, i=32, h=3, g=3),
]
SHAPES_AND_DTYPES = [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[2], torch.float16)]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_selected_heads_and_widths(shape, dtype):
    compare_selected(inputs(**shape, dtype=dtype), selection())


CASES = {
    "one key": dict(topk=1),
    "k of 17": dict(topk=17),
    "rows shorter than k": dict(offset=0),
    "k beyond the length": dict(topk=50),
    "a start a row": dict(b=2, offset=5, start=torch.tensor([0, 9])),  # 4 queries of row 1 have no key
    "a start a query": dict(b=2, offset=9, start=torch.arange(10).reshape(2, 5) % 7),
    "one token": dict(t=1),
    "an odd length": dict(s=37),
    "one key in the cache": dict(t=1, s=1, topk=1),
}


@pytest.mark.parametrize("case", CASES)
def test_selection_semantics(case):
    sizes = {name: value for name, value in CASES[case].items() if name in ("b", "t", "s")}
    indices = selection(**CASES[case])
    loss, *gradients = compare_selected(inputs(**sizes), indices)
    empty = (indices < 0).all(dim=-1)
    assert loss[empty].eq(0).all() and gradients[0][empty].eq(0).all() and gradients[2][empty].eq(0).all()
    assert empty.any() == (case == "a start a row")


def test_rows_that_no_selection_gives():
    """A key listed twice counts twice; no order; -1 in front and in the middle; int64."""
    indices = selection(b=2).long()
    indices[0, 0, :4] = torch.tensor([7, 7, 3, 7])
    indices[0, 2] = indices[0, 2].flip(0)
    indices[0, 4, [0, 3, 4]] = -1
    indices[1, 3] = -1
    compare_selected(inputs(b=2), indices)


def test_bfloat16():
    compare_selected(inputs(dtype=torch.bfloat16), selection())
    compare_warmup(inputs(dtype=torch.bfloat16), torch.randint(0, 40, (5,)))


def test_the_sparse_attentions_own_log_sum_exp():
    tensors, indices = inputs(t=3), selection(t=3)
    q, k = tensors[3:]
    lse = sparse_attention(q, k, k, indices)[1]
    assert_close(run(selected_loss, tensors, indices, lse), run(selected_loss, tensors, indices), atol=0, rtol=0)
    doubled = selected_loss(*tensors, indices, lse + math.log(2))  # it is used: half the mass of every teacher
    assert not doubled.isclose(selected_loss(*tensors, indices, lse), rtol=1e-2).any()


def test_keys_outside_the_set_do_not_count():
    """They hold nan, which no mask can hide: 0 x nan is nan. Row 0, where padding could point, is one of them."""
    tensors = inputs()
    indices = selection(start=torch.tensor([1]), offset=2, topk=12)
    unread = torch.ones(1, 40, dtype=torch.bool)
    unread[0, indices[indices >= 0].long()] = False
    assert unread[:, 0].all() and unread.sum() > 20
    for x in (tensors[1], tensors[4]):
        x[unread] = math.nan
    got = run(selected_loss, tensors, indices)
    assert all(x.isfinite().all() for x in got) and got[2][unread].eq(0).all()


def test_gradients_of_index_keys_in_any_order_of_queries(monkeypatch):
    """Queries one after another, in several orders, as a GPU may run them: the same bits."""
    tensors, indices, weight = inputs(b=2), selection(b=2), torch.randn(2, 5)
    index_q, index_k, index_w = tensors[:3]
    dscore = torch.randn(2, 5, indices.shape[2])
    whole = selected_backward.selected_dk(index_q, index_k, index_w, indices, dscore, weight)
    assert whole.ne(0).any()
    # Each query alone, by a bound of all: cut off alike, they add up to the whole in integers.
    most = selected_backward.bound(index_q, index_w, indices, dscore, weight)
    monkeypatch.setattr(selected_backward, "bound", lambda *arguments: most)
    unit = IntegerSums(most, 1, 1).unit
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        total = torch.zeros(index_k.shape, dtype=torch.int64)
        for t in order:
            one = slice(t, t + 1)
            alone = IntegerSums(most, index_k.shape[1], index_k.shape[2])
            monkeypatch.setattr(selected_backward, "IntegerSums", lambda *arguments, alone=alone: alone)
            selected_backward.selected_dk(
                index_q[:, one], index_k, index_w[:, one], indices[:, one], dscore[:, one], weight[:, one]
            )
            total += alone.sums[:, :, 0]
        assert (total.float() * unit[:, :, None]).equal(whole)


def test_the_bound_of_index_keys_gradients_as_a_loop():
    tensors, indices, weight = inputs(b=2), selection(b=2), torch.randn(2, 5)
    index_q, _, index_w = tensors[:3]
    dscore = torch.randn(2, 5, indices.shape[2])
    indices[0, 1, 3:] = -1
    dscore[0, 1, 3:] = math.nan  # never written
    got = selected_backward.bound(index_q, index_w, indices, dscore, weight)
    for b in range(2):
        most = 0.0
        for t in range(5):
            of_keys = sum(abs(float(d)) for d, s in zip(dscore[b, t], indices[b, t], strict=True) if s >= 0)
            of_query = sum(
                abs(float(w)) * float(q.abs().max()) for w, q in zip(index_w[b, t], index_q[b, t], strict=True)
            )
            most += abs(float(weight[b, t])) * of_keys * of_query * index_q.shape[3] ** -0.5
        assert float(got[b, 0]) == pytest.approx(most, rel=1e-6)


def test_gradients_of_index_keys_that_are_not_finite():
    """nan in a batch row with such an incoming gradient, as torch has it; the other row is what it was."""
    tensors, indices, weight = inputs(b=2), selection(b=2), torch.randn(2, 5)
    fine = run(selected_loss, tensors, indices, weight=weight)
    weight[1, 2] = math.inf
    with np.errstate(all="ignore"):
        got = run(selected_loss, tensors, indices, weight=weight)
    assert got[2][1].isnan().all() and got[2][0].equal(fine[2][0])


def test_gates_beyond_float32_are_no_integers():
    """w dloss = 1e40 is infinite in float32, though index_q = 1e-20 makes the product small: nan, no number."""
    index_q, index_k, _, q, k = inputs(b=1)
    tensors = index_q * 1e-20, index_k, torch.full((1, 5, 3), 1e20), q, k
    with np.errstate(all="ignore"):
        got = run(selected_loss, tensors, selection(), weight=torch.full((1, 5), 1e20))
    assert got[2].isnan().all()


def test_a_broken_index_key_is_seen_in_the_loss():
    """ReLU(nan) is nan: the queries that selected the key have no loss and no gradients, the others what they had."""
    tensors, indices, weight = inputs(), selection(topk=2), torch.randn(1, 5)
    fine = run(selected_loss, tensors, indices, weight=weight)
    key = int(indices[0, 0, 0])
    met = (indices[0] == key).any(dim=-1)
    assert met.any() and not met.all()
    tensors[1][0, key] = math.nan
    with np.errstate(all="ignore"):
        got = run(selected_loss, tensors, indices, weight=weight)
    for which in (0, 1, 3):  # loss, d index_q, d index_w
        assert got[which][0, ~met].equal(fine[which][0, ~met])
    assert got[0][0, met].isnan().all() and got[2].isnan().all()


# ---------------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_warmup_heads_and_widths(shape, dtype):
    compare_warmup(inputs(**shape, dtype=dtype), torch.randint(0, 40, (5,)).int())


ROWS = {
    "any order, with repeats": dict(positions=[39, 3, 17, 17, 0, 39, 8, 30, 3]),
    "rows that see nothing": dict(positions=[39, -1, 17, 2, 0, -5, 8, 30, 3], start=torch.tensor([0, 9])),
    "all in the last tile": dict(positions=[37, 38, 39] * 3),
    "behind the last key": dict(positions=[39, 40, 100, 5, 7, 41, 2, 3, 4]),
    "a start a query": dict(positions=[39, 3, 17, 17, 0, 39, 8, 30, 3], start=torch.arange(18).reshape(2, 9) * 2),
    "one row": dict(positions=[25]),
    "many tiles": dict(positions=[(7 * n) % 40 for n in range(35)]),
    "an odd length": dict(positions=[36, 3, 0], s=37),
    "one key": dict(positions=[0, 0], s=1),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows(case):
    positions, start, s = torch.tensor(ROWS[case]["positions"]), ROWS[case].get("start"), ROWS[case].get("s", 40)
    b = 1 if start is None else 2
    valid = seen(positions, s, b, start)
    loss, *gradients = compare_warmup(inputs(b=b, t=len(positions), s=s), positions, start)
    empty = ~valid.any(dim=-1)
    assert loss[empty].eq(0).all() and gradients[0][empty].eq(0).all() and gradients[2][empty].eq(0).all()
    assert empty.any() == (start is not None)
    assert gradients[1][~valid.any(dim=1)].eq(0).all()  # of keys that no row sees


def test_chunks_equal_whole(monkeypatch):
    tensors, positions, weight = inputs(s=128), torch.tensor([127, 3, 64, 100, 64]), torch.randn(1, 5)
    assert warmup_lse.arrange_rows(tensors[0], 128, positions, None).chunks == 4
    parts = run(warmup_loss, tensors, positions, weight=weight)
    monkeypatch.setitem(warmup_lse.PROGRAMS, "interpreter", 1)
    assert warmup_lse.arrange_rows(tensors[0], 128, positions, None).chunks == 1
    whole = run(warmup_loss, tensors, positions, weight=weight)
    bounds = indexer_loss(*tensors, counted(positions, 128), weight)
    for name, a, x, bound in zip(NAMES, parts, whole, bounds, strict=True):
        assert_within(a, x.detach().double(), 2 * bound.error, name)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that torch makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [
            x.numel()
            for x in (out if isinstance(out, tuple) else (out,))
            if isinstance(x, torch.Tensor) and x.dtype != torch.uint8
        ]  # the interpreter copies arguments as bytes
        self.elements = max([self.elements, *made])
        return out


def test_nothing_of_rows_times_keys_is_made():
    t, s = 64, 128
    tensors = inputs(t=t, s=s, j=1, i=16, h=2, g=1)
    with Largest() as largest:
        run(warmup_loss, tensors, torch.arange(t) * 2)
    assert max(x.numel() for x in tensors) <= largest.elements < t * s / 2


# ---------------------------------------------------------------------------------------------------- both


def trace(tensors, indices=None, offset=0, start=None):
    index_q, index_k, index_w, q, k = tensors
    return AttentionTrace(q, k, index_q, index_k, index_w, indices, offset, start)


def test_as_the_training_has_them():
    """row_losses of a layer, which draws rows, in both modes: the same losses and gradients."""
    tensors, rows, start = inputs(b=2), torch.tensor([4, 2, 2, 0]), torch.tensor([0, 37])
    indices = selection(b=2, start=start)
    chosen = [x[:, rows] if n in (0, 2, 3) else x for n, x in enumerate(tensors)]
    for mode in ("warm-up", "sparse"):
        learners = [x.double().requires_grad_() for x in tensors[:3]]
        wide = (*learners, *(x.double() for x in tensors[3:]))
        seen_by = trace(wide, indices if mode == "sparse" else None, 35, start)
        expected = row_losses(seen_by, rows)
        expected_gradients = torch.autograd.grad(expected.sum(), learners)
        if mode == "sparse":
            got, count = run(selected_loss, chosen, indices[:, rows]), counted(indices[:, rows], 40)
        else:
            got = run(warmup_loss, chosen, (35 + rows).int(), start)
            count = counted(35 + rows, 40, 2, start)
        bounds = [x.error for x in indexer_loss(*chosen, count, torch.ones(2, 4))]
        assert_within(got[0], expected, bounds[0])
        for n in (1, 3):  # a row that was drawn twice gets its gradient twice
            whole, error = (torch.zeros(expected_gradients[n - 1].shape, dtype=torch.float64) for _ in range(2))
            whole.index_add_(1, rows, got[n].double())
            assert_within(whole, expected_gradients[n - 1], error.index_add_(1, rows, bounds[n]), NAMES[n])
        assert_within(got[2], expected_gradients[1], bounds[2])


LOSSES = {
    "sparse": (selected_loss, lambda: [selection()]),
    "warm-up": (warmup_loss, lambda: [torch.randint(0, 40, (5,))]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits_again(name):
    function, draw = LOSSES[name]
    tensors, arguments, weight = inputs(), draw(), torch.randn(1, 5)
    first = run(function, tensors, *arguments, weight=weight)
    again = run(function, tensors, *arguments, weight=weight)
    assert all(x.equal(y) for x, y in zip(again, first, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_indexer_learns(name):
    function, draw = LOSSES[name]
    tensors = [x.requires_grad_() for x in inputs()]
    arguments = draw()
    loss = function(*tensors, *arguments)
    loss.sum().backward()
    assert all(x.grad.abs().max() > 0 for x in tensors[:3]) and tensors[3].grad is None and tensors[4].grad is None
    with torch.no_grad():
        assert function(*tensors, *arguments).equal(loss)
    assert not function(*(x.detach() for x in tensors[:3]), *tensors[3:], *arguments).requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_no_second_derivative(name):
    function, draw = LOSSES[name]
    tensors = [x.requires_grad_() for x in inputs()]
    weight = torch.randn(1, 5, requires_grad=True)
    loss = (function(*tensors, *draw()) * weight).sum()
    (gradient,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", LOSSES)
def test_large_logits(name):
    """Weights of exactly 0 in the teacher (0 log 0 = 0), and scores whose exp is infinite."""
    _, draw = LOSSES[name]
    index_q, index_k, index_w, q, k = inputs()
    tensors, (argument,) = (index_q * 20, index_k * 20, index_w, q, k * 300), draw()
    loss, *_ = (compare_selected if name == "sparse" else compare_warmup)(tensors, argument)
    assert loss.max() > 300


@pytest.mark.parametrize("name", LOSSES)
def test_the_floor_is_the_groups_disagreement(name):
    """loss = sum_g KL(p_g || m) + G KL(m || c), as a loop: the scores have no part in the first term."""
    function, _ = LOSSES[name]
    tensors = inputs(t=1, s=12, g=4)
    arguments = [torch.arange(12).reshape(1, 1, 12)] if name == "sparse" else [torch.tensor([11])]
    index_q, index_k, index_w, q, k = (x[0].double() for x in tensors)
    dots = torch.einsum("ji,si->js", index_q[0], index_k).relu()
    c = (index_w[0] @ dots / 24**0.5).softmax(-1)
    p = [(k[:, g] @ q[0, g] / 4).softmax(-1) for g in range(4)]
    m = sum(p) / 4
    floor = sum((x * (x / m).log()).sum() for x in p)
    assert floor > 0.1
    bound = indexer_loss(*tensors, torch.ones(1, 1, 12, dtype=torch.float64), torch.ones(1, 1))[0]
    assert_within(function(*tensors, *arguments)[0, 0], floor + 4 * (m * (m / c).log()).sum(), bound.error[0, 0])


def test_views():
    """Slices of longer tensors and keys whose heads stand in front: strides are taken as they come."""
    index_q, index_k, index_w, q, k = inputs(b=2, t=6, s=80)
    views = index_q[:, ::2], index_k[:, 5:45], index_w[:, ::2], q[:, ::2], k.transpose(1, 2)[:, :, 5:45].transpose(1, 2)
    views = *views[:4], views[4].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(x.is_contiguous() for x in views)
    copies = [x.contiguous() for x in views]
    indices, positions = selection(b=2, t=3, topk=30)[..., :20], torch.randint(0, 40, (3,))
    for function, argument in ((selected_loss, indices), (warmup_loss, positions)):
        assert_close(run(function, views, argument), run(function, copies, argument), atol=0, rtol=0)


def test_nothing_to_learn_from():
    for t, s, topk in ((0, 5, 3), (3, 0, 2), (3, 5, 0)):
        tensors = inputs(t=t, s=s)
        for function, argument in (
            (selected_loss, torch.full((1, t, topk), -1, dtype=torch.int32)),
            (warmup_loss, torch.full((t,), -1)),
        ):
            loss, *gradients = run(function, tensors, argument)
            assert loss.shape == (1, t) and all(x.eq(0).all() for x in (loss, *gradients))


WRONG = {
    "of index_q, index_k, index_w: expected q": lambda a, b, c, q, k: (a, b[..., :8], c, q, k),
    "of index_q, index_k, index_w: q and k must share": lambda a, b, c, q, k: (a, b.half(), c, q, k),
    "heads x width of index_q": lambda a, b, c, q, k: (
        a.repeat(1, 1, 22, 8).half(), b.repeat(1, 1, 8).half(), c.repeat(1, 1, 22), q, k,
    ),
    "q must be \\[2, 5, h, e\\] and k": lambda a, b, c, q, k: (a, b, c, q[:, 1:], k),
    "got \\[2, 5, 4, 16\\] and \\[2, 39, 2, 16\\]": lambda a, b, c, q, k: (a, b, c, q, k[:, 1:]),
    "g must divide h": lambda a, b, c, q, k: (a, b, c, q[:, :, :3], k),
    "with 1 to 16 heads": lambda a, b, c, q, k: (a, b, c, q.repeat(1, 1, 9, 1), k),
    "e be one of": lambda a, b, c, q, k: (a, b, c, q[..., :12], k[..., :12]),
    "q and k must share one of float32": lambda a, b, c, q, k: (a, b, c, q, k.half()),
    "one of float32, float16": lambda a, b, c, q, k: (a, b, c, q.double(), k.double()),
    "on one CUDA device": lambda a, b, c, q, k: (a, b, c, q.to("meta"), k),
    "fit 31 bits": lambda a, b, c, q, k: (
        a, b[:, :1], c, q, k.as_strided((2, 1, 2, 16), (32, 2**31, 16, 1)),
    ),
    "last axis of q and k": lambda a, b, c, q, k: (a, b, c, q, k.mT.contiguous().mT),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_the_door(message):
    changed = WRONG[message](*inputs(b=2))
    for function, argument in ((selected_loss, selection(b=2)), (warmup_loss, torch.zeros(5, dtype=torch.int32))):
        with pytest.raises(ValueError, match=message):
            function(*changed, argument)


def test_the_doors_own_arguments():
    tensors, indices = inputs(b=2), selection(b=2)
    lse = torch.zeros(2, 5, 4)
    for message, arguments in {
        "indices must be int32 or int64 \\[2, 5, k\\]": (indices[:, 1:],),
        "got torch.float32": (indices.float(),),
        "with unit last stride": (indices.mT.contiguous().mT,),
        "lse must be float32 \\[2, 5, 4\\]": (indices, lse[..., 1:]),
        "got torch.float64": (indices, lse.double()),
        "last axis of lse": (indices, lse.mT.contiguous().mT),
    }.items():
        with pytest.raises(ValueError, match=message):
            selected_loss(*tensors, *arguments)
    positions = torch.zeros(5, dtype=torch.int32)
    for message, arguments in {
        "positions must be int32 or int64 \\[5\\]": (positions[1:],),
        "got torch.float32": (positions.float(),),
        "start must be int32 or int64 \\[2\\] or \\[2, 5\\]": (positions, torch.zeros(3, dtype=torch.int32)),
    }.items():
        with pytest.raises(ValueError, match=message):
            warmup_loss(*tensors, *arguments)
