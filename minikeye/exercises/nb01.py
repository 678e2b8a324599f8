"""Checkers for notebook 01, pixels to patches."""

import torch

from minikeye.exercises import checker, written


@checker
def check_patches_of(answer):
    """answer(token, columns) -> numbers of the four patches, in raster order, of a visual token."""
    got = answer(4, 6)
    written(got, "patches_of")
    got = [int(patch) for patch in got]
    assert got != [16, 17, 18, 19], "patches are stored row by row, so a token's four are no neighbours in the list"
    assert got != [8, 9, 14, 15], (
        "the row or the column of the token is off: a frame of 6 patch columns has 3 tokens in a row, "
        "and a step of one token is a step of two patches"
    )
    assert got == [14, 15, 20, 21], f"token 4 of a frame 6 patches wide holds patches 14, 15, 20 and 21, got {got}"
    for token, columns in ((0, 2), (0, 6), (5, 6), (7, 8), (20, 42)):
        row, column = token // (columns // 2), token % (columns // 2)
        first = 2 * row * columns + 2 * column
        expected = [first, first + 1, first + columns, first + columns + 1]
        got = [int(patch) for patch in answer(token, columns)]
        assert got == expected, f"token {token} of a frame {columns} patches wide holds patches {expected}, got {got}"


@checker
def check_read_place(answer):
    """answer(n, count, side) -> the place, in table entries, at which output n of `count` reads a row of `side`."""
    got = answer(1, 6, 4)
    written(got, "read_place")
    assert abs(got - 0.6) > 1e-6, (
        "this puts the first and last output on the first and last entry (align_corners=True): "
        "measure from the middles of the cells"
    )
    assert abs(got - 4 / 6) > 1e-6, "half a cell is missing on both sides: entry s has its middle at s + 0.5"
    assert abs(got - 0.5) < 1e-6, f"output 1 of 6 reads a row of 4 at 0.5, got {got:.4f}"
    edge = answer(0, 6, 4)
    assert edge >= 0, f"output 0 reads at {edge:.4f}, outside the table: nothing lies there, keep it in 0..side-1"
    for n, count, side in ((0, 6, 4), (5, 6, 4), (0, 2, 4), (3, 4, 4), (21, 22, 27), (41, 42, 27)):
        expected = min(max((n + 0.5) * side / count - 0.5, 0.0), side - 1.0)
        got = answer(n, count, side)
        assert abs(got - expected) < 1e-6, f"output {n} of {count} reads a row of {side} at {expected:.4f}, got {got}"


@checker
def check_may_see(answer):
    """answer(counts) -> bool [p p]: may patch p read patch s, when frames of `counts` patches are packed."""
    got = answer([2, 2, 3])
    written(got, "may_see")
    got = torch.as_tensor(got)
    assert got.shape == (7, 7), f"frames of 2, 2 and 3 patches make 7 patches, so a 7 x 7 mask; got {list(got.shape)}"
    got = got.bool()
    assert not got.all(), "every patch sees every patch: frames must not see each other"
    assert got[0, 1], "patch 0 must see patch 1 of its own frame: there is no causal order among patches"
    assert not got[0, 2], "patch 0 sees patch 2: frames of equal size are still different frames"
    expected = torch.block_diag(*(torch.ones(n, n) for n in (2, 2, 3))).bool()
    assert torch.equal(got, expected), f"expected one full block per frame and nothing else, got\n{got.int()}"
    expected = torch.block_diag(torch.ones(1, 1), torch.ones(4, 4)).bool()
    assert torch.equal(torch.as_tensor(answer([1, 4])).bool(), expected), "wrong for frames of 1 and 4 patches"
