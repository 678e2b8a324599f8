"""Wrong answers to the exercises of notebook 15, and what their checkers must say."""

import torch

from minikeye.exercises.nb15 import check_in_row_order, check_merge, check_part_of_loss


def merged(scores, positions, k, *, key=lambda s, p: (-s, p), keep=lambda p: p >= 0, order=sorted):
    """Right but for the argument that is given."""
    pairs = [(s, p) for own, at in zip(scores, positions, strict=True) for s, p in zip(own, at, strict=True) if keep(p)]
    return order(p for _, p in sorted(pairs, key=lambda pair: key(*pair))[:k])


def changed(**change):
    return lambda scores, positions, k: merged(scores, positions, k, **change)


def by_rank(scores, positions, k):
    """Ties go to the lower rank, not to the smaller position."""
    pairs = [(-s, rank, p) for rank, (own, at) in enumerate(zip(scores, positions, strict=True))
             for s, p in zip(own, at, strict=True) if p >= 0]  # fmt: skip
    return sorted(p for *_, p in sorted(pairs)[:k])


def of_each(scores, positions, k):
    """Everything that any rank brought."""
    return sorted(p for at in positions for p in at if p >= 0)


WRONG_ANSWERS = [
    (check_part_of_loss, lambda sums, counts, rank: None, "write its body"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank] / counts[rank], "own mean"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank] / counts[rank] / len(sums), "mean of means"),
    (check_part_of_loss, lambda sums, counts, rank: sums.sum() / counts.sum(), "three times"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank], "grows with the batch"),
    (check_part_of_loss, lambda sums, counts, rank: len(sums) * sums[rank] / counts.sum(), "averaged"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank] / counts.sum() + 1, "expected"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank] / 104, "only rank with tokens"),
    (check_part_of_loss, lambda sums, counts, rank: sums[rank] / (3 * counts.mean()), "only rank with tokens"),
    (check_in_row_order, lambda tokens, order: None, "write its body"),
    (check_in_row_order, lambda tokens, order: tokens, "as they came"),
    (check_in_row_order, lambda tokens, order: tokens[order], "permutation once more"),
    (check_in_row_order, lambda tokens, order: tokens.flip(0), "first column"),
    (check_in_row_order, lambda tokens, order: tokens[:, 0], "a row for each token"),
    (
        check_in_row_order,
        lambda tokens, order: tokens[torch.tensor([0, 2, 5, 1, 3, 4])] if len(tokens) == 6 else tokens,
        "not for another",
    ),
    (check_merge, lambda scores, positions, k: None, "write its body"),
    (check_merge, changed(keep=lambda p: True), "is no key"),
    (check_merge, changed(order=list), "ascending"),
    (check_merge, of_each, "k best of all"),
    (check_merge, by_rank, "smaller position wins"),
    (check_merge, changed(key=lambda s, p: (s, p)), "expected"),
    (check_merge, changed(key=lambda s, p: (-abs(s), p)), "expected"),
    (check_merge, changed(key=lambda s, p: (-round(s) if s > -9 else 9, p)), "expected"),
    (check_merge, changed(key=lambda s, p: (-s, -p if s == 2.4 else p)), "expected"),
]
