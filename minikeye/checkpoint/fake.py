"""A checkpoint folder laid out like the released one, of any size, whose weights are random.

The released weights have 62 GB. Whoever does not have them can still try everything that does not depend on what they
say: loading, streaming, memory, speed. Names, shapes, fused experts, shards, token ids and templates are as released;
the vocabulary's words are made up. Weights are drawn as an untrained model's (`minikeye.model.keye`), tensor by tensor.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from minikeye.checkpoint.tensors import INDEX, plan_shards, save_shard
from minikeye.config import KeyeConfig
from minikeye.files import require_room, whole_folder
from minikeye.inputs.tokenizer import SPECIAL_TOKENS
from minikeye.model.keye import KeyeModel
from minikeye.progress import progress

# Qwen3's added tokens from id 151643 on; those in PLAIN are no special tokens there: encoding yields them.
FIRST_ADDED = 151_643
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
PLAIN = set(QWEN_TOKENS[14:])
FAST_VIDEO = (
    151_678  # the released id; what stands between it and Qwen3's tokens, and where <|frame|> is, is our choice
)
WORDS = (  # how Qwen3 cuts text before BPE
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MERGES = ("Ċ Ċ", "Ġ t", "h e", "Ġt he", "u s", "e r", "us er", "i n", "a n", "Ġ a")  # a few, so that BPE has work to do

# In the manner of Qwen's templates; lays a conversation out exactly as `minikeye.inputs.prompt.chatml` does.
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type in ('image', 'video') %}
                {{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('unknown kind of content: ' + part.type) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
README = """\
# Random weights

This folder has the layout of the released Keye-VL-2.0-30B-A3B checkpoint, cut to {layers} decoder layers of width
{width}. minikeye wrote it (seed {seed}). The weights are random and the vocabulary is made up: what the model says
means nothing.
"""


def fake_config(layers: int | None = None, vision_layers: int | None = None, small: bool = False) -> KeyeConfig:
    """The released numbers, at full width with fewer layers, or with small=True those of `KeyeConfig.nano`."""
    config = KeyeConfig.nano() if small else KeyeConfig.keye_vl_2_30b_a3b()
    counts = [n if m is None else m for n, m in ((config.text.layers, layers), (config.vision.layers, vision_layers))]
    if min(counts) < 1:
        raise ValueError(f"expected at least one layer of each kind, got {counts[0]} and {counts[1]}")
    text, vision = replace(config.text, layers=counts[0]), replace(config.vision, layers=counts[1])
    return replace(config, text=text, vision=vision)


def write_fake_checkpoint(
    folder: str | Path,
    config: KeyeConfig,
    seed: int = 0,
    max_shard_bytes: int = 2 * 2**30,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a checkpoint of `config` with random weights.

    One shard at a time is held in memory. A tensor depends on the seed and its name, not on shards or dtype (but for
    rounding). Everything is written beside the target and renamed at the end. Raises FileExistsError for a folder that
    is not empty, ValueError for a vocabulary that cannot be faked or a tensor larger than a shard, OSError where the
    disk is too small.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there and not empty: name a new folder")
    tokenizer = fake_tokenizer(config)
    shapes = tensor_shapes(config)
    sizes = {name: shape.numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    require_room(target, sum(sizes.values()))
    with whole_folder(target) as new:
        where = {}
        for n, names in enumerate(progress(shards, "writing random weights"), 1):
            file = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(new / file, {name: shapes[name] for name in names}, config.text.layers, seed, dtype)
            where |= dict.fromkeys(names, file)
        _write_json(new / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})
        _write_settings(new, config, tokenizer, dtype)
        note = README.format(layers=config.text.layers, width=config.text.width, seed=seed)
        (new / "README.md").write_text(note, encoding="utf-8")


def tensor_shapes(config: KeyeConfig) -> dict[str, torch.Size]:
    """Names and shapes of all tensors of a checkpoint, in the model's order. No memory is taken."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in KeyeModel(config).state_dict().items()}


def _write_shard(path: Path, shapes: dict[str, torch.Size], layers: int, seed: int, dtype: torch.dtype) -> None:
    """A function of its own, so that a shard's tensors are gone before the next one's are drawn."""
    tensors = {name: draw(name, shape, layers, seed, dtype) for name, shape in shapes.items()}
    save_shard(tensors, path)


def draw(name: str, shape: torch.Size, layers: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A tensor as an untrained model has it, from a generator of its own: seed and name decide, nothing else."""
    if len(shape) == 1:  # norms start as the identity
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    spread, tensor = _spread(name, shape, layers), torch.empty(shape, dtype=dtype)
    for piece in tensor.view(-1).split(2**24):  # float32 of a slice at a time, then rounded
        piece.copy_(torch.empty(piece.shape).normal_(std=spread, generator=generator))
    return tensor


def _spread(name: str, shape: torch.Size, layers: int) -> float:
    """Standard deviation of a weight: 1 / sqrt(inputs) but for embeddings, see `minikeye.model.keye._initialise`."""
    if "position_embedding" in name:
        return 1.0 if "packing" in name else 0.02
    if "embed_tokens" in name:
        return 1.0
    inputs = shape[1] if ".experts." in name else shape[1:].numel()  # experts are stored as x @ W
    into_stream = name.endswith(("self_attn.o_proj.weight", "experts.down_proj"))
    return inputs**-0.5 * ((2 * layers) ** -0.5 if into_stream else 1.0)


def fake_tokenizer(config: KeyeConfig) -> FastTokenizer:
    """A byte-level BPE whose special tokens have the released ids, or those of `ByteTokenizer` up to 1,024 rows.

    Raises ValueError where the config's placeholders have other ids or its vocabulary has no room for them.
    """
    characters = _byte_characters()
    if config.text.vocab <= 1024:
        vocabulary, merges, added = {c: n for n, c in enumerate(characters)}, [], list(SPECIAL_TOKENS)
    else:
        vocabulary = {token: n for n, token in enumerate((*characters, *(m.replace(" ", "") for m in MERGES)))}
        vocabulary |= {f"Ġw{n}": n for n in range(len(vocabulary), FIRST_ADDED)}  # never encoded, decoded as " w300"
        merges = [tuple(m.split(" ")) for m in MERGES]
        unnamed = range(FIRST_ADDED + len(QWEN_TOKENS), FAST_VIDEO)
        added = [*QWEN_TOKENS, *(f"<|reserved_{n}|>" for n in unnamed), "<|fast_video_pad|>", "<|frame|>"]
    fast = FastTokenizer(models.BPE(vocabulary, merges))
    fast.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Sequence([words, letters]), decoders.ByteLevel()
    fast.add_tokens([AddedToken(name, special=name not in PLAIN, normalized=False) for name in added])
    ids = fast.token_to_id("<|image_pad|>"), fast.token_to_id("<|video_pad|>")
    if ids != (config.image_token_id, config.video_token_id) or fast.get_vocab_size() > config.text.vocab:
        raise ValueError(
            f"expected a vocabulary of at least {fast.get_vocab_size()} with placeholders {ids}, got "
            f"{config.text.vocab} with {config.image_token_id} and {config.video_token_id}: start from fake_config()"
        )
    return fast


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where it can be seen, else one from U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    seen = {ord(c) for c in alphabet if ord(c) < 256}
    others = iter(c for c in alphabet if ord(c) >= 256)
    return [chr(byte) if byte in seen else next(others) for byte in range(256)]


def _write_settings(folder: Path, config: KeyeConfig, tokenizer: FastTokenizer, dtype: torch.dtype) -> None:
    """Everything that ships besides the weights."""
    tokens = tokenizer.get_added_tokens_decoder()
    ids = {token.content: n for n, token in tokens.items()}
    stated = {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    stated |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    if "<|fast_video_pad|>" in ids:
        stated["fast_video_token_id"] = ids["<|fast_video_pad|>"]
    stated["torch_dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**config.to_dict(), **stated})
    settings: dict[str, Any] = {
        "added_tokens_decoder": {str(n): {"content": t.content, "special": t.special} for n, t in tokens.items()},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": config.text.max_positions,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    _write_json(folder / "tokenizer_config.json", settings)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    stop = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}  # Qwen3-30B-A3B-Thinking-2507's
    _write_json(folder / "generation_config.json", stop | sampling)
    area, video, vision = config.token_pixels**2, config.video, config.vision
    limits = {"min_pixels": video.min_image_tokens * area, "max_pixels": video.max_image_tokens * area}
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    cuts = {"patch_size": vision.patch_size, "merge_size": vision.merge}
    _write_json(folder / "preprocessor_config.json", limits | pixels | cuts)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
