"""Wrong answers to the exercises of notebook 05, and what their checkers must say."""

import torch

from minikeye.exercises.nb05 import check_index_scores, check_indexer_bill, check_select


def scores(q, k, w, order):
    """Scores with the ReLU in another place."""
    dots = torch.einsum("tji,si->tjs", q, k)
    gated = w[:, :, None] * dots
    places = {
        "none": gated.sum(1),
        "after": gated.sum(1).relu(),
        "gate": gated.relu().sum(1),
        "right": (w[:, :, None] * dots.relu()).sum(1),
        "mean": (w[:, :, None] * dots.relu()).mean(1),
    }
    return places[order] / q.shape[-1] ** 0.5


def masked(q, k, w, hidden):
    """Scores where the future is hidden."""
    future = torch.ones(len(q), len(k)).triu(1).bool()
    return scores(q, k, w, "right").masked_fill(future, hidden)


def topk(scores, k):
    return scores.topk(k, dim=-1).indices


def flipped(scores, k):
    """A stable sort of the reversed row: of equal scores the larger position wins."""
    last = scores.shape[1] - 1
    best = last - scores.flip(1).argsort(dim=1, descending=True, stable=True)[:, :k]
    return padded(scores, best)


def padded(scores, best):
    best = best.masked_fill(scores.gather(1, best) == -torch.inf, 99).sort(dim=1).values
    return best.masked_fill(best == 99, -1)


def minus_one_first(scores, k):
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return best.masked_fill(scores.gather(1, best) == -torch.inf, -1).sort(dim=1).values


def best_first(scores, ranked, k):
    """Select by `ranked` instead of the scores, by a stable sort."""
    return padded(scores, ranked.argsort(dim=1, descending=True, stable=True)[:, :k])


def without_negative(scores, k):
    kept = scores.masked_fill(scores < 0, -torch.inf)
    return best_first(kept, kept, k)


def nudged(scores, k, by=1e-6, dtype=torch.float32):
    """Ties broken by taking a little off later positions."""
    nudge = by * torch.arange(scores.shape[1], dtype=dtype)
    return padded(scores, (scores.to(dtype) - nudge).topk(k, dim=1).indices)


def bill(flop, size):
    return lambda config: (flop(config.indexer), size(config.indexer, config.text.layers))


def pair(index):
    return 2 * index.heads * index.width


def key(index, layers):
    return 2 * layers * index.width


WRONG_ANSWERS = [
    (check_index_scores, lambda q, k, w: None, "write its body"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "right").T, r"expected \[3, 5\]"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "right") * 4, "factor is missing"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "right") * 4 / 9**0.5, "not of the number of heads"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "mean") * 4, "mean over heads"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "none"), "no ReLU"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "after"), "after the sum"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "gate"), "inside the ReLU"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "mean"), r"I\[0, 0\] should be"),
    (check_index_scores, lambda q, k, w: masked(q, k, w, -torch.inf), r"I\[0, 1\] should be .* got -inf"),
    (check_index_scores, lambda q, k, w: masked(q, k, w, 0.0), r"I\[0, 1\] should be .* got 0.0000; every query"),
    (check_select, lambda scores, k: None, "write its body"),
    (check_select, lambda scores, k: topk(scores, k).T, r"expected \[2, 3\]"),
    (check_select, topk, "ascending order"),
    (check_select, lambda scores, k: topk(-scores, k).sort().values, "the best three"),
    (check_select, lambda scores, k: topk(scores, k).sort().values, "-inf was selected"),
    (check_select, minus_one_first, "at the end"),
    (check_select, flipped, "smaller position wins"),
    (check_select, lambda scores, k: padded(scores, topk(scores, k)), "smaller position wins"),
    (
        check_select,
        without_negative,
        r"a negative score is a score .* expected \[1, 3, 4, 5\] .* got \[5, -1, -1, -1\]",
    ),
    (check_select, lambda scores, k: best_first(scores, scores.abs().nan_to_num(posinf=-1), k), "a negative score is"),
    (check_select, nudged, r"by a hair: expected \[0, 1, 5\], got \[0, 1, 2\]"),
    (check_select, lambda scores, k: nudged(scores, k, 1e-9, torch.float64), "by a hair"),
    (
        check_select,
        lambda scores, k: best_first(scores, scores, k) if len(scores) < 50 else topk(scores, k),
        "random rows",
    ),
    (check_indexer_bill, lambda config: None, "write its body"),
    (check_indexer_bill, lambda config: 2048, "two numbers"),
    (check_indexer_bill, bill(lambda index: index.heads * index.width, key), "2 FLOP"),
    (check_indexer_bill, lambda config: (4 * config.text.heads * config.text.head_width, 0), "the attention itself"),
    (check_indexer_bill, bill(lambda index: 4 * index.heads * index.width, key), "no values"),
    (check_indexer_bill, bill(lambda index: 2 * index.width, key), "expected 2,048 FLOP"),
    (check_indexer_bill, bill(pair, lambda index, layers: key(index, layers) * index.heads), "share one key"),
    (check_indexer_bill, bill(pair, lambda index, layers: 2 * index.width), "one layer"),
    (check_indexer_bill, bill(pair, lambda index, layers: layers * index.width), "takes 2 bytes"),
    (check_indexer_bill, bill(pair, lambda index, layers: 4 * layers * index.width), "keeps no values"),
    (check_indexer_bill, bill(pair, lambda index, layers: 2 * layers * (index.width + 1)), "expected 6,144 bytes"),
    (check_indexer_bill, lambda config: (2048, 6144), "read the config"),
    (
        check_indexer_bill,
        bill(pair, lambda index, layers: key(index, 48)),
        r"expected \(16384, 9216\), got \(16384, 12288\)",
    ),
]
