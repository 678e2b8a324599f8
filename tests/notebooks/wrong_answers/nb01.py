"""Typical wrong answers for notebook 01."""

import torch

from minikeye.exercises.nb01 import check_may_see, check_patches_of, check_read_place


def _square(row: int, column: int, columns: int) -> list[int]:
    first = row * columns + column
    return [first, first + 1, first + columns, first + columns + 1]


def _same_size(counts: list[int]) -> torch.Tensor:
    size = torch.tensor(counts).repeat_interleave(torch.tensor(counts))
    return size[:, None] == size


WRONG_ANSWERS = [
    (check_patches_of, lambda token, columns: None, "write its body"),
    (check_patches_of, lambda token, columns: [4 * token + n for n in range(4)], "row by row"),
    (check_patches_of, lambda token, columns: _square(2 * (token // columns), 2 * (token % columns), columns), "off"),
    (
        check_patches_of,
        lambda token, columns: _square(token // (columns // 2), 2 * (token % (columns // 2)), columns),
        "two patches",
    ),
    (check_read_place, lambda n, count, side: None, "write its body"),
    (check_read_place, lambda n, count, side: n * (side - 1) / (count - 1), "align_corners=True"),
    (check_read_place, lambda n, count, side: n * side / count, "half a cell"),
    (check_read_place, lambda n, count, side: (n + 0.5) * side / count - 0.5, "outside the table"),
    (check_may_see, lambda counts: None, "write its body"),
    (check_may_see, lambda counts: torch.ones(sum(counts), sum(counts)), "every patch sees every patch"),
    (check_may_see, lambda counts: torch.ones(sum(counts), sum(counts)).tril(), "causal"),
    (check_may_see, _same_size, "equal size"),
]
