"""Checkers of notebook 00, the tour."""

import torch

from minikeye.exercises import checker, written
from minikeye.inputs.prompt import FrameSpan


@checker
def check_frames_read(answer):
    """answer(indices [t k], spans) -> [t f]: how many selected keys of each query lie in each frame."""
    spans = [FrameSpan(2, 5, 0.0, 0), FrameSpan(8, 11, 0.5, 0)]
    indices = torch.tensor([[2, 4, 5, 8, 10, 11], [0, 3, 7, 9, 12, 13]], dtype=torch.int32)
    got = answer(indices, spans)
    written(got, "frames_read")
    got = torch.as_tensor(got)
    assert got.shape == (2, 2), f"expected one row a query and one column a frame, [2, 2], got {list(got.shape)}"
    assert got.tolist() != [[3, 3], [1, 1]], (
        "stop is one past the last token of a frame: count start <= key < stop, not key <= stop"
    )
    assert got.tolist() != [[1, 1], [1, 1]], "the first token of a frame belongs to it: start <= key, not start < key"
    assert got.tolist() == [[2, 2], [1, 1]], f"expected [[2, 2], [1, 1]], got {got.tolist()}"
    got = torch.as_tensor(answer(torch.tensor([[0, 1, -1, -1]]), [FrameSpan(0, 2, 0.0, 0), FrameSpan(4, 9, 0.5, 0)]))
    assert got.tolist() != [[4, 0]], "-1 was counted as key 0: it marks an empty place, clamping makes it a key"
    assert got.tolist() != [[2, 2]], "-1 was counted as the last token, as in a Python index: it marks an empty place"
    assert got.tolist() == [[2, 0]], (
        f"of the keys 0, 1, -1, -1 two lie in the first frame: [[2, 0]], got {got.tolist()}"
    )


@checker
def check_best_keys(answer):
    """answer(scores [s], k) -> k positions of the highest scores: ascending, ties to the smaller one, -1 at the end."""
    inf = float("inf")
    got = _numbers(answer, torch.tensor([1.0, 5.0, 3.0, 4.0, 0.0]), 3)
    assert got != [1, 3, 2], "these are ordered by score: return the positions in ascending order, [1, 2, 3]"
    assert got == [1, 2, 3], f"the three highest of 1, 5, 3, 4, 0 stand at [1, 2, 3], got {got}"
    ties = torch.zeros(40)
    ties[20] = 1.0
    got = _numbers(answer, ties, 4)
    assert len(got) == 4, f"k = 4 keys, also where more are tied; got {len(got)}"
    assert 20 in got, f"key 20 has the highest score of all and must be among the four, got {got}"
    assert got == [0, 1, 2, 20], (
        f"39 keys are tied for three places: the smaller positions win, [0, 1, 2, 20]; got {got}"
    )
    got = _numbers(answer, torch.tensor([2.0, 7.0, -inf, -inf]), 3)
    assert 2 not in got, "key 2 has the score -inf: the query may not see it, so it is never selected"
    assert len(got) == 3, f"two keys are valid and k is 3: pad with -1 to three numbers, got {got}"
    assert got != [-1, 0, 1], "the padding stands at the end, not where sorting puts it"
    assert got == [0, 1, -1], f"expected [0, 1, -1], got {got}"


def _numbers(answer, scores: torch.Tensor, k: int) -> list[int]:
    got = answer(scores, k)
    written(got, "best_keys")
    return torch.as_tensor(got).tolist()
