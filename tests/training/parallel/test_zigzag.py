"""The order of context parallelism: every token once, back where it was, and as much to score on every rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minikeye.training.losses import IGNORED
from minikeye.training.parallel.zigzag import Zigzag, cut, next_tokens

SIZES = {"tokens": st.integers(1, 70), "ranks": st.integers(1, 6)}


def test_by_hand():
    """Eight tokens on two ranks: pieces of two, the first and the last to rank 0, the middle ones to rank 1."""
    zigzag = Zigzag(8, 2)
    assert zigzag.positions(0).tolist() == [0, 1, 6, 7] and zigzag.positions(1).tolist() == [2, 3, 4, 5]
    assert zigzag.order().tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert zigzag.inverse().tolist() == [0, 1, 4, 5, 6, 7, 2, 3]


@given(**SIZES)
def test_there_and_back(tokens, ranks):
    """All shares end to end, put in order again, are the row; padding lies behind it."""
    zigzag = Zigzag(tokens, ranks)
    order = zigzag.order().tolist()
    assert sorted(order) == list(range(2 * ranks * zigzag.piece)) and len(order) - tokens < 2 * ranks
    shares = [p for rank in range(ranks) for p in zigzag.positions(rank).tolist()]
    assert [shares[n] for n in zigzag.inverse().tolist()] == list(range(tokens))


@given(**SIZES)
def test_everything_is_cut_alike(tokens, ranks):
    """A token keeps its label, weight, position and start, whichever rank it is on, found by a loop over ids."""
    ids = torch.arange(100, 100 + tokens)[None]
    row = {"input_ids": ids, "positions": (ids * 7).expand(3, -1, -1), "labels": ids + 1, "weights": ids / 2}
    row["start"] = (ids - 100) // 5 * 5  # packed documents of five tokens
    zigzag, seen, padded = Zigzag(tokens, ranks), [], 0
    for rank in range(ranks):
        share = cut(row, zigzag, rank)
        for t, at in enumerate(zigzag.positions(rank).tolist()):
            got = {name: x[..., t].flatten().tolist() for name, x in share.items()}
            n = got["input_ids"][0]
            if at < tokens:
                seen.append(n)
                expected = {"positions": [7 * n] * 3, "labels": [n + 1], "weights": [n / 2], "start": [(at // 5) * 5]}
            else:
                padded += 1
                expected = {"positions": [0] * 3, "labels": [IGNORED], "weights": [0.0], "start": [at]}
            assert {name: got[name] for name in expected} == expected and n == (100 + at if at < tokens else 0)
    assert sorted(seen) == ids[0].tolist() and padded == 2 * ranks * zigzag.piece - tokens


@given(ranks=st.integers(1, 6), piece=st.integers(1, 9))
def test_all_ranks_score_equally_many_keys(ranks, piece):
    """Query p scores p + 1 keys; equal runs of tokens would leave the last rank with more."""
    zigzag = Zigzag(2 * ranks * piece, ranks)
    work = [sum(p + 1 for p in zigzag.positions(rank).tolist()) for rank in range(ranks)]
    assert len(set(work)) == 1
    last = sum(range(zigzag.tokens - 2 * piece + 1, zigzag.tokens + 1))
    assert last > work[0] or ranks == 1


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_permutation_is_not_its_own_inverse(ranks):
    """The usual mistake: the permutation once more. It has the right shape, and it gives another row."""
    zigzag = Zigzag(4 * ranks, ranks)
    row = torch.arange(4 * ranks) * 10
    shares = row[zigzag.order()]
    assert torch.equal(shares[zigzag.inverse()], row)
    wrong = shares[zigzag.order()]
    assert wrong.shape == row.shape and not torch.equal(wrong, row)
    assert sorted(wrong.tolist()) == row.tolist()  # nothing is lost, which is why nothing complains


def test_labels_are_shifted_before_the_cut():
    """The token after the last one of a piece lies on another rank; a shift within a share takes the wrong one."""
    ids = torch.tensor([[11, 12, 13, 14, 15, 16, 17, 18]])
    answer = torch.tensor([[False, False, True, True, True, True, False, True]])
    labels = next_tokens(ids, answer)
    assert labels.tolist() == [[IGNORED, 13, 14, 15, 16, IGNORED, 18, IGNORED]]
    assert cut({"labels": labels}, Zigzag(8, 2), 0)["labels"].tolist() == [[IGNORED, 13, 18, IGNORED]]
    late = next_tokens(ids[:, [0, 1, 6, 7]], answer[:, [0, 1, 6, 7]])
    assert late.tolist() != [[IGNORED, 13, 18, IGNORED]]


def test_what_cannot_be_cut():
    ids = torch.zeros(1, 8, dtype=torch.long)
    for tokens, ranks in ((0, 2), (8, 0)):
        with pytest.raises(ValueError, match=f"at least one token and one rank, got {tokens} and {ranks}"):
            Zigzag(tokens, ranks)
    with pytest.raises(ValueError, match=r"expected a rank of 0\.\.1, got 2"):
        Zigzag(8, 2).positions(2)
    with pytest.raises(ValueError, match=r"got \['patches'\]"):
        cut({"patches": ids}, Zigzag(8, 2), 0)
    with pytest.raises(ValueError, match=r"expected 8 tokens on the last axis, got \{'labels': \[1, 4\]\}"):
        cut({"labels": ids[:, :4]}, Zigzag(8, 2), 0)
    with pytest.raises(ValueError, match="expected positions"):
        cut({"input_ids": ids}, Zigzag(8, 2), 0)
