"""The decoder: a block of attention and experts, and the stack of them.

Axes: b batch, t query position, d width, x expert, c chosen expert of a token.
Report, section 2 (Qwen3-MoE); module names are those of the released checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye.config import KeyeConfig
from minikeye.model.attention import Attention
from minikeye.model.cache import Cache, LayerCache
from minikeye.model.moe import MixtureOfExperts
from minikeye.model.step import AttentionTrace, Observer, Step


class Sight(NamedTuple):
    """What a layer shows to an observer."""

    trace: AttentionTrace
    probabilities: Float[Tensor, "b t x"]  # the router's
    chosen: Int[Tensor, "b t c"]

    def show(self, observer: Observer, layer: int) -> None:
        observer.attention(layer, self.trace)
        observer.routing(layer, self.probabilities, self.chosen)


class DecoderLayer(nn.Module):
    """Pre-RMSNorm block: attention, then a mixture of experts."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        text = config.text
        self.input_layernorm = nn.RMSNorm(text.width, eps=text.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(text.width, eps=text.norm_eps)
        self.mlp = MixtureOfExperts(text)

    def forward(
        self, x: Float[Tensor, "b t d"], step: Step, cache: LayerCache | None = None
    ) -> tuple[Float[Tensor, "b t d"], Sight | None]:
        # Tokens look at each other; what they find is added to the stream.
        attended, trace = self.self_attn(self.input_layernorm(x), step, cache)
        x = x + attended
        # Each token alone goes through a few experts, whose sum is added as well.
        x, probabilities, chosen = self.mlp(self.post_attention_layernorm(x), x, step.backend)
        # Queries and keys stay alive only where somebody watches.
        return x, None if step.observer is None else Sight(trace, probabilities, chosen)


class Decoder(nn.Module):
    """Token embedding, the stack of layers, the last norm."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        text = config.text
        self.embed_tokens = nn.Embedding(text.vocab, text.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(text.layers))
        self.norm = nn.RMSNorm(text.width, eps=text.norm_eps)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        step: Step,
        cache: Cache | None = None,
        chunk: int | None = None,
        recompute: bool = False,
    ) -> Float[Tensor, "b t d"]:
        """chunk: tokens that pass through a layer at a time. All chunks pass one layer before any passes the next, so
        that weights that come from a disk are read once; a chunk finds the keys of those before it in the cache.
        recompute: keep a layer's input alone for the backward pass, which runs the layer again.
        """
        for n, layer in enumerate(self.layers):
            held = cache.layers[n] if cache is not None else None
            if chunk is None or x.shape[1] <= chunk:
                x = through(layer, x, step, n, held, recompute)
            else:  # without a cache, the keys of earlier chunks still have to be somewhere
                held = LayerCache(x.shape[1]) if held is None else held
                pieces = [through(layer, x[:, part], piece, n, held) for part, piece in step.chunks(chunk)]
                x = torch.cat(pieces, dim=1)
        return self.norm(x)


@contextmanager
def ruled(
    decoder: Decoder, keys: Sequence[Callable | None] | None = None, experts: Sequence[Callable | None] | None = None
) -> Iterator[None]:
    """While this holds, each layer chooses its keys, and its experts, by a rule of these: one a layer.

    keys, experts: as `Attention.rule` and `Router.rule`; None in the place of all leaves what is there. Afterwards
    every layer has the rule it had. Raises ValueError for a decoder whose layers are streamed: the rules would be lost.
    """
    if not isinstance(decoder.layers, nn.ModuleList):
        raise ValueError("a streamed model takes its layers anew at every pass: load it without streaming")
    pairs = []
    for rules, of in ((keys, lambda layer: layer.self_attn), (experts, lambda layer: layer.mlp.gate)):
        pairs += [] if rules is None else zip(map(of, decoder.layers), rules, strict=True)
    before = [module.rule for module, _ in pairs]
    try:
        for module, rule in pairs:
            module.rule = rule
        yield
    finally:
        for (module, _), rule in zip(pairs, before, strict=True):
            module.rule = rule


def through(
    layer: nn.Module, x: Float[Tensor, "b t d"], step: Step, n: int, cache: LayerCache | None, recompute: bool = False
) -> Float[Tensor, "b t d"]:
    """x after layer number n; the observer sees the layer once, however often it runs."""
    if recompute:
        from torch.utils.checkpoint import checkpoint

        x, sight = checkpoint(layer, x, step, cache, use_reentrant=False)
    else:
        x, sight = layer(x, step, cache)
    if sight is not None:
        sight.show(step.observer, n)
    return x
