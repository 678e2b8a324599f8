"""The indexer's scores and losses against transformers' DeepSeek-V3.2 indexer, closed forms and loops."""

from types import SimpleNamespace

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.testing import assert_close
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer

from minikeye import ops
from minikeye.config import IndexerConfig, KeyeConfig, TextConfig
from minikeye.model import indexer as ix
from minikeye.model.rope import mrope
from minikeye.ops import torch_losses as losses

NEVER = -float("inf")
B, T, S, G, R, E = 2, 4, 7, 2, 3, 8  # batch, queries, keys, groups, heads a group, head width


def config(heads: int = 3, width: int = 16) -> KeyeConfig:
    text = TextConfig(vocab=9, width=24, layers=1, head_width=2 * width, mrope_section=(4, 6, 6))
    return KeyeConfig(text=text, indexer=IndexerConfig(heads=heads, width=width))


def distributions(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(-1)


# -------------------------------------------------------------------------------------------------------------- module


@torch.no_grad()
def test_selection_is_deepseeks():
    """Same projections, norms, rotation and scores as DeepSeek-V3.2's indexer, so the same selection.

    It takes its queries from a compressed state, has no norm on them, and scales its gates by heads^-1/2, which selects
    the same keys. Here: the hidden state itself, a norm put after the projection, and all channels rotated.
    """
    ours = ix.Indexer(config())
    theirs = DeepseekV32Indexer(
        SimpleNamespace(
            hidden_size=24, q_lora_rank=24, index_n_heads=3, index_head_dim=16, qk_rope_head_dim=16, index_topk=5
        ),
        layer_idx=0,
    )
    for p in ours.parameters():
        nn.init.normal_(p)
    queries, gates = ours.q_proj.weight.split([48, 3])
    state = {"wq_b.weight": queries, "weights_proj.weight": gates, "wk.weight": ours.k_proj.weight}
    theirs.load_state_dict(state | {f"k_norm.{n}": t for n, t in ours.k_norm.state_dict().items()})
    theirs.wq_b = nn.Sequential(theirs.wq_b, nn.Unflatten(-1, (3, 16)), ours.q_norm, nn.Flatten(-2))
    x, positions = torch.randn(B, 20, 24), torch.randint(50, (3, B, 20))
    cos, sin = mrope(positions, 16, 1e4, (2, 3, 3))
    causal = torch.ones(20, 20, dtype=torch.bool).tril().expand(B, -1, -1)
    expected, got = theirs(x, x, (cos, sin), causal, None), ops.select_topk(*ours(x, cos, sin), 5)
    scores = ops.index_scores(*ours(x, cos, sin))
    for t in range(4, 20):  # earlier queries have fewer than 5 keys, theirs are filled up
        a, b = (scores[:, t].gather(-1, z[:, t].long()).sort().values for z in (got, expected))
        assert_close(a, b)  # scores, not positions: keys that no head likes tie at 0, and torch.topk takes any of them
        assert (a != 0).any()


def test_projections_are_a_loop():
    """Queries first, then one gate a head; RMSNorm and a rotation over all channels; gates raw, in float32."""
    ours = ix.Indexer(config())
    nn.init.normal_(ours.q_norm.weight)
    x = torch.randn(1, 2, 24)
    q, k, w = ours(x, torch.ones(1, 2, 16), torch.zeros(1, 2, 16))
    for t in range(2):
        row = ours.q_proj.weight @ x[0, t]
        for j in range(3):
            head = row[16 * j : 16 * (j + 1)]
            assert_close(q[0, t, j], head / (head.square().mean() + 1e-6).sqrt() * ours.q_norm.weight)
            assert_close(w[0, t, j], row[48 + j])
        key = ours.k_proj.weight @ x[0, t]
        assert_close(k[0, t], (key - key.mean()) / (key.var(correction=0) + 1e-6).sqrt())


def test_no_gradient_into_the_model():
    x = torch.randn(1, 3, 24, requires_grad=True)
    out = ix.Indexer(config())(x, torch.ones(1, 3, 16), torch.zeros(1, 3, 16))
    assert all(z.requires_grad for z in out)
    sum(z.sum() for z in out).backward()
    assert x.grad is None


# -------------------------------------------------------------------------------------------------------------- losses


def test_kl_is_torchs():
    """Sum over groups of KL(p_g || softmax(I)), per query."""
    scores, targets = torch.randn(B, T, S, dtype=torch.float64), distributions(B, T, G, S)
    expected = sum(
        nn.functional.kl_div(scores.log_softmax(-1), targets[:, :, g], reduction="none").sum(-1) for g in range(G)
    )
    assert_close(losses.kl_loss(scores, targets), expected)


def test_closed_form_gradient():
    """dL/dI = G (softmax(I) - mean over groups of p); zero for a key that does not take part."""
    scores = (
        torch.randn(B, T, S, dtype=torch.float64).masked_fill(torch.ones(T, S).triu(3).bool(), NEVER).requires_grad_()
    )
    targets = (
        torch.randn(B, T, G, S, dtype=torch.float64)
        .masked_fill(scores.detach()[:, :, None] == NEVER, NEVER)
        .softmax(-1)
    )
    losses.kl_loss(scores, targets).sum().backward()
    assert_close(scores.grad, G * (scores.softmax(-1) - targets.mean(2)).detach())


def test_gradcheck():
    scores = torch.randn(1, 3, S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses.kl_loss, (scores, distributions(1, 3, G, S)))


def test_floor_is_jensen_shannon():
    """The best single softmax is the mean of the groups; what is left is G times their Jensen-Shannon divergence."""
    targets = distributions(B, T, G, S)
    best = losses.kl_loss(targets.mean(2).log(), targets)
    for b, t in torch.cartesian_prod(torch.arange(B), torch.arange(T)).tolist():
        distance = jensenshannon(*targets[b, t].numpy())  # scipy returns the square root
        assert best[b, t].item() == pytest.approx(G * distance**2)
    assert (losses.kl_loss(torch.randn(B, T, S, dtype=torch.float64), targets) > best).all()


def test_targets_get_no_gradient():
    logits = torch.randn(1, 1, G, S, requires_grad=True)
    scores = torch.randn(1, 1, S, requires_grad=True)
    losses.kl_loss(scores, logits.softmax(-1)).sum().backward()
    assert logits.grad is None and scores.grad is not None


def test_a_query_without_keys_has_no_loss():
    """As left padding makes them: loss 0 and no nan in any gradient."""
    scores, targets = torch.randn(1, 2, S), distributions(1, 2, G, S).float()
    scores[0, 0], targets[0, 0] = NEVER, 0.0
    scores.requires_grad_()
    loss = losses.kl_loss(scores, targets)
    loss.sum().backward()
    assert loss[0, 0] == 0 and loss[0, 1] > 0 and scores.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("start", [None, torch.tensor([0, 5])])
def test_dense_targets_are_a_loop(start):
    """Softmax of every head over its valid keys, then the mean over the heads of a group; no keys, no mass."""
    q, k = torch.randn(B, T, G * R, E), torch.randn(B, S, G, E)
    got = losses.dense_targets(q, k, ops.valid_keys(T, S, 3, start))
    for b, t, g in torch.cartesian_prod(*map(torch.arange, (B, T, G))).tolist():
        first, last = 0 if start is None else int(start[b]), 3 + t
        expected = torch.zeros(S)
        if first <= last:
            heads = [(k[b, first : last + 1, g] @ q[b, t, g * R + r] / E**0.5).softmax(0) for r in range(R)]
            expected[first : last + 1] = torch.stack(heads).mean(0)
        assert_close(got[b, t, g], expected)


def selected(k: int = 3):
    """Attention queries and keys, index queries, keys and gates, and a selection with one padded query."""
    q, keys = torch.randn(B, T, G * R, E), torch.randn(B, S, G, E)
    index = torch.randn(B, T, 2, 4), torch.randn(B, S, 4), torch.randn(B, T, 2)
    indices = ops.select_topk(*index, k, offset=1)
    assert (indices[:, 0, -1] == -1).all()
    return q, keys, index, indices


def test_selected_targets_are_dense_ones_renormalised_per_head():
    q, keys, _, indices = selected()
    got = losses.selected_targets(q, ops.gather_rows(keys, indices), indices)
    for b, t, g in torch.cartesian_prod(*map(torch.arange, (B, T, G))).tolist():
        at = [n for n in indices[b, t].tolist() if n >= 0]
        dense = torch.stack([(keys[b, :, g] @ q[b, t, g * R + r] / E**0.5).softmax(0)[at] for r in range(R)])
        expected = (dense / dense.sum(1, keepdim=True)).mean(0)
        assert_close(got[b, t, g, : len(at)], expected)
        assert got[b, t, g, len(at) :].eq(0).all()


def test_selected_scores_are_index_scores_gathered():
    _, _, (q, k, w), indices = selected()
    keys = ops.gather_rows(k[:, :, None], indices).squeeze(3)
    every = ops.index_scores(q, k, w, offset=1)
    expected = every.gather(-1, indices.clamp(min=0).long()).masked_fill(indices < 0, NEVER)
    assert_close(losses.selected_scores(q, keys, w, indices), expected)


def test_all_keys_selected_makes_the_two_losses_one():
    q, keys, index, _ = selected()
    indices = ops.select_topk(*index, S, offset=S - 1)
    sparse = losses.kl_loss(
        losses.selected_scores(index[0], ops.gather_rows(index[1][:, :, None], indices).squeeze(3), index[2], indices),
        losses.selected_targets(q, ops.gather_rows(keys, indices), indices),
    )
    dense = losses.kl_loss(
        ops.index_scores(*index, offset=S - 1), losses.dense_targets(q, keys, ops.valid_keys(T, S, S - 1, None))
    )
    assert_close(sparse, dense)
