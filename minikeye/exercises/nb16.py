"""Checkers of notebook 16, DSA in a language model that others trained."""

import torch

from minikeye.checkpoint.gguf_weights import halves
from minikeye.exercises import checker, written


@checker
def check_into_file(answer):
    """answer(rows [he d], heads) -> [he d]: rows of q or k in the order of a GGUF file."""
    rows = torch.arange(16.0)[:, None] * torch.tensor([[1.0, 100.0]])
    got = answer(rows.clone(), 2)
    written(got, "into_file")
    assert got.shape == rows.shape, f"expected {list(rows.shape)}, the shape of the rows, got {list(got.shape)}"
    order = got[:, 0].tolist()
    assert sorted(order) == list(range(16)), "each row must be there once: this is no new order of the same rows"
    assert order != halves(rows, 2)[:, 0].tolist(), "this is `halves` itself: from the file to ours, not back"
    assert order != rows.view(2, 8, 2).transpose(0, 1).reshape(16, 2)[:, 0].tolist(), (
        "rows of both heads alternate: channels turn together within a head, so cut into heads first"
    )
    assert order != list(range(16)), "nothing was moved: 0 and 4 of a head of 8 channels must become neighbours"
    expected = [h * 8 + i + half * 4 for h in range(2) for i in range(4) for half in (0, 1)]
    assert order == expected, f"two heads of 8 channels should lie as {expected}, got {order}"
    assert torch.equal(halves(got, 2), rows), "`halves` of it must give the rows back, all columns"
    more = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(halves(answer(more.clone(), 4), 4), more), "right for 2 heads, wrong for 4 of 6 channels"


@checker
def check_window_for(answer):
    """answer(p [t s], first, share, sinks) -> [t]: keys of the smallest window that with the sinks holds the share."""
    p = torch.tensor(
        [
            [0.5, 0.0, 0.1, 0.1, 0.2, 0.1, 0.0],  # stands at key 5
            [0.1, 0.6, 0.0, 0.1, 0.0, 0.1, 0.1],  # at key 6
        ]
    )
    got = answer(p.clone(), 5, 0.75, 1)
    written(got, "window_for")
    got = torch.as_tensor(got)
    assert got.shape == (2,), f"expected [2], a number for each query, got {list(got.shape)}"
    found = got.tolist()
    assert found != [3, 6], "query t stands at key first + t and its window ends there, not at the last key of all"
    assert found != [1, 5], "one too few: with this many keys the share is not reached yet"
    assert found != [3, 7], "one too many: a window of n keys holds the query's own key and the n - 1 before it"
    assert found != [6, 6], "the sinks are read as well: add what they hold to every window"
    assert found != [3, 3], "these are the n best keys anywhere; a window takes the last ones, good or not"
    assert found == [2, 6], f"expected [2, 6], got {found}"
    alone = answer(torch.tensor([[0.75, 0.25]]), 1, 0.5, 1)
    assert torch.as_tensor(alone).tolist() == [0], "where the sinks alone hold the share, no window is needed: 0"
    none = answer(torch.tensor([[0.75, 0.25]]), 1, 0.5, 0)
    assert torch.as_tensor(none).tolist() == [2], "with no sinks the window alone must hold the share"


@checker
def check_lost(answer):
    """answer(dense, sparse), strings of 1 and 0 -> percent of what dense found that sparse lost."""
    got = answer("11110000", "11000100")
    written(got, "lost")
    got = round(float(got), 4)
    assert got != 0.5, "a percentage is asked for, not a share"
    assert got != 12.5, (
        "this is the difference of two percentages: one that sparse finds by luck must not pay for one that is lost"
    )
    assert got != 25.0, "of those that dense finds: divide by 4, not by all 8, and let nothing pay for what is lost"
    assert got != 37.5, "these are all needles with another outcome; count those that dense finds and sparse does not"
    assert got != round(200 / 3, 4), "divide by what dense found, not by what sparse found"
    assert got == 50.0, f"dense finds 4, of which sparse loses 2: expected 50, got {got}"
    assert float(answer("0000", "0101")) == 0.0, "where dense finds none, nothing can be lost: 0"
    assert float(answer("101", "101")) == 0.0, "the same needles found: nothing is lost"
