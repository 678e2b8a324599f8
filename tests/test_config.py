"""config.json in and out."""

import json
import math
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.config import IndexerConfig, KeyeConfig, TextConfig, VideoConfig, VisionConfig, unused_keys

PRESETS = [KeyeConfig.nano(), KeyeConfig.mini(), KeyeConfig.keye_vl_2_30b_a3b()]
# The released sa_config, word by word
SA = {
    "indexer_head_dim": 64,
    "indexer_num_heads": 16,
    "indexer_num_kv_heads": 1,
    "kv_chunk_size": 512,
    "q_chunk_size": 512,
    "topk": 2048,
}
TEXT = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000000,
    "max_position_embeddings": 262144,
    "rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]},
    "norm_topk_prob": True,
}
VISION = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}


@pytest.mark.parametrize("config", PRESETS, ids=["nano", "mini", "released"])
def test_there_and_back(config, tmp_path):
    """from_dict(to_dict()) is the identity, also through a file."""
    assert KeyeConfig.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert KeyeConfig.from_folder(tmp_path) == config
    assert unused_keys(config.to_dict()) == []


def test_every_field_survives():
    """A config that differs from the defaults in every number comes back as it was."""
    changed = {
        VisionConfig: dict(width=64, layers=1, heads=4, mlp_width=7, patch_size=16, merge=3, image_size=80)
        | dict(packing_positions=5, rope_theta=3.0, norm_eps=1e-3, projector_norm_eps=1e-2),
        TextConfig: dict(
            vocab=50, width=40, layers=3, heads=6, kv_heads=2, head_width=32, experts=5, experts_per_token=2
        )
        | dict(expert_width=9, rope_theta=5.0, mrope_section=(4, 6, 6), norm_eps=1e-4, max_positions=77)
        | dict(qk_norm=False, tied=True),
        IndexerConfig: dict(heads=3, width=16, topk=11, q_chunk_size=1, kv_chunk_size=2, norm_eps=1e-2),
        VideoConfig: dict(fps=1.5, min_frame_tokens=2, max_frame_tokens=3, video_tokens=9, min_image_tokens=1)
        | dict(max_image_tokens=8, adaptive="paper", frame_size="fitting"),
    }
    parts = [kind(**values) for kind, values in changed.items()]
    for kind, part in zip(changed, parts, strict=True):
        assert all(value != getattr(kind(), name) for name, value in vars(part).items())
    config = KeyeConfig(*parts[:2], *parts[2:], image_token_id=1, video_token_id=2)
    assert KeyeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("place", ["nested, sa_config inside", "nested, sa_config outside", "flat"])
def test_released_layouts(place):
    """The text part under text_config or at the top, sa_config beside it or in it: the released model each time."""
    config = {
        "nested, sa_config inside": {"vision_config": VISION, "text_config": {**TEXT, "sa_config": SA}},
        "nested, sa_config outside": {"vision_config": VISION, "text_config": TEXT, "sa_config": SA},
        "flat": {"vision_config": VISION, **TEXT, "sa_config": SA},
    }[place]
    assert KeyeConfig.from_dict(config) == KeyeConfig.keye_vl_2_30b_a3b()
    small = json.loads(json.dumps(config).replace('"topk": 2048', '"topk": 7'))
    assert KeyeConfig.from_dict(small).indexer.topk == 7


def test_rope_parameters():
    """The newer spelling: theta and sections in one dictionary."""
    text = {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [4, 6, 6]}}
    config = KeyeConfig.from_dict({"text_config": {**text, "sa_config": {"indexer_head_dim": 16}}})
    assert (config.text.rope_theta, config.text.mrope_section, config.indexer.width) == (5e5, (4, 6, 6), 16)


def test_unused_keys_are_listed():
    config = {
        "text_config": {**TEXT, "sa_config": {**SA, "extra": 1}},
        "vision_config": {"hidden_act": "gelu"},
        "video_config": {"fps": 1.0, "codec": "x"},
        "dtype": "x",
    }
    expected = ["dtype", "sa_config.extra", "text_config.norm_topk_prob", "video_config.codec"]
    expected.append("vision_config.hidden_act")
    assert unused_keys(config) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "2048"),
        ("hidden_size", 2048.5),
        ("hidden_size", True),
        ("hidden_size", None),
        ("rope_theta", "1e7"),
        ("rope_scaling", {"mrope_section": [32, 32]}),
        ("rope_scaling", {"mrope_section": "16,24,24"}),
    ],
)
def test_values_of_the_wrong_kind(key, value):
    name = "mrope_section" if key == "rope_scaling" else key
    with pytest.raises(ValueError, match=rf"config key 'text_config\.{name}' must be like"):
        KeyeConfig.from_dict({"text_config": {**TEXT, key: value}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextConfig(kv_heads=5), "heads 32 must be a multiple of kv_heads 5"),
        (lambda: TextConfig(mrope_section=(16, 16, 16)), "must sum to half of head_width 128"),
        (lambda: TextConfig(experts_per_token=0), "experts_per_token must be like 8: a whole number from 1 to"),
        (lambda: TextConfig(experts_per_token=129), r"experts_per_token 129 must lie in 1\.\.128"),
        (lambda: VisionConfig(heads=7), "vision width 1152 must be a multiple of heads 7"),
        (lambda: VisionConfig(width=96), "head width 6 must be a multiple of 4"),
        (lambda: IndexerConfig(topk=0), "topk must be like 2048: a whole number from 1 to 2147483648; got 0"),
        (lambda: IndexerConfig(width=7), "indexer width 7 must be even"),
        (lambda: KeyeConfig(indexer=IndexerConfig(width=6)), "which must be positive and sum to 3"),
        (lambda: VideoConfig(min_frame_tokens=9, max_frame_tokens=8), "1 <= min <= max, got 9 and 8"),
        (lambda: VideoConfig(min_image_tokens=9, max_image_tokens=8), "min <= max, got 9 and 8"),
        (lambda: VisionConfig(image_size=13), "image_size 13 must be at least one patch of 14 pixels"),
        (lambda: KeyeConfig(image_token_id=151_656), "must be two tokens, got .151656, 151656"),
        (lambda: KeyeConfig(video_token_id=-1), "must be two tokens, got .151655, -1"),
        (
            lambda: KeyeConfig.from_dict({"video_config": {"adaptive": "on"}}),
            "config key 'video_config.adaptive' must be one of off, paper, released; got 'on'",
        ),
    ],
)
def test_numbers_that_do_not_fit_together(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_derived_numbers():
    """As the report and the released code have them."""
    released = KeyeConfig.keye_vl_2_30b_a3b()
    assert released.indexer_section == (8, 12, 12)
    assert released.token_pixels == 28
    assert (released.vision.head_width, released.vision.position_side) == (72, 27)
    assert released.text.group_heads == 8


def test_no_config_or_a_broken_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a config\.json in .*give the checkpoint's folder"):
        KeyeConfig.from_folder(tmp_path)
    for text in ("{", "[1]", '{"text_config": {"hidden_size": "wide"}}', '{"text_config": 3}'):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.json"):
            KeyeConfig.from_folder(tmp_path)


def keys_of(d: dict, path: tuple = ()) -> list[tuple]:
    """The paths of all values of a nested dictionary."""
    return [p for k, v in d.items() for p in [(*path, k), *(keys_of(v, (*path, k)) if isinstance(v, dict) else [])]]


STATED = KeyeConfig.nano().to_dict()
STRANGE = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 2**63, 10**400, 1e308, -0.0, math.nan, math.inf, -math.inf, "", [], {}, "\ud800"]
    ),
    st.integers(),
    st.floats(),
    st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)),
)


@given(st.sampled_from(keys_of(STATED)), STRANGE)
@hypothesis.settings(max_examples=200, phases=[hypothesis.Phase.generate])
def test_any_value_of_any_key(path, value):
    """A config whose numbers are all in their ranges, or one message. Never another error, and no number is lost."""
    stated = json.loads(json.dumps(STATED))
    place = stated
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        config = KeyeConfig.from_dict(stated)
    except ValueError as error:
        assert str(error) and len(str(error)) < 400
        return
    assert KeyeConfig.from_dict(config.to_dict()) == config
    parts = [part for part in (config.vision, config.text, config.indexer, config.video) if part is not None]
    numbers = [n for part in parts for n in vars(part).values() if not isinstance(n, bool)]
    assert all(n > 0 and math.isfinite(n) for n in numbers if isinstance(n, int | float))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1e-6, 0.0, 2.0])
@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_config", "rms_norm_eps"),
        ("text_config", "rope_theta"),
        ("vision_config", "layer_norm_eps"),
        ("vision_config", "rope_theta"),
        ("sa_config", "norm_eps"),
    ],
)
def test_numbers_that_would_make_nonsense(part, key, value):
    """A variance plus nan is nan; a theta of 0 turns nothing. The message names the key and what came."""
    if key == "rope_theta" and value == 2.0:
        value = 0.5
    stated = json.loads(json.dumps(STATED))
    (stated["text_config"]["sa_config"] if part == "sa_config" else stated[part])[key] = value
    with pytest.raises(ValueError, match=rf"config key '{part}\.{key}' must be like .*: a number from .*; got {value}"):
        KeyeConfig.from_dict(stated)


def test_null_is_absent():
    """transformers writes null for a part that is not there."""
    parts = ("text_config", "vision_config", "video_config", "sa_config", "rope_scaling")
    assert KeyeConfig.from_dict(dict.fromkeys(parts)) == KeyeConfig()
    assert KeyeConfig.from_dict({"text_config": {"sa_config": None}, "sa_config": {"topk": 7}}).indexer.topk == 7


@pytest.mark.parametrize("rope", ["dynamic", [1, 2], 3])
def test_rope_of_the_wrong_kind(rope):
    with pytest.raises(ValueError, match="config key 'rope_scaling' must be an object; got"):
        KeyeConfig.from_dict({"text_config": {"rope_scaling": rope}})


def test_what_is_stated_twice_must_agree():
    """RoPE under its older and its newer name, theta beside it, DSA's numbers in and beside the text part."""
    for text in (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e7}},
        {"rope_scaling": {"mrope_section": [16, 24, 24]}, "rope_parameters": {"mrope_section": [24, 24, 16]}},
    ):
        with pytest.raises(ValueError, match=r"of RoPE is .* in one place, .* in another"):
            KeyeConfig.from_dict({"text_config": text})
    with pytest.raises(ValueError, match="'sa_config' stands in two places that disagree"):
        KeyeConfig.from_dict({"text_config": {"sa_config": {"topk": 1}}, "sa_config": {"topk": 2}})


def test_a_key_in_the_wrong_part_is_not_read():
    """Beside a nested text part its keys are nobody's, and listed."""
    stated = {
        **STATED,
        "hidden_size": 9,
        "rope_scaling": {},
        "vision_config": {**STATED["vision_config"], "rope_scaling": 1},
    }
    assert unused_keys(stated) == ["hidden_size", "rope_scaling", "vision_config.rope_scaling"]


def test_a_name_in_any_script(tmp_path):
    """UTF-8, whatever the locale is."""
    stated = {**STATED, "_name_or_path": "模型/Keye"}
    (tmp_path / "config.json").write_bytes(json.dumps(stated, ensure_ascii=False).encode())
    assert KeyeConfig.from_folder(tmp_path) == KeyeConfig.nano()


def test_frozen():
    config = KeyeConfig.nano()
    with pytest.raises(AttributeError):
        config.text.width = 3
    assert replace(config, indexer=replace(config.indexer, topk=4)).indexer.topk == 4
