"""Wrong answers to the exercises of notebook 00, and what their checkers must say."""

import torch

from minikeye.exercises.nb00 import check_best_keys, check_frames_read


def count(indices, spans, inside):
    return torch.stack([inside(indices, span).sum(dim=-1) for span in spans], dim=-1)


def as_python_index(indices, spans):
    return count(
        torch.where(indices < 0, indices + spans[-1].stop, indices),
        spans,
        lambda at, span: (at >= span.start) & (at < span.stop),
    )


def clamped(indices, spans):
    return count(indices.clamp(min=0), spans, lambda at, span: (at >= span.start) & (at < span.stop))


def by_topk(scores, k):
    return scores.topk(min(k, len(scores))).indices


def above_kth(scores, k):
    return (scores >= scores.topk(k).values[-1]).nonzero().flatten()


def later_ties(scores, k):
    return sorted(sorted(range(len(scores)), key=lambda n: (scores[n].item(), n))[-k:])


def earlier_ties(scores, k):
    return sorted(sorted(range(len(scores)), key=lambda n: (-scores[n].item(), n))[:k])


def unpadded(scores, k):
    return [n for n in earlier_ties(scores, k) if scores[n] > -torch.inf]


def padded_before(scores, k):
    found = unpadded(scores, k)
    return [-1] * (k - len(found)) + found


WRONG_ANSWERS = [
    (check_frames_read, lambda indices, spans: None, "write its body"),
    (check_frames_read, lambda indices, spans: indices, "one column a frame"),
    (
        check_frames_read,
        lambda indices, spans: count(indices, spans, lambda at, s: (at >= s.start) & (at <= s.stop)),
        "one past",
    ),
    (
        check_frames_read,
        lambda indices, spans: count(indices, spans, lambda at, s: (at > s.start) & (at < s.stop)),
        "first token",
    ),
    (check_frames_read, lambda indices, spans: torch.zeros(len(indices), len(spans)).int(), "expected .*got"),
    (check_frames_read, clamped, "clamping"),
    (check_frames_read, as_python_index, "Python index"),
    (check_best_keys, lambda scores, k: None, "write its body"),
    (check_best_keys, by_topk, "ordered by score"),
    (check_best_keys, lambda scores, k: list(range(k)), "the three highest"),
    (check_best_keys, above_kth, "more are tied"),
    (check_best_keys, later_ties, "smaller positions win"),
    (check_best_keys, earlier_ties, "-inf"),
    (check_best_keys, unpadded, "pad with -1"),
    (check_best_keys, padded_before, "at the end"),
]
