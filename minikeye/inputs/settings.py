"""Everything in a checkpoint's folder besides the weights, read once and held against each other.

config.json, generation_config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json and the template
state some of the same things. Where two of them disagree, or one asks for what minikeye does not compute, there is one
error that names the files. What is stated and not read is listed in `Released.unused`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minikeye.config import KeyeConfig, VideoConfig, unused_keys
from minikeye.config_json import object_at, rope_of, shown, sparse_of, text_of, tower_of
from minikeye.files import file_in, read_json
from minikeye.inputs.template import ChatTemplate
from minikeye.inputs.tokenizer import Tokenizer, load_tokenizer

# Ids that a config.json states -> the tokens they may be. The released base model ends with <|endoftext|>.
TOKEN_KEYS = {
    "image_token_id": ("<|image_pad|>",),
    "video_token_id": ("<|video_pad|>",),
    "fast_video_token_id": ("<|fast_video_pad|>",),  # of Keye-VL-1.5; stated still, not used, its name not certain
    "vision_start_token_id": ("<|vision_start|>",),
    "vision_end_token_id": ("<|vision_end|>",),
    "bos_token_id": ("<|endoftext|>", "<|im_start|>"),
    "eos_token_id": ("<|im_end|>", "<|endoftext|>"),
    "pad_token_id": ("<|endoftext|>", "<|im_end|>", "<|vision_pad|>"),
}
# Keys that would make it another function, and the only value that minikeye computes; null says nothing.
TEXT_FIXED: dict[str, Any] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window"), False),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"), 0),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "quantization_config"), None),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "routed_scaling_factor"), 1.0),
    "partial_rotary_factor": 1.0,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 0,
    "hidden_act": "silu",
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "scoring_func": "softmax",
}
# Of RoPE every key counts: one that is neither here nor read is refused. ("mrope": an older name of the default kind.)
ROPE_FIXED: dict[str, Any] = {
    **dict.fromkeys(("type", "rope_type"), "default"),
    **dict.fromkeys(("attention_factor", "factor", "partial_rotary_factor"), 1.0),
    "mrope_interleaved": False,
}
VISION_FIXED: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "temporal_patch_size": 1}
PIXELS_FIXED: dict[str, Any] = {
    **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
    **dict.fromkeys(("do_center_crop", "do_pad"), False),
    **{key: [0.5, 0.5, 0.5] for key in ("image_mean", "image_std")},
    "temporal_patch_size": 1,
}
TOKENIZER_FIXED: dict[str, Any] = dict.fromkeys(
    ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens"),
    False,
)
# What else is read, or checked, of the files beside config.json.
READ = {
    "preprocessor_config.json": {
        *PIXELS_FIXED,
        *("patch_size", "merge_size", "min_pixels", "max_pixels", "size", "rescale_factor"),
    },
    "generation_config.json": {*TOKEN_KEYS, "do_sample", "temperature", "top_k", "top_p"},
    "tokenizer_config.json": {
        *TOKENIZER_FIXED,
        *("added_tokens_decoder", "chat_template", "bos_token", "eos_token", "pad_token", "unk_token"),
    },
    "chat_template.json": {"chat_template"},
}


LARGEST_IMAGE = 2**20  # visual tokens


class FolderError(ValueError):
    """A checkpoint's folder whose files disagree, or ask for what minikeye does not compute."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How the release wants its answers drawn; every number can be given to `generate`."""

    stop_ids: tuple[int, ...]  # tokens that end an answer
    temperature: float = 0.0  # 0 takes the most likely token
    top_k: int = 0  # most likely tokens to draw from; 0 keeps all
    top_p: float = 1.0  # probability to draw from; 1 keeps all


@dataclass(frozen=True)
class Released:
    """What a folder holds besides its weights."""

    folder: Path
    config: KeyeConfig  # with the pixel limits of preprocessor_config.json where there is one
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: ChatML as in `minikeye.inputs.prompt`
    generation: GenerationDefaults
    unused: list[str]  # "FILE: key" of every key that is stated and not read


def read_folder(folder: str | Path) -> Released:
    """Read and check a folder. Raises FileNotFoundError without a config.json, ValueError (mostly FolderError) else."""
    folder = Path(folder)
    config = KeyeConfig.from_folder(folder)
    require_tower(config)
    stated = read_json(folder / "config.json")
    pixels = read_json(folder / "preprocessor_config.json")
    check_function(folder, stated)
    config = replace(config, video=pixel_limits(folder, pixels, config))
    tokenizer = load_tokenizer(config, folder)
    check_tokens(folder, stated, tokenizer, config.text.vocab)
    _agree(folder / "tokenizer_config.json", "", read_json(folder / "tokenizer_config.json"), TOKENIZER_FIXED)
    generation = read_generation(folder, tokenizer)
    return Released(folder, config, tokenizer, read_template(folder), generation, unread_keys(folder))


def require_tower(config: KeyeConfig) -> None:
    """Raise ValueError for a model of text alone: a Processor's conversations may show pictures."""
    if config.vision is None:
        raise ValueError("a Processor needs a vision tower, this model has none: write its prompt as text")


def check_function(folder: Path, stated: dict[str, Any]) -> None:
    """Raise FolderError for keys of a config.json that ask for another function than minikeye computes.

    stated: what `KeyeConfig.from_dict` has read already.
    """
    path, text, nested = folder / "config.json", text_of(stated), object_at(stated, "text_config")
    for prefix, part in (("", stated), ("text_config.", nested or {})):  # tie_word_embeddings may stand at the top
        # Where the text part lies, the config has read whether the head is tied.
        fixed = {k: v for k, v in TEXT_FIXED.items() if part is not text or k != "tie_word_embeddings"}
        _agree(path, prefix, part, fixed)
        layers = part.get("layer_types")
        if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
            raise FolderError(f"{path} states layer_types {shown(layers)}; minikeye computes 'full_attention' only")
    rope = {key: value for key, value in rope_of(text).items() if value is not None}
    if unknown := sorted(rope.keys() - {*ROPE_FIXED, "mrope_section", "rope_theta"}):
        raise FolderError(f"{path} states {unknown[0]} {shown(rope[unknown[0]])} of RoPE; minikeye knows no such key")
    older = {key for key in ("type", "rope_type") if rope.get(key) == "mrope"}
    _agree(path, "rope_scaling.", {key: value for key, value in rope.items() if key not in older}, ROPE_FIXED)
    _agree(path, "vision_config.", tower_of(stated) or {}, VISION_FIXED)
    _agree(path, "sa_config.", sparse_of(stated), {"indexer_num_kv_heads": 1})


def pixel_limits(folder: Path, pixels: dict[str, Any], config: KeyeConfig) -> VideoConfig:
    """The config's video numbers with the limits of preprocessor_config.json, pixels counted in visual tokens.

    Raises FolderError where the file cuts or normalises pixels differently.
    """
    path, vision = folder / "preprocessor_config.json", config.vision
    _agree(path, "", pixels, {**PIXELS_FIXED, "patch_size": vision.patch_size, "merge_size": vision.merge})
    scale = 1 / 255 if pixels.get("rescale_factor") is None else pixels["rescale_factor"]
    if not isinstance(scale, float) or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise FolderError(f"{path} states rescale_factor {shown(scale)}; minikeye computes 1/255 only")
    size = pixels.get("size") if isinstance(pixels.get("size"), dict) else {}
    area = config.token_pixels**2
    least = pixels.get("min_pixels", size.get("min_pixels", size.get("shortest_edge")))
    most = pixels.get("max_pixels", size.get("max_pixels", size.get("longest_edge")))
    least = area * config.video.min_image_tokens if least is None else least
    most = area * config.video.max_image_tokens if most is None else most
    if {type(least), type(most)} != {int} or not 0 < least <= most or not area <= most < area * LARGEST_IMAGE:
        limits = f"0 < min_pixels <= max_pixels >= {area}, at most {LARGEST_IMAGE} tokens of {area}"
        raise FolderError(f"{path} needs whole numbers {limits}; got {shown(least)}, {shown(most)}")
    if math.ceil(least / area) > most // area:
        raise FolderError(f"{path} allows images of {least} to {most} pixels: no multiple of {area} lies between")
    return replace(config.video, min_image_tokens=math.ceil(least / area), max_image_tokens=most // area)


def check_tokens(folder: Path, stated: dict[str, Any], tokenizer: Tokenizer, rows: int) -> None:
    """Raise FolderError where config.json and the tokenizer's files give a token different ids, or one beyond `rows`.

    rows: of the embedding. Keys stated at the top and under text_config are both held against tokenizer.json.
    """
    path = folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else "the byte tokenizer"
    for key, stated_id in _stated_ids(stated):
        known = {name: tokenizer.marks[name] for name in TOKEN_KEYS[key] if name in tokenizer.marks}
        if not known and key == "fast_video_token_id":  # nobody reads it: no reason to refuse the folder
            continue
        if isinstance(stated_id, bool) or stated_id not in [*known.values()]:
            have = " and ".join(f"{name} token {n}" for name, n in known.items()) or f"no {TOKEN_KEYS[key][0]}"
            raise FolderError(f"{folder / 'config.json'} states {key} {shown(stated_id)}, {path} has {have}")
    settings = folder / "tokenizer_config.json"
    for n, token in _object(settings, "added_tokens_decoder").items():
        name = _token(settings, f"added_tokens_decoder.{n}", token)
        if str(here := tokenizer.marks.get(name, "absent")) != n:
            raise FolderError(f"{name} is {n} in {settings} but {here} in {path}")
    if tokenizer.largest_id >= rows:
        raise FolderError(f"{path} goes up to token {tokenizer.largest_id}, the model has rows 0 to {rows - 1}")


def default_generation(tokenizer: Tokenizer) -> GenerationDefaults:
    """Greedy, until the turn or the document ends: where nothing is stated."""
    return GenerationDefaults((tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>")))


def read_generation(folder: Path, tokenizer: Tokenizer) -> GenerationDefaults:
    """generation_config.json; greedy where there is none or it does not say `do_sample: true`, as in transformers.

    A number that is absent keeps all tokens (our choice, as the released serving code; transformers takes top_k 50).
    Raises FolderError for numbers out of range.
    """
    path, default = folder / "generation_config.json", default_generation(tokenizer)
    stated = {key: value for key, value in read_json(path).items() if value is not None}
    stop = stated.get("eos_token_id", list(default.stop_ids))
    stop_ids = stop if isinstance(stop, list) else [stop]
    sample, temperature = stated.get("do_sample", False), stated.get("temperature", 1.0)
    top_k, top_p = stated.get("top_k", 0), stated.get("top_p", 1.0)
    top_k = 0 if top_k == -1 else top_k  # how serving code says "all"
    if (
        any(type(n) not in (int, float) for n in (temperature, top_p, top_k, *stop_ids))
        or not (stop_ids and set(stop_ids) <= set(tokenizer.marks.values()))
        or not (type(top_k) is int and 0 <= temperature <= 1e3 and 0 <= top_k < 2**31 and 0 < top_p <= 1)
        or type(sample) is not bool
    ):
        given = ", ".join(map(shown, (stop, temperature, top_k, top_p, sample)))
        raise FolderError(
            f"{path} needs special tokens of the tokenizer as eos_token_id, temperature >= 0, top_k >= 0, "
            f"0 < top_p <= 1 and do_sample true or false; got {given}"
        )
    return GenerationDefaults(tuple(stop_ids), float(temperature) if sample else 0.0, top_k, float(top_p))


def read_template(folder: Path) -> ChatTemplate | None:
    """The chat template: chat_template.jinja, else in tokenizer_config.json, else in chat_template.json, else None."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    named = [key for key in ("bos_token", "eos_token", "pad_token", "unk_token") if settings.get(key)]
    tokens = {key: _token(path, key, settings[key]) for key in named}
    if (own := file_in(folder, "chat_template.jinja")).is_file():
        try:
            return ChatTemplate(own.read_text(encoding="utf-8"), str(own), tokens)
        except UnicodeDecodeError as error:
            raise FolderError(f"{own} is not text in UTF-8: {error}") from error
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        source = read_json(path).get("chat_template")
        if isinstance(source, list) and all(isinstance(entry, dict) for entry in source):  # several, by name
            source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
        if not isinstance(source, str | None):
            raise FolderError(f"{path} must hold its chat_template as text, got {shown(source)}")
        if source is not None:
            return ChatTemplate(source, f"chat_template in {path}", tokens)
    return None


def _object(path: Path, key: str) -> dict[str, Any]:
    """An object of a settings file by its key; empty where there is none."""
    value = read_json(path).get(key)
    if not isinstance(value, dict | None):
        raise FolderError(f"{path} must hold {key} as an object, got {shown(value)}")
    return value or {}


def _token(path: Path, key: str, token: Any) -> str:
    """A token's text, which is stated as text or with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise FolderError(f"{path} must hold {key} as text, got {shown(token)}")
    return text


def _stated_ids(stated: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every (key, id) of special tokens in a config.json; a list gives one pair for each of its ids."""
    for part in (stated, object_at(stated, "text_config") or {}):
        for key in TOKEN_KEYS.keys() & part.keys():
            ids = part[key] if isinstance(part[key], list) else [part[key]]
            yield from ((key, n) for n in ids if n is not None)


def _agree(path: Path, prefix: str, stated: dict[str, Any], fixed: dict[str, Any]) -> None:
    for key, value in fixed.items():
        if key in stated and stated[key] is not None and stated[key] != value:
            raise FolderError(f"{path} states {prefix}{key} {shown(stated[key])}; minikeye computes {value!r} only")


def unread_keys(folder: Path) -> list[str]:
    """Keys of the settings files that nobody reads or checks, as "FILE: key"."""
    checked = {*TOKEN_KEYS, *TEXT_FIXED, "layer_types"}
    checked |= {f"text_config.{key}" for key in checked} | {f"vision_config.{key}" for key in VISION_FIXED}
    unused = [f"config.json: {key}" for key in unused_keys(read_json(folder / "config.json")) if key not in checked]
    others = [(name, sorted(read_json(folder / name).keys() - known)) for name, known in READ.items()]
    return unused + [f"{name}: {key}" for name, keys in others for key in keys]
