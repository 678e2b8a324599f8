"""Checkers of notebook 09, from equations to Triton.

They need neither Triton nor a GPU: a kernel is anything that can be launched by kernel[grid](...).
"""

import torch
from torch import Tensor

from minikeye.exercises import checker, written

NONE = -1  # marks no key


@checker
def check_keys(answer):
    """answer(x bfloat16 [n]) -> int64 [n] in 0..65535, in the order of x; -0.0 and 0.0 have one key."""
    tiny, huge = torch.tensor([1, 0x7F7F], dtype=torch.int16).view(torch.bfloat16).tolist()  # smallest, largest number
    x = [-torch.inf, -huge, -3.0, -2.984375, -1e-30, -tiny, -0.0, 0.0, tiny, 1e-30, 1.0, 1.0078125, 300.0, torch.inf]
    x = torch.tensor(x).bfloat16()
    got = answer(x)
    written(got, "keys")
    assert isinstance(got, Tensor) and got.shape == x.shape and got.dtype == torch.int64, (
        f"expected int64 {list(x.shape)}, got {got.dtype if isinstance(got, Tensor) else type(got).__name__}"
    )
    bits = x.view(torch.int16).long() & 0xFFFF
    assert not torch.equal(got, bits), (
        "these are the bits as they are: negative numbers come after all positive ones, and the wrong way round"
    )
    assert not torch.equal(got, bits ^ 0x8000), (
        "the sign bit is flipped for all: now negative numbers come first, but -2 before -3; flip all their bits"
    )
    assert not bool((got < 0).any()), (
        "a key is negative: the 16 bits were taken with a sign; & 0xFFFF makes them 0..65535"
    )
    assert int(got.max()) < 2**16, "a key has more than 16 bits: this is the rule for float32"
    order = got.argsort(stable=True)
    assert torch.equal(x[order], x), "sorting by these keys does not sort the numbers"
    assert len(set(got[x == 0].tolist())) == 1, "-0.0 equals 0.0 and must have the same key: make zeros positive first"
    apart = got.unique().numel()
    assert apart == len(x) - 1, f"{len(x) - 1} different numbers have {apart} different keys: no bit may be lost"
    assert int(got[-1]) - int(got[-2]) == 0x7F80 - 0x4396, "keep the 16 bits of positive numbers, with the sign bit set"


@checker
def check_unions(answer):
    """answer(indices int [t k], queries) -> for each tile of `queries` rows its entries s * 256 + membership."""
    indices = torch.tensor([[2, 5, 9], [2, 9, NONE], [NONE, NONE, NONE], [0, 5, 300], [1, 2, 3], [3, NONE, NONE]])
    got = answer(indices, 4)
    written(got, "unions")
    assert len(got) == 2, f"6 queries in tiles of 4 are two tiles, the second with two queries; got {len(got)}"
    tiles = [[int(entry) for entry in tile] for tile in got]
    first, second = ([(entry >> 8, entry & 255) for entry in tile] for tile in tiles)
    assert not any(s < 0 for s, _ in first + second), "-1 marks no key and is in no union"
    keys = [s for s, _ in first]
    assert len(set(keys)) == len(keys), "a key that two queries selected is one entry with two bits"
    assert keys == sorted(keys), f"entries must ascend in the key, got keys {keys}"
    assert keys == [0, 2, 5, 9, 300], f"the union of the first four queries is [0, 2, 5, 9, 300], got {keys}"
    members = dict(first)
    assert members[2] != 2, "the membership is a set of bits and not how many queries selected the key"
    assert members[2] != 0b1100, "bit 0 is the lowest and belongs to the first query of the tile"
    assert members[2] == 0b0011, f"key 2 is selected by queries 0 and 1: membership 3, got {members[2]}"
    assert first == [(0, 8), (2, 3), (5, 9), (9, 3), (300, 8)], f"the first tile's (key, membership) are {first}"
    assert second != [(1, 16), (2, 16), (3, 48)], "bits count from the first query of the *tile*, not of the tensor"
    assert second == [(1, 1), (2, 1), (3, 3)], (
        f"the second tile's (key, membership) must be (1, 1), (2, 1), (3, 3), got {second}"
    )
    pairs = answer(indices, 2)
    assert len(pairs) == 3, (
        f"`queries` is the size of a tile: 6 queries in tiles of 2 are three tiles, got {len(pairs)}"
    )
    got = [[(int(entry) >> 8, int(entry) & 255) for entry in tile] for tile in pairs]
    expected = [[(2, 3), (5, 1), (9, 3)], [(0, 2), (5, 2), (300, 2)], [(1, 1), (2, 1), (3, 3)]]
    assert got == expected, f"in tiles of 2 queries the (key, membership) must be {expected}, got {got}"


@checker
def check_combine(answer):
    """answer(a, b) -> (m [r], total [r], acc [r e]): the online softmax of two disjoint sets of keys as one."""
    draw = torch.Generator().manual_seed(0)
    logits, values = (torch.randn(*n, dtype=torch.float64, generator=draw) for n in ((4, 7), (7, 3)))
    logits[1] *= 2000  # logits in the thousands
    logits[2, 4:] = -torch.inf  # b has no key
    logits[3] = -torch.inf  # neither has
    a, b = _state(logits[:, :4], values[:4]), _state(logits[:, 4:], values[4:])
    got = answer(a, b)
    written(got, "combine")
    assert isinstance(got, tuple) and len(got) == 3, "return three tensors: m, total, acc"
    m, total, acc = got
    shapes = [list(x.shape) for x in got]
    assert shapes == [[4], [4], [4, 3]], f"expected shapes [4], [4], [4, 3], got {shapes}"
    expected_m, expected_total, expected_acc = _state(logits, values)
    plain = a[2][0] + b[2][0]
    assert not torch.allclose(acc[0], plain), (
        "the sums were added as they are, but each refers to its own m: shrink both to the larger one first"
    )
    assert not torch.allclose(acc[0] / total[0], (a[2][0] / a[1][0] + b[2][0] / b[1][0]) / 2), (
        "this is the mean of two softmaxes: the part with more weight must count more"
    )
    right = expected_acc[0] / expected_total[0]
    assert torch.allclose(acc[0] / total[0], right), "acc / total of the first row is not the softmax over all keys"
    assert torch.allclose(m[0], expected_m[0]), "m must be the larger of the two, so that no exponential overflows"
    assert bool(total[1].isfinite()) and torch.allclose(acc[1] / total[1], expected_acc[1] / expected_total[1]), (
        "logits in the thousands overflow: exp must only see m - (larger m), never m itself"
    )
    assert torch.allclose(acc[2] / total[2], expected_acc[2] / expected_total[2]), "an empty part has no weight"
    assert bool(total[3] == 0) and bool((acc[3] == 0).all()), (
        "no part has a key: total and acc must be 0. The m of an empty part is -inf, and -inf - -inf is nan"
    )
    assert bool(m[3].isneginf()), (
        "no part has a key: m stays -inf, for 0 may lie above the m of a part that comes later"
    )
    for name, result in (("combine(a, b)", got), ("combine(b, a)", answer(b, a))):
        assert torch.allclose(result[0], expected_m), f"{name}: m must be the larger of the two in every row"
        for part, wanted in zip(result[1:], (expected_total, expected_acc), strict=True):
            assert torch.allclose(part, wanted), f"{name}: total and acc must refer to the larger m, in either order"


@checker
def check_scores_kernel(answer):
    """answer: a kernel (q [j i], k [s i], w [j], out [s], S, HEADS, WIDTH, BLOCK) for the index scores of one query."""
    for s, j, i, block in ((21, 4, 16, 8), (5, 2, 32, 16)):  # in the last program 3, then 11 keys too many
        draw = torch.Generator().manual_seed(s)
        q, k, w = (torch.randn(*size, generator=draw) for size in ((j, i), (s, i), (j,)))
        room = torch.full((s + 2 * block,), torch.nan)  # out, and behind it what belongs to somebody else
        answer[(-(-s // block),)](q, k, w, room[:s], s, HEADS=j, WIDTH=i, BLOCK=block)
        out, dots, scale = room[:s], k @ q.T, i**-0.5
        right = scale * dots.relu() @ w
        assert not bool(out.isnan().all()), "scores_kernel wrote nothing: write its body, then run this cell again"
        assert bool(room[s:].isnan().all()), (
            f"the last program wrote behind the {s} scores: it has keys too many, mask the store with s < S"
        )
        missing = out.isnan().nonzero().flatten().tolist()
        assert not missing, (
            f"keys {missing} got no number: program n has the keys n * BLOCK to n * BLOCK + BLOCK - 1, below S"
        )
        wrong = {
            "the ReLU is missing": scale * dots @ w,
            "the ReLU stands before the sum over heads, not after it": scale * (dots @ w).relu(),
            "the gates w are missing": scale * dots.relu().sum(dim=1),
            "the ReLU is of the dot product alone: a gate may be negative": scale * (dots * w).relu().sum(dim=1),
            "divide by the root of WIDTH": dots.relu() @ w,
            "divide by the root of WIDTH, not by WIDTH": dots.relu() @ w / i,
        }
        for reason, scores in wrong.items():
            assert not torch.allclose(out, scores, atol=1e-4), reason
        first = int((out - right).abs().argmax())
        assert torch.allclose(out, right, atol=1e-4), (
            f"score of key {first} of {s} is {right[first]:.3f}, got {out[first]:.3f}: "
            "channel c of key s lies at s * WIDTH + c"
        )


def _state(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m, total, acc of logits [r s] and values [s e]; m is -inf and the sums are 0 where a row has no key."""
    m = logits.amax(dim=1)
    p = (logits - m.nan_to_num(neginf=0.0)[:, None]).exp()
    return m, p.sum(dim=1), p @ values
