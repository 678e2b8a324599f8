"""Checkers of notebook 13, agents."""

import math

import torch
from torch import Tensor

from minikeye.exercises import checker, written

SECOND = 31.0  # when the card is there
MISS, HIT = [12.0], [SECOND]  # seconds of the frames that a look showed


def _flawed(right: bool, looks: list[list[float]], second: float) -> float:
    """VideoTemp-o3's reward, as the notebook has it."""
    if not right or not looks:
        return float(right)
    iou = (second in looks[-1]) / len({second, *looks[-1]})
    return 0.9 if iou < 0.1 else 1 + min(max((iou - 0.2) / 0.6, 0.0), 1.0)


@checker
def check_worse_than_not_looking(answer):
    """answer() -> the looks of an episode that ends right and earns less than being right without a look."""
    looks = answer()
    written(looks, "worse_than_not_looking")
    assert isinstance(looks, list | tuple) and all(isinstance(look, list | tuple) for look in looks), (
        f"expected a list of looks, each a list of seconds such as [[12.0], [31.0]], got {looks!r}"
    )
    assert looks, "this episode never looked: it earns 1, and an episode that looked is to earn less"
    assert all(looks), "a look shows at least one frame: give its second"
    earns = _flawed(True, [list(look) for look in looks], SECOND)
    assert earns >= 1 or SECOND not in looks[-1] or len(set(looks[-1])) <= 4, (
        "a look shows at most 4 frames; with fewer the last look would have earned more"
    )
    assert earns < 1, (
        f"this earns {earns:.2f}, not less than the 1 of never looking: only the last look counts, and this one's "
        f"overlap with the truth is at least 0.1. Where must it go to have none?"
    )


@checker
def check_honest_reward(answer):
    """answer(right, looks, second) -> 0..1: a right answer whose reason was looked at earns 1, all else 0."""
    seen: dict[str, float] = {}
    cases = {
        "hit": (True, [HIT]),
        "miss, hit": (True, [MISS, HIT]),
        "hit, miss": (True, [HIT, MISS]),
        "wide": (True, [[30.0, SECOND, 32.0]]),
        "miss": (True, [MISS]),
        "never": (True, []),
        "wrong, hit": (False, [HIT]),
        "wrong, never": (False, []),
    }
    for name, (right, looks) in cases.items():
        got = answer(right, [list(look) for look in looks], SECOND)
        written(got, "honest_reward")
        assert isinstance(got, bool | int | float) and math.isfinite(got), f"expected a number, got {got!r}"
        seen[name] = float(got)
    assert seen["wrong, hit"] == seen["wrong, never"] == 0, (
        "a wrong answer earns something: a policy would learn to look and say anything"
    )
    assert seen["never"] <= seen["miss"], (
        f"being right without a look earns {seen['never']:g}, after a wrong look {seen['miss']:g}: policies learn not "
        f"to look"
    )
    assert seen["never"] < seen["hit"], (
        "being right without a look earns as much as with one: whoever guesses saves the look"
    )
    assert seen["miss, hit"] >= seen["hit"], (
        "correcting a miss earns less than not missing: where nobody can know, a first look that misses is no mistake"
    )
    assert seen["hit, miss"] >= seen["hit"], (
        "a further look takes something away: only the last look counts here, and any look that showed the frame should"
    )
    assert seen["wide"] == seen["hit"], "a look may show neighbours of the frame as well: ask whether it is among them"
    assert seen["miss"] < seen["hit"], "a look anywhere earns as much as one at the card: ask what it showed"
    assert seen["hit"] == 1 and seen["miss"] == seen["never"] == 0, (
        f"expected 1 after a look at the card and 0 for a guess, got {seen['hit']:g} and {seen['never']:g}"
    )
    assert answer(True, [[40.0]], 40.0) == 1 and answer(True, [HIT], 40.0) == 0, (
        "right for a card at 31.0 s, wrong for another: take its second from the argument"
    )


@checker
def check_sequence_ratio(answer):
    """answer(new [n t], old [n t], mask [n t]) -> [n]: GSPO's ratio of each episode, over the drawn tokens alone."""
    new = torch.tensor([[-1.0, -0.5, -2.0, -1.0], [-0.2, -3.0, -1.0, -0.4], [-1.0, -1.0, -1.0, -1.0]])
    old = torch.tensor([[-1.2, -0.9, 0.0, -1.1], [-0.1, 0.0, -1.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, True], [True, False, True, False], [False] * 4])
    got = answer(new.clone(), old.clone(), mask.clone())
    written(got, "sequence_ratio")
    assert torch.is_tensor(got) and got.shape == (3,), "expected a ratio for each episode, a tensor [n]"
    difference = torch.where(mask, new - old, 0.0)
    count = mask.sum(dim=1)
    like = lambda other: torch.allclose(got[:2].double(), other[:2].double(), atol=1e-5)  # noqa: E731
    assert not like((new - old).mean(dim=1).exp()), (
        "told tokens are in it: their old log-probability is 0 because nobody drew them. Use the mask"
    )
    assert not like(difference.mean(dim=1).exp()), (
        "divided by all tokens: a tool that talks much would make every ratio 1. Divide by the drawn ones"
    )
    assert not like(difference.sum(dim=1).exp()), "this is the product of the ratios: GSPO takes their geometric mean"
    assert not like((difference.exp() * mask).sum(dim=1) / count), (
        "this is the arithmetic mean of the ratios: average their logarithms"
    )
    wanted = (difference.sum(dim=1) / count.clamp(min=1)).exp()
    assert not like(1 / wanted), "turned round: the new policy stands above, the one that drew below"
    assert not like((torch.where(mask, 0.0, new - old).sum(dim=1) / (~mask).sum(dim=1)).exp()), (
        "the mask is inverted: True is what was drawn"
    )
    assert like(wanted), f"expected {wanted[:2].numpy().round(4)}, got {got[:2].numpy().round(4)}"
    assert not bool(got.isnan().any()), "an episode without a drawn token gives 0 / 0: let its ratio be 1"
    assert float(got[2]) == 1.0, f"an episode without a drawn token has moved nowhere: ratio 1, got {float(got[2])}"
    odd = new.masked_fill(~mask, -torch.inf)
    assert _same(answer(odd, old.masked_fill(~mask, torch.nan), mask), wanted), (
        "what stands at told tokens must not matter, not even -inf or nan: a product with 0 is nan there. Use "
        "torch.where or masked_fill"
    )


def _same(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(got, wanted, atol=1e-5)
