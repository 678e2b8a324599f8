"""Checkers of notebook 04, attention at 256K."""

import torch

from minikeye import KeyeConfig
from minikeye.cost import active_parameters, parameters
from minikeye.exercises import checker, written
from minikeye.model.cache import cache_bytes_per_token


@checker
def check_repeat_heads(answer):
    """answer(k [b s g e], heads) -> [b s h e]: for every query head, the key that it reads."""
    k = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)
    got = answer(k, 6)
    written(got, "repeat_heads")
    assert got.shape == (2, 3, 6, 4), f"expected [2, 3, 6, 4], one key for each of 6 query heads, got {list(got.shape)}"
    assert not torch.equal(got, k.repeat(1, 1, 3, 1)), (
        "this is the order 0 1 0 1 0 1 (tiled): the query heads of a group lie side by side, 0 0 0 1 1 1"
    )
    expected = k[:, :, [0, 0, 0, 1, 1, 1]]
    assert torch.equal(got, expected), "query heads 0, 1, 2 read KV head 0, query heads 3, 4, 5 read KV head 1"


@checker
def check_causal_mask(answer):
    """answer(t, s, offset) -> bool [t s]: which of s keys the t queries at positions offset, offset + 1, ... see."""
    got = answer(2, 5, 3)
    written(got, "causal_mask")
    assert got.dtype == torch.bool and got.shape == (2, 5), f"expected bool [2, 5], got {got.dtype} {list(got.shape)}"
    sees = got.sum(dim=1).tolist()
    assert sees != [1, 2], "the offset is ignored: the first query stands at position 3 and sees 4 keys, not 1"
    assert sees != [3, 4], "a query sees itself too: key <= position, not key < position"
    assert not bool(got[0, 4]), "query 3 sees key 4: that is the future"
    assert got.tolist() == [[True] * 4 + [False], [True] * 5], f"queries 3 and 4 see keys 0-3 and 0-4, got {got.int()}"
    assert torch.equal(answer(3, 3, 0), torch.ones(3, 3).tril().bool()), "with offset 0 this is the lower triangle"
    assert answer(2, 7, 3)[:, 5:].logical_not().all(), (
        "with 7 keys and offset 3, keys 5 and 6 are the future: count from the offset, not from the end of the keys"
    )


@checker
def check_longest_context(answer):
    """answer(config, memory) -> tokens whose cache fits in `memory` bytes beside all weights, everything in bf16."""
    config, memory = KeyeConfig.keye_vl_2_30b_a3b(), 80 * 10**9
    got = answer(config, memory)
    written(got, "longest_context")
    kv, index = cache_bytes_per_token(config)
    free = memory - 2 * parameters(config).total

    def near(expected: float) -> bool:
        return abs(got - expected) <= 1

    assert not near(memory / (kv + index)), "the weights lie in the same memory: subtract them first"
    assert not near((memory - 2 * active_parameters(config).total) / (kv + index)), (
        "all parameters are held, not only the active ones: the next token may go to any expert"
    )
    assert not near((memory - parameters(config).total) / (kv + index)), "a parameter in bf16 takes 2 bytes, not 1"
    assert not near(free / kv), "the index keys are held as well: cache_bytes_per_token returns two numbers"
    assert isinstance(got, int), f"expected a whole number of tokens (use //), got {got!r}"
    assert got == free // (kv + index), f"expected {free // (kv + index):,} tokens, got {got:,}"
    assert answer(config, 60 * 10**9) == 0, "60 gigabytes do not hold the weights: 0 tokens, not a negative number"
    assert answer(config, 160 * 10**9) <= config.text.max_positions, (
        f"more memory does not lift the model's own limit of {config.text.max_positions:,} positions"
    )
