"""Checkers of notebook 15, many ranks."""

import torch

from minikeye.exercises import checker, written


@checker
def check_part_of_loss(answer):
    """answer(sums, counts, rank) -> what that rank differentiates; added over ranks, the mean over all tokens."""
    sums, counts = torch.tensor([8.0, 98.0, 6.0]), torch.tensor([2.0, 98.0, 4.0])
    got = [answer(sums.clone(), counts.clone(), rank) for rank in range(3)]
    written(got[0], "part_of_loss")
    got = torch.stack([torch.as_tensor(part, dtype=torch.float32).reshape(()) for part in got])
    same = lambda other: torch.allclose(got, other.expand(3), atol=1e-6)  # noqa: E731
    assert not same(sums / counts), "this is a rank's own mean: a token would weigh more where a rank has few"
    assert not same(sums / counts / 3), "a mean of means: a token would weigh more where a rank has few"
    assert not same(sums.sum() / counts.sum()), (
        "the whole loss on every rank: added up, gradients would be three times too large; a rank has its own sum only"
    )
    assert not same(sums), "divide by the tokens of all ranks, or the step grows with the batch"
    assert not same(3 * sums / counts.sum()), "times the ranks is for gradients that are averaged; here they are added"
    assert same(sums / counts.sum()), f"expected {(sums / counts.sum()).tolist()}, got {got.tolist()}"
    alone, other = (float(answer(torch.tensor([0.0, 5.0]), torch.tensor([0.0, 5.0]), rank)) for rank in (0, 1))
    assert alone == 0, f"a rank without tokens has part 0 of the loss, got {alone}"
    assert other == 1, f"right for one batch: 5 from the only rank with tokens, 5 of them, is 1, got {other}"


@checker
def check_in_row_order(answer):
    """answer(tokens [s d], order [s]) -> the tokens in the row's order, order[i] the position of token i."""
    order = torch.tensor([0, 3, 1, 4, 5, 2])
    row = torch.arange(12.0).view(6, 2)
    tokens = row[order]
    got = answer(tokens.clone(), order.clone())
    written(got, "in_row_order")
    assert torch.is_tensor(got) and got.shape == row.shape, "expected a tensor with a row for each token"
    assert not torch.equal(got, tokens), "these are the shares as they came"
    assert not torch.equal(got, tokens[order]), (
        "the permutation once more: its shape fits, a model trains with it, and every key is at the wrong place"
    )
    assert torch.equal(got, row), f"expected {row[:, 0].tolist()} as first column, got {got[:, 0].tolist()}"
    more = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    row = torch.rand(50, 3)
    assert torch.equal(answer(row[more], more), row), "right for one order, not for another of 50 tokens"


@checker
def check_merge(answer):
    """answer(scores, positions, k) -> positions of the k best candidates of all ranks, ascending."""
    none = float("-inf")
    cases = [
        ([[3.0, 1.0], [2.0, 5.0]], [[0, 4], [1, 9]], 2, [0, 9]),
        ([[3.0, 3.0], [3.0, 3.0]], [[2, 7], [0, 5]], 2, [0, 2]),
        ([[4.0, 1.0, none], [none, none, none]], [[1, 6, -1], [-1, -1, -1]], 3, [1, 6]),
        ([[-2.0, -1.0], [-3.0, none]], [[8, 3], [2, -1]], 2, [3, 8]),
        ([[5.0, 2.4], [2.4, 2.3]], [[9, 7], [3, 1]], 2, [3, 9]),
    ]
    for scores, positions, k, wanted in cases:
        got = answer([list(x) for x in scores], [list(x) for x in positions], k)
        written(got, "merge")
        got = [int(p) for p in got]
        said = f"scores {scores}, positions {positions}, k = {k}: expected {wanted}, got {got}"
        assert -1 not in got, f"-1 is no key: leave out what a rank does not have. {said}"
        assert got == sorted(got), f"ascending positions, as every selection here has them. {said}"
        assert len(got) == len(wanted), f"the k best of all ranks together, or all there are. {said}"
        ties = len({s for own in scores for s in own}) == 1
        assert not ties or got == wanted, f"equal scores: the smaller position wins, whatever the rank. {said}"
        assert got == wanted, said
