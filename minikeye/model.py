"""The whole model: decoder layers, the decoder, and KeyeVL, which puts visual tokens among the text.

Axes: b batch, t query position, s key position, d width, p patch, n visual token, v vocabulary, k selected key.
Report, section 2; module names are those of the released checkpoint, so a state dict is a checkpoint.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye import ops
from minikeye.attention import MODES, Attention, Mode, Observer, Step
from minikeye.cache import Cache, LayerCache
from minikeye.config import KeyeConfig
from minikeye.moe import MixtureOfExperts
from minikeye.record import Record, Recorder
from minikeye.vision import Projector, VisionTower


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
        self, x: Float[Tensor, "b t d"], step: Step, layer: int, cache: LayerCache | None = None
    ) -> Float[Tensor, "b t d"]:
        attended, trace = self.self_attn(self.input_layernorm(x), step, cache)
        x = x + attended
        y, probabilities, chosen = self.mlp(self.post_attention_layernorm(x))
        if step.observer is not None:
            step.observer.attention(layer, trace)
            step.observer.routing(layer, probabilities, chosen)
        return x + y


class Decoder(nn.Module):
    """Token embedding, the stack of layers, the last norm."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        text = config.text
        self.embed_tokens = nn.Embedding(text.vocab, text.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(text.layers))
        self.norm = nn.RMSNorm(text.width, eps=text.norm_eps)

    def forward(
        self, x: Float[Tensor, "b t d"], step: Step, cache: Cache | None = None, chunk: int | None = None
    ) -> Float[Tensor, "b t d"]:
        """chunk: tokens that pass through a layer at a time. All chunks pass one layer before any passes the next, so
        that weights that come from a disk are read once; a chunk finds the keys of those before it in the cache.
        """
        for n, layer in enumerate(self.layers):
            held = cache.layers[n] if cache is not None else None
            if chunk is None or x.shape[1] <= chunk:
                x = layer(x, step, n, held)
            else:
                held = LayerCache(x.shape[1]) if held is None else held
                x = torch.cat([layer(x[:, part], piece, n, held) for part, piece in step.chunks(chunk)], dim=1)
        return self.norm(x)


@dataclass
class KeyeOutput:
    logits: Float[Tensor, "b t v"]  # float32
    cache: Cache | None
    record: Record | None


class KeyeVL(nn.Module):
    """Keye-VL-2.0 at any size: `KeyeVL(KeyeConfig.nano())`, `KeyeVL.from_pretrained(folder)`."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision)
        self.mlp_AR = Projector(config.vision, config.text.width)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.text.width, config.text.vocab, bias=False)
        self.apply(_initialise)

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
    ) -> KeyeOutput:
        """Next-token logits for `inputs`.

        inputs: input_ids int [b t]; optional positions [3 b t], attention_mask [b t] (left padding), and for pixels
        patches [p 3 s s] with grids [n 3], as `Processor` makes them. With a cache, inputs hold the new tokens only.
        attention: "sparse" reads the indexer's top-k keys, "dense" all, "masked" all but with the numbers of "sparse".
        record: True keeps every query's selection in `out.record`, a number only that many last ones. observer: sees
        every layer as it runs; not with record.
        last: compute logits for that many last positions only. chunk: tokens that pass through a layer at a time: any
        number gives the same result, a small one takes less memory. Raises ValueError, naming what does not fit; after
        an error or Ctrl-C the cache is what it was before.
        """
        if (chunk is not None and chunk < 1) or (last is not None and last < 1):
            raise ValueError(f"chunk and last must be at least 1 token, got {chunk} and {last}")
        if chunk is not None and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            raise ValueError("chunks cannot be learnt from, later ones read a cache: use torch.no_grad(), or no chunk")
        if attention not in MODES:
            raise ValueError(f"attention must be one of {', '.join(MODES)}; got {attention!r}")
        if record and observer is not None:
            raise ValueError("record and observer exclude each other: Recorder is an observer, pass one that does both")
        ids = self.input_ids(inputs, cache)
        offset = cache.length if cache is not None else 0
        if offset + ids.shape[1] > self.config.text.max_positions:
            raise ValueError(
                f"{offset + ids.shape[1]} tokens exceed the context of {self.config.text.max_positions}: "
                f"sample fewer frames or fewer tokens per frame"
            )
        start = first_tokens(inputs.get("attention_mask"), ids, cache)
        positions = self._positions(inputs, ids, cache, start)
        recorder = None
        if record:
            recorder = Recorder(self.config.indexer.topk, None if record is True else int(record), backend)
        options = {"mode": attention, "backend": backend, "observer": recorder if observer is None else observer}
        step = Step.of(self.config, positions, offset=offset, start=start, **options)
        with nullcontext() if cache is None else cache.all_or_nothing():
            x = self.model(self.embed(ids, inputs.get("patches"), inputs.get("grids")), step, cache, chunk)
            logits = self.lm_head(x if last is None else x[:, -last:]).float()
            if cache is not None:
                cache.start, cache.next_position = start, positions.amax(dim=(0, 2)) + 1
        return KeyeOutput(logits, cache, recorder.record if recorder else None)

    def embed(self, ids: Int[Tensor, "b t"], patches: Tensor | None, grids: Tensor | None) -> Float[Tensor, "b t d"]:
        """Token embeddings, with each placeholder replaced by its visual token, in order."""
        x = self.model.embed_tokens(ids)
        is_visual = self.is_visual(ids)
        if patches is None or grids is None:
            if patches is not None or (ops.readable(ids) and bool(is_visual.any())):
                raise ValueError(
                    f"{int(is_visual.sum())} image or video placeholders but no patches: pass patches and grids"
                )
            return x
        visual = self.visual_tokens(patches, grids)
        if ops.readable(ids) and len(visual) != int(is_visual.sum()):
            raise ValueError(
                f"{len(visual)} visual tokens for {int(is_visual.sum())} placeholders in input_ids: "
                f"use the processor's input_ids and grids together"
            )
        # Not masked_scatter: its backward makes a GPU wait for the CPU.
        number = (is_visual.flatten().cumsum(0) - 1).clamp(min=0)  # of the visual token at or before each token
        placed = visual.to(x.dtype).index_select(0, number).view_as(x)
        return torch.where(is_visual[..., None], placed, x)

    def visual_tokens(self, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "n d"]:
        """Vision tower and projector: pixels in [-1, 1] to visual tokens of the decoder's width."""
        return self.mlp_AR(self.visual(patches, grids), grids)

    def is_visual(self, ids: Int[Tensor, "b t"]) -> Tensor:
        """bool [b t]: which tokens are placeholders of visual tokens."""
        return (ids == self.config.image_token_id) | (ids == self.config.video_token_id)

    @property
    def device(self) -> torch.device:
        """Where logits come, and where inputs belong: of a model split over several devices, the last one."""
        return self.model.norm.weight.device

    def new_cache(self, capacity: int = 0) -> Cache:
        """An empty cache for `forward`, which fills it. capacity: tokens to make room for at once; else it grows."""
        return Cache.empty(self.config.text.layers, capacity)

    def generate(self, inputs: Mapping[str, Any], **options):
        """See `minikeye.generate.generate`, whose arguments are keywords here.

        With a processor: `stop_ids=processor.stop_ids`, and `processor.tokenizer.decode(out.row())` is the answer.
        """
        from minikeye.generate import generate

        return generate(self, inputs, **options)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        streaming: bool = False,
    ) -> "KeyeVL":
        """See `minikeye.checkpoint.load`."""
        from minikeye.checkpoint import load

        return load(folder, dtype=dtype, device=device, streaming=streaming)

    def save_pretrained(self, folder: str | Path, **options) -> None:
        """See `minikeye.checkpoint.save`."""
        from minikeye.checkpoint import save

        save(self, folder, **options)

    def input_ids(self, inputs: Mapping[str, Any], cache: Cache | None = None) -> Int[Tensor, "b t"]:
        """The ids of `inputs`, checked. Raises ValueError for what is none, and for rows the cache does not have."""
        ids = inputs.get("input_ids")
        if (
            not isinstance(ids, Tensor)
            or ids.ndim != 2
            or ids.dtype not in (torch.int32, torch.int64)
            or not ids.numel()
        ):
            got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"inputs['input_ids'] must be a non-empty int tensor [b t], got {got}")
        low, high = (int(n) for n in ids.aminmax()) if ops.readable(ids) else (0, 0)
        if low == -1:
            raise ValueError("input_ids hold -1, which marks a row that has ended: such rows cannot go on with others")
        if low < 0 or high >= self.config.text.vocab:
            raise ValueError(
                f"input_ids must lie in 0..{self.config.text.vocab - 1}, got {low}..{high}: use this model's tokenizer"
            )
        if cache is not None and cache.length and cache.batch != len(ids):
            raise ValueError(f"the cache holds a batch of {cache.batch}, got {len(ids)}: start a new cache")
        return ids

    def _positions(
        self, inputs: Mapping, ids: Tensor, cache: Cache | None, start: Tensor | None
    ) -> Int[Tensor, "3 b t"]:
        positions = inputs.get("positions")
        if positions is None and cache is not None and cache.length and cache.next_position is None:
            raise ValueError(
                "the cache was cut short: pass positions [3 b t], Processor and rope.position_ids make them"
            )
        if positions is None and inputs.get("patches") is not None:
            raise ValueError("inputs with patches need 3D positions [3 b t]: Processor and rope.position_ids make them")
        if positions is None:
            first = (
                cache.next_position if cache is not None and cache.length else torch.zeros(len(ids), dtype=torch.long)
            )
            first = first.to(ids.device) - (start if start is not None and (cache is None or not cache.length) else 0)
            run = (first[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
            return run.expand(3, -1, -1)
        if tuple(positions.shape) != (3, *ids.shape):
            raise ValueError(f"positions must be [3, {ids.shape[0]}, {ids.shape[1]}], got {list(positions.shape)}")
        positions = positions.to(ids.device)
        if cache is not None and cache.length and cache.next_position is not None:
            follows = cache.next_position.to(ids.device)
            if not bool((positions[:, :, 0] == follows).all()):
                raise ValueError(
                    f"the cache goes on at positions {follows.tolist()}, got {positions[0, :, 0].tolist()}: leave "
                    f"positions out for text, or count on from there"
                )
        return positions


def first_tokens(mask: Tensor | None, ids: Tensor, cache: Cache | None) -> Int[Tensor, " b"] | None:
    """Position of each row's first real token; None where no row is padded. Padding must be on the left."""
    if cache is not None and cache.length:
        if mask is not None and not bool(mask.all()):
            raise ValueError(
                "a cache that holds tokens goes on without padding: give each row equally many new tokens, or start a "
                "new cache"
            )
        return cache.start
    if mask is None or bool(mask.all()):
        return None
    mask = mask.to(ids.device).bool()
    start = (~mask).sum(dim=1)
    padded_left = torch.arange(ids.shape[1], device=ids.device) >= start[:, None]
    if mask.shape != ids.shape or not torch.equal(mask, padded_left) or not bool(mask[:, -1].all()):
        raise ValueError(
            f"attention_mask must be {list(ids.shape)} with False only on the left and at least one True a row, "
            f"got {list(mask.shape)}: pad with Processor.batch"
        )
    return start


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
