"""Checkers of notebook 17, the full checkpoint."""

from collections.abc import Callable
from dataclasses import replace

from minikeye import KeyeConfig
from minikeye.cost import active_parameters, parameters
from minikeye.exercises import checker, written


@checker
def check_layer_parameters(answer):
    """answer(config) -> parameters of one decoder layer, its indexer included."""
    config = KeyeConfig.keye_vl_2_30b_a3b()
    got = _whole(answer(config), "layer_parameters")
    text, index, p = config.text, config.indexer, parameters(config)
    d, n = text.width, text.layers
    expected = _layer(config)
    off = expected - got
    assert off != p.indexer // n, "the indexer is missing: it is part of every layer's attention"
    assert off != d * index.heads, (
        "the gates are missing: the indexer's q_proj has heads x width rows for the queries and one more a head"
    )
    assert off != p.experts // n // text.experts * (text.experts - text.experts_per_token), (
        "these are the experts that one token uses: the layer has all 128"
    )
    assert off != p.experts // n // 3, "an expert has three matrices: gate, up and down; gate and up share a tensor"
    assert off != 2 * d, "the two norms of the layer are missing: one before attention, one before the experts"
    assert off != 2 * text.head_width, "the norms of q and k are missing: head_width weights each, shared by all heads"
    assert off != d, "a layer has two norms of width d, not one"
    assert off != -2 * d * text.head_width * (text.heads - text.kv_heads), (
        "keys and values have kv_heads heads, not as many as the queries"
    )
    assert off != p.router // n, "the router is missing: one row of width d for each expert"
    assert off != 3 * index.width, (
        "the indexer's norms are missing: RMSNorm of q has a weight, LayerNorm of k a weight and a bias"
    )
    assert got == expected, f"expected {expected:,}, got {got:,}: {abs(off):,} too {'few' if off > 0 else 'many'}"
    for small in (KeyeConfig.mini(), KeyeConfig.nano()):
        assert answer(small) == _layer(small), "right for the released model only: take every number from the config"


@checker
def check_streamed_bytes(answer):
    """answer(config) -> bytes in bfloat16 that a streamed model reads from its files for one decoded token."""
    config = KeyeConfig.keye_vl_2_30b_a3b()
    got = _whole(answer(config), "streamed_bytes")
    p, active, d = parameters(config), active_parameters(config), config.text.width
    expected = _streamed(config)
    off = expected - got
    assert got not in (expected // 2, 2 * expected), "a parameter takes two bytes in bfloat16"
    assert got not in (2 * p.total, 2 * (p.total - p.vision - p.projector)), (
        "not everything is read: 8 of 128 experts a layer, and one row of the embedding"
    )
    assert off != 2 * (active.experts - p.experts), "experts without a token are not read: 8 of 128 a layer"
    assert off not in (2 * (d - p.embedding), 2 * (d - p.embedding) - 2 * d), (
        "of the embedding one row is read, that of the token"
    )
    assert off not in (2 * p.head, 2 * (p.head + d)), "the head is read as a whole: every word gets a logit"
    assert off != 2 * active.indexer, "the indexer is read too: every layer selects before it attends"
    assert off != -2 * d, "the last norm was taken into memory when the folder was opened: it is not read again"
    assert off != 2 * d, "the row of the token in the embedding is missing"
    assert off != -2 * (p.vision + p.projector), (
        "a decoded token has no pixels: vision tower and projector stay in their files"
    )
    assert got == expected, f"expected {expected:,}, got {got:,}: {abs(off):,} too {'few' if off > 0 else 'many'}"
    for small in (KeyeConfig.mini(), replace(config, text=replace(config.text, layers=4))):
        assert answer(small) == _streamed(small), "right for the released model only: take every number from the config"


@checker
def check_reusable(answer):
    """answer(new, held, blocks) -> how many first tokens of `new` need not be read again."""
    new = [1, 2, 9, 9, 9, 3, 4, 9, 9, 9, 5, 6]
    blocks = [(2, 5), (7, 10)]  # visual tokens 2..4 and 7..9
    reused = _asking(answer)
    assert reused(new, [1, 2, 9, 9, 9, 3, 7, 8], blocks) == 6, "the first 6 tokens are the same: answer 6"
    assert reused(new, [1, 8, 9, 9, 9, 3, 4], blocks) != 6, (
        "a prefix ends at the first difference: do not count matches"
    )
    assert reused(new, [1, 8, 9, 9, 9, 3, 4], blocks) == 1, "only the first token is the same: answer 1"
    inside = reused(new, [1, 2, 9, 9, 9, 3, 4, 9, 8], blocks)
    assert inside != 8, "8 lies inside a visual block, whose pixels come whole: go back to its start"
    assert inside != 5, "this goes back to the block before: only the block that was cut must be read again"
    assert inside == 7, f"the prefix of 8 tokens is cut back to the block's start, 7; got {inside}"
    assert reused(new, new[:10], blocks) == 10, "10 is the end of a block, not inside it: nothing to cut back"
    assert reused(new, new[:7], blocks) == 7, "7 is the start of a block: it was not begun, nothing to cut back"
    assert reused(new, new[:4], blocks) == 2, "4 lies inside the first block, which starts at 2"
    whole = reused(new, [*new, 7, 7], blocks)
    assert whole != len(new), "the last token must be read, for its logits say what comes next: at most 11 of 12"
    assert whole == 11, f"all 12 are held and the last must be read: 11; got {whole}"
    short = reused([1, 9, 9, 9], [1, 9, 9, 9], [(1, 4)])
    assert short != 3, "leaving the last token out can end inside a block: leave it out first, then go back"
    assert short == 1, f"the last token belongs to a block that starts at 1: answer 1, got {short}"
    assert reused(new, [], blocks) == 0, "an empty cache holds nothing"


def _asking(answer: Callable) -> Callable:
    return lambda *given: _whole(answer(*given), "reusable")


def _layer(config: KeyeConfig) -> int:
    p, n = parameters(config), config.text.layers
    return (p.attention + p.indexer + p.router + p.experts) // n + 2 * config.text.width


def _streamed(config: KeyeConfig) -> int:
    """Everything that a token passes through but the last norm, which stays in memory."""
    return 2 * (active_parameters(config).total - config.text.width)


def _whole(got: object, name: str) -> int:
    written(got, name)
    assert isinstance(got, int), f"expected a whole number (use //), got {got!r}"
    return got
