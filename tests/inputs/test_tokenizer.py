"""Bytes and the released kind of tokenizer.json answer the same three questions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from minikeye.config import KeyeConfig
from minikeye.inputs.tokenizer import SPECIAL_TOKENS, ByteTokenizer, ReleasedTokenizer, load_tokenizer

TEXTS = ["What is 12+34?", "Welche Ziffer? 7 bei 12,5 s", "视频里有什么?", "é ñ 🎬", "", "<|im_end|>", " \n\t"]


@pytest.fixture(scope="module")
def released_file(tmp_path_factory) -> str:
    """A byte-level BPE as Qwen3's, trained on a few lines, with the special tokens added."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    fast.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fast.save(str(path))
    return str(path)


@pytest.fixture(params=["bytes", "released"])
def tokenizer(request, released_file):
    return ByteTokenizer() if request.param == "bytes" else ReleasedTokenizer(released_file)


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_user_cannot_type_a_special_token(tokenizer, name):
    """The name in a text becomes its letters; the token itself is decoded only on request."""
    n = tokenizer.token_id(name)
    assert n not in tokenizer.encode(f"a{name}b")
    assert tokenizer.decode([n]) == "" and tokenizer.decode([n], skip_special=False) == name
    assert tokenizer.decode([*tokenizer.encode("a"), n, *tokenizer.encode("b")]) == "ab"


def test_marks(tokenizer):
    """Every special token is a mark under its id; no id is larger than the largest."""
    assert tokenizer.marks == {name: tokenizer.token_id(name) for name in SPECIAL_TOKENS}
    assert tokenizer.largest_id == max(tokenizer.marks.values())


def test_think_is_what_the_file_says(released_file, tmp_path):
    """An added token that is not special, as <think> in Qwen3's file: a mark, and a text yields it."""
    text = Path(released_file).read_text()
    fast = FastTokenizer.from_str(text)
    n = fast.token_to_id("<think>")
    content = json.loads(text)
    for token in content["added_tokens"]:
        token["special"] = token["content"] != "<think>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = ReleasedTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.marks["<think>"] == n and n in tokenizer.encode("a<think>b")
    assert tokenizer.decode([n]) == "<think>" and tokenizer.marks["</think>"] not in tokenizer.encode("</think>")


def test_unknown_names(tokenizer):
    with pytest.raises(KeyError, match=r"no (special )?token '<\|nope\|>'"):
        tokenizer.token_id("<|nope|>")


@given(st.text())
def test_bytes_are_utf8(text):
    assert ByteTokenizer().encode(text) == list(text.encode()) and ByteTokenizer().decode(list(text.encode())) == text


def test_broken_bytes_and_unused_ids():
    """Half a character shows as U+FFFD; ids that the model has and the tokenizer does not are nothing."""
    assert ByteTokenizer().decode(["é".encode()[0], 65, 300]) == "\ufffdA"


def test_special_tokens_follow_the_bytes():
    ids = [ByteTokenizer().token_id(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(256, 256 + len(SPECIAL_TOKENS)))
    for config in (KeyeConfig.nano(), KeyeConfig.mini()):
        assert max(ids) < config.text.vocab


@pytest.mark.parametrize("config", [KeyeConfig.nano(), KeyeConfig.mini()])
def test_small_models_speak_bytes(config):
    assert isinstance(load_tokenizer(config), ByteTokenizer)


def test_a_folder_brings_its_own(released_file, tmp_path):
    config = KeyeConfig.nano()
    names = ("<|image_pad|>", "<|video_pad|>")
    image, video = (ReleasedTokenizer(released_file).token_id(name) for name in names)
    shutil.copy(released_file, tmp_path / "tokenizer.json")
    fitting = replace(config, image_token_id=image, video_token_id=video)
    assert isinstance(load_tokenizer(fitting, tmp_path), ReleasedTokenizer)
    with pytest.raises(ValueError, match=r"image_pad\|> is token 305 in .*/tokenizer\.json but 261 in config\.json"):
        load_tokenizer(config, tmp_path)


def test_a_tokenizer_without_the_tokens_of_a_prompt(released_file, tmp_path):
    text = Path(released_file).read_text().replace("<|frame|>", "<|x|>").replace("<|vision_end|>", "<|y|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json defines no token <\|vision_end\|>, <\|frame\|>: is it the"):
        load_tokenizer(KeyeConfig.nano(), tmp_path)
    with pytest.raises(ValueError, match=r"image_pad\|> is token 261 in the byte tokenizer but 5 in config\.json"):
        load_tokenizer(replace(KeyeConfig.nano(), image_token_id=5))


def test_no_tokenizer_fits(tmp_path):
    with pytest.raises(ValueError, match=r"a vocabulary of 151936 needs a tokenizer\.json"):
        load_tokenizer(KeyeConfig.keye_vl_2_30b_a3b(), tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected BPE, got|tokenizer\.json is not JSON"):
        load_tokenizer(KeyeConfig.nano(), tmp_path)


PADDING = {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
CUT = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("truncation", CUT, "states truncation .*a chat model has none, set it to null"),  # would cut the question
        ("padding", {**PADDING, "pad_to_multiple_of": None}, "states padding "),  # would end the process
        ("normalizer", CHARSMAP, "has a normalizer 'Precompiled'; minikeye takes NFC, NFD"),  # so would this
        ("normalizer", {"type": "Sequence", "normalizers": [CHARSMAP]}, "has a normalizer 'Precompiled'"),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 999}, "normalizer 'Replace'"),
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "has a decoder 'WordPiece'"),
        ("model", {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}, "expected BPE, got 'Unigram'"),
        ("model", {"type": "BPE", "dropout": 0.5, "vocab": {}, "merges": []}, "expected BPE, got 'BPE' with dropout"),
        ("model", {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}, r"is not a readable tokenizer\.json: "),
        ("model", 3, "expected BPE, got 3"),
        ("added_tokens", [{"content": 3}], r"is not a readable tokenizer\.json: "),
    ],
)
def test_what_a_chat_model_never_has(released_file, tmp_path, part, value, complaint):
    content = json.loads(Path(released_file).read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, part: value}), encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        load_tokenizer(KeyeConfig.nano(), tmp_path)


def test_rules_that_fail_on_a_text(released_file, tmp_path):
    """A pattern that tries every way to cut a word: the library panics, and Python goes on."""
    content = json.loads(Path(released_file).read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = ReleasedTokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot cut this text into words: Onig"):
        tokenizer.encode("a" * 40 + "b")
