"""Checkers of notebook 05, the lightning indexer."""

from dataclasses import replace

import torch
from torch import Tensor

from minikeye import KeyeConfig
from minikeye.exercises import checker, written

NEVER = -torch.inf


@checker
def check_index_scores(answer):
    """answer(q [t j i], k [s i], w [t j]) -> I [t s]: gated sum over heads of ReLU(q . k), over root i; no mask."""
    draw = torch.Generator().manual_seed(0)
    q, k, w = (torch.randn(*shape, generator=draw) for shape in ((3, 9, 16), (5, 16), (3, 9)))
    got = answer(q, k, w)
    written(got, "index_scores")
    assert got.shape == (3, 5), f"expected [3, 5], one score for each query and key, got {list(got.shape)}"
    dots = torch.stack([q[:, j] @ k.T for j in range(9)], dim=1)  # [t j s]
    gated = w[:, :, None] * dots

    def near(expected: Tensor) -> bool:
        return torch.allclose(got, expected, atol=1e-4)

    right = (w[:, :, None] * dots.relu()).sum(dim=1)
    assert not near(right), "the factor is missing: divide by the square root of the index width"
    assert not near(right / 9**0.5), "divide by the root of the index width i, not of the number of heads j"
    assert not near(right / 9), "this is the mean over heads: take the sum, and divide by the root of the index width i"
    assert not near(gated.sum(dim=1) / 4), "there is no ReLU: without it all heads are one dot product"
    assert not near(gated.sum(dim=1).relu() / 4), "the ReLU comes after the sum: each head's dot product has its own"
    assert not near(gated.relu().sum(dim=1) / 4), (
        "the gate is inside the ReLU: then a head can never count against a key"
    )
    expected = torch.tensor(
        [
            [sum(float(w[t, j]) * max(0.0, float(q[t, j] @ k[s])) for j in range(9)) / 4 for s in range(5)]
            for t in range(3)
        ]
    )
    assert near(expected), _first_difference(got, expected) + "; every query sees every key"


def _first_difference(got: Tensor, expected: Tensor) -> str:
    """The first entry that differs, in words."""
    t, s = (~torch.isclose(got, expected, atol=1e-4)).nonzero()[0].tolist()
    return f"I[{t}, {s}] should be {float(expected[t, s]):.4f}, got {float(got[t, s]):.4f}"


@checker
def check_select(answer):
    """answer(scores [t s], k) -> positions [t k]: best first, ties to the smaller position; ascending; -1 fills up."""
    scores = torch.tensor([[0.0, 5, 1, 7, 3, 2], [1, 2, NEVER, NEVER, NEVER, NEVER]])
    got = answer(scores, 3)
    written(got, "select")
    assert got.shape == (2, 3), f"expected [2, 3], three positions for each of two queries, got {list(got.shape)}"
    assert got[0].tolist() != [3, 1, 4], "these are the best three by score: return them in ascending order of position"
    assert got[0].tolist() == [1, 3, 4], f"the best three of {scores[0].tolist()} are 1, 3, 4; got {got[0].tolist()}"
    assert int(got[1].max()) <= 1, (
        "a key with score -inf was selected: it is masked, usually because it is in the future"
    )
    assert got[1].tolist() != [-1, 0, 1], "fill up with -1 at the end, not at the beginning"
    assert got[1].tolist() == [0, 1, -1], f"a query that sees keys 0 and 1 gets [0, 1, -1], got {got[1].tolist()}"
    ties = torch.tensor([[2.0, 1, 1, 5, 1, 1], [0, 0, 0, 0, 0, 0]])
    got = answer(ties, 3)
    assert got[0].tolist() == [0, 1, 3] and got[1].tolist() == [0, 1, 2], (
        "of equal scores the smaller position wins: [0, 1, 3] and [0, 1, 2], "
        f"got {got[0].tolist()} and {got[1].tolist()}"
    )
    got = answer(torch.tensor([[-3.0, -1, -4, -1, -2, 0], [-2, -1, NEVER, NEVER, NEVER, NEVER]]), 4)
    assert got[0].tolist() == [1, 3, 4, 5] and got[1].tolist() == [0, 1, -1, -1], (
        "a negative score is a score like any other, and only -inf is never selected: expected [1, 3, 4, 5] and "
        f"[0, 1, -1, -1], got {got[0].tolist()} and {got[1].tolist()}"
    )
    above_1 = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
    for row in ([1.0, 1, 1, 1, 1, above_1], [0.0, 0, 0, 0, 0, 1e-20]):
        got = answer(torch.tensor([row]), 3)[0].tolist()
        assert got == [0, 1, 5], (
            f"of {row} the last is the largest, by a hair: expected [0, 1, 5], got {got}. Taking something off the "
            "scores to break ties also reorders scores that are not equal"
        )
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(-4, 5, (50, 40), generator=draw).float()
    scores = scores.masked_fill(torch.arange(40) > torch.arange(50)[:, None], NEVER)  # query t sees t + 1 keys
    for t, (row, picked) in enumerate(zip(scores.tolist(), answer(scores, 7).tolist(), strict=True)):
        best = sorted((s for s in range(40) if row[s] > NEVER), key=lambda s: (-row[s], s))[:7]
        expected = sorted(best) + [-1] * (7 - len(best))
        assert picked == expected, f"of 50 random rows, row {t} should give {expected}, got {picked}"


@checker
def check_indexer_bill(answer):
    """answer(config) -> (FLOP of the index score of one pair in one layer, bytes of index keys a token, bf16)."""
    released = KeyeConfig.keye_vl_2_30b_a3b()
    got = answer(released)
    written(got, "indexer_bill")
    assert isinstance(got, tuple) and len(got) == 2, f"expected two numbers, (FLOP, bytes), got {got!r}"
    flop, size = got
    heads, width, layers, text = 16, 64, 48, released.text
    assert flop != heads * width, "a multiply-add is 2 FLOP"
    assert flop != 4 * text.heads * text.head_width, "this is the attention itself; take the sizes in config.indexer"
    assert flop != 4 * heads * width, "there are no values: only the product of query and key, not a second one"
    assert flop == 2 * heads * width, f"expected {2 * heads * width:,} FLOP a pair, got {flop:,}"
    assert size != 2 * layers * heads * width, "all heads share one key"
    assert size != 2 * width, "these are the bytes of one layer: every layer has an indexer of its own"
    assert size != layers * width, "a number in bfloat16 takes 2 bytes"
    assert size != 4 * layers * width, "a number in bfloat16 takes 2 bytes, and the indexer keeps no values"
    assert size == 2 * layers * width, f"expected {2 * layers * width:,} bytes a token, got {size:,}"
    larger = replace(released, text=replace(text, layers=36), indexer=replace(released.indexer, heads=64, width=128))
    got = answer(larger)
    assert got == (16_384, 9_216), f"64 heads of 128 in 36 layers: expected (16384, 9216), got {got}; read the config"
