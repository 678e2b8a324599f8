"""Wrong answers to the exercises of notebook 16, and what their checkers must say."""

import torch

from minikeye.checkpoint.gguf_weights import halves
from minikeye.exercises.nb16 import check_into_file, check_lost, check_window_for


def into_file(rows, heads):
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def window_for(p, first, share, sinks, *, stand=True, add=True, short=0):
    """Right but for the argument that is given."""
    out = []
    for t, row in enumerate(p):
        at = first + t if stand else p.shape[1] - 1
        n = 0
        while n <= at:
            window = range(at - n + 1, at + 1)
            ours = {*window} | ({*range(sinks)} if add else set())
            if float(row[sorted(ours)].sum()) >= share - 1e-6:
                break
            n += 1
        out.append(n + short)
    return torch.tensor(out)


def best(p, first, share, sinks):
    """Any keys, not the last."""
    return 1 + (p.sort(dim=-1, descending=True).values.cumsum(dim=-1) < share).sum(dim=-1)


def changed(**change):
    return lambda *given: window_for(*given, **change)


def pairs(dense, sparse):
    return list(zip(dense, sparse, strict=True))


def count(dense, sparse, pair):
    return pairs(dense, sparse).count(pair)


def found(dense):
    return max(1, dense.count("1"))


WRONG_ANSWERS = [
    (check_into_file, lambda rows, heads: None, "write its body"),
    (check_into_file, lambda rows, heads: into_file(rows, heads)[:8], r"expected \[16, 2\]"),
    (check_into_file, lambda rows, heads: rows[:1].expand_as(rows), "each row must be there once"),
    (check_into_file, halves, "`halves` itself"),
    (
        check_into_file,
        lambda rows, heads: rows.view(heads, -1, rows.shape[1]).transpose(0, 1).reshape(rows.shape),
        "alternate",
    ),
    (check_into_file, lambda rows, heads: rows, "nothing was moved"),
    (check_into_file, lambda rows, heads: into_file(rows.flip(0), heads), "should lie as"),
    (check_into_file, lambda rows, heads: torch.cat((into_file(rows[:, :1], heads), rows[:, 1:]), 1), "all columns"),
    (check_into_file, lambda rows, heads: into_file(rows, 2), "wrong for 4"),
    (check_window_for, lambda p, first, share, sinks: None, "write its body"),
    (check_window_for, lambda p, *rest: window_for(p, *rest).max(), r"expected \[2\]"),
    (check_window_for, changed(stand=False), "stands at key first"),
    (check_window_for, changed(short=-1), "one too few"),
    (check_window_for, changed(short=1), "one too many"),
    (check_window_for, changed(add=False), "sinks are read as well"),
    (check_window_for, best, "anywhere"),
    (check_window_for, lambda p, *rest: window_for(p, *rest) + 3, r"expected \[2, 6\], got"),
    (check_window_for, lambda *given: window_for(*given).clamp(min=1), "alone hold the share"),
    (check_window_for, lambda p, first, share, sinks: window_for(p, first, share, max(1, sinks)), "no sinks"),
    (check_lost, lambda dense, sparse: None, "write its body"),
    (check_lost, lambda dense, sparse: count(dense, sparse, ("1", "0")) / found(dense), "percentage is asked"),
    (check_lost, lambda d, s: 100 * (d.count("1") - s.count("1")) / len(d), "difference of two"),
    (check_lost, lambda d, s: 100 * count(d, s, ("1", "0")) / len(d), "divide by 4"),
    (check_lost, lambda d, s: 100 * (d.count("1") - s.count("1")) / found(d), "divide by 4"),
    (check_lost, lambda d, s: 100 * sum(a != b for a, b in pairs(d, s)) / len(d), "another outcome"),
    (check_lost, lambda d, s: 100 * count(d, s, ("1", "0")) / max(1, s.count("1")), "not by what sparse"),
    (check_lost, lambda d, s: 100 - 100 * count(d, s, ("1", "0")) / found(d) + 1, "expected 50"),
    (check_lost, lambda d, s: 100 * count(d, s, ("1", "0")) / d.count("1") if "1" in d else 100, "nothing can be lost"),
    (check_lost, lambda d, s: 50 if "1" in d else 0, "the same needles"),
]
