"""The error bounds: of the right equations, valid in any order of addition, and small enough to refuse a mistake."""

import pytest
import torch
from error_bounds import assert_within, attention, contract, given, index_scores, indexer_loss, listed, softmax

from minikeye import ops
from minikeye.ops.torch_attention import gather_index_rows
from minikeye.ops.torch_losses import kl_loss, selected_scores, selected_targets


def attention_inputs(dtype=torch.float32):
    q, k, v, dout = (torch.randn(shape).to(dtype) for shape in ((2, 9, 4, 16), *2 * [(2, 40, 2, 16)], (2, 9, 4, 16)))
    indices = ops.topk_positions(torch.randn(2, 9, 40), 20)
    indices[1, 3], indices[0, 2, :3] = -1, 7  # no key, and one key three times
    return q, k, v, indices, dout


def attend(q, k, v, indices, dout, scale=0.25):
    """In float64: out, lse, dq, dk, dv."""
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = ops.sparse_attention(*inputs, indices, scale, backend="torch")
    return [x.detach() for x in (out, lse, *torch.autograd.grad((out * dout).sum(), inputs))]


def loss_inputs(dtype=torch.float32):
    index_q, index_k, index_w, q, k = (
        torch.randn(shape) for shape in ((1, 5, 3, 24), (1, 40, 24), (1, 5, 3), (1, 5, 4, 16), (1, 40, 2, 16))
    )
    indices = ops.topk_positions(torch.randn(1, 5, 40), 18)
    return [index_q.to(dtype), index_k.to(dtype), index_w, q.to(dtype), k.to(dtype)], indices, torch.randn(1, 5)


def learn(tensors, indices, dloss):
    """In float64: the loss, and its gradients for the indexer's tensors."""
    index_q, index_k, index_w, q, k = (x.double().requires_grad_(n < 3) for n, x in enumerate(tensors))
    scores = selected_scores(index_q, gather_index_rows(index_k, indices), index_w, indices)
    loss = kl_loss(scores, selected_targets(q, ops.gather_rows(k, indices), indices))
    return [x.detach() for x in (loss, *torch.autograd.grad((loss * dloss).sum(), (index_q, index_k, index_w)))]


def test_they_are_of_the_equations_that_the_kernels_solve():
    q, k, v, indices, dout = attention_inputs()
    for bound, x in zip(attention(q, k, v, indices, None, dout), attend(q, k, v, indices, dout), strict=True):
        torch.testing.assert_close(bound.exact, x)
    tensors, indices, dloss = loss_inputs()
    bounds = indexer_loss(*tensors, listed(indices, 40), dloss)
    for bound, x in zip(bounds, learn(tensors, indices, dloss), strict=True):
        torch.testing.assert_close(bound.exact, x)
    scores = ops.index_scores(*(x.double() for x in tensors[:3]), offset=40)
    assert_within(scores, (bound := index_scores(*tensors[:3])).exact, bound.error)


def chopped(x):
    """float32, cut off at 23 bits and not rounded to nearest."""
    nearest = x.float()
    above = nearest.double().abs() > x.abs()
    return torch.where(above, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


@pytest.mark.parametrize("rounding", [torch.Tensor.float, chopped])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_sums_of_products_stay_within_in_any_order(rounding, size):
    """One after the other, the worst order there is, and ascending and descending. Long, with cancellation."""
    x, y = torch.randn(64, 300) * size, torch.randn(64, 300)
    bound = contract("ns,ns->n", given(x), given(y), 300)
    products = rounding(x.double() * y.double())
    for order in (products, products.sort().values, products.abs().sort().indices):
        terms = order if order.is_floating_point() else products.gather(-1, order)
        total = torch.zeros(64)
        for term in terms.unbind(-1):
            total = rounding(total.double() + term.double())
        assert_within(total, bound.exact, bound.error)
    assert bound.error.max() < 1e-4 * (x * y).abs().sum(-1).max(), "and no further than that"


@pytest.mark.parametrize("rounding", [torch.Tensor.float, chopped])
def test_an_online_softmax_stays_within_whatever_its_blocks(rounding):
    """Logits that come exactly; from small to large, so that the maximum changes with every block."""
    logits = torch.randn(64, 120).mul(10).sort().values
    weights, lse = softmax(given(logits), torch.ones(64, 120, dtype=torch.float64))
    for block in (8, 16, 120):
        m, total, p = torch.full((64, 1), -1e30), torch.zeros(64, 1), torch.zeros(64, 0)
        for part in logits.split(block, dim=-1):
            new = torch.maximum(m, part.amax(-1, keepdim=True))
            shrink = rounding(rounding(m.double() - new.double()).double().exp())
            fresh = rounding(rounding(part.double() - new.double()).double().exp())
            p = torch.cat([rounding(p.double() * shrink.double()), fresh], dim=-1)
            total = rounding(total.double() * shrink.double())
            for term in fresh.split(1, dim=-1):
                total = rounding(total.double() + term.double())
            m = new
        assert_within(rounding(p.double() / total.double()), weights.exact, weights.error, "weights")
        got = rounding(m.double() + rounding(total.double().log()).double())
        assert_within(got[:, 0], lse.exact, lse.error, "lse")


def without_a_key(q, k, v, indices, dout):
    """One query lacks one of its 20 keys."""
    indices = indices.clone()
    indices[0, 5, -1] = -1
    return attend(q, k, v, indices, dout)


def a_head_twice(q, k, v, indices, dout):
    dout = dout.clone()
    dout[0, 5, 1] *= 2
    return attend(q, k, v, indices, dout)


ALL = ["out", "lse", "dq", "dk", "dv"]
WRONG_ATTENTION = {
    "a scale 1% too large": (lambda *x: attend(*x, scale=0.2525), ALL),
    "a scale of 1/e": (lambda *x: attend(*x, scale=1 / 16), ALL),
    "a key too few": (without_a_key, ALL),
    "the gradient of one head of one query counted twice": (a_head_twice, ["dq", "dk", "dv"]),
    "the values of the next keys": (lambda q, k, v, *x: attend(q, k, v.roll(1, 1), *x), ["out", "dq", "dk"]),
    "the keys of the other group": (lambda q, k, v, *x: attend(q, k.flip(2), v, *x), ALL),
    "keys of 8 bits": (lambda q, k, *x: attend(q, k.bfloat16(), *x), ALL),
    "keys of 11 bits": (lambda q, k, *x: attend(q, k.half(), *x), ALL),
}


@pytest.mark.parametrize("mistake", WRONG_ATTENTION)
def test_what_attentions_bounds_refuse(mistake):
    """Twice the bound, so that no rounding makes up for the mistake."""
    function, spoiled = WRONG_ATTENTION[mistake]
    inputs = attention_inputs()
    truth, bounds = attend(*inputs), attention(*inputs[:4], None, inputs[4])
    got = zip(ALL, function(*inputs), truth, bounds, strict=True)
    assert [name for name, wrong, x, bound in got if ((wrong - x).abs() > 2 * bound.error).any()] == spoiled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mistake", [name for name in WRONG_ATTENTION if not name.startswith("keys of")])
def test_what_they_refuse_in_16_bits(mistake, dtype):
    """Whatever was stored is uncertain by a thousandth or by a hundredth, but the log-sum-exp is not stored so."""
    function, spoiled = WRONG_ATTENTION[mistake]
    inputs = attention_inputs(dtype)
    truth, bounds = attend(*inputs), attention(*inputs[:4], None, inputs[4])
    got = zip(ALL, function(*inputs), truth, bounds, strict=True)
    refused = [name for name, wrong, x, bound in got if ((wrong - x).abs() > 2 * bound.error).any()]
    assert refused == (["lse"] if "1%" in mistake and dtype == torch.bfloat16 else spoiled)


def without_a_loss_key(tensors, indices, dloss):
    indices = indices.clone()
    indices[0, 3, -1] = -1
    return learn(tensors, indices, dloss)


def with_another(n, change):
    return lambda tensors, *x: learn([change(x) if m == n else x for m, x in enumerate(tensors)], *x)


EVERY = ["loss", "d index_q", "d index_k", "d index_w"]
WRONG_LOSS = {
    "scores 1% too large": (with_another(2, lambda w: 1.01 * w), EVERY),
    "the teacher's logits 1% too large": (with_another(3, lambda q: 1.01 * q), EVERY),
    "a key too few": (without_a_loss_key, EVERY),
    "an index head counted twice in one query": (with_another(2, lambda w: w + w * torch.eye(5, 3)), EVERY),
    "the groups exchanged": (with_another(3, lambda q: q.flip(2)), EVERY),
    "index keys of 8 bits": (with_another(1, torch.Tensor.bfloat16), EVERY),
    "index keys of 11 bits": (with_another(1, torch.Tensor.half), EVERY[1:]),
    "the teacher's keys of 11 bits": (with_another(4, torch.Tensor.half), EVERY[1:3]),
}


@pytest.mark.parametrize("mistake", WRONG_LOSS)
def test_what_the_losses_bounds_refuse(mistake):
    function, spoiled = WRONG_LOSS[mistake]
    tensors, indices, dloss = loss_inputs()
    truth, bounds = learn(tensors, indices, dloss), indexer_loss(*tensors, listed(indices, 40), dloss)
    got = zip(EVERY, function(tensors, indices, dloss), truth, bounds, strict=True)
    assert [name for name, wrong, x, bound in got if ((wrong - x).abs() > 2 * bound.error).any()] == spoiled


@pytest.mark.parametrize("mistake", [1.001, torch.Tensor.half])
def test_what_the_scores_bound_refuses(mistake):
    (q, k, w, *_), _, _ = loss_inputs()
    bound = index_scores(q, k, w)
    wrong = bound.exact * mistake if isinstance(mistake, float) else index_scores(q, mistake(k), w).exact
    with pytest.raises(AssertionError, match=r"off by .* where its arithmetic allows"):
        assert_within(wrong, bound.exact, 2 * bound.error)


def test_what_is_infinite_must_be():
    lse = torch.tensor([1.0, -torch.inf])
    error = torch.zeros(2)
    assert_within(lse, lse.double(), error)
    for wrong in ([1.0, 0.0], [1.0, torch.nan], [torch.nan, -torch.inf], [-torch.inf, -torch.inf]):
        with pytest.raises(AssertionError):
            assert_within(torch.tensor(wrong), lse.double(), error)
