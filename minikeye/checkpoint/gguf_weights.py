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
from minikeye.config_json import check_value
from minikeye.inputs.gguf_file import open_gguf, stated
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

    Raises CheckpointError for another architecture than "llama", a number that is absent, that this network does not
    know or that no such model has; ValueError for an indexer that does not fit it; else as `gguf_file.open_gguf`.
    """
    return _config(Path(path), open_gguf(path), indexer)


def load_gguf(
    kind: type[Model], path: str | Path, indexer: IndexerConfig, device: str | torch.device = "cpu", seed: int = 0
) -> Model:
    """The model in the file, float32, in eval mode: `kind(config)` with its weights, and untaught indexers of `seed`.

    kind: the class to build, KeyeVL. Raises as `gguf_config`; CheckpointError also for tensors that are missing, extra,
    misshapen, packed in a way that `gguf` cannot undo or not finite, all of one sort named at once. Nothing is built
    before.
    """
    reader = open_gguf(path)
    config = _config(Path(path), reader, indexer)
    held = _tensors(Path(path), reader, config.text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    untaught = {name: tensor for name, tensor in model.state_dict().items() if "sa_indexer" in name}
    model.load_state_dict(untaught | _renamed(held, config.text))
    return model.to(device).eval()


def halves(rows: Float[Tensor, "he d"], heads: int) -> Float[Tensor, "he d"]:
    """Rows of q or k from the file's order, where channels 2i and 2i + 1 of a head turn together, to i and i + e/2.

    Raises ValueError unless the rows are as many heads of an even width.
    """
    if heads < 1 or len(rows) % (2 * heads):
        raise ValueError(f"expected the rows of {heads} heads, each of an even width, got {len(rows)}")
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(path: Path, reader: GGUFReader, indexer: IndexerConfig) -> KeyeConfig:
    if (kind := stated(path, "general.architecture")) != "llama":
        raise CheckpointError(f"{path} holds a model of architecture {kind!r}, minikeye reads 'llama' only")
    numbers = {key: stated(path, key) for key in reader.fields if key.startswith("llama.")}
    if numbers.keys() != READ.keys():
        raise CheckpointError(
            f"{path} must state the numbers of a plain llama and no others, which would make it another function; "
            f"missing {sorted(READ.keys() - numbers.keys())}, not known {sorted(numbers.keys() - READ.keys())}"
        )
    given = {READ[key]: value for key, value in numbers.items()}
    try:
        for key, ours in READ.items():
            check_value(ours, getattr(TextConfig, ours), numbers[key], key)
        half = given["head_width"] // 2
        text = TextConfig(
            **given,
            experts=1,
            experts_per_token=1,
            mrope_section=(half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8),  # as released; for text all same
            qk_norm=False,
            tied="output.weight" not in {t.name for t in reader.tensors},
        )
    except ValueError as error:
        raise CheckpointError(f"{path} states numbers that no such model has: {error}") from error
    if text.heads * text.head_width != text.width:
        raise CheckpointError(f"{path} states {text.heads} heads of {text.head_width} channels for width {text.width}")
    return KeyeConfig(vision=None, text=text, indexer=indexer, image_token_id=text.vocab, video_token_id=text.vocab + 1)


def _shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of such a file, by its own names, matrices [out, in]."""
    d, own, shared, m = text.width, text.heads * text.head_width, text.kv_heads * text.head_width, text.expert_width
    layer = {"attn_norm": (d,), "attn_q": (own, d), "attn_k": (shared, d), "attn_v": (shared, d)}
    layer |= {"attn_output": (d, own), "ffn_norm": (d,), "ffn_gate": (m, d), "ffn_up": (m, d), "ffn_down": (d, m)}
    out = {"token_embd": (text.vocab, d), "output_norm": (d,)} | ({} if text.tied else {"output": (text.vocab, d)})
    out |= {f"blk.{n}.{name}": shape for n in range(text.layers) for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in out.items()}


def _tensors(path: Path, reader: GGUFReader, text: TextConfig) -> dict[str, Tensor]:
    """All tensors under the file's names without ".weight", float32. Raises CheckpointError as `load_gguf`."""
    shapes, found = _shapes(text), {t.name: tuple(reversed(t.shape.tolist())) for t in reader.tensors}
    if wrong := sorted(n for n in shapes.keys() | found.keys() if shapes.get(n) != found.get(n)):
        lines = "\n  ".join(f"{n}: the file {found.get(n)}, its numbers {shapes.get(n)}" for n in wrong[:20])
        raise CheckpointError(f"{path} does not hold this model; differences: {len(wrong)}:\n  {lines}")
    held = {}
    for t in reader.tensors:
        try:
            held[t.name.removesuffix(".weight")] = torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        except RuntimeError as error:  # the library's, for forms that it does not undo
            raise CheckpointError(f"{path} holds {t.name} in a form that cannot be read: {error}") from error
    require_finite(path, held)
    return held


def _renamed(held: dict[str, Tensor], text: TextConfig) -> dict[str, Tensor]:
    """The same under our names, in our layout."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    out = {f"{ours}.weight": held[theirs] for theirs, ours in top.items() if theirs in held}
    for n in range(text.layers):
        old, new = f"blk.{n}.", f"model.layers.{n}."
        out |= {f"{new}{ours}.weight": held[old + theirs] for theirs, ours in PLAIN.items()}
        for which, heads in (("q", text.heads), ("k", text.kv_heads)):
            out[f"{new}self_attn.{which}_proj.weight"] = halves(held[f"{old}attn_{which}"], heads)
        pair = held[f"{old}ffn_gate"], held[f"{old}ffn_up"]
        out[f"{new}mlp.experts.gate_up_proj"] = torch.cat(pair).T[None].contiguous()
        out[f"{new}mlp.experts.down_proj"] = held[f"{old}ffn_down"].T[None].contiguous()
    return out
