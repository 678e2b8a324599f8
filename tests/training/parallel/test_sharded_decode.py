"""Decoding over keys in parts against one process: selections bit for bit, ties included; outputs to rounding.

Ranks are a list first, then two real processes: this file, run as a script by `play`, is one of them.
"""

import inspect
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minikeye import ops
from minikeye.training.parallel.sharded_decode import (
    Shard,
    candidates,
    decode,
    merge_attention,
    merge_candidates,
    partial_attention,
)
from minikeye.training.parallel.wire import count_sent

B, T, HEADS, GROUPS, WIDTH, J, INDEX_WIDTH = 2, 3, 4, 2, 8, 3, 4


def drawn(tokens: int, seed: int) -> dict[str, Tensor]:
    """The last three queries of a row and all its keys. Index numbers are small integers: exact scores, many ties."""
    made = torch.Generator().manual_seed(seed)
    draw = lambda *n: torch.randn(B, *n, generator=made)  # noqa: E731
    whole = lambda *n: torch.randint(-1, 2, (B, *n), generator=made).float()  # noqa: E731
    x = {"q": draw(T, HEADS, WIDTH), "k": draw(tokens, GROUPS, WIDTH), "v": draw(tokens, GROUPS, WIDTH)}
    return x | {"index_q": whole(T, J, INDEX_WIDTH), "index_k": whole(tokens, INDEX_WIDTH), "index_w": whole(T, J)}


def shard_of(x: dict[str, Tensor], owner: list[int], rank: int) -> Shard:
    """The keys that one rank owns."""
    at = torch.tensor([p for p, own in enumerate(owner) if own == rank], dtype=torch.long)
    return Shard(x["k"][:, at], x["v"][:, at], x["index_k"][:, at], at)


def one_process(x: dict[str, Tensor], topk: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    offset = x["k"].shape[1] - T
    selected = ops.select_topk(x["index_q"], x["index_k"], x["index_w"], topk, offset, start)
    return ops.sparse_attention(x["q"], x["k"], x["v"], selected)[0], selected


@given(
    owner=st.lists(st.integers(0, 3), min_size=T, max_size=40),
    topk=st.integers(1, 45),
    first=st.integers(0, 45),
    seed=st.integers(0, 99),
)
def test_parts_are_the_whole(owner, topk, first, seed):
    """Whoever owns which key, ranks without any included; rows that begin late, down to queries that see nothing."""
    x, tokens = drawn(len(owner), seed), len(owner)
    start = torch.tensor([0, first])
    expected_out, expected = one_process(x, topk, start)
    shards = [shard_of(x, owner, rank) for rank in range(4)]
    found = [candidates(x["index_q"], x["index_w"], shard, topk, tokens - T, start) for shard in reversed(shards)]
    scores, positions = (torch.cat(z, dim=-1) for z in zip(*found, strict=True))
    selected = merge_candidates(scores, positions, topk)
    assert torch.equal(selected, expected)
    parts = [partial_attention(x["q"], shard, selected) for shard in shards]
    out = merge_attention(*(torch.stack(z) for z in zip(*parts, strict=True)))
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_smaller_position():
    """By hand: four keys of score 5, two of them on each rank; a better one on the second."""
    scores = torch.tensor([[[5.0, 5.0, 9.0, 5.0, 5.0]]])
    positions = torch.tensor([[[6, 7, 8, 1, 9]]])
    assert merge_candidates(scores, positions, 3).tolist() == [[[1, 6, 8]]]
    assert merge_candidates(scores, positions, 7).tolist() == [[[1, 6, 7, 8, 9, -1, -1]]]


def test_parts_of_attention_by_hand():
    """One key a rank with logits log 1 and log 3, values 4 and 8: (4 + 3 * 8) / 4; a third rank has none."""
    out = torch.tensor([4.0, 8.0, 0.0]).reshape(3, 1, 1, 1, 1)
    lse = torch.tensor([1.0, 3.0, 0.0]).log().reshape(3, 1, 1, 1)
    assert merge_attention(out, lse).item() == pytest.approx(7.0)
    assert merge_attention(out * 0, torch.full_like(lse, -torch.inf)).item() == 0.0


def test_keys_without_order_are_refused():
    x = drawn(4, 0)
    with pytest.raises(ValueError, match=r"one ascending position a key, got lengths \[4, 4, 4, 4\]"):
        Shard(x["k"], x["v"], x["index_k"], torch.tensor([0, 2, 1, 3]))
    with pytest.raises(ValueError, match=r"got lengths \[3, 4, 4, 4\]"):  # the tests' shape check would be faster
        inspect.unwrap(Shard.__init__)(object.__new__(Shard), x["k"], x["v"], x["index_k"], torch.arange(3))


CASES = {"turns": [n % 2 for n in range(33)], "runs": [n // 17 for n in range(33)], "all on one": [1] * 33}


@pytest.fixture(scope="module")
def ranks(play) -> list[dict]:
    """What two processes found, in rank order."""
    return play(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(ranks, name):
    out, selected = one_process(drawn(33, 7), 8, None)
    sent = B * T * (8 * (4 + 4) + HEADS * (WIDTH + 1) * 4)  # scores and positions, outputs and log-sum-exps
    for rank in ranks:
        assert torch.equal(rank[name]["selected"], selected) and rank[name]["sent"] == sent
        torch.testing.assert_close(rank[name]["out"], out, rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0][name]["out"], ranks[1][name]["out"])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    x, found = drawn(33, 7), {}
    for name, owner in CASES.items():
        shard = shard_of(x, owner, dist.get_rank())
        with count_sent() as sent:
            out, selected = decode(x["q"], x["index_q"], x["index_w"], shard, 8, 30, dist.group.WORLD)
        found[name] = {"out": out, "selected": selected, "sent": sent.bytes}
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
