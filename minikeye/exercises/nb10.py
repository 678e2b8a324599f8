"""Checkers of notebook 10, training in stages."""

import torch
from torch import Tensor

from minikeye.exercises import checker, written

NONE = -100  # the target of a place that learns nothing


@checker
def check_visible(answer):
    """answer(lengths) -> bool [t t]: which keys (columns) each query (row) of a packed row may see."""
    lengths = [3, 1, 2]
    got = answer(lengths)
    written(got, "visible")
    got = torch.as_tensor(got)
    assert got.shape == (6, 6), (
        f"expected [6, 6], a row for each query and a column for each key, got {list(got.shape)}"
    )
    got = got.bool()
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    blocks = owner[:, None] == owner

    def like(expected: Tensor) -> bool:
        return torch.equal(got, expected)

    assert not like(torch.ones(6, 6).tril().bool()), "causal, but query 3 still sees the document before its own"
    assert not like(blocks), "query 0 sees keys 1 and 2, which come later: within a document attention is causal"
    assert not like(blocks.triu()), "transposed: rows are queries, which look back, columns are keys"
    assert not like(blocks.tril(-1)), "a query sees itself too: a document's first token has no other key"
    late, early = (torch.tensor(z) for z in ([0, 0, 0, 0, 1, 2], [0, 0, 1, 2, 2, 2]))
    assert not like((late[:, None] == late).tril()), (
        "shifted by one: token 3 is the second document, and here it still belongs to the first; lengths [3, 1, 2] "
        "begin at 0, 3 and 4"
    )
    assert not like((early[:, None] == early).tril()), "shifted by one: token 2 is still the first document's"
    assert like(blocks.tril()), f"query 4 should see key 4 alone, query 5 keys 4 and 5; got {got.int().tolist()}"
    assert torch.equal(torch.as_tensor(answer([4])).bool(), torch.ones(4, 4).tril().bool()), "one document: causal"


@checker
def check_targets(answer):
    """answer(ids [t], answers bool [t], start [t]) -> [t]: the token to say at each place, or -100."""
    ids = torch.tensor([11, 12, 13, 21, 22, 23, 24])
    answers = torch.tensor([False, True, True, True, False, True, True])  # the second document begins with an answer
    start = torch.tensor([0, 0, 0, 3, 3, 3, 3])
    got = answer(ids, answers, start)
    written(got, "targets")
    got = torch.as_tensor(got)
    assert got.shape == (7,), f"expected [7], a target for each place, got {list(got.shape)}"
    none = NONE
    assert got.tolist() != [none, 12, 13, 21, none, 23, 24], (
        "not shifted: a token is said at the place before it, here the model would copy what it reads"
    )
    assert got.tolist() != [none, none, 12, 13, 21, none, 23], "shifted the wrong way: place t says token t + 1"
    assert got.tolist() != [12, 13, 21, 22, 23, 24, none], "learnt from everything: only answers have a target"
    assert got.tolist() != [none, 13, 21, 22, none, 24, none], (
        "the marks are not shifted with the tokens: place t has a target if token t + 1 is an answer"
    )
    assert int(got[-1]) == none, "after the last place there is no token: torch.roll brings the first one there"
    assert int(got[2]) != 21, "token 3 begins another document: the first one's last place must not learn to say it"
    expected = [12, 13, none, none, 23, 24, none]
    assert got.tolist() == expected, f"expected {expected}, got {got.tolist()}"


@checker
def check_sums_needed(answer):
    """answer(video_tokens, sum_tokens, share) -> how many sums make that share of all tokens text only."""
    got = answer(6000, 20, 0.4)
    written(got, "sums_needed")
    got = float(got)
    assert abs(got - 4000) > 1e-6, "4,000 is the number of tokens: each sum brings 20 of them"
    assert abs(got - 120) > 1e-6, (
        "40 % of the video's tokens is not 40 % of all: 120 sums bring 2,400 of 8,400 tokens, 29 %. The text counts too"
    )
    assert abs(got - 300) > 1e-6, "300 sums are as many tokens as the video has: a half. Divide what is text by all"
    assert abs(got - 200) < 1e-6, f"200 sums bring 4,000 tokens, 40 % of 10,000; got {got:g}"
    assert float(answer(6000, 20, 0.0)) == 0, "for a share of 0 no sum is needed"
    assert abs(float(answer(500, 25, 0.5)) - 20) < 1e-6, "for a half, as many tokens of text as of video: 20 sums of 25"
