"""Everything in a checkpoint's folder besides the weights, read once and held against each other.

config.json, generation_config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json and the template
state some of the same things. Where two of them disagree, or one asks for what minikeye does not compute, there is one
error that names the files. What is stated and not read is listed in `Released.unused`.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minikeye.config import KeyeConfig, VideoConfig, unused_keys
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
# Keys that would make it another function, and the only value that minikeye computes.
TEXT_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
VISION_FIXED: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
PIXELS_FIXED: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


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
    stated = read_json(folder / "config.json")
    pixels = read_json(folder / "preprocessor_config.json")
    check_function(folder, stated)
    config = replace(config, video=pixel_limits(folder, pixels, config))
    tokenizer = load_tokenizer(config, folder)
    check_tokens(folder, stated, tokenizer, config.text.vocab)
    generation = read_generation(folder, tokenizer)
    return Released(folder, config, tokenizer, read_template(folder), generation, unread_keys(folder))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FolderError(f"{path} must hold a JSON object, got {content!r:.200}")
    return content


def check_function(folder: Path, stated: dict[str, Any]) -> None:
    """Raise FolderError for keys of a config.json that ask for another function than minikeye computes."""
    path, text = folder / "config.json", stated.get("text_config", stated)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    for prefix, part in (("", stated), ("text_config.", text)):  # tie_word_embeddings may stand at the top
        _agree(path, prefix, part, TEXT_FIXED)
    # "mrope" is how older Qwen-VL configs call the same.
    kinds = {key: kind for key, kind in rope.items() if key in ("type", "rope_type") and kind != "mrope"}
    _agree(path, "rope_scaling.", kinds, {"type": "default", "rope_type": "default"})
    _agree(path, "vision_config.", stated.get("vision_config", {}), VISION_FIXED)
    _agree(path, "sa_config.", text.get("sa_config", stated.get("sa_config", {})), {"indexer_num_kv_heads": 1})


def pixel_limits(folder: Path, pixels: dict[str, Any], config: KeyeConfig) -> VideoConfig:
    """The config's video numbers with the limits of preprocessor_config.json, pixels counted in visual tokens.

    Raises FolderError where the file cuts or normalises pixels differently.
    """
    path, vision = folder / "preprocessor_config.json", config.vision
    _agree(path, "", pixels, {**PIXELS_FIXED, "patch_size": vision.patch_size, "merge_size": vision.merge})
    scale = pixels.get("rescale_factor", 1 / 255)
    if not isinstance(scale, float) or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise FolderError(f"{path} states rescale_factor {scale!r}; minikeye computes 1/255 only")
    size = pixels.get("size") if isinstance(pixels.get("size"), dict) else {}
    area = config.token_pixels**2
    least = pixels.get("min_pixels", size.get("min_pixels", size.get("shortest_edge")))
    most = pixels.get("max_pixels", size.get("max_pixels", size.get("longest_edge")))
    least = area * config.video.min_image_tokens if least is None else least
    most = area * config.video.max_image_tokens if most is None else most
    if not all(isinstance(n, int) for n in (least, most)) or not 0 < least <= most or most < area:
        raise FolderError(f"{path} needs whole numbers 0 < min_pixels <= max_pixels >= {area}, got {least!r}, {most!r}")
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
        if stated_id not in known.values():
            have = " and ".join(f"{name} token {n}" for name, n in known.items()) or f"no {TOKEN_KEYS[key][0]}"
            raise FolderError(f"{folder / 'config.json'} states {key} {stated_id!r}, {path} has {have}")
    listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for n, token in listed.items():
        name = token["content"] if isinstance(token, dict) else token
        if str(here := tokenizer.marks.get(name, "absent")) != n:
            raise FolderError(f"{name} is {n} in {folder / 'tokenizer_config.json'} but {here} in {path}")
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
    stop_ids = tuple(stop) if isinstance(stop, list) else (stop,)
    temperature = stated.get("temperature", 1.0) if stated.get("do_sample", False) else 0.0
    top_k, top_p = stated.get("top_k", 0), stated.get("top_p", 1.0)
    top_k = 0 if top_k == -1 else top_k  # how serving code says "all"
    numbers = [temperature, top_p, top_k, *stop_ids]
    if (
        not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        or not set(stop_ids) <= set(tokenizer.marks.values())
        or not (isinstance(top_k, int) and temperature >= 0 and top_k >= 0 and 0 < top_p <= 1 and stop_ids)
    ):
        raise FolderError(
            f"{path} needs special tokens of the tokenizer as eos_token_id, temperature >= 0, top_k >= 0 and "
            f"0 < top_p <= 1; got {stop!r}, {temperature!r}, {top_k!r}, {top_p!r}"
        )
    return GenerationDefaults(stop_ids, float(temperature), top_k, float(top_p))


def read_template(folder: Path) -> ChatTemplate | None:
    """The chat template: chat_template.jinja, else in tokenizer_config.json, else in chat_template.json, else None."""
    settings = read_json(folder / "tokenizer_config.json")
    names = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if settings.get(key)}
    tokens = {key: token["content"] if isinstance(token, dict) else token for key, token in names.items()}
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), tokens)
    for path in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        source = read_json(path).get("chat_template")
        if isinstance(source, list):  # several, by name
            source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
        if not isinstance(source, str | None):
            raise FolderError(f"{path} must hold its chat_template as text, got {source!r:.200}")
        if source is not None:
            return ChatTemplate(source, f"chat_template in {path}", tokens)
    return None


def _stated_ids(stated: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every (key, id) of special tokens in a config.json; a list gives one pair for each of its ids."""
    for part in (stated, stated.get("text_config", {})):
        for key in TOKEN_KEYS.keys() & part.keys():
            ids = part[key] if isinstance(part[key], list) else [part[key]]
            yield from ((key, n) for n in ids if n is not None)


def _agree(path: Path, prefix: str, stated: dict[str, Any], fixed: dict[str, Any]) -> None:
    for key, value in fixed.items():
        if key in stated and stated[key] is not None and stated[key] != value:
            raise FolderError(f"{path} states {prefix}{key} {stated[key]!r}; minikeye computes {value!r} only")


def unread_keys(folder: Path) -> list[str]:
    """Keys of config.json and preprocessor_config.json that nobody reads or checks, as "FILE: key"."""
    checked = {*TOKEN_KEYS, *(f"text_config.{key}" for key in (*TOKEN_KEYS, *TEXT_FIXED))}
    checked |= {*TEXT_FIXED, *(f"vision_config.{key}" for key in VISION_FIXED)}  # at the top where the text part is
    read = {*PIXELS_FIXED, "patch_size", "merge_size", "min_pixels", "max_pixels", "size", "rescale_factor"}
    unused = unused_keys(read_json(folder / "config.json"))
    return [
        *(f"config.json: {key}" for key in unused if key not in checked),
        *(
            f"preprocessor_config.json: {key}"
            for key in sorted(read_json(folder / "preprocessor_config.json").keys() - read)
        ),
    ]
