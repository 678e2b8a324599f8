"""Wrong answers to the exercises of notebook 06, and what their checkers must say."""

import torch
from einops import rearrange

from minikeye.exercises.nb06 import check_merge, check_padded_attention, check_rows_read


def attention(q, k, v, indices, *, absent=-torch.inf, scale=8**-0.5, dealt=False, axis=-1):
    """Right but for the argument that is given, and nan where a query has no keys."""
    at = indices.clamp(min=0)
    heads = "(r g)" if dealt else "(g r)"
    logits = torch.einsum("tgre,tkge->tgrk", rearrange(q, f"t {heads} e -> t g r e", g=2), k[at]) * scale
    p = logits.masked_fill((indices < 0)[:, None, None], absent).softmax(dim=axis)
    return rearrange(torch.einsum("tgrk,tkge->tgre", p, v[at]), f"t g r e -> t {heads} e")


def gathered(q, k, v, indices):
    """Right, except that the last row may stand in for -1 and that a nan in the values is not shown."""
    logits = torch.einsum("tgre,tkge->tgrk", rearrange(q, "t (g r) e -> t g r e", g=2), k[indices]) * 8**-0.5
    p = logits.masked_fill((indices < 0)[:, None, None], -torch.inf).softmax(dim=-1).nan_to_num(0)
    return torch.einsum("tgrk,tkge->tgre", p, v[indices]).flatten(1, 2)


def dense(q, k, v, indices):
    """Right numbers, but every row is read."""
    listed = (indices[:, :, None] == torch.arange(len(k))).any(dim=1)  # [t s]
    logits = torch.einsum("tgre,sge->tgrs", rearrange(q, "t (g r) e -> t g r e", g=2), k) * 8**-0.5
    p = logits.masked_fill(~listed[:, None, None], -torch.inf).softmax(dim=-1).nan_to_num(0)
    return torch.einsum("tgrs,sge->tgre", p, v).flatten(1, 2)


def changed(**change):
    return lambda q, k, v, indices: attention(q, k, v, indices, **change)


def merged(weights):
    """A merge of which only the weights [n t h] differ."""
    return lambda outs, lses: ((weights(lses)[..., None] * outs).sum(dim=0), lses.logsumexp(dim=0))


def parts_of(outs, lses, n):
    """Right, if there are no more than n parts."""
    return merged(lambda z: z.softmax(dim=0).nan_to_num(0))(outs[:n], lses[:n])


def read_by(each, keys):
    """Layers and heads, and the keys that a query reads which sees n."""
    return lambda config, prompt, new: each(config.text) * sum(keys(n, config) for n in range(1, prompt + new + 1))


def rows(text):
    return text.layers * text.kv_heads


def limited(n, config):
    return min(n, config.indexer.topk)


def new_steps_read_topk(config, prompt, new):
    return rows(config.text) * (sum(limited(n, config) for n in range(1, prompt + 1)) + new * config.indexer.topk)


WRONG_ANSWERS = [
    (check_padded_attention, lambda q, k, v, indices: None, "write its body"),
    (check_padded_attention, lambda q, k, v, indices: q[None], "queries' shape"),
    (check_padded_attention, changed(scale=1.0), "not scaled"),
    (check_padded_attention, changed(dealt=True), "read KV head 0"),
    (check_padded_attention, changed(axis=0), "wrong already"),
    (check_padded_attention, changed(absent=0.0), "nothing else"),
    (check_padded_attention, lambda q, k, v, indices: attention(q, k, v, indices % len(k)), "the last key"),
    (check_padded_attention, lambda q, k, v, indices: attention(q, k, v, indices.clamp(min=0)), "stands in"),
    (check_padded_attention, changed(), "is nan"),
    (check_padded_attention, changed(absent=-1e9), "even weights"),
    (check_padded_attention, dense, r"rows \[0, 3, 5\] hold nan.* out\[0, 0, 0\] should be .*, got nan"),
    (check_padded_attention, gathered, r"rows \[1, 2, 4, 5\] hold nan.* got nan"),
    (
        check_padded_attention,
        lambda *given: attention(*given).nan_to_num(0),
        r"should be nan, got 0.0000.*weights alone",
    ),
    (
        check_padded_attention,
        lambda q, k, v, indices: dense(q, k.nan_to_num(), v.nan_to_num(), indices),
        "should be nan",
    ),
    (check_merge, lambda outs, lses: None, "write its body"),
    (check_merge, lambda outs, lses: outs.mean(dim=0), "two tensors"),
    (check_merge, lambda outs, lses: (outs, lses), "expected \\[4, 1, 8\\]"),
    (check_merge, merged(lambda lses: torch.full_like(lses, 1 / len(lses))), "plain mean"),
    (check_merge, merged(lambda lses: lses.exp()), "sum to 1"),
    (check_merge, merged(lambda lses: lses / lses.sum(dim=0)), "merged wrongly"),
    (
        check_merge,
        lambda outs, lses: parts_of(outs, lses, 2),
        r"out\[0, 0, 0\] should be .*, got .*every part counts",
    ),
    (check_merge, lambda outs, lses: parts_of(outs, lses, 3 if len(outs) == 3 else 1), r"two are not: out\[0, 0, 0\]"),
    (check_merge, merged(lambda lses: lses.clamp(min=0).softmax(dim=0)), "without keys"),
    (check_merge, merged(lambda lses: lses.exp() / lses.exp().sum(dim=0)), "overflows"),
    (check_merge, merged(lambda lses: lses.softmax(dim=0)), "is nan"),
    (
        check_merge,
        lambda outs, lses: (merged(lambda z: z.softmax(0).nan_to_num(0))(outs, lses)[0], lses.sum(0)),
        "log of",
    ),
    (check_rows_read, lambda config, prompt, new: None, "write its body"),
    (check_rows_read, read_by(rows, lambda n, config: config.indexer.topk), "no more than that"),
    (check_rows_read, read_by(rows, lambda n, config: n), "dense attention"),
    (check_rows_read, read_by(lambda text: text.layers * text.heads, limited), "not query heads"),
    (check_rows_read, read_by(lambda text: text.kv_heads, limited), "its own rows"),
    (check_rows_read, read_by(rows, lambda n, config: limited(n - 1, config)), "its own key"),
    (check_rows_read, lambda config, prompt, new: rows(config.text) * config.indexer.topk * new, "new tokens only"),
    (check_rows_read, read_by(lambda text: 3 * rows(text), limited), "read .* rows"),
    (check_rows_read, read_by(lambda text: text.layers**2, limited), "read 189 rows, not 567"),
    (check_rows_read, read_by(lambda text: text.kv_heads**2, limited), "read 189 rows, not 63"),
    (check_rows_read, read_by(lambda text: text.layers * text.heads // 2, limited), "read 189 rows, not 378"),
    (check_rows_read, read_by(lambda text: 4, lambda n, config: min(n, 16)), "read 189 rows, not 312"),
    (check_rows_read, new_steps_read_topk, "may see fewer than topk"),
]
