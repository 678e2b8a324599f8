"""A language model that others trained, from a GGUF file into this network: the report's retrofit begins here.

    model = load_gguf(KeyeVL, path, IndexerConfig(heads=4, topk=512))

Architecture "llama": a dense MLP a layer (one expert here), RoPE (M-RoPE at equal positions), no norms of q and k. The
indexers that DSA adds are untaught. Weights are dequantised by the library `gguf` to float32. Two things differ from
the file: it holds the rows of q and k in the order of an interleaved rotation (channels 2i and 2i + 1 turn together),
this network rotates halves (i and i + e/2); and it holds [out, in] matrices where experts here are [in, out].

Axes: d width, h head, e head width, m hidden channel of the MLP, v vocabulary.
"""

from pathlib import Path
from typing import TypeVar

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from jaxtyping import Float
from torch import Tensor

from minikeye.checkpoint.tensors import CheckpointError, require_finite
from minikeye.config import IndexerConfig, KeyeConfig, TextConfig
from minikeye.inputs.gguf_file import open_gguf
from minikeye.model.keye import KeyeModel

Model = TypeVar("Model", bound=KeyeModel)
READ = {  # a number of the file -> ours; there must be these and no others
    "llama.block_count": "layers",
    "llama.context_length": "max_positions",
    "llama.embedding_length": "width",
    "llama.feed_forward_length": "expert_width",
    "llama.attention.head_count": "heads",
    "llama.attention.head_count_kv": "kv_heads",
    "llama.rope.freq_base": "rope_theta",
    "llama.attention.layer_norm_rms_epsilon": "norm_eps",
    "llama.vocab_size": "vocab",
    "llama.rope.dimension_count": "head_width",
}
PLAIN = {  # a tensor of the file -> ours, for those that are taken as they are
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def gguf_config(path: str | Path, indexer: IndexerConfig) -> KeyeConfig:
    """The numbers of the model in the file, with an indexer beside each of its layers. It has no vision tower.

    Raises CheckpointError for another architecture than "llama", a number that is absent, or one that this network
    does not know; else as `inputs.gguf_file.open_gguf`.
    """
    return _config(Path(path), open_gguf(path), indexer)


def load_gguf(
    kind: type[Model], path: str | Path, indexer: IndexerConfig, device: str | torch.device = "cpu", seed: int = 0
) -> Model:
    """The model in the file, float32, in eval mode: `kind(config)` with its weights, and untaught indexers of `seed`.

    kind: the class to build, KeyeVL. Raises as `gguf_config`; CheckpointError also for tensors that are missing, extra,
    misshapen or not finite, all named at once.
    """
    reader = open_gguf(path)
    config = _config(Path(path), reader, indexer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    tensors = _tensors(Path(path), reader, config)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if "sa_indexer" not in n}
    found = {n: tuple(t.shape) for n, t in tensors.items()}
    if wrong := sorted(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n)):
        lines = "\n  ".join(f"{n}: the file {found.get(n)}, the config {shapes.get(n)}" for n in wrong[:20])
        raise CheckpointError(f"{path} does not hold this model; differences: {len(wrong)}:\n  {lines}")
    require_finite(Path(path), tensors)
    model.load_state_dict(tensors, strict=False)
    return model.to(device).eval()


def halves(rows: Float[Tensor, "he d"], heads: int) -> Float[Tensor, "he d"]:
    """Rows of q or k from the file's order, where channels 2i and 2i + 1 of a head turn together, to i and i + e/2."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(path: Path, reader: GGUFReader, indexer: IndexerConfig) -> KeyeConfig:
    kind = reader.fields["general.architecture"].contents() if "general.architecture" in reader.fields else None
    if kind != "llama":
        raise CheckpointError(f"{path} holds a model of architecture {kind!r}, minikeye reads 'llama' only")
    numbers = {key: field.contents() for key, field in reader.fields.items() if key.startswith("llama.")}
    if numbers.keys() != READ.keys():
        raise CheckpointError(
            f"{path} must state the numbers of a plain llama and no others, which would make it another function; "
            f"missing {sorted(READ.keys() - numbers.keys())}, not known {sorted(numbers.keys() - READ.keys())}"
        )
    given = {READ[key]: value for key, value in numbers.items()}
    half = given["head_width"] // 2
    text = TextConfig(
        **given,
        experts=1,
        experts_per_token=1,
        mrope_section=(half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8),  # as released; for text all the same
        qk_norm=False,
        tied="output.weight" not in {t.name for t in reader.tensors},
    )
    if text.heads * text.head_width != text.width:
        raise CheckpointError(f"{path} states {text.heads} heads of {text.head_width} channels for width {text.width}")
    return KeyeConfig(vision=None, text=text, indexer=indexer, image_token_id=text.vocab, video_token_id=text.vocab + 1)


def _tensors(path: Path, reader: GGUFReader, config: KeyeConfig) -> dict[str, Tensor]:
    """All tensors under our names, float32. A name that is none of a llama's stays as it is, for the caller to see."""
    held = {
        t.name.removesuffix(".weight"): torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        for t in reader.tensors
    }
    out = {}
    for theirs, ours in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")):
        if theirs in held:
            out[f"{ours}.weight"] = held.pop(theirs)
    for n in range(config.text.layers):
        old, new = f"blk.{n}.", f"model.layers.{n}."
        for theirs, ours in PLAIN.items():
            if old + theirs in held:
                out[f"{new}{ours}.weight"] = held.pop(old + theirs)
        for which, heads in (("q", config.text.heads), ("k", config.text.kv_heads)):
            if f"{old}attn_{which}" in held:
                out[f"{new}self_attn.{which}_proj.weight"] = halves(held.pop(f"{old}attn_{which}"), heads)
        if f"{old}ffn_gate" in held and f"{old}ffn_up" in held:
            pair = held.pop(f"{old}ffn_gate"), held.pop(f"{old}ffn_up")
            out[f"{new}mlp.experts.gate_up_proj"] = torch.cat(pair).T[None].contiguous()
        if f"{old}ffn_down" in held:
            out[f"{new}mlp.experts.down_proj"] = held.pop(f"{old}ffn_down").T[None].contiguous()
    return out | held
