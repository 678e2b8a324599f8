"""What a video costs: parameters, tokens, bytes and floating point operations, by arithmetic alone.

Conventions, the same throughout:
- One multiply-add is 2 FLOP. Only matrix products count; norms, softmax, RoPE, ReLU, top-k and the sum over indexer
  heads do not. torch's FlopCounterMode counts the same products, except that it counts all t * s pairs of a causal
  product where this module counts the t * (t + 1) / 2 that are needed.
- "sparse" is DSA (report, section 2.3): every query is scored against all its keys by the indexer and attends to the
  best k = topk. "dense" is the same decoder without any indexer.
- Batch 1. Bytes are those that have to come from memory once; activations are left out.

Symbols: L tokens, n layers, d width, h query heads, g KV heads, e head width, j indexer heads, i indexer width,
x experts, c experts per token, m expert width, v vocabulary.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch

from minikeye.config import KeyeConfig, VisionConfig
from minikeye.inputs.sampling import fit_size, frame_count, frame_indices, video_budget
from minikeye.model.cache import cache_bytes_per_token

Reading = Literal["sparse", "dense"]


class _Bill:
    """A dataclass of numbers that can be added up."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Parameters(_Bill):
    """Numbers of parameters, by part."""

    vision: int  # tower, with the table of `packing_positions` rows that is never read
    projector: int
    embedding: int
    attention: int  # q, k, v and o projections, per-head norms
    indexer: int
    router: int
    experts: int
    norms: int  # of the decoder: two a layer and the last one
    head: int


@dataclass(frozen=True)
class Flops(_Bill):
    """Floating point operations, by component."""

    vision: int  # tower, all frames
    projector: int  # all frames
    projections: int  # q, k, v, o
    indexer_projections: int  # index queries, gates and keys; 0 when dense
    indexer_scores: int  # every query against all its keys: quadratic in L; 0 when dense
    attention: int  # q.k and p.v: quadratic in L when dense, linear once L > k when sparse
    router: int
    experts: int
    head: int


@dataclass(frozen=True)
class DecodeBytes(_Bill):
    """Bytes that one decode step has to read."""

    weights: int  # of everything one token passes through
    keys_values: int  # all cached rows when dense, at most k a layer when sparse
    index_keys: int  # all cached rows; 0 when dense


@dataclass(frozen=True)
class VideoCost:
    """What a video becomes in the prompt."""

    frames: int  # sampled frames
    width: int  # pixels of a frame at the model
    height: int  # pixels of a frame at the model
    frame_tokens: int  # visual tokens of one frame
    text_tokens: int  # frame marks, timestamps, start and end of the video; an estimate, see `video_cost`

    @property
    def visual_tokens(self) -> int:
        return self.frames * self.frame_tokens

    @property
    def tokens(self) -> int:
        """Visual and text tokens of the video, without the question and the chat turns around it."""
        return self.visual_tokens + self.text_tokens


# -------------------------------------------------------------------------------------------------------- parameters


def parameters(config: KeyeConfig) -> Parameters:
    """Parameters of every part, equal to those of `KeyeVL(config)`; 31,122,082,160 for the released model.

    attention n(2dhe + 2dge + 2e); indexer n(d(ji + j) + di + 3i); router ndx; experts 3nxdm; embedding, head vd each.
    Without a tower, norms of q and k, a choice of experts or a head of its own those terms are 0.
    """
    text, index, d, n = config.text, config.indexer, config.text.width, config.text.layers
    tower, projector = (0, 0) if config.vision is None else _seeing(config.vision, d)
    return Parameters(
        vision=tower,
        projector=projector,
        embedding=text.vocab * d,
        attention=n * (2 * d * text.head_width * (text.heads + text.kv_heads) + 2 * text.head_width * text.qk_norm),
        indexer=n * (d * index.heads * (index.width + 1) + d * index.width + 3 * index.width),
        router=n * d * text.experts * (text.experts > 1),
        experts=n * text.experts * 3 * d * text.expert_width,
        norms=(2 * n + 1) * d,
        head=text.vocab * d * (not text.tied),
    )


def _seeing(see: VisionConfig, d: int) -> tuple[int, int]:
    """Parameters of tower and projector."""
    w, m, merged = see.width, see.mlp_width, see.width * see.merge**2
    tables = see.position_side**2 + see.packing_positions
    block = 4 * (w * w + w) + (2 * w * m + m + w) + 4 * w  # projections, MLP, two LayerNorms; all with biases
    tower = 3 * see.patch_size**2 * w + w + tables * w + see.layers * block + 2 * w
    return tower, 2 * merged + merged * merged + merged + merged * d + d


def active_parameters(config: KeyeConfig) -> Parameters:
    """Parameters that one token of the decoder passes through: its embedding row and c of x experts, no vision."""
    p, text = parameters(config), config.text
    chosen = p.experts * text.experts_per_token // text.experts
    head = text.vocab * text.width  # tied or not, all of it is read
    return Parameters(0, 0, text.width, p.attention, p.indexer, p.router, chosen, p.norms, head)


# ------------------------------------------------------------------------------------------------------------- FLOPs


def prefill_flops(
    config: KeyeConfig, tokens: int, frames: int = 0, frame_tokens: int = 0, attention: Reading = "sparse"
) -> Flops:
    """FLOP of reading a prompt of `tokens` tokens, of which frames * frame_tokens are visual; logits of the last only.

    attention, dense: 4nhe * L(L + 1)/2. sparse: 4nhe * sum over queries of min(position, k).
    indexer_scores: 2nji * L(L + 1)/2. Our choice: counted for short prompts too, although the released kernels skip
    the scores of prompts that fit into k. Raises ValueError for numbers below 0 or more visual tokens than tokens.
    """
    _check(tokens, attention)
    if min(frames, frame_tokens) < 0 or frames * frame_tokens > tokens:
        raise ValueError(f"{frames} frames of {frame_tokens} tokens are not part of a prompt of {tokens} tokens")
    return _flops(config, tokens, tokens * (tokens + 1) // 2, frames, frame_tokens, attention)


def decode_flops(config: KeyeConfig, context: int, attention: Reading = "sparse") -> Flops:
    """FLOP of one decode step whose query sees `context` keys, its own included.

    attention, dense: 4nhe * context. sparse: 4nhe * min(context, k). indexer_scores: 2nji * context.
    """
    _check(context, attention)
    return _flops(config, 1, context, 0, 0, attention)


def _flops(config: KeyeConfig, tokens: int, pairs: int, frames: int, frame_tokens: int, attention: Reading) -> Flops:
    """pairs: how many (query, key) pairs causality allows. The queries are the last `tokens` positions."""
    text, index, n, d = config.text, config.indexer, config.text.layers, config.text.width
    sparse = int(attention == "sparse")
    read = selected_pairs(tokens, pairs, index.topk) if sparse else pairs
    return Flops(
        vision=frames * frame_vision_flops(config, frame_tokens),
        projector=2 * frames * frame_tokens * _projector_products(config),
        projections=2 * tokens * n * 2 * d * text.head_width * (text.heads + text.kv_heads),
        indexer_projections=sparse * 2 * tokens * n * d * (index.heads * (index.width + 1) + index.width),
        indexer_scores=sparse * 2 * pairs * n * index.heads * index.width,
        attention=4 * read * n * text.heads * text.head_width,
        router=2 * tokens * n * d * text.experts * (text.experts > 1),
        experts=2 * tokens * n * text.experts_per_token * 3 * d * text.expert_width,
        head=2 * d * text.vocab,
    )


def _check(tokens: int, attention: str) -> None:
    if tokens < 1:
        raise ValueError(f"expected at least 1 token, got {tokens}: a query sees at least itself")
    if attention not in ("sparse", "dense"):
        raise ValueError(f"attention must be 'sparse' or 'dense', got {attention!r}")


def selected_pairs(tokens: int, pairs: int, topk: int) -> int:
    """Pairs that are left when every query keeps min(keys it sees, topk). One query sees `pairs` keys, t see 1..t."""
    if tokens == 1:
        return min(pairs, topk)
    short = min(tokens, topk)  # queries that see no more than topk keys
    return short * (short + 1) // 2 + (tokens - short) * topk


def frame_vision_flops(config: KeyeConfig, frame_tokens: int) -> int:
    """FLOP of the vision tower for one frame of p = frame_tokens * merge^2 patches (width w, MLP width m).

    p * (2 * 3 * patch_size^2 * w + layers * (8w^2 + 4wm + 4wp)): the last term is attention among the frame's patches.
    """
    if (see := config.vision) is None:
        return 0
    p, w = frame_tokens * see.merge**2, see.width
    return p * (6 * see.patch_size**2 * w + see.layers * (8 * w * w + 4 * w * see.mlp_width + 4 * w * p))


def _projector_products(config: KeyeConfig) -> int:
    if config.vision is None:
        return 0
    merged = config.vision.width * config.vision.merge**2
    return merged * merged + merged * config.text.width


# ------------------------------------------------------------------------------------------------------------- bytes


def decode_bytes(
    config: KeyeConfig, context: int, attention: Reading = "sparse", dtype: torch.dtype = torch.bfloat16
) -> DecodeBytes:
    """Bytes one decode step reads when its query sees `context` keys.

    keys_values: 2nge * (context, or min(context, k) when sparse) numbers; index_keys: ni * context numbers. Index keys
    are held in `dtype` here; the released serving code holds them in FP8 with a scale (68 bytes instead of 128).
    """
    _check(context, attention)
    active, (row, index_row) = active_parameters(config), cache_bytes_per_token(config, dtype)
    sparse = attention == "sparse"
    return DecodeBytes(
        weights=(active.total - (0 if sparse else active.indexer)) * dtype.itemsize,
        keys_values=row * (min(context, config.indexer.topk) if sparse else context),
        index_keys=index_row * context if sparse else 0,
    )


# ------------------------------------------------------------------------------------------------------------- video


def video_cost(
    config: KeyeConfig,
    seconds: float | int,
    width: int = 1280,
    height: int = 720,
    *,
    fps: float | int | None = None,
    video_fps: float | int = 30,
) -> VideoCost:
    """Frames and tokens of one video of `seconds`, `width` x `height` pixels, by the rules of `sampling.py`.

    fps: frames per second to sample, default that of the config; video_fps: those of the file. text_tokens is an
    estimate: per frame one mark and one token per character of its time ("12.5": 4), which holds for bytes and for a
    tokenizer that splits numbers into digits, as Qwen's does; plus 2 for the start and end of the video.
    Raises ValueError for numbers that are not positive, VideoError as `sampling` does.
    """
    if not (0 < seconds < float("inf") and 0 < video_fps < float("inf")):
        raise ValueError(f"expected a positive duration and frame rate, got {seconds} s at {video_fps} frames/s")
    total = max(1, round(seconds * video_fps))
    count = frame_count(seconds, video_fps, total, config.video, fps=fps)
    budget, side = video_budget(seconds, config.video), config.token_pixels
    new_width, new_height = fit_size(width, height, count, budget, config.video, side)
    text = 2 + sum(1 + len(format(at / video_fps, ".1f")) for at in frame_indices(total, count))
    return VideoCost(count, new_width, new_height, (new_width // side) * (new_height // side), text)


def scaled(value: float | int, unit: str) -> str:
    """1234567 FLOP -> "1.23 MFLOP": three digits, powers of 1000."""
    size = 0
    while value >= 999.5 and size < 6:
        value, size = value / 1000, size + 1
    return (
        f"{value:.{max(0, 3 - len(str(int(value)))) if size else 0}f} {['', 'k', 'M', 'G', 'T', 'P', 'E'][size]}{unit}"
    )
