"""Checkers of notebook 07, teaching the indexer."""

import torch
from torch import Tensor

from minikeye.exercises import checker, written
from minikeye.ops.torch_losses import kl_loss

NEVER = -torch.inf
NONE = -1  # marks no key


@checker
def check_sparse_targets(answer):
    """answer(p [h s], chosen [k], groups) -> [g k]: truncated, renormalised, averaged within groups; -1 is none."""
    p = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).mul(2).softmax(dim=-1)
    chosen = torch.tensor([0, 2, 5, NONE])
    got = answer(p, chosen, 2)
    written(got, "sparse_targets")
    assert got.shape == (2, 4), (
        f"expected [2, 4], a row for each group and a column for each place, got {list(got.shape)}"
    )
    inside = p[:, [0, 2, 5]]
    heads = inside / inside.sum(dim=-1, keepdim=True)

    def like(expected: Tensor) -> bool:
        return torch.allclose(got[:, :3], expected, atol=1e-5)

    assert bool((got[:, 3] == 0).all()), (
        "the last place holds no key, and its target must be 0: -1 is not an index (to Python it is the last key; "
        "clamped to 0 it is the first)"
    )
    groups = heads.view(2, 2, 3)
    assert not like(inside.view(2, 2, 3).mean(dim=1)), "truncated, but not renormalised: each group must sum to 1"
    assert not like(groups.sum(dim=1)), "average the heads of a group: this is their sum, and it adds up to 2"
    late = inside.view(2, 2, 3).mean(dim=1)
    assert not like(late / late.sum(dim=-1, keepdim=True)), (
        "renormalise each head first and average then; this is the other way round, and a head with little attention "
        "inside the set counts too little"
    )
    assert not like(heads.view(2, 2, 3).mean(dim=0)), "heads 0 and 1 are the first group: they lie side by side"
    assert like(groups.mean(dim=1)), f"group 0 should get {groups[0].mean(dim=0).tolist()}, got {got[0].tolist()}"
    one = answer(p, torch.tensor([3]), 4)
    assert torch.allclose(one, torch.ones(4, 1)), "with one key in the set every target is 1, whatever p was"


@checker
def check_excess(answer):
    """answer(scores [t s], targets [t g s]) -> [t]: the warm-up loss less its floor."""
    draw = torch.Generator().manual_seed(0)
    causal = torch.ones(4, 4).tril().bool()
    scores = torch.randn(4, 4, generator=draw).mul(2).masked_fill(~causal, NEVER)
    logits = torch.randn(4, 3, 4, generator=draw).mul(2).masked_fill(~causal[:, None], NEVER)
    targets = logits.softmax(dim=-1)
    targets[3, :, 0] = 0.0
    targets = targets / targets.sum(dim=-1, keepdim=True)  # query 3 gives no attention to key 0, which it sees
    got = answer(scores, targets)
    written(got, "excess")
    assert got.shape == (4,), f"expected [4], a number for each query, got {list(got.shape)}"
    assert not bool(got.isnan().any()), (
        "nan: 0 times the logarithm of 0, or 0 times minus infinity. Use torch.xlogy, and put another number in place "
        "of minus infinity before you multiply"
    )
    loss = kl_loss(scores[None], targets[None])[0]
    middle = targets.mean(dim=1)
    expected = 3 * kl_loss(scores[None], middle[None, :, None])[0]

    def near(other: Tensor) -> bool:
        return torch.allclose(got, other, atol=1e-4)

    assert not near(loss), "this is the whole loss: subtract the floor, which no indexer can get below"
    assert not near(loss - expected), "this is the floor itself: subtract it from the loss"
    assert not near(expected / 3), "the sum over the groups is missing: 3 groups, 3 times the divergence of their mean"
    guess = scores.softmax(dim=-1)
    reverse = (torch.xlogy(guess, guess) - torch.xlogy(guess, middle.clamp(min=1e-30))).sum(dim=-1)
    assert not torch.allclose(got[:3], 3 * reverse[:3], atol=1e-4), (
        "the divergence is turned round: the target comes first, KL(p || softmax(I))"
    )
    assert near(expected), f"expected {expected.numpy().round(3).tolist()}, got {got.numpy().round(3).tolist()}"
    pair = answer(scores, targets[:, :2])
    assert torch.allclose(
        pair, 2 * kl_loss(scores[None], targets[None, :, :2].mean(dim=2, keepdim=True))[0], atol=1e-4
    ), "right for 3 groups, wrong for 2: the number of groups is the size of the targets' second axis"
    best = answer(middle.log(), targets)
    assert torch.allclose(best, torch.zeros(4), atol=1e-5), "where softmax(I) is the groups' mean, the excess is 0"


@checker
def check_hit_rate(answer):
    """answer(indices [n k], start [n], stop [n]) -> share of rows that select a key in start <= s < stop."""
    indices = torch.tensor([[3, 8, 12, 20], [0, 4, 10, 30], [0, 1, 14, NONE], [2, 7, 10, 11]])
    start, stop = torch.tensor([8, 5, 12, 8]), torch.tensor([12, 10, 14, 12])
    got = answer(indices, start, stop)
    written(got, "hit_rate")
    got = round(float(got), 4)
    assert got != 2.0, "return a share of the rows, not their number"
    assert got != 0.25, "look for any of the frame's tokens: its first one is not enough"
    assert got != 1.0, "stop is the first position after the frame and does not belong to it"
    assert got != 3 / 15, "this is the share of the frame's tokens that are selected; one is enough for a hit"
    assert got != round(3 / 16, 4), "this is the share of the selected keys that lie in the frame; count rows instead"
    assert got != 0.0, "one of the frame's tokens is enough: not all have to be selected"
    assert got == 0.5, f"rows 0 and 3 select a key of their frame, rows 1 and 2 do not: expected 0.5, got {got}"
    middle = answer(torch.tensor([[5]]), torch.tensor([4]), torch.tensor([7]))
    assert float(middle) == 1.0, "any of the frame's tokens is a hit: not its first and its last only"
    early = answer(torch.tensor([[5, NONE]]), torch.tensor([0]), torch.tensor([2]))
    assert float(early) == 0.0, "-1 is no key: it must not count as a hit in a frame at the very beginning"
