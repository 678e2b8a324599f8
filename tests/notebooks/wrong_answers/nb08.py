"""Wrong answers to the exercises of notebook 08, and what their checkers must say."""

from math import comb

import torch

from minikeye.exercises.nb08 import check_chance_of_hit, check_mass_kept, check_one_head


def clamped(attended, indices):
    return attended[indices.clamp(min=0)].sum()


def as_many(attended, indices):
    """Takes the first places, as many as there are keys: right where the empty places are the last."""
    return attended[indices[: (indices >= 0).sum()]].sum()


def best(scores, topk):
    return sorted(sorted(range(len(scores)), key=lambda s: (-scores[s].item(), s))[:topk])


def by_score(q, k, w, head, topk):
    scores = w[head] * (k @ q[head]).relu()
    return sorted(range(len(scores)), key=lambda s: (-scores[s].item(), s))[:topk]


def largest_positions(q, k, w, head, topk):
    """Right but for ties, which go to the larger position."""
    scores = w[head] * (k @ q[head]).relu()
    return sorted(sorted(range(len(scores)), key=lambda s: (-scores[s].item(), -s))[:topk])


WRONG_ANSWERS = [
    (check_mass_kept, lambda attended, indices: None, "write its body"),
    (check_mass_kept, lambda attended, indices: len(indices) / len(attended), "share of the keys"),
    (check_mass_kept, lambda attended, indices: attended[indices].mean(), "mean over the keys"),
    (check_mass_kept, lambda attended, indices: attended[indices].sum(), "last key"),
    (check_mass_kept, lambda attended, indices: attended[indices.unique()].sum(), "last key"),
    (check_mass_kept, clamped, "key 0"),
    (check_mass_kept, as_many, "may stand anywhere"),
    (check_one_head, lambda q, k, w, head, topk: None, "write its body"),
    (check_one_head, by_score, "ascending"),
    (check_one_head, lambda q, k, w, head, topk: best((k @ q[head]).relu(), topk), "gate of head 1"),
    (check_one_head, lambda q, k, w, head, topk: best(w[head].abs() * (k @ q[head]).relu(), topk), "gate of head 1"),
    (check_one_head, lambda q, k, w, head, topk: best(w[head] * (k @ q[head]), topk), "ReLU first"),
    (check_one_head, lambda q, k, w, head, topk: best((w[head] * (k @ q[head])).relu(), topk), "ReLU first"),
    (check_one_head, largest_positions, "stand at"),
    (check_chance_of_hit, lambda s, k, m: None, "write its body"),
    (check_chance_of_hit, lambda s, k, m: k * m / s, "can exceed 1"),
    (check_chance_of_hit, lambda s, k, m: 1 - (1 - m / s) ** k, "back before the next draw"),
    (check_chance_of_hit, lambda s, k, m: 1 - (1 - k / s) ** m, "back before the next draw"),
    (check_chance_of_hit, lambda s, k, m: comb(s - m, k) / comb(s, k), "subtract it from 1"),
    (check_chance_of_hit, lambda s, k, m: comb(m, 1) * comb(s - m, k - 1) / comb(s, k), "exactly one hit"),
    (check_chance_of_hit, lambda s, k, m: torch.tensor(0.5), "got 0.5"),
]
