"""Wrong answers to the exercises of notebook 04, and what their checkers must say."""

import torch

from minikeye.cost import active_parameters, parameters
from minikeye.exercises.nb04 import check_causal_mask, check_longest_context, check_repeat_heads
from minikeye.model.cache import cache_bytes_per_token


def per_token(config):
    return sum(cache_bytes_per_token(config))


WRONG_ANSWERS = [
    (check_repeat_heads, lambda k, heads: None, "write its body"),
    (check_repeat_heads, lambda k, heads: k.repeat(1, 1, heads // k.shape[2], 1), "tiled"),
    (check_repeat_heads, lambda k, heads: k.repeat_interleave(heads // k.shape[2], dim=1), "one key for each"),
    (check_repeat_heads, lambda k, heads: k[:, :, [0] * heads], "read KV head 1"),
    (check_causal_mask, lambda t, s, offset: None, "write its body"),
    (check_causal_mask, lambda t, s, offset: torch.ones(t, s).tril().bool(), "offset is ignored"),
    (check_causal_mask, lambda t, s, offset: torch.ones(t, s).tril(offset - 1).bool(), "sees itself"),
    (check_causal_mask, lambda t, s, offset: torch.ones(t, s).bool(), "the future"),
    (check_causal_mask, lambda t, s, offset: torch.ones(t, s).tril(offset), "expected bool"),
    (check_causal_mask, lambda t, s, offset: torch.ones(t, s).tril(s - t).bool(), "count from the offset"),
    (check_longest_context, lambda config, memory: None, "write its body"),
    (check_longest_context, lambda config, memory: memory // per_token(config), "subtract them first"),
    (
        check_longest_context,
        lambda config, memory: (memory - 2 * active_parameters(config).total) // per_token(config),
        "not only the active",
    ),
    (
        check_longest_context,
        lambda config, memory: (memory - parameters(config).total) // per_token(config),
        "2 bytes",
    ),
    (
        check_longest_context,
        lambda config, memory: (memory - 2 * parameters(config).total) // cache_bytes_per_token(config)[0],
        "index keys",
    ),
    (
        check_longest_context,
        lambda config, memory: (memory - 2 * parameters(config).total) // per_token(config),
        "0 tokens, not a negative",
    ),
    (
        check_longest_context,
        lambda config, memory: max(0, memory - 2 * parameters(config).total) // per_token(config),
        "own limit",
    ),
]
