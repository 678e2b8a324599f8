"""Checkers of notebook 06, sparse attention."""

from dataclasses import replace

import torch
from torch import Tensor

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.exercises import checker, written

NONE = -1  # marks no key


@checker
def check_padded_attention(answer):
    """answer(q [t h e], k [s g e], v [s g e], indices [t k]) -> [t h e]: attention over the listed keys, -1 is none."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*n, 8, dtype=torch.float64, generator=draw) for n in ((3, 4), (6, 2), (6, 2)))
    indices = torch.tensor([[0, 2, 5], [1, 3, NONE], [NONE, NONE, NONE]])
    got = answer(q, k, v, indices)
    written(got, "padded_attention")
    assert got.shape == q.shape, f"expected the queries' shape {list(q.shape)}, got {list(got.shape)}"
    full, padded, empty = got

    def wanted(t: int, keys: list[int], **change) -> Tensor:
        return _attention(q[t], k[keys], v[keys], **change)

    def like(row: Tensor, t: int, keys: list[int], **change) -> bool:
        return torch.allclose(row.double(), wanted(t, keys, **change), atol=1e-6)

    assert not like(full, 0, [0, 2, 5], scale=1.0), "the logits are not scaled: divide them by the square root of e = 8"
    assert not like(full, 0, [0, 2, 5], dealt=True), "query heads 0 and 1 read KV head 0, heads 2 and 3 read KV head 1"
    assert like(full, 0, [0, 2, 5]), (
        "the first query has three keys and no padding, and its output is wrong already: "
        f"{_first_difference(full, wanted(0, [0, 2, 5]), 'out', 0)}"
    )
    assert not like(padded, 1, [1, 3, 5]), "-1 was used as an index: to Python that is the last key; mask it"
    assert not like(padded, 1, [1, 3, 0]), "row 0 stands in for -1 and got a weight: set its logit to -inf"
    assert like(padded, 1, [1, 3]), (
        "the second query must read keys 1 and 3 and nothing else: "
        f"{_first_difference(padded, wanted(1, [1, 3]), 'out', 1)}"
    )
    assert not bool(empty.isnan().any()), "the third query has no keys: a softmax over nothing but -inf is nan"
    assert bool((empty == 0).all()), (
        "the third query has no keys: its output must be zero. A large negative number in place of -inf gives even "
        "weights instead"
    )
    for at in ([1, 2, 4], [0, 3, NONE]):
        seen = [s for s in at if s != NONE]
        unread = torch.tensor([s for s in range(6) if s not in seen])
        poisoned = (z.index_fill(0, unread, torch.nan) for z in (k, v))
        row = answer(q[:1], *poisoned, torch.tensor([at]))[0]
        assert like(row, 0, seen), (
            f"a query with the positions {at}, where rows {unread.tolist()} hold nan, must not read those: gather the "
            "rows of the set instead of masking the others, and let no row outside it stand in for -1. "
            f"{_first_difference(row, wanted(0, seen), 'out', 0)}"
        )
    row = answer(q[:1], k, v.index_fill(0, torch.tensor([2]), torch.nan), torch.tensor([[1, 2, 4]]))[0]
    assert bool(row.isnan().all()), (
        "the value row 2 holds nan and is in the set, so all of the output must be nan: "
        f"{_first_difference(row, torch.full_like(row, torch.nan), 'out', 0)}. `nan_to_num` hides it: use it on the "
        "weights alone"
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 8**-0.5, dealt: bool = False) -> Tensor:
    """One query [h e] over keys and values [k g e], head by head."""
    groups = [h % 2 if dealt else h // 2 for h in range(4)]
    return torch.stack([(k[:, g] @ q[h] * scale).softmax(dim=0) @ v[:, g] for h, g in enumerate(groups)])


def _first_difference(got: Tensor, expected: Tensor, name: str, *row: int) -> str:
    """The first entry in which `got`, all of the tensor `name` or one row of it, is not `expected`."""
    got, expected = got.double(), expected.double()
    at = tuple((~torch.isclose(got, expected, equal_nan=True)).nonzero()[0].tolist())
    return f"{name}{[*row, *at]} should be {float(expected[at]):.4f}, got {float(got[at]):.4f}"


@checker
def check_merge(answer):
    """answer(outs [n t h e], lses [n t h]) -> (out [t h e], lse [t h]): n partial attentions over disjoint keys."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 1, 8, dtype=torch.float64, generator=draw) for n in (4, 8, 8))
    q[0, 2] *= 2000  # logits in the thousands
    first = torch.tensor([[[0, 1, 2], [0, 1, 2], [0, 1, 2], [NONE] * 3]])
    second = torch.tensor([[[3, NONE, NONE], [NONE] * 3, [3, 4, 5], [NONE] * 3]])
    third = torch.tensor([[[6, 7, NONE], [NONE] * 3, [6, NONE, NONE], [NONE] * 3]])
    expected, expected_lse = (z[0] for z in ops.sparse_attention(q, k, v, torch.cat([first, second, third], dim=-1)))
    parts = [ops.sparse_attention(q, k, v, at) for at in (first, second, third)]
    outs, lses = (torch.stack([part[n][0] for part in parts]) for n in (0, 1))
    got = answer(outs, lses)
    written(got, "merge")
    assert isinstance(got, tuple) and len(got) == 2, "return two tensors: the output and its log-sum-exp"
    out, lse = got
    assert out.shape == (4, 1, 8) and lse.shape == (4, 1), (
        f"expected [4, 1, 8] and [4, 1], got {list(out.shape)} and {list(lse.shape)}"
    )
    weighted = (lses.exp()[..., None] * outs).sum(dim=0)
    assert not torch.allclose(out[0], outs[:, 0].mean(dim=0)), (
        "this is the plain mean: a part counts by exp(its lse), the weight that its keys have together"
    )
    assert not torch.allclose(out[0], weighted[0]), "the weights must sum to 1: divide by exp(lse of all parts)"
    assert torch.allclose(out[0], expected[0]), (
        "the first query, parts of three, one and two keys, is merged wrongly: "
        f"{_first_difference(out[0], expected[0], 'out', 0)}; every part counts"
    )
    assert torch.allclose(out[1], expected[1]), "a part without keys has lse -inf: its weight is exp(-inf) = 0"
    assert torch.allclose(out[2], expected[2]), (
        "with large logits exp(lse) overflows: subtract the lse of all parts before taking exp"
    )
    assert not bool(out[3].isnan().any()), "no part has a key: -inf minus -inf is nan, and the output must be zero"
    assert torch.equal(out[3], expected[3]), "where no part has a key the output is zero"
    assert torch.allclose(lse, expected_lse), (
        f"the new lse is the log of the sum of exp(lse) over the parts: {_first_difference(lse, expected_lse, 'lse')}"
    )
    expected = ops.sparse_attention(q, k, v, torch.cat([first, second], dim=-1))[0][0]
    out, _ = answer(outs[:2], lses[:2])
    assert torch.allclose(out, expected), (
        f"three parts are merged rightly, two are not: {_first_difference(out, expected, 'out')}"
    )


@checker
def check_rows_read(answer):
    """answer(config, prompt, new) -> key rows read by a prompt of `prompt` tokens and `new` steps of one token."""
    config, prompt, new = KeyeConfig.nano(), 20, 5
    text, topk = config.text, config.indexer.topk
    got = answer(config, prompt, new)
    written(got, "rows_read")
    each, seen = text.layers * text.kv_heads, range(1, prompt + new + 1)
    pairs = sum(min(n, topk) for n in seen)
    assert got != each * topk * (prompt + new), (
        f"query t sees t + 1 keys and reads no more than that: the first {topk} queries read fewer than {topk}"
    )
    assert got != each * sum(seen), f"these are the rows of dense attention: a query reads at most topk = {topk} keys"
    assert got != text.layers * text.heads * pairs, (
        "a row is read once for the query heads of a group: count KV heads, not query heads"
    )
    assert got != text.kv_heads * pairs, f"each of the {text.layers} layers reads its own rows"
    assert got != each * sum(min(n - 1, topk) for n in seen), "a query reads its own key too: query 0 reads one"
    assert got != each * topk * new, "these are the new tokens only: the prompt reads rows as well"
    read = _rows_of_a_model(config, prompt, new)
    assert got == read, f"a nano model that read {prompt} tokens and decoded {new} read {read:,} rows, not {got!r}"
    other = replace(config, text=replace(text, layers=3, kv_heads=1), indexer=replace(config.indexer, topk=7))
    got, read = answer(other, 3, 9), _rows_of_a_model(other, 3, 9)
    assert got == read, (
        f"a nano model with 3 layers, 1 KV head and topk 7 that read 3 tokens and decoded 9 read {read} rows, not "
        f"{got!r}: take every size from the config; a new token, too, may see fewer than topk keys"
    )


def _rows_of_a_model(config: KeyeConfig, prompt: int, new: int) -> int:
    """Measured: random weights will do, since they decide which rows are read and not how many."""
    with torch.random.fork_rng(), torch.no_grad(), ops.count_rows() as counter:
        model, ids = KeyeVL(config).eval(), torch.arange(prompt + new)[None]
        cache = model.new_cache()
        for piece in (ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)):
            model({"input_ids": piece}, cache=cache)
    return counter.rows
