"""Checkers of notebook 03, mixture of experts."""

import torch

from minikeye.exercises import checker, written


@checker
def check_chosen_weights(answer):
    """answer(logits [n x], c) -> weights [n c] of the c chosen experts, largest first, from their logits alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, generator=generator)
    got = answer(logits, 3)
    written(got, "chosen_weights")
    probabilities = logits.softmax(dim=-1).topk(3, dim=-1).values
    expected = probabilities / probabilities.sum(dim=-1, keepdim=True)
    assert got.shape == expected.shape, f"expected weights [5, 3], got {list(got.shape)}: one for each chosen expert"
    assert not torch.allclose(got.sum(dim=0), torch.ones(3)), (
        "the weights sum to 1 over the tokens (dim=0): take the softmax over the chosen experts (dim=-1)"
    )
    assert torch.allclose(got.sum(dim=-1), torch.ones(5)), (
        "the weights of a token do not sum to 1: they are not renormalised over its chosen experts"
    )
    assert torch.allclose(got, expected, atol=1e-6), "not the router's weights: softmax the largest logits of each row"


@checker
def check_busy_share(answer):
    """answer(load [x], devices) -> share of the time that devices work, when all wait for the fullest one."""
    counts = torch.tensor([40, 0, 10, 30, 20, 20])  # two experts a device: 40 tokens each
    got = answer(counts, 3)
    written(got, "busy_share")
    got = float(got)
    assert abs(got - 0.5) > 1e-6, "0.50 compares experts: the experts of one device work one after the other, add them"
    assert abs(got - 1.0) < 1e-6, f"three devices with 40 tokens each all work all the time: 1.0, got {got:.2f}"
    got = float(answer(torch.tensor([30, 30, 15, 5]), 2))
    assert got <= 1, f"a share cannot exceed 1, got {got:.2f}: divide the mean by the largest, not the reverse"
    assert abs(got - 40 / 60) < 1e-6, f"devices with 60 and 20 tokens work 0.67 of the time on average, got {got:.2f}"


@checker
def check_experts_read(answer):
    """answer(tokens, experts, chosen) -> expected number of different experts that a batch of tokens reads."""
    got = answer(1, 128, 8)
    written(got, "experts_read")
    assert got > 1, f"one token reads 8 experts, got {got:.2f}: return a number of experts, not a share"
    assert abs(got - 8) < 1e-6, (
        f"one token reads exactly 8 experts, got {got:.2f}: a token never picks the same expert twice, "
        "so it misses a given expert with probability 1 - 8 / 128"
    )
    got, expected = answer(16, 128, 8), 128 * (1 - (1 - 8 / 128) ** 16)
    assert abs(got - 128) > 1e-6, "128 is 16 x 8: two tokens may share an expert, which is then read once"
    assert abs(got - expected) < 1e-6, f"16 tokens read {expected:.1f} of 128 experts, got {got:.2f}"
