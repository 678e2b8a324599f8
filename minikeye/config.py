"""Every number of a Keye-VL-2.0 model, and the `config.json` it travels in.

Presets: `KeyeConfig.keye_vl_2_30b_a3b()` is the released model (report, section 2; 31,122,082,160 parameters),
`mini` the shipped checkpoint, `nano` trains on a laptop CPU in minutes. Same code for all three: only numbers differ.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minikeye import config_json as released
from minikeye.config_json import check_numbers, require
from minikeye.files import read_json


@dataclass(frozen=True)
class VisionConfig:
    """Native-resolution SigLIP tower and the 2x2-merge projector (report, section 2.1)."""

    width: int = 1152  # channels of a patch token
    layers: int = 27
    heads: int = 16
    mlp_width: int = 4304
    patch_size: int = 14  # pixels, side of one patch
    merge: int = 2  # patches, side of the square that becomes one visual token
    image_size: int = 384  # pixels, side the position table was learned at: (384 // 14)^2 = 729 rows
    packing_positions: int = 32_768  # rows of a second table that ships in the checkpoint and is never read
    rope_theta: float = 10_000.0  # base of the 2D RoPE
    norm_eps: float = 1e-6  # LayerNorm of the tower
    projector_norm_eps: float = 1e-5  # LayerNorm over the merged width

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def position_side(self) -> int:
        """Side of the learned position grid, in patches."""
        return self.image_size // self.patch_size

    def __post_init__(self) -> None:
        check_numbers(self)
        require(self.width % self.heads == 0, f"vision width {self.width} must be a multiple of heads {self.heads}")
        require(self.head_width % 4 == 0, f"vision head width {self.head_width} must be a multiple of 4 for 2D RoPE")
        require(
            self.image_size >= self.patch_size,
            f"image_size {self.image_size} must be at least one patch of {self.patch_size} pixels",
        )


@dataclass(frozen=True)
class IndexerConfig:
    """Lightning indexer of DSA (report, section 2.3). One key head is shared by all query heads."""

    heads: int = 16  # H^I, query heads
    width: int = 64  # channels of an index query or key
    topk: int = 2048  # k, keys a query attends to
    q_chunk_size: int = 512  # queries scored at a time in the released kernel; kept for config.json
    kv_chunk_size: int = 512  # keys scored at a time in the released kernel; kept for config.json
    norm_eps: float = 1e-6  # RMSNorm of q, LayerNorm of k

    def __post_init__(self) -> None:
        check_numbers(self)
        require(self.width % 2 == 0, f"indexer width {self.width} must be even for RoPE")


@dataclass(frozen=True)
class TextConfig:
    """Qwen3-MoE decoder (report, section 2; Qwen3-30B-A3B-Thinking-2507). One expert: a dense MLP without a router."""

    vocab: int = 151_936  # rows of the embedding and of the untied head
    width: int = 2048
    layers: int = 48
    heads: int = 32  # query heads
    kv_heads: int = 4  # key/value heads, the groups G of grouped-query attention
    head_width: int = 128
    experts: int = 128
    experts_per_token: int = 8
    expert_width: int = 768  # hidden channels of one SwiGLU expert
    rope_theta: float = 1e7
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # rotary frequencies for time, row, column; contiguous
    norm_eps: float = 1e-6
    max_positions: int = 262_144  # tokens of context
    qk_norm: bool = True  # RMSNorm on each head of q and k; models before Qwen3 have none
    tied: bool = False  # the head reads the embedding table and has no weight of its own

    @property
    def group_heads(self) -> int:
        """r: query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def __post_init__(self) -> None:
        check_numbers(self)
        require(self.heads % self.kv_heads == 0, f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        require(
            2 * sum(self.mrope_section) == self.head_width,
            f"mrope_section {self.mrope_section} must sum to half of head_width {self.head_width}",
        )
        require(
            1 <= self.experts_per_token <= self.experts,
            f"experts_per_token {self.experts_per_token} must lie in 1..{self.experts}",
        )


@dataclass(frozen=True)
class VideoConfig:
    """How many frames and tokens a video becomes (report, section 2.2; released serving code)."""

    fps: float = 2.0  # frames per second to sample
    min_frame_tokens: int = 64  # visual tokens of a frame, at least
    max_frame_tokens: int = 256  # visual tokens of a frame, at most
    video_tokens: int = 184_320  # visual tokens of all videos of a prompt together (180K)
    min_image_tokens: int = 4
    max_image_tokens: int = 20_480
    adaptive: Literal["off", "paper", "released"] = "off"  # scale the budget by duration; the two tables differ
    frame_size: Literal["released", "fitting"] = "released"  # fitting: never below min_frame_tokens, for small models

    def __post_init__(self) -> None:
        check_numbers(self)
        require(
            1 <= self.min_frame_tokens <= self.max_frame_tokens,
            f"frame tokens must satisfy 1 <= min <= max, got {self.min_frame_tokens} and {self.max_frame_tokens}",
        )
        require(
            self.min_image_tokens <= self.max_image_tokens,
            f"image tokens must satisfy min <= max, got {self.min_image_tokens} and {self.max_image_tokens}",
        )


@dataclass(frozen=True)
class KeyeConfig:
    """The whole model: vision tower, decoder, indexer, and the video budget of its processor."""

    vision: VisionConfig | None = field(default_factory=VisionConfig)  # None: a model for text alone
    text: TextConfig = field(default_factory=TextConfig)
    indexer: IndexerConfig = field(default_factory=IndexerConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    image_token_id: int = 151_655  # placeholder that a visual token of an image replaces
    video_token_id: int = 151_656  # placeholder that a visual token of a video frame replaces

    def __post_init__(self) -> None:
        section, spare = self.indexer_section, self.indexer.width // 2
        require(
            sum(section) == spare and min(section) > 0,
            f"mrope_section {self.text.mrope_section} scaled from head_width {self.text.head_width} to indexer width "
            f"{self.indexer.width} gives {section}, which must be positive and sum to {spare}",
        )
        ids = (self.image_token_id, self.video_token_id)  # beyond vocab: a model for text alone
        require(ids[0] != ids[1] and min(ids) >= 0, f"image_token_id and video_token_id must be two tokens, got {ids}")
        fits = self.vision is not None or min(ids) >= self.text.vocab
        require(fits, f"without a tower no token stands for pixels: ids must lie beyond {self.text.vocab}, got {ids}")

    @property
    def indexer_section(self) -> tuple[int, int, int]:
        """M-RoPE sections of the indexer: the decoder's, scaled by indexer width / head width ([8, 12, 12])."""
        scaled = [n * self.indexer.width // self.text.head_width for n in self.text.mrope_section]
        return (scaled[0], scaled[1], scaled[2])

    @property
    def token_pixels(self) -> int:
        """Pixels along one side of one visual token (28). ValueError for a model without a tower."""
        require(self.vision is not None, "this model has no vision tower: it reads text alone")
        return self.vision.patch_size * self.vision.merge

    @classmethod
    def keye_vl_2_30b_a3b(cls) -> "KeyeConfig":
        """The released Keye-VL-2.0-30B-A3B."""
        return cls()

    @classmethod
    def mini(cls) -> "KeyeConfig":
        """The shipped checkpoint: frames of 4 to 8 visual tokens, 10 to 14 with their time, up to 1,024 of them."""
        return cls(
            vision=VisionConfig(width=192, layers=4, heads=6, mlp_width=768, image_size=56, packing_positions=1),
            text=TextConfig(
                vocab=320,
                width=256,
                layers=6,
                heads=8,
                kv_heads=2,
                head_width=64,
                experts=8,
                experts_per_token=2,
                expert_width=192,
                rope_theta=1e6,
                mrope_section=(8, 12, 12),
                max_positions=16_384,
            ),
            indexer=IndexerConfig(heads=4, width=32, topk=256),
            video=VideoConfig(
                min_frame_tokens=4, max_frame_tokens=8, video_tokens=8192, max_image_tokens=8, frame_size="fitting"
            ),
            image_token_id=261,
            video_token_id=262,
        )

    @classmethod
    def nano(cls) -> "KeyeConfig":
        """For tests and for training in a notebook: frames of 28x28 pixels, one token each."""
        return cls(
            vision=VisionConfig(width=48, layers=2, heads=4, mlp_width=96, image_size=28, packing_positions=1),
            text=TextConfig(
                vocab=320,
                width=64,
                layers=2,
                heads=4,
                kv_heads=2,
                head_width=32,
                experts=4,
                experts_per_token=2,
                expert_width=48,
                rope_theta=1e5,
                mrope_section=(4, 6, 6),
                max_positions=4096,
            ),
            indexer=IndexerConfig(heads=2, width=16, topk=16),
            video=VideoConfig(min_frame_tokens=1, max_frame_tokens=4, video_tokens=1024, max_image_tokens=4),
            image_token_id=261,
            video_token_id=262,
        )

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> "KeyeConfig":
        """Read a released `config.json`: text part nested (`text_config`) or flat, DSA numbers in `sa_config`.

        A key that is absent takes the released model's value; keys minikeye does not use are ignored, and
        `unused_keys(d)` lists them. A `vision_config` of false states that there is no tower. Raises ValueError for a
        value of the wrong kind or numbers that do not fit.
        """
        require(isinstance(d, dict), f"a config must be an object, got {d!r:.200}")
        text, prefix = released.text_of(d), "" if d.get("text_config") is None else "text_config."
        flat_text = {**text, "mrope_section": TextConfig.mrope_section, **released.rope_of(text)}
        see, video = released.tower_of(d), released.object_at(d, "video_config") or {}
        return cls(
            vision=None if see is None else released.read_part(VisionConfig, _VISION_KEYS, see, "vision_config."),
            text=released.read_part(TextConfig, _TEXT_KEYS, flat_text, prefix),
            indexer=released.read_part(IndexerConfig, _INDEXER_KEYS, released.sparse_of(d), "sa_config."),
            video=released.read_part(VideoConfig, _VIDEO_KEYS, video, "video_config."),
            image_token_id=released.token_id(d, "image_token_id", cls.image_token_id),
            video_token_id=released.token_id(d, "video_token_id", cls.video_token_id),
        )

    def to_dict(self) -> dict[str, Any]:
        """The released `config.json`, text part nested. `KeyeConfig.from_dict(c.to_dict()) == c`."""
        text = released.write_part(_TEXT_KEYS, self.text)
        sparse = released.write_part(_INDEXER_KEYS, self.indexer)
        for key in [key for key, usual in _UNUSUAL.items() if text[key] is usual]:
            del text[key]
        text["rope_scaling"] = {"type": "default", "mrope_section": list(text.pop("mrope_section"))}
        return {
            "architectures": ["KeyeVL2MoeForConditionalGeneration"],
            "model_type": "KeyeVL2",
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_config": self.vision is not None and released.write_part(_VISION_KEYS, self.vision),
            "text_config": {**text, "sa_config": {**sparse, "indexer_num_kv_heads": 1}},
            "video_config": released.write_part(_VIDEO_KEYS, self.video),
        }

    @classmethod
    def from_folder(cls, folder: str | Path) -> "KeyeConfig":
        """Read `folder/config.json`. Raises FileNotFoundError or ValueError, naming the file."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"expected a config.json in {folder}, found none: give the checkpoint's folder")
        stated = read_json(path)
        try:
            return cls.from_dict(stated)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


_BOTH = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
_TOWER = {"mlp_width": "intermediate_size", "merge": "spatial_merge_size", "norm_eps": "layer_norm_eps"}
_HEADS = {"kv_heads": "num_key_value_heads", "head_width": "head_dim", "norm_eps": "rms_norm_eps"}
_SIZES = {"vocab": "vocab_size", "max_positions": "max_position_embeddings", "expert_width": "moe_intermediate_size"}
_MIXTURE = {"experts": "num_experts", "experts_per_token": "num_experts_per_tok", "tied": "tie_word_embeddings"}
_UNUSUAL = {"qk_norm": True, "tie_word_embeddings": False}  # the released values, which no config.json of ours states
_VISION_KEYS = released.names(VisionConfig, _BOTH | _TOWER)
_TEXT_KEYS = released.names(TextConfig, _BOTH | _HEADS | _SIZES | _MIXTURE)
_INDEXER_KEYS = released.names(IndexerConfig, {"heads": "indexer_num_heads", "width": "indexer_head_dim"})
_VIDEO_KEYS = released.names(VideoConfig, {})
_TOP_KEYS = {"architectures", "image_token_id", "video_token_id", "vision_config", "text_config", "video_config"}
_OF_TEXT = {*_TEXT_KEYS.values(), "rope_scaling", "rope_parameters", "sa_config"} - {"mrope_section"}


def unused_keys(d: dict[str, Any]) -> list[str]:
    """Dotted names of the keys of a `config.json` that minikeye does not read, sorted."""
    text, nested = released.text_of(d), released.object_at(d, "text_config")
    flat = _OF_TEXT if nested is None else {"sa_config"} if text.get("sa_config") is None else set()
    parts = [("", d, _TOP_KEYS | flat), ("text_config.", nested or {}, _OF_TEXT)]
    parts.append(("vision_config.", released.tower_of(d) or {}, {*_VISION_KEYS.values()}))
    parts.append(("sa_config.", released.sparse_of(d), {*_INDEXER_KEYS.values(), "indexer_num_kv_heads"}))
    parts.append(("video_config.", released.object_at(d, "video_config") or {}, {*_VIDEO_KEYS.values()}))
    return sorted(p + k for p, part, keys in parts for k in part if k not in keys | {"model_type"})
