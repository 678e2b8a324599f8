"""Wrong answers to the exercises of notebook 09, and what their checkers must say."""

import torch

from minikeye.exercises.nb09 import check_combine, check_keys, check_scores_kernel, check_unions


def bits(x):
    return x.view(torch.int16).long() & 0xFFFF


def keys(x):
    """Right but for the two zeros."""
    return torch.where(bits(x) >= 2**15, 0xFFFF - bits(x), bits(x) | 2**15)


def one_zero(x):
    return torch.where(x == 0, 0.0, x)


def flushed(x):
    """Right but for denormals, which become zeros."""
    return keys(torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0.0, x))


def finite(x):
    """Right but for -inf, which becomes the lowest finite number."""
    return keys(one_zero(x).clamp(min=torch.finfo(x.dtype).min))


def unions(indices, queries, *, order=sorted, none=False, member=lambda n: 1 << n, count=False, whole=False):
    """Right but for the argument that is given."""
    tiles = []
    for first in range(0, len(indices), queries):
        rows = indices[first : first + queries].tolist()
        found = {}
        for n, row in enumerate(rows):
            for s in row:
                if s >= 0 or none:
                    bit = 1 if count else member(n + first if whole else n)
                    found[s] = found.get(s, 0) + bit
        tiles.append([s * 256 + found[s] for s in order(found)])
    return tiles


def changed(**change):
    return lambda indices, queries: unions(indices, queries, **change)


def pairs(indices, queries):
    """Every pair of query and key is an entry."""
    return [
        sorted(s * 256 + (1 << n) for n, row in enumerate(tile.tolist()) for s in row if s >= 0)
        for tile in indices.split(queries)
    ]


def combine(a, b, *, top=torch.maximum, safe=True):
    m = top(a[0], b[0])
    at = m.nan_to_num(neginf=0.0) if safe else m
    x, y = (a[0] - at).exp(), (b[0] - at).exp()
    return m, a[1] * x + b[1] * y, a[2] * x[:, None] + b[2] * y[:, None]


def overflowing(a, b):
    x, y = a[0].exp(), b[0].exp()
    return torch.maximum(a[0], b[0]), a[1] * x + b[1] * y, a[2] * x[:, None] + b[2] * y[:, None]


def mean(a, b):
    one = torch.ones_like(a[1])
    return torch.maximum(a[0], b[0]), one, (a[2] / a[1][:, None] + b[2] / b[1][:, None]) / 2


def one_sided(a, b):
    """Shrinks what came first, as in the loop over blocks, and forgets that the other has an m as well."""
    m = torch.maximum(a[0], b[0])
    x = (a[0] - m.nan_to_num(neginf=0.0)).exp()
    return m, a[1] * x + b[1], a[2] * x[:, None] + b[2]


def swapped(a, b):
    """Each part shrinks by the other's factor."""
    m = torch.maximum(a[0], b[0])
    x, y = (b[0] - m).exp(), (a[0] - m).exp()
    return m, a[1] * x + b[1] * y, a[2] * x[:, None] + b[2] * y[:, None]


def empty_counts(a, b):
    m, total, acc = combine(a, b)
    return m, torch.where(b[0].isneginf() & ~a[0].isneginf(), 2 * total, total), acc


def zero_when_empty(a, b):
    m, total, acc = combine(a, b)
    return m.nan_to_num(neginf=0.0), total, acc


def first_m(a, b):
    """The sums of a right answer, m of the first part: as if the other were always smaller."""
    at = a[0].nan_to_num(neginf=0.0)
    x, y = (a[0] - at).exp(), (b[0] - at).exp()
    return a[0], a[1] * x + b[1] * y, a[2] * x[:, None] + b[2] * y[:, None]


def none_first(a, b):
    """Right where the first part has keys; an empty first part leaves nothing."""
    m, total, acc = combine(a, b)
    empty = a[0].isneginf()
    return torch.where(empty, a[0], m), torch.where(empty, 0.0, total), torch.where(empty[:, None], 0.0, acc)


class Kernel:
    """Launched like a Triton kernel: one call of `body` a program; `out` has no end, as an address has none."""

    def __init__(self, body):
        self.body = body

    def __getitem__(self, grid):
        def launch(q, k, w, out, S, HEADS, WIDTH, BLOCK):
            endless = out.as_strided((out.untyped_storage().size() // 4,), (1,))
            for program in range(grid[0]):
                self.body(program, q, k, w, endless, S, BLOCK)

        return launch


def scores(q, k, w):
    return k.mm(q.T).relu().mv(w) / q.shape[1] ** 0.5


def kernel(score=scores, *, first=lambda n, block: n * block, stop=min):
    """Right but for what is given: the score of some keys, a program's first key, the end of its stores."""

    def body(program, q, k, w, out, S, BLOCK):
        begin = first(program, BLOCK)
        keys = torch.cat([k, torch.zeros(2 * BLOCK, k.shape[1])])[begin : begin + BLOCK]
        end = stop(begin + BLOCK, S)
        out[begin:end] = score(q, keys, w)[: end - begin]

    return Kernel(body)


def mixed_strides(q, k, w):
    """Channel c of key s taken from c * BLOCK + s."""
    return scores(q, k.T.reshape(k.shape), w)


WRONG_ANSWERS = [
    (check_keys, lambda x: None, "write its body"),
    (check_keys, lambda x: x.float(), "expected int64"),
    (check_keys, bits, "as they are"),
    (check_keys, lambda x: bits(x) ^ 0x8000, "flipped for all"),
    (check_keys, lambda x: keys(x) - 2**15, "is negative"),
    (check_keys, lambda x: keys(x) << 16, "rule for float32"),
    (check_keys, lambda x: 0xFFFF - keys(x), "does not sort"),
    (check_keys, keys, "same key"),
    (check_keys, lambda x: keys(one_zero(x)) >> 4, "no bit may be lost"),
    (check_keys, flushed, "no bit may be lost"),
    (check_keys, finite, "no bit may be lost"),
    (check_keys, lambda x: keys(one_zero(x)).unique(return_inverse=True)[1], "with the sign bit set"),
    (check_unions, lambda indices, queries: None, "write its body"),
    (check_unions, lambda indices, queries: unions(indices, queries)[:1], "two tiles"),
    (check_unions, changed(none=True), "no union"),
    (check_unions, pairs, "two bits"),
    (check_unions, changed(order=list), "must ascend"),
    (check_unions, lambda indices, queries: unions(indices[:, :2], queries), "the union of the first four"),
    (check_unions, changed(count=True), "how many"),
    (check_unions, changed(member=lambda n: 1 << (3 - n)), "the lowest"),
    (check_unions, changed(member=lambda n: 2 << n), "membership 3"),
    (check_unions, changed(whole=True), "of the \\*tile\\*"),
    (check_unions, lambda indices, queries: unions(indices, 4), "the size of a tile"),
    (check_combine, lambda a, b: None, "write its body"),
    (check_combine, lambda a, b: combine(a, b)[2], "three tensors"),
    (check_combine, lambda a, b: (*combine(a, b)[:2], combine(a, b)[2].T), "expected shapes"),
    (check_combine, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)), "added as they are"),
    (check_combine, mean, "mean of two"),
    (check_combine, one_sided, "its own m"),
    (check_combine, swapped, "not the softmax"),
    (check_combine, lambda a, b: combine(a, b, top=torch.minimum), "larger of the two"),
    (check_combine, overflowing, "overflow"),
    (check_combine, empty_counts, "no weight"),
    (check_combine, lambda a, b: combine(a, b, safe=False), "must be 0"),
    (check_combine, zero_when_empty, "stays -inf"),
    (check_combine, lambda a, b: (a[0], *combine(a, b)[1:]), "in every row"),
    (check_combine, first_m, "overflow"),
    (check_combine, none_first, "combine\\(b, a\\)"),
    (check_scores_kernel, Kernel(lambda *_: None), "write its body"),
    (check_scores_kernel, kernel(stop=lambda end, S: end), "mask the store"),
    (check_scores_kernel, kernel(first=lambda n, block: 0), "got no number"),
    (check_scores_kernel, kernel(first=lambda n, block: n), "got no number"),
    (check_scores_kernel, kernel(lambda q, k, w: k @ q.T @ w / q.shape[1] ** 0.5), "ReLU is missing"),
    (check_scores_kernel, kernel(lambda q, k, w: (k @ q.T @ w).relu() / q.shape[1] ** 0.5), "before the sum"),
    (check_scores_kernel, kernel(lambda q, k, w: scores(q, k, torch.ones_like(w))), "gates w are missing"),
    (check_scores_kernel, kernel(lambda q, k, w: (k @ q.T * w).relu().sum(1) / q.shape[1] ** 0.5), "be negative"),
    (check_scores_kernel, kernel(lambda q, k, w: scores(q, k, w) * q.shape[1] ** 0.5), "root of WIDTH$"),
    (check_scores_kernel, kernel(lambda q, k, w: scores(q, k, w) / q.shape[1] ** 0.5), "not by WIDTH"),
    (check_scores_kernel, kernel(mixed_strides), "WIDTH \\+ c"),
    (check_scores_kernel, kernel(lambda q, k, w: scores(q[:1], k, w[:1])), "WIDTH \\+ c"),
]
