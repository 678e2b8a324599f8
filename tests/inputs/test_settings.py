"""What ships besides the weights: read, held against each other, and each disagreement named."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from minikeye import KeyeConfig, Processor
from minikeye.checkpoint.fake import TEMPLATE, fake_config, fake_tokenizer, write_fake_checkpoint
from minikeye.files import CHECKPOINT
from minikeye.inputs.settings import FolderError, GenerationDefaults, read_folder, read_json
from minikeye.inputs.template import TemplateError
from minikeye.inputs.tokenizer import ByteTokenizer, ReleasedTokenizer

SMALL = fake_config(small=True)
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
    assert isinstance(released.tokenizer, ReleasedTokenizer) and released.unused == ["config.json: torch_dtype"]
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
            "whole numbers 0 < min_pixels <= max_pixels >= 784, got 1000000000",
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
    change(folder / "preprocessor_config.json", resample=3, temporal_patch_size=1)
    names = ["text_config.aux_loss", "torch_dtype", "use_cache", "video_config.codec"]
    pixels = [f"preprocessor_config.json: {key}" for key in ("resample", "temporal_patch_size")]
    assert read_folder(folder).unused == [*(f"config.json: {name}" for name in names), *pixels]
    assert Processor(folder).unused == read_folder(folder).unused


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


def test_read_json(tmp_path):
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
