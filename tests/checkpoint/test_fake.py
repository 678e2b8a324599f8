"""Folders with random weights: the released names and shapes, a model that loads and answers, nothing left behind."""

import json
import math
import re
import weakref

import pytest
import torch
from safetensors import safe_open

from minikeye import KeyeConfig, KeyeVL, Processor, files
from minikeye.checkpoint import fake
from minikeye.checkpoint.fake import draw, fake_config, fake_tokenizer, tensor_shapes, write_fake_checkpoint
from minikeye.config import unused_keys
from minikeye.inputs.tokenizer import SPECIAL_TOKENS, ByteTokenizer

SMALL = fake_config(small=True)
QUESTION = [{"role": "user", "content": "Which digit is on the card?"}]
# The released layout as its report and serving code have it: pattern of names -> shape. {N} stands for a layer.
TABLE = """
visual.vision_model.embeddings.patch_embedding.weight 1152,3,14,14
visual.vision_model.embeddings.patch_embedding.bias 1152
visual.vision_model.embeddings.position_embedding.weight 729,1152
visual.vision_model.embeddings.packing_position_embedding.weight 32768,1152
visual.vision_model.encoder.layers.{N}.layer_norm{1|2}.{weight|bias} 1152
visual.vision_model.encoder.layers.{N}.self_attn.{q_proj|k_proj|v_proj|out_proj}.weight 1152,1152
visual.vision_model.encoder.layers.{N}.self_attn.{q_proj|k_proj|v_proj|out_proj}.bias 1152
visual.vision_model.encoder.layers.{N}.mlp.fc1.weight 4304,1152
visual.vision_model.encoder.layers.{N}.mlp.fc1.bias 4304
visual.vision_model.encoder.layers.{N}.mlp.fc2.weight 1152,4304
visual.vision_model.encoder.layers.{N}.mlp.fc2.bias 1152
visual.vision_model.post_layernorm.{weight|bias} 1152
mlp_AR.pre_norm.{weight|bias} 4608
mlp_AR.linear_1.weight 4608,4608
mlp_AR.linear_1.bias 4608
mlp_AR.linear_2.weight 2048,4608
mlp_AR.linear_2.bias 2048
model.embed_tokens.weight 151936,2048
lm_head.weight 151936,2048
model.norm.weight 2048
model.layers.{N}.{input_layernorm|post_attention_layernorm}.weight 2048
model.layers.{N}.self_attn.q_proj.weight 4096,2048
model.layers.{N}.self_attn.{k_proj|v_proj}.weight 512,2048
model.layers.{N}.self_attn.o_proj.weight 2048,4096
model.layers.{N}.self_attn.{q_norm|k_norm}.weight 128
model.layers.{N}.self_attn.sa_indexer.q_proj.weight 1040,2048
model.layers.{N}.self_attn.sa_indexer.k_proj.weight 64,2048
model.layers.{N}.self_attn.sa_indexer.q_norm.weight 64
model.layers.{N}.self_attn.sa_indexer.k_norm.{weight|bias} 64
model.layers.{N}.mlp.gate.weight 128,2048
model.layers.{N}.mlp.experts.gate_up_proj 128,2048,1536
model.layers.{N}.mlp.experts.down_proj 128,768,2048
"""


def expand(name: str) -> list[str]:
    """{a|b} in a name stands for both."""
    choice = re.search(r"\{([^}]*\|[^}]*)\}", name)
    if not choice:
        return [name]
    return [n for part in choice[1].split("|") for n in expand(name.replace(choice[0], part, 1))]


def tensors(folder) -> dict[str, torch.Tensor]:
    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as shard:
            held |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    return held


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake") / "small"
    write_fake_checkpoint(folder, SMALL)
    return folder


def test_names_and_shapes_are_the_released_ones():
    """One layer at full width, name by name."""
    expected = {}
    for line in TABLE.split("\n")[1:-1]:
        pattern, shape = line.split(" ")
        expected |= {n.replace("{N}", "0"): tuple(int(s) for s in shape.split(",")) for n in expand(pattern)}
    config = fake_config(layers=1, vision_layers=1)
    assert {name: tuple(shape) for name, shape in tensor_shapes(config).items()} == expected


def test_cut_configs():
    """Full width: only the numbers of layers differ. 48 layers count as the release does."""
    released = KeyeConfig.keye_vl_2_30b_a3b()
    four = fake_config(4, 2)
    assert (four.text.layers, four.vision.layers, four.text.width, four.vision.width) == (4, 2, 2048, 1152)
    assert fake_config() == released and fake_config(small=True) == KeyeConfig.nano()
    assert sum(shape.numel() for shape in tensor_shapes(released).values()) == 31_122_082_160
    with pytest.raises(ValueError, match="at least one layer of each kind, got 0 and 27"):
        fake_config(0)


def test_it_loads_and_answers(folder):
    """The folder is one that `from_pretrained` and `Processor` read like any other, template and numbers included."""
    model, processor = KeyeVL.from_pretrained(folder), Processor(folder)
    assert model.config == SMALL == processor.config and processor.unused[0] == "config.json: torch_dtype"
    assert processor.template is not None and processor.generation.temperature == 0.6
    assert processor.stop_ids == Processor(SMALL).stop_ids
    inputs = processor(QUESTION)
    assert torch.equal(inputs["input_ids"], Processor(SMALL)(QUESTION)["input_ids"])  # the ids of ByteTokenizer
    out = model.generate(inputs, max_new_tokens=8, temperature=1.0, seed=0)
    assert len(out.row()) == 8 and len(set(out.row())) > 1 and isinstance(processor.tokenizer.decode(out.row()), str)


def test_files(folder):
    """What ships is there; every stated key is one that is read."""
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", "README.md"}
    assert "The weights are random" in (folder / "README.md").read_text()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = tensors(folder)
    assert index["weight_map"].keys() == held.keys() == KeyeVL(SMALL).state_dict().keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in held.values())
    assert {t.dtype for t in held.values()} == {torch.bfloat16}
    stated = json.loads((folder / "config.json").read_text())
    assert {"vision_start_token_id", "vision_end_token_id", "eos_token_id"} <= set(unused_keys(stated))


def test_weights_are_as_wide_as_a_new_models(folder):
    """Each tensor's spread is that of `KeyeVL(config)`, within the error of its size; constants are the same."""
    held, new = tensors(folder), KeyeVL(SMALL).state_dict()
    for name, tensor in new.items():
        if tensor.ndim == 1:
            assert torch.equal(held[name].float(), tensor), name
        else:
            ratio = float(held[name].double().std() / tensor.double().std())
            assert abs(ratio - 1) < 5 / math.sqrt(tensor.numel()), name
            assert abs(float(held[name].double().mean())) < 5 * float(tensor.std()) / math.sqrt(tensor.numel()), name


def test_a_tensor_depends_on_seed_and_name_only(folder, tmp_path):
    """Other shards, another dtype: the same numbers, but for rounding. Another seed or name: others."""
    write_fake_checkpoint(tmp_path / "b", SMALL, max_shard_bytes=150_000, dtype=torch.float32)
    one, two = tensors(folder), tensors(tmp_path / "b")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 5 > len(list(folder.glob("*.safetensors")))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n].bfloat16()) for n in one)
    shape = torch.Size([64, 64])
    again, name, seed = (draw(n, shape, 2, s, torch.float32) for n, s in (("a.b", 0), ("a.c", 0), ("a.b", 1)))
    assert torch.equal(again, draw("a.b", shape, 2, 0, torch.float32))
    assert all(abs(float((again * other).mean()) * 64) < 0.1 for other in (name, seed))  # no correlation


def test_one_shard_at_a_time(monkeypatch, tmp_path):
    """While a tensor is drawn, what else is alive of them fits into a shard."""
    alive: list[weakref.ref] = []
    most = 0

    def watched(*arguments):
        nonlocal most
        tensor = draw(*arguments)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(t.numel() * t.element_size() for ref in alive if (t := ref()) is not None))
        return tensor

    monkeypatch.setattr(fake, "draw", watched)
    write_fake_checkpoint(tmp_path / "x", SMALL, max_shard_bytes=100_000)
    assert 50_000 < most <= 100_000 and len(alive) == len(tensor_shapes(SMALL))


def test_nothing_is_left_of_a_failure(monkeypatch, tmp_path):
    """A failure or a Ctrl-C in the middle leaves neither the folder nor a part of it."""

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "save_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        write_fake_checkpoint(tmp_path / "x", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_refusals(monkeypatch, tmp_path):
    """A folder with something in it, a disk that is too small, a vocabulary without room; an empty folder will do."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="is there and not empty: name a new folder"):
        write_fake_checkpoint(tmp_path / "full", SMALL)
    write_fake_checkpoint(tmp_path / "empty", SMALL)
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(OSError, match=r"large needs \d+\.\d GiB, .* has 0\.0 GiB free"):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("", (), {"free": 1000})())
        write_fake_checkpoint(tmp_path / "large", SMALL)
    wrong = KeyeConfig(SMALL.vision, SMALL.text, SMALL.indexer, SMALL.video, 262, 261)
    with pytest.raises(ValueError, match=r"at least 268 with placeholders \(261, 262\), got 320 with 262 and 261"):
        write_fake_checkpoint(tmp_path / "large", wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_released_token_ids():
    """Qwen3's ids and Keye's; those that are no special tokens there are none here."""
    fast = fake_tokenizer(fake_config())
    ids = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652}
    ids |= {"<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "<think>": 151667}
    ids |= {"</think>": 151668, "<|fast_video_pad|>": 151678}
    assert {name: fast.token_to_id(name) for name in ids} == ids
    added = fast.get_added_tokens_decoder()
    assert [added[n].special for n in (151645, 151656, 151667, 151668)] == [True, True, False, False]
    assert fast.get_vocab_size() <= KeyeConfig.keye_vl_2_30b_a3b().text.vocab
    text = "The user, the 12 users.\n\nÉé 视频 🎬"
    encoded = fast.encode(text)
    assert fast.decode(encoded.ids) == text and {"Ġthe", "ĊĊ"} <= set(encoded.tokens)  # merges are at work
    assert max(encoded.ids) < 266 and fast.decode([300]) == " w300"


def test_small_vocabularies_are_bytes():
    """Up to 1,024 rows: a byte is its own id, special tokens follow, as in ByteTokenizer."""
    fast = fake_tokenizer(SMALL)
    for text in ("Which digit?", "视频里有什么? 🎬", "\n\t~"):
        assert fast.encode(text).ids == ByteTokenizer().encode(text) and fast.decode(list(text.encode())) == text
    assert [fast.token_to_id(name) for name in SPECIAL_TOKENS] == [ByteTokenizer().token_id(n) for n in SPECIAL_TOKENS]
