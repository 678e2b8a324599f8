"""Checkers of notebook 11, GSPO and Context-RL."""

import torch
from torch import Tensor

from minikeye.exercises import checker, written


@checker
def check_span_reward(answer):
    """answer(text, start, end) -> temporal IoU of the one interval that the text gives; 0 for any other text."""
    got = answer("[[3.0, 9.0]]", 3.0, 9.0)
    written(got, "span_reward")
    assert abs(got - 1) < 1e-6, f"the very interval earns 1, got {got}"
    said = float(answer("[[0.0, 96.0]]", 3.0, 9.0))
    assert said < 0.5, (
        f"[[0.0, 96.0]] earns {said:.2f}: who covers the whole video covers the truth too. Divide by what the two "
        "intervals cover together, not by the length of the truth"
    )
    assert abs(said - 6 / 96) < 1e-6, f"6 of 96 seconds are shared: 0.0625, got {said:.4f}"
    half = float(answer("[[6.0, 12.0]]", 3.0, 9.0))
    assert abs(half - 3 / 9) < 1e-6, f"6 to 12 s against 3 to 9 s share 3 of 9 seconds: 0.33, got {half:.2f}"
    for wrong in ("", "from 3.0 to 9.0", "[[9.0, 3.0]]"):
        assert answer(wrong, 3.0, 9.0) == 0, f"{wrong!r} is no interval and earns 0, not {answer(wrong, 3.0, 9.0)}"
    apart = answer("[[20.0, 30.0]]", 3.0, 9.0)
    assert apart == 0, f"intervals that share nothing earn 0, got {apart:.2f}: what is shared is never less than 0"
    many = answer("[[0.0, 3.0], [3.0, 9.0], [9.0, 12.0]]", 3.0, 9.0)
    assert many != 1, "three intervals, one of them right, earn 1: a policy would learn to bet on all. One or nothing"
    assert many == 0, f"a text with three intervals is not an answer with one: 0, got {many:.2f}"


@checker
def check_group_advantages(answer):
    """answer(rewards [b g]) -> [b g]: how much better than its group each answer is, in standard deviations."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    got = answer(rewards)
    written(got, "group_advantages")
    assert got.shape == rewards.shape, (
        f"expected {list(rewards.shape)}, a number for each answer, got {list(got.shape)}"
    )
    high, low = 3**0.5, 1 / 3**0.5  # one of four differs: mean 1/4 or 3/4, deviation sqrt(3) / 4
    expected = torch.tensor([[high, -low, -low, -low], [low, low, low, -high], [0.0] * 4])

    def like(other: Tensor) -> bool:
        return torch.allclose(got, other, atol=1e-2)

    assert not bool(got.isnan().any()), (
        "nan: the third group's rewards are equal, and 0 / 0 is none. Add 1e-4 to the std"
    )
    assert not like(rewards), (
        "these are the rewards themselves. Without a baseline every answer with a reward is pushed up, the usual ones "
        "too, and nothing says which of them was better than expected"
    )
    assert not like(rewards / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)), "the baseline is missing"
    assert not bool((got[2].abs() > 1e-2).any()), (
        "the third group agrees: all its advantages are 0. The baseline is the mean of the answer's own group, not of "
        "the batch"
    )
    assert not like(rewards - rewards.mean(dim=1, keepdim=True)), "divide by the group's standard deviation"
    assert not like(expected * (3 / 4) ** 0.5), "the standard deviation of the group itself: correction=0"
    assert like(expected), f"group 0 should get {expected[0].tolist()}, got {got[0].tolist()}"


@checker
def check_answer_logprobs(answer):
    """answer(logits [t v], ids [t], first) -> [t - first]: log-probability of each token from place `first` on."""
    draw = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(7, 5, generator=draw).mul(2), torch.randint(5, (7,), generator=draw)
    got = answer(logits, ids, 4)
    written(got, "answer_logprobs")
    table = logits.log_softmax(dim=-1)

    def said(rows: range, tokens: range) -> Tensor:
        return torch.stack([table[row, ids[token]] for row, token in zip(rows, tokens, strict=True)])

    expected = said(range(3, 6), range(4, 7))
    assert got.ndim == 1 and len(got) > 0, f"expected a number for each of 3 tokens, got {list(got.shape)}"
    assert not (len(got) == 3 and torch.allclose(got, said(range(4, 7), range(4, 7)), atol=1e-5)), (
        "shifted by one: row n of the logits is about token n + 1. Token 4 is predicted by row 3, the prompt's last"
    )
    assert not (len(got) == 2 and torch.allclose(got, expected[1:], atol=1e-5)), (
        "the answer's first token is missing: it is predicted by the prompt's last row, and it was drawn like the rest"
    )
    assert not (len(got) == 2 and torch.allclose(got, expected[:-1], atol=1e-5)), (
        "the answer's last token is missing: when to stop is learnt too"
    )
    assert len(got) != 4, "four tokens: one of them is the prompt's, which the policy did not draw"
    assert len(got) == 3, f"ids[4:] are 3 tokens, got {len(got)} numbers"
    raw = torch.stack([logits[row, ids[row + 1]] for row in range(3, 6)])
    assert not torch.allclose(got, raw, atol=1e-5), "these are logits: a log_softmax over the vocabulary is missing"
    assert not torch.allclose(got, expected.exp(), atol=1e-5), "these are probabilities: take their logarithm"
    assert torch.allclose(got, expected, atol=1e-5), f"expected {expected.tolist()}, got {got.tolist()}"
