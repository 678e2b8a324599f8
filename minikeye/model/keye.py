"""The network: visual tokens among the text, the decoder over both, the next token's logits.

What is unusual about this model:
 1. Every video frame is an image of its own, at its own shape, with its time written before it as text.
 2. The tower has no fixed input size: its position table is stretched to each frame, and 2D RoPE is added on top.
 3. Four neighbouring patches become one visual token; there is no other way from pixels to text.
 4. Positions are three numbers, time, row and column; a frame's time is its place in the order, not its seconds.
 5. A lightning indexer beside each attention layer scores every earlier token, and attention reads the best 2,048.
 6. All 32 query heads of a token share that choice, because they share 4 key/value heads: the first DSA on GQA.
 7. The indexer learns from a KL loss of its own, and no gradient passes between it and the model.
 8. 128 experts a layer, 8 for a token, no shared one: 31 billion parameters, 3 billion of them at work.

Against Qwen3-MoE, whose decoder this is: `indexer.py`, the selection in `attention.py` and index keys in `cache.py` are
Keye's own, and M-RoPE (from Qwen2-VL) in the place of RoPE; per-head norms of q and k, router, experts, norms and the
untied head are unchanged. Report, section 2; module names are those of the released checkpoint, so a state dict is a
checkpoint.

Axes: b batch, t query position, d width, p patch, s side of a patch, f frame, n visual token, v vocabulary.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minikeye.config import KeyeConfig
from minikeye.model.batch import Batch, check_options, is_visual
from minikeye.model.cache import Cache
from minikeye.model.decoder import Decoder
from minikeye.model.record import Record, Recorder
from minikeye.model.step import Mode, Observer, Step
from minikeye.model.vision import Projector, VisionTower
from minikeye.ops.torch_selection import readable


@dataclass
class KeyeOutput:
    logits: Float[Tensor, "b t v"]  # float32
    cache: Cache | None
    record: Record | None


class KeyeModel(nn.Module):
    """Keye-VL-2.0 at any size, the network alone. `minikeye.KeyeVL` is this, with loading, saving and generating."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        self.config = config
        self.visual = None if config.vision is None else VisionTower(config.vision)
        self.mlp_AR = None if config.vision is None else Projector(config.vision, config.text.width)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.text.width, config.text.vocab, bias=False)
        if config.text.tied:
            self.lm_head = TiedHead(self.model.embed_tokens)
        self.apply(_initialise)
        if config.text.tied:  # as a head's weight starts: logits of size 1
            self.model.embed_tokens.weight.data *= config.text.width**-0.5

    def forward(
        self,
        inputs: Mapping[str, Any],
        cache: Cache | None = None,
        attention: Mode = "sparse",
        backend: str = "auto",
        record: bool | int = False,
        observer: Observer | None = None,
        last: int | None = None,
        chunk: int | None = None,
        recompute: bool = False,
    ) -> KeyeOutput:
        """Next-token logits for `inputs`.

        inputs: input_ids int [b t]; optional positions [3 b t], attention_mask [b t] (left padding), and for pixels
        patches [p 3 s s] with grids [f 3], as `Processor` makes them, or, where the tower has run before, visual [n d]:
        the `visual_tokens` of the placeholders in order, row after row (of text alone, [0 d]). With a cache, inputs
        hold the new tokens only.
        attention: "sparse" reads the indexer's top-k keys, "dense" all, "masked" all but with the numbers of "sparse".
        record: True keeps every query's selection in `out.record`, a number only that many last ones. observer: sees
        every layer as it runs; not with record.
        last: compute logits for that many last positions only. chunk: tokens that pass through a layer at a time: any
        number gives the same result, a small one takes less memory. recompute: while learning, keep each decoder
        layer's input alone and run the layer again in the backward pass: the same gradients for less memory and a
        third more time. Raises ValueError, naming what does not fit; after an error or Ctrl-C the cache is what it was.
        """
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        check_options(attention, record, observer, last, chunk, recompute, cache, learning)
        batch = Batch.of(inputs, self.config, cache)
        recorder = None
        if record:
            recorder = Recorder(self.config.indexer.topk, None if record is True else int(record), backend)
        # What all layers share: where the tokens stand, how to attend, who watches.
        step = Step.of(
            self.config,
            batch.positions,
            offset=batch.offset,
            start=batch.start,
            mode=attention,
            backend=backend,
            observer=recorder if observer is None else observer,
        )
        with nullcontext() if cache is None else cache.all_or_nothing():
            # Pixels become tokens of the decoder's width and take their places in the text; from here on all are alike.
            x = self.model(self.embed(batch), step, cache, chunk, recompute)
            # A row of logits is as long as the vocabulary: only those that are asked for.
            logits = self.lm_head(x if last is None else x[:, -last:]).float()
            if cache is not None:
                cache.start, cache.next_position = batch.start, batch.positions.amax(dim=(0, 2)) + 1
        return KeyeOutput(logits, cache, recorder.record if recorder else None)

    def embed(self, batch: Batch) -> Float[Tensor, "b t d"]:
        """Token embeddings, with each placeholder replaced by its visual token, in order."""
        x = self.model.embed_tokens(batch.ids)
        if batch.patches is None and batch.visual is None:
            return x
        visual = self.visual_tokens(batch.patches, batch.grids) if batch.visual is None else batch.visual
        if readable(batch.ids) and len(visual) != int(batch.placeholders.sum()):
            raise ValueError(
                f"{len(visual)} visual tokens for {int(batch.placeholders.sum())} placeholders in input_ids: "
                f"use the processor's input_ids and grids together"
            )
        if not len(visual):
            return x + visual.sum()  # none, and still what the result is computed from: a gradient of no rows goes back
        # Not masked_scatter: its backward makes a GPU wait for the CPU.
        number = (batch.placeholders.flatten().cumsum(0) - 1).clamp(min=0)  # of the visual token at or before each one
        placed = visual.to(x.device, x.dtype).index_select(0, number).view_as(x)
        return torch.where(batch.placeholders[..., None], placed, x)

    def visual_tokens(self, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "n d"]:
        """Vision tower and projector: pixels in [-1, 1] to visual tokens of the decoder's width.

        A pass takes them as inputs["visual"]: several questions about one clip need the tower once.
        """
        return self.mlp_AR(self.visual(patches, grids), grids)

    def is_visual(self, ids: Int[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
        """Which tokens are placeholders of visual tokens."""
        return is_visual(ids, self.config)

    @property
    def device(self) -> torch.device:
        """Where logits come, and where inputs belong: of a model split over several devices, the last one."""
        return self.model.norm.weight.device

    def new_cache(self, capacity: int = 0) -> Cache:
        """An empty cache for `forward`, which fills it. capacity: tokens to make room for at once; else it grows."""
        return Cache.empty(self.config.text.layers, capacity)


class TiedHead(nn.Module):
    """The embedding table as the head: no parameter of its own, so no name in a checkpoint either."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self._table = (embedding,)  # in a tuple, or it would be a module of two names

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        return self._table[0].weight

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        return nn.functional.linear(x, self.weight)


def _initialise(module: nn.Module) -> None:
    """Normal(0, 1/sqrt(inputs)) weights, which at the released width is the usual 0.02; zero biases.

    Token embeddings start at 1, the size of what norms hand on: at 0.02 a small model takes long to see its tokens
    through its own noise. Norms start as the identity. Our choice; a checkpoint overwrites all of it.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Decoder):
        nn.init.normal_(module.embed_tokens.weight)
        for layer in module.layers:  # what is added to the residual stream keeps the stream's size over all layers
            layer.self_attn.o_proj.weight.data *= (2 * len(module.layers)) ** -0.5
            layer.mlp.experts.down_proj.data *= (2 * len(module.layers)) ** -0.5
