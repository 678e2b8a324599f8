"""Checkers of notebook 08, the frame explorer."""

from itertools import combinations
from math import comb

import torch

from minikeye.exercises import checker, written


@checker
def check_mass_kept(answer):
    """answer(attended [s], indices [k]) -> share of the dense attention that the selected keys hold."""
    attended = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.4])
    got = _number(answer(attended, torch.tensor([0, 1, 3])), "mass_kept")
    assert abs(got - 3 / 5) > 1e-6, "this is the share of the keys: add up the attention that they get"
    assert abs(got - 0.55 / 3) > 1e-6, "this is the mean over the keys: add them up"
    assert abs(got - 0.55) < 1e-6, f"keys 0, 1 and 3 hold 0.1 + 0.2 + 0.25 = 0.55, got {got:.4f}"
    got = _number(answer(attended, torch.tensor([1, 2, -1, -1])), "mass_kept")
    assert abs(got - 1.05) > 1e-6 and abs(got - 0.65) > 1e-6, (
        "-1 was taken for the last key, as in a Python index: it marks an empty place"
    )
    assert abs(got - 0.45) > 1e-6 and abs(got - 0.35) > 1e-6, "-1 was taken for key 0: it marks an empty place"
    assert abs(got - 0.25) < 1e-6, f"keys 1 and 2 hold 0.25, the two empty places nothing; got {got:.4f}"
    got = _number(answer(attended, torch.tensor([1, -1, 2, -1])), "mass_kept")
    assert abs(got - 0.25) < 1e-6, f"an empty place may stand anywhere: [1, -1, 2, -1] holds 0.25, got {got:.4f}"
    got = _number(answer(attended, torch.tensor([-1, -1])), "mass_kept")
    assert got == 0, f"an empty set holds 0, got {got:.4f}"


@checker
def check_one_head(answer):
    """answer(q [j i], k [s i], w [j], head, topk) -> topk positions, as that head alone would select."""
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # head 0 looks at the first number of a key, head 1 at the second
    k = torch.tensor([[3.0, -4.0, 1.0, 3.5, -1.0, 0.5, -2.0], [0.0, 1.0, -2.0, 5.0, 4.0, -3.0, 0.0]]).T
    w = torch.tensor([2.0, -1.0])
    got = _positions(answer(q, k, w, 0, 2), "one_head")
    assert got != [3, 0], "these are ordered by score: return the positions in ascending order, [0, 3]"
    assert got == [0, 3], f"head 0 scores 6, 0, 2, 7, 0, 1, 0 (gate 2): the two best stand at [0, 3], got {got}"
    got = _positions(answer(q, k, w, 1, 2), "one_head")
    assert got != [3, 4], "the gate of head 1 is negative: it votes against the keys that it matches"
    assert got != [2, 5], (
        "without the ReLU a negative dot product times a negative gate looks good: ReLU first, then the gate"
    )
    assert got == [0, 2], f"head 1 scores 0, -1, 0, -5, -4, 0, 0: the first two zeros stand at [0, 2], got {got}"
    got = _positions(answer(q, torch.full((40, 2), -1.0), w, 0, 3), "one_head")
    assert got == [0, 1, 2], f"40 keys are tied at 0: the smaller positions win, [0, 1, 2]; got {got}"


@checker
def check_chance_of_hit(answer):
    """answer(s, k, m) -> probability that k of s keys, drawn without putting back, hit one of m given ones."""
    s, k, m = 8, 3, 2
    draws = list(combinations(range(s), k))
    counted = sum(min(draw) < m for draw in draws) / len(draws)  # the given ones are 0 and 1
    got = _number(answer(s, k, m), "chance_of_hit")
    assert abs(got - k * m / s) > 1e-6, "this is the number of hits to expect, which can exceed 1: not a probability"
    assert abs(got - (1 - (1 - m / s) ** k)) > 1e-6 and abs(got - (1 - (1 - k / s) ** m)) > 1e-6, (
        "this puts every key back before the next draw: a key is selected once"
    )
    assert abs(got - (1 - counted)) > 1e-6, "this is the probability of no hit: subtract it from 1"
    assert abs(got - comb(m, 1) * comb(s - m, k - 1) / comb(s, k)) > 1e-6, "this is exactly one hit: at least one"
    assert abs(got - counted) < 1e-6, f"{counted:.4f} of the {len(draws)} draws of 3 of 8 hit key 0 or 1, got {got:.4f}"
    got = _number(answer(10, 7, 4), "chance_of_hit")
    assert abs(got - 1) < 1e-9, f"7 of 10 keys cannot miss 4: 1, got {got:.4f}"
    got = _number(answer(973, 256, 6), "chance_of_hit")
    expected = 1 - comb(967, 256) / comb(973, 256)
    assert abs(got - expected) < 1e-6, f"for 256 of 973 keys and 6 given ones: {expected:.4f}, got {got:.4f}"


def _number(got: object, name: str) -> float:
    written(got, name)
    return float(got)


def _positions(got: object, name: str) -> list[int]:
    written(got, name)
    return torch.as_tensor(got).tolist()
