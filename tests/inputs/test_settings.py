"""What ships besides the weights: read, held against each other, and each disagreement named."""

import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.checkpoint.fake import TEMPLATE, fake_config, fake_tokenizer, write_fake_checkpoint
from minikeye.files import CHECKPOINT
from minikeye.inputs.settings import (
    READ,
    ROPE_FIXED,
    TEXT_FIXED,
    TOKEN_KEYS,
    FolderError,
    GenerationDefaults,
    read_folder,
)
from minikeye.inputs.template import TemplateError
from minikeye.inputs.tokenizer import ByteTokenizer, ReleasedTokenizer

SMALL = fake_config(small=True)
UNREAD = ["config.json: torch_dtype", *(f"tokenizer_config.json: {k}" for k in ("model_max_length", "tokenizer_class"))]
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "small"
    write_fake_checkpoint(folder, SMALL)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A folder to change."""
    return Path(shutil.copytree(written, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A released-width folder without weights: config.json with every id that the release states, tokenizer.json."""
    folder = tmp_path_factory.mktemp("wide")
    ids = {"fast_video_token_id": 151678, "vision_start_token_id": 151652, "vision_end_token_id": 151653}
    ids |= {"bos_token_id": 151643, "eos_token_id": 151645}
    (folder / "config.json").write_text(json.dumps({**KeyeConfig.keye_vl_2_30b_a3b().to_dict(), **ids}))
    fake_tokenizer(fake_config()).save(str(folder / "tokenizer.json"))
    return folder


def change(path: Path, **keys) -> None:
    """Set keys of a JSON file; a value of ... removes the key, two underscores lead into a part."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    for name, value in keys.items():
        *parts, key = name.split("__")
        place = content
        for part in parts:
            place = place[part]
        place.pop(key, None) if value is ... else place.update({key: value})
    path.write_text(json.dumps(content))


def test_a_whole_folder(folder):
    released = read_folder(folder)
    assert released.folder == folder and released.config == SMALL and released.template is not None
    assert isinstance(released.tokenizer, ReleasedTokenizer) and released.unused == UNREAD
    assert released.generation == GenerationDefaults((258, 256), 0.6, 20, 0.95)


def test_what_is_called_otherwise_and_means_the_same(wide, tmp_path):
    """A token that nobody reads under a name that nobody knows for certain; the older name of M-RoPE."""
    folder = Path(shutil.copytree(wide, tmp_path / "wide"))
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|fast_video_pad|>", "<|fast_pad|>"))
    change(folder / "config.json", text_config__rope_scaling__type="mrope")
    released = read_folder(folder)
    assert released.config == KeyeConfig.keye_vl_2_30b_a3b() and "<|fast_pad|>" in released.tokenizer.marks


def test_a_folder_with_weights_only(folder):
    """config.json alone will do for a small model: bytes, ChatML, greedy, the tokenizer's stop tokens."""
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    released = read_folder(folder)
    assert isinstance(released.tokenizer, ByteTokenizer) and released.template is None
    assert released.generation == GenerationDefaults((258, 256))
    assert read_folder(CHECKPOINT).config == KeyeConfig.mini() and read_folder(CHECKPOINT).unused == []


def test_released_width(wide):
    """Every id of the release agrees with the tokenizer's, <|frame|> is found by name."""
    released = read_folder(wide)
    assert released.config == KeyeConfig.keye_vl_2_30b_a3b() and released.unused == []
    assert released.generation.stop_ids == (151645, 151643)
    frame = released.tokenizer.token_id("<|frame|>")
    clip = {"type": "video", "video": np.zeros((2, 224, 224, 3), np.uint8), "fps": 1.0}
    ids = Processor(wide)([{"role": "user", "content": [clip]}])["input_ids"][0].tolist()
    assert ids.count(frame) == 2 and ids.count(151656) == 2 * 64 and ids[3:5] == [151652, frame]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("fast_video_token_id", 151656, r"fast_video_token_id 151656, .*json has <\|fast_video_pad\|> token 151678"),
        ("vision_start_token_id", 151653, r"vision_start_token_id 151653, .*has <\|vision_start\|> token 151652"),
        ("vision_end_token_id", 1, r"vision_end_token_id 1, .*has <\|vision_end\|> token 151653"),
        ("image_token_id", 151654, r"image_pad\|> is token 151655 in .*tokenizer\.json but 151654 in config\.json"),
        ("video_token_id", 7, r"video_pad\|> is token 151656 in .*tokenizer\.json but 7 in config\.json"),
        ("eos_token_id", 151646, r"eos_token_id 151646, .*<\|im_end\|> token 151645 and <\|endoftext\|> token 151643"),
        ("eos_token_id", [151645, 3], r"states eos_token_id 3, "),
        ("eos_token_id", "151645", r"states eos_token_id '151645', "),
        ("bos_token_id", 0, r"bos_token_id 0, .*<\|endoftext\|> token 151643"),
        ("text_config__eos_token_id", 9, r"config\.json states eos_token_id 9, "),
        ("text_config__vocab_size", 151_679, r"goes up to token 151679, the model has rows 0 to 151678"),
    ],
)
def test_ids_that_disagree(wide, tmp_path, key, value, complaint):
    """The message names the token, both ids and both files."""
    shutil.copytree(wide, tmp_path / "x")
    change(tmp_path / "x" / "config.json", **{key: value})
    with pytest.raises(ValueError, match=complaint):
        read_folder(tmp_path / "x")


@pytest.mark.parametrize("value", [151643, [151645, 151643], None])
def test_ids_that_agree(wide, tmp_path, value):
    """The base model's end, a list of ends, and null."""
    shutil.copytree(wide, tmp_path / "x")
    change(tmp_path / "x" / "config.json", eos_token_id=value, text_config__eos_token_id=value)
    assert read_folder(tmp_path / "x").unused == []


def test_a_tokenizer_without_frames(folder):
    """A Qwen3 tokenizer knows no <|frame|>: said at once, not at the first video."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|frame|>", "<|box|>"))
    with pytest.raises(ValueError, match=r"defines no token <\|frame\|>: is it the tokenizer of Keye-VL-2\.0"):
        read_folder(folder)


def test_two_tokenizer_files_that_disagree(folder):
    change(folder / "tokenizer_config.json", added_tokens_decoder={"263": {"content": "<|video_pad|>"}})
    with pytest.raises(FolderError, match=r"<\|video_pad\|> is 263 in .*tokenizer_config\.json but 262 in .*r\.json"):
        read_folder(folder)
    change(folder / "tokenizer_config.json", added_tokens_decoder={"300": {"content": "<|new|>"}})
    with pytest.raises(FolderError, match=r"<\|new\|> is 300 in .* but absent in"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("file", "key", "value", "complaint"),
    [
        (
            "config",
            "text_config__norm_topk_prob",
            False,
            "text_config.norm_topk_prob False; minikeye computes True only",
        ),
        ("config", "text_config__hidden_act", "gelu", "text_config.hidden_act 'gelu'; minikeye computes 'silu' only"),
        ("config", "text_config__mlp_only_layers", [0], r"mlp_only_layers \[0\]; minikeye computes \[\] only"),
        ("config", "tie_word_embeddings", True, "states tie_word_embeddings True; minikeye computes False only"),
        ("config", "text_config__rope_scaling__type", "yarn", "rope_scaling.type 'yarn'; minikeye computes 'default'"),
        ("config", "vision_config__hidden_act", "gelu", "vision_config.hidden_act 'gelu'"),
        ("config", "text_config__sa_config__indexer_num_kv_heads", 2, "sa_config.indexer_num_kv_heads 2"),
        (
            "config",
            "text_config__layer_types",
            ["full_attention", "sliding_attention"],
            "layer_types .*'full_attention'",
        ),
        ("config", "text_config__partial_rotary_factor", 0.5, "partial_rotary_factor 0.5; minikeye computes 1.0 only"),
        ("config", "text_config__num_shared_experts", 1, "num_shared_experts 1; minikeye computes 0 only"),
        ("config", "quantization_config", {"bits": 4}, "quantization_config {'bits': 4}; minikeye computes None only"),
        ("config", "vision_config__temporal_patch_size", 2, "temporal_patch_size 2; minikeye computes 1 only"),
        ("preprocessor_config", "temporal_patch_size", 2, "temporal_patch_size 2; minikeye computes 1 only"),
        ("preprocessor_config", "do_center_crop", True, "do_center_crop True"),
        ("preprocessor_config", "min_pixels", 3137, "got 3137, 3136"),
        ("generation_config", "do_sample", "yes", "do_sample true or false; got .*'yes'"),
        ("tokenizer_config", "clean_up_tokenization_spaces", True, "clean_up_tokenization_spaces True"),
        ("tokenizer_config", "added_tokens_decoder", [1], "must hold added_tokens_decoder as an object, got .1."),
        ("tokenizer_config", "added_tokens_decoder", {"1": 5}, "must hold added_tokens_decoder.1 as text, got 5"),
        ("tokenizer_config", "eos_token", 5, "must hold eos_token as text, got 5"),
        ("preprocessor_config", "patch_size", 16, "patch_size 16; minikeye computes 14 only"),
        ("preprocessor_config", "merge_size", 1, "merge_size 1; minikeye computes 2 only"),
        ("preprocessor_config", "image_mean", [0.48, 0.45, 0.4], "image_mean .0.48, 0.45, 0.4.; minikeye computes"),
        ("preprocessor_config", "image_std", [1.0, 1.0, 1.0], "image_std"),
        ("preprocessor_config", "do_normalize", False, "do_normalize False"),
        ("preprocessor_config", "rescale_factor", 1.0, "rescale_factor 1.0; minikeye computes 1/255 only"),
        (
            "preprocessor_config",
            "min_pixels",
            10**9,
            "whole numbers 0 < min_pixels <= max_pixels >= 784, .*; got 1000000000",
        ),
        ("preprocessor_config", "max_pixels", 100, "got 3136, 100"),
        ("preprocessor_config", "max_pixels", "many", "got 3136, 'many'"),
        ("generation_config", "temperature", -1, "temperature >= 0.*, -1, 20, 0.95"),
        ("generation_config", "temperature", "hot", "'hot'"),
        ("generation_config", "top_p", 0, "0 < top_p <= 1"),
        ("generation_config", "top_k", 2.5, "top_k >= 0"),
        ("generation_config", "eos_token_id", [3], "needs special tokens of the tokenizer as eos_token_id.*got .3"),
        ("generation_config", "eos_token_id", [], r"got \[\]"),
        ("tokenizer_config", "chat_template", 3, "must hold its chat_template as text, got 3"),
        ("tokenizer_config", "chat_template", "{% if %}", "chat_template in .*tokenizer_config.json is not a template"),
    ],
)
def test_what_minikeye_does_not_compute(folder, file, key, value, complaint):
    """One error that names the file, what it states and what minikeye does."""
    (folder / "chat_template.jinja").unlink()
    change(folder / f"{file}.json", **{key: value})
    with pytest.raises(ValueError, match=complaint) as error:
        read_folder(folder)
    assert f"{file}.json" in str(error.value)


@pytest.mark.parametrize("name", ["generation_config", "preprocessor_config", "tokenizer_config", "config"])
@pytest.mark.parametrize("text", ["{", "[1]"])
def test_files_that_are_no_objects(folder, name, text):
    (folder / f"{name}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{name}\.json"):
        read_folder(folder)


def test_keys_that_nobody_reads_are_listed(folder):
    change(folder / "config.json", text_config__aux_loss=1, use_cache=True, video_config__codec="x")
    change(folder / "preprocessor_config.json", resample=3)
    change(folder / "generation_config.json", repetition_penalty=1.05)
    change(folder / "chat_template.json", note="x")
    config = [
        f"config.json: {key}" for key in ("text_config.aux_loss", "torch_dtype", "use_cache", "video_config.codec")
    ]
    others = ["preprocessor_config.json: resample", "generation_config.json: repetition_penalty", *UNREAD[1:]]
    assert read_folder(folder).unused == [*config, *others, "chat_template.json: note"]
    assert Processor(folder).unused == read_folder(folder).unused


ROPE = [{"mrope_interleaved": True}, {"partial_rotary_factor": 0.5}, {"attention_factor": 2.0}, {"factor": 4.0}]
ROPE += [{"original_max_position_embeddings": 4096}, {"short_factor": [1.0]}, {"full_attention": {"rope_theta": 1.0}}]


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("more", ROPE, ids=lambda more: next(iter(more)))
def test_a_key_of_rope_changes_the_function(folder, place, more):
    """Each of them turns keys by other angles: refused by name, where the folder is read and where it is loaded."""
    change(folder / "config.json", **{f"text_config__{place}": {"mrope_section": [4, 6, 6], **more}})
    ((key, value),) = more.items()
    for read in (read_folder, KeyeVL.from_pretrained):
        with pytest.raises(FolderError, match=rf"config\.json states .*{key} {re.escape(repr(value))}.*; minikeye"):
            read(folder)


def test_keys_of_rope_that_say_nothing(folder):
    """What other software writes for "plain"."""
    neutral = {"mrope_interleaved": False, "partial_rotary_factor": 1.0, "factor": 1.0, "attention_factor": None}
    change(
        folder / "config.json",
        text_config__rope_scaling={"rope_type": "default", "mrope_section": [4, 6, 6], **neutral},
    )
    assert read_folder(folder).config == SMALL and read_folder(folder).unused == UNREAD


STRANGE = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 2**63, 10**400, 1e308, math.nan, math.inf, "", "x" * 1000, [], {}, [[]], {"a": {}}]
    ),
    st.integers(),
    st.floats(),
    st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)),
)
FILES = ("config", "generation_config", "preprocessor_config", "tokenizer_config")


@given(st.sampled_from(FILES), st.data())
@hypothesis.settings(max_examples=60, phases=[hypothesis.Phase.generate])
def test_any_value_of_any_key(written, file, data):
    """Every settings file: a folder that is read, or one message that names a file."""
    path = written / f"{file}.json"
    whole = path.read_text(encoding="utf-8")
    stated = json.loads(whole)
    others = {"config": {**TEXT_FIXED, **ROPE_FIXED, **TOKEN_KEYS}}.get(file, READ.get(path.name, {}))
    stated[data.draw(st.sampled_from(sorted({*stated, *others})))] = data.draw(STRANGE)
    path.write_text(json.dumps(stated), encoding="utf-8")
    try:
        read_folder(written)
    except ValueError as error:
        assert ".json" in str(error) and len(str(error)) < 600
    finally:
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"min_pixels": 3136, "max_pixels": 16056320}, (4, 20480)),
        ({"min_pixels": 3137, "max_pixels": 16056319}, (5, 20479)),  # whole tokens within the limits
        ({"min_pixels": ..., "max_pixels": ..., "size": {"shortest_edge": 3136, "longest_edge": 7840}}, (4, 10)),
        ({"min_pixels": ..., "max_pixels": ..., "size": {"min_pixels": 784, "max_pixels": 1568}}, (1, 2)),
        ({"min_pixels": ..., "max_pixels": ..., "size": {"height": 384}}, (4, 4)),  # config.json's
    ],
)
def test_pixel_limits_become_tokens(folder, limits, tokens):
    """A visual token is 28 pixels wide and high. The limits of video frames stay as they are."""
    change(folder / "preprocessor_config.json", **limits)
    video = read_folder(folder).config.video
    assert (video.min_image_tokens, video.max_image_tokens) == tokens
    assert replace(video, min_image_tokens=4, max_image_tokens=4) == SMALL.video


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"do_sample": False, "temperature": 0.6}, ((258, 256), 0.0, 20, 0.95)),
        ({"do_sample": ...}, ((258, 256), 0.0, 20, 0.95)),
        ({"temperature": ...}, ((258, 256), 1.0, 20, 0.95)),
        ({"eos_token_id": 258}, ((258,), 0.6, 20, 0.95)),
        ({"eos_token_id": ..., "top_p": ..., "top_k": None}, ((258, 256), 0.6, 0, 1.0)),
        ({"top_k": -1, "top_p": 1}, ((258, 256), 0.6, 0, 1.0)),
    ],
)
def test_generation_defaults(folder, stated, expected):
    """As transformers reads the file, but for an absent top_k. The fields are `generate`'s keywords."""
    change(folder / "generation_config.json", **stated)
    generation = Processor(folder).generation
    assert tuple(asdict(generation).values()) == expected
    assert list(asdict(generation)) == ["stop_ids", "temperature", "top_k", "top_p"]


MARK = TEMPLATE + "{{- 'NAME' }}"  # a template that signs


@pytest.mark.parametrize(
    ("places", "used"),
    [
        (("jinja", "tokenizer_config", "chat_template"), "jinja"),
        (("tokenizer_config", "chat_template"), "tokenizer_config"),
        (("chat_template",), "chat_template"),
        (("list",), "list"),
        ((), ""),
    ],
)
def test_where_the_template_is_looked_for(folder, places, used):
    """A file of its own, then tokenizer_config.json, where it may be one of several, then chat_template.json."""
    (folder / "chat_template.jinja").unlink()
    sign = {place: MARK.replace("NAME", place) for place in places}
    if "jinja" in sign:
        (folder / "chat_template.jinja").write_text(sign["jinja"])
    if "tokenizer_config" in sign:
        change(folder / "tokenizer_config.json", chat_template=sign["tokenizer_config"])
    if "chat_template" in sign:
        change(folder / "chat_template.json", chat_template=sign["chat_template"])
    if "list" in sign:
        several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": sign["list"]}]
        change(folder / "tokenizer_config.json", chat_template=several)
    processor = Processor(folder)
    text = processor.tokenizer.decode(processor(HI)["input_ids"][0].tolist())
    assert text == f"user\nHi\nassistant\n{used}" and (processor.template is None) == (used == "")


def test_the_template_knows_the_tokenizers_tokens(folder):
    """eos_token and its like, as text or with their properties."""
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    (folder / "chat_template.jinja").write_text(source)
    change(folder / "tokenizer_config.json", bos_token={"content": "<|im_start|>"}, eos_token="<|im_end|>")
    assert Processor(folder)(HI)["input_ids"][0].tolist() == [257, *b"Hi", 258]


def test_a_hub_id_is_a_folder(folder, monkeypatch):
    """`Processor` takes what `KeyeVL.from_pretrained` takes."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert Processor("owner/name").config == SMALL and asked == ["owner/name"]
    with pytest.raises(FileNotFoundError, match="no folder nowhere: give a checkpoint folder or a hub id"):
        Processor("nowhere")


def test_a_broken_template_is_said_when_the_folder_is_opened(folder):
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(TemplateError, match=r"chat_template\.jinja is not a template that jinja can run"):
        Processor(folder)
