"""Wrong answers to the exercises of notebook 07, and what their checkers must say."""

import torch

from minikeye.exercises.nb07 import check_excess, check_hit_rate, check_sparse_targets
from minikeye.ops.torch_losses import kl_loss


def targets(p, chosen, groups, *, pad="mask", order="heads first", reduce="mean", deal=False):
    """Right but for the argument that is given."""
    kept = p[:, chosen if pad == "wrap" else chosen.clamp(min=0)]
    if pad == "mask":
        kept = kept.masked_fill(chosen < 0, 0.0)
    shape = (-1, groups, len(chosen)) if deal else (groups, -1, len(chosen))
    axis = 0 if deal else 1
    normal = lambda z: z / z.sum(dim=-1, keepdim=True)  # noqa: E731
    if order == "mean first":
        return normal(kept.view(shape).mean(dim=axis))
    if order == "never":
        return kept.view(shape).mean(dim=axis)
    heads = normal(kept).view(shape)
    return heads.sum(dim=axis) if reduce == "sum" else heads.mean(dim=axis)


def changed(**change):
    return lambda p, chosen, groups: targets(p, chosen, groups, **change)


def mean_loss(scores, p):
    return kl_loss(scores[None], p.mean(dim=1)[None, :, None])[0]


def loss(scores, p):
    return kl_loss(scores[None], p[None])[0]


def naive(scores, p):
    """0 log 0 is nan."""
    m = p.mean(dim=1)
    return p.shape[1] * (m * (m.log() - scores.log_softmax(dim=-1))).sum(dim=-1)


def reverse(scores, p):
    guess, m = scores.softmax(dim=-1), p.mean(dim=1).clamp(min=1e-30)
    return p.shape[1] * (torch.xlogy(guess, guess) - torch.xlogy(guess, m)).sum(dim=-1)


def over_queries(scores, p):
    """The softmax is taken along the wrong axis."""
    m, guess = p.mean(dim=1), scores.softmax(dim=0)
    return p.shape[1] * (torch.xlogy(m, m) - torch.xlogy(m, guess.clamp(min=1e-30))).sum(dim=-1)


def ends(indices, start, stop):
    """The frame's first and last token only."""
    return ((indices == start[:, None]) | (indices == stop[:, None] - 1)).any(1).float().mean()


def inside(indices, start, stop):
    return (indices >= start[:, None]) & (indices < stop[:, None])


WRONG_ANSWERS = [
    (check_sparse_targets, lambda p, chosen, groups: None, "write its body"),
    (check_sparse_targets, lambda p, chosen, groups: targets(p, chosen, groups).T, r"expected \[2, 4\]"),
    (check_sparse_targets, changed(pad="wrap"), "is not an index"),
    (check_sparse_targets, changed(pad="clamp"), "clamped to 0"),
    (check_sparse_targets, changed(order="never"), "not renormalised"),
    (check_sparse_targets, changed(reduce="sum"), "adds up to 2"),
    (check_sparse_targets, changed(order="mean first"), "other way round"),
    (check_sparse_targets, changed(deal=True), "side by side"),
    (check_sparse_targets, lambda p, chosen, groups: targets(p.log(), chosen, groups), "group 0 should get"),
    (check_excess, lambda scores, p: None, "write its body"),
    (check_excess, lambda scores, p: loss(scores, p).mean(), r"expected \[4\]"),
    (check_excess, naive, "0 times the logarithm"),
    (check_excess, loss, "the whole loss"),
    (check_excess, lambda scores, p: loss(scores, p) - 3 * mean_loss(scores, p), "the floor itself"),
    (check_excess, mean_loss, "3 groups"),
    (check_excess, lambda scores, p: 3 * mean_loss(scores, p), "wrong for 2"),
    (check_excess, reverse, "turned round"),
    (check_excess, over_queries, "expected .*, got"),
    (check_hit_rate, lambda indices, start, stop: None, "write its body"),
    (check_hit_rate, lambda indices, start, stop: inside(indices, start, stop).any(1).sum(), "not their number"),
    (check_hit_rate, lambda indices, start, stop: inside(indices, start, start + 1).any(1).float().mean(), "first one"),
    (check_hit_rate, ends, "first and its last only"),
    (check_hit_rate, lambda indices, start, stop: inside(indices, start, stop + 1).any(1).float().mean(), "after the"),
    (
        check_hit_rate,
        lambda indices, start, stop: inside(indices, start, stop).sum() / (stop - start).sum(),
        "share of the frame's tokens",
    ),
    (check_hit_rate, lambda indices, start, stop: inside(indices, start, stop).float().mean(), "share of the selected"),
    (
        check_hit_rate,
        lambda indices, start, stop: (inside(indices, start, stop).sum(1) == stop - start).float().mean(),
        "not all have to",
    ),
    (
        check_hit_rate,
        lambda indices, start, stop: inside(indices % 32, start, stop).any(1).float().mean() + 0.1,
        "rows 0 and 3",
    ),
    (
        check_hit_rate,
        lambda indices, start, stop: inside(indices.clamp(min=0), start, stop).any(1).float().mean(),
        "-1 is no key",
    ),
]
