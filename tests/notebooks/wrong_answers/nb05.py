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
    (check_index_scores, lambda q, k, w: scores(q, k, w, "right") * 2, "not of the number of heads"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "none"), "no ReLU"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "after"), "after the sum"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "gate"), "inside the ReLU"),
    (check_index_scores, lambda q, k, w: scores(q, k, w, "mean"), r"I\[0, 0\] should be"),
    (check_select, lambda scores, k: None, "write its body"),
    (check_select, lambda scores, k: topk(scores, k).T, r"expected \[2, 3\]"),
    (check_select, topk, "ascending order"),
    (check_select, lambda scores, k: topk(-scores, k).sort().values, "the best three"),
    (check_select, lambda scores, k: topk(scores, k).sort().values, "-inf was selected"),
    (check_select, minus_one_first, "at the end"),
    (check_select, flipped, "smaller position wins"),
    (check_select, lambda scores, k: padded(scores, topk(scores, k)), "smaller position wins"),
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
]
