"""GGUF files that are cut, spoilt or of another kind: one error that names the file, before any model is built."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFEndian, GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel

from minikeye.checkpoint import CheckpointError
from minikeye.checkpoint.gguf_weights import gguf_config, halves, load_gguf
from minikeye.config import IndexerConfig
from minikeye.inputs.gguf_tokenizer import conversation_ids, gguf_tokenizer
from minikeye.keye import KeyeVL

SMALL = IndexerConfig(heads=2, width=16, topk=8)
NUMBERS = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.vocab_size": 11,
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 1e4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {"token_embd": (11, 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,)}
SHAPES |= {"blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64)}
SHAPES |= {"blk.0.ffn_gate": (32, 64), "blk.0.ffn_up": (32, 64), "blk.0.ffn_down": (64, 32)}
LETTERS = ["<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": LETTERS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * 257,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
}


def write(path: Path, stated: dict, tensors: dict[str, np.ndarray], endian=GGUFEndian.LITTLE) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endian)
    for key, value in stated.items():
        add = {str: writer.add_string, list: writer.add_array, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def tensors() -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype=np.float32) for name, shape in SHAPES.items()}


class Never(KeyeVL):
    def __init__(self, config):
        raise AssertionError("a model was built before the file was checked")


def test_the_undamaged_ones(tmp_path):
    load_gguf(KeyeVL, write(tmp_path / "m.gguf", NUMBERS, tensors()), SMALL)
    tokenizer = gguf_tokenizer(path := write(tmp_path / "t.gguf", TOKENIZER, {}))
    assert tokenizer.decode(tokenizer.encode("abc <|im_end|>")) == "abc <|im_end|>"
    assert conversation_ids(path, tokenizer, [("user", "ab")]) == [0, LETTERS.index("ab"), 1]
    with pytest.raises(KeyError, match=r"t\.gguf defines no token 'nope'"):
        tokenizer.token_id("nope")


@pytest.mark.parametrize("turns", [[], [("usr", "ab")], [("user", "ab"), ("tool", "ab")]])
def test_what_is_no_conversation(turns, tmp_path):
    """Of nothing the template would make a header, of another role what it likes."""
    tokenizer = gguf_tokenizer(path := write(tmp_path / "t.gguf", TOKENIZER, {}))
    with pytest.raises(
        ValueError, match=r"expected \[\(\"user\", text\), \.\.\.\], roles system, user, assistant; got"
    ):
        conversation_ids(path, tokenizer, turns)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("attention.head_count", 0, "llama.attention.head_count must be .* got 0"),
        ("attention.head_count", "four", "llama.attention.head_count must be .* got 'four'"),
        ("attention.head_count_kv", 3, "heads 4 must be a multiple of kv_heads 3"),
        ("block_count", 0, "llama.block_count must be .* got 0"),
        ("rope.dimension_count", "16", "llama.rope.dimension_count must be .* got '16'"),
        ("rope.dimension_count", [16], r"llama.rope.dimension_count must be .* got \[16\]"),
        ("rope.freq_base", float("nan"), "llama.rope.freq_base must be .* got nan"),
    ],
)
def test_numbers_of_no_model(key, value, complaint, tmp_path):
    path = write(tmp_path / "m.gguf", NUMBERS | {f"llama.{key}": value}, tensors())
    with pytest.raises(CheckpointError, match=rf"m\.gguf states numbers that no such model has: {complaint}"):
        gguf_config(path, SMALL)


def test_rows_of_other_heads():
    for heads in (0, 4, 5):
        with pytest.raises(ValueError, match=f"expected the rows of {heads} heads, each of an even width, got 12"):
            halves(torch.zeros(12, 3), heads)


def test_an_indexer_that_does_not_fit_is_not_the_files_fault(tmp_path):
    path = write(tmp_path / "m.gguf", NUMBERS, tensors())
    with pytest.raises(ValueError, match="indexer width 2 gives") as raised:
        gguf_config(path, IndexerConfig(heads=2, width=2, topk=8))
    assert not isinstance(raised.value, CheckpointError)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("blk.0.attn_q", lambda t: t[:63], r"attn_q.weight: the file \(63, 64\), its numbers \(64, 64\)"),
        ("blk.0.attn_k", lambda t: t[:5], r"attn_k.weight: the file \(5, 64\), its numbers \(32, 64\)"),
        ("blk.0.ffn_up", lambda t: t[:, :32], r"ffn_up.weight: the file \(32, 32\), its numbers \(32, 64\)"),
        ("blk.0.ffn_down", lambda t: t[0], r"ffn_down.weight: the file \(32,\), its numbers \(64, 32\)"),
        ("blk.0.ffn_up", lambda t: t * np.inf, "nan or not finite as torch.float32: blk.0.ffn_up;"),
        ("token_embd", lambda t: t.astype(np.int32), r"holds token_embd.weight in a form that cannot be read: .*I32"),
    ],
)
def test_tensors_of_another_model(name, change, complaint, tmp_path):
    held = tensors()
    path = write(tmp_path / "m.gguf", NUMBERS, held | {name: np.ascontiguousarray(change(held[name]))})
    with pytest.raises(CheckpointError, match=complaint):
        load_gguf(Never, path, SMALL)


def test_a_vocabulary_that_is_stated_and_not_there_takes_no_memory(tmp_path):
    """16 million tokens would be 4 GB of a model that is thrown away."""
    path = write(tmp_path / "m.gguf", NUMBERS | {"llama.vocab_size": 2**24}, tensors())
    with pytest.raises(CheckpointError, match=r"differences: 1:\n  token_embd.weight: the file \(11, 64\)"):
        load_gguf(Never, path, SMALL)


def test_every_cut(tmp_path):
    """Wherever a file is cut off, it is no GGUF file any more."""
    whole = write(tmp_path / "m.gguf", NUMBERS, tensors()).read_bytes()
    for size in [*range(0, 1200, 37), *range(1200, len(whole), 6000), len(whole) - 1]:
        (tmp_path / f"{size}.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{size}\.gguf is (not a readable GGUF file|damaged)"):
            load_gguf(Never, tmp_path / f"{size}.gguf", SMALL)


def test_a_tensor_that_begins_elsewhere(tmp_path):
    """One spoilt byte of the header: the second norm would be read from where the first lies."""
    path = write(tmp_path / "m.gguf", NUMBERS, tensors())
    spoilt = bytearray(path.read_bytes())
    place = spoilt.index(b"blk.0.ffn_norm.weight") + 21 + 4 + 8 + 4  # behind name, dimensions and kind
    assert int.from_bytes(spoilt[place : place + 8], "little") == 4 * 64 * 13
    spoilt[place] ^= 1 << 7
    path.write_bytes(spoilt)
    with pytest.raises(ValueError, match=r"m\.gguf is damaged: blk.0.ffn_norm.weight begins at byte \d+, expected"):
        load_gguf(Never, path, SMALL)


def test_the_other_byte_order(tmp_path):
    path = write(tmp_path / "m.gguf", NUMBERS, {}, GGUFEndian.BIG)
    with pytest.raises(ValueError, match=r"m\.gguf is a GGUF file of another byte order"):
        gguf_config(path, SMALL)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "llama"}, "holds a tokenizer 'llama' cut as 'smollm'"),
        ({"pre": ["smollm"]}, r"cut as \['smollm'\]"),
        ({"tokens": [*LETTERS[:-1], "a"]}, "as a list of words, each once"),
        ({"tokens": "ab"}, "as a list of words, each once"),
        ({"tokens": [1, 2]}, "as a list of words, each once"),
        ({"token_type": [3, 3]}, r"token_type for each of its 259 tokens.*got \[3, 3\]"),
        ({"token_type": [3] * 260}, "token_type for each of its 259 tokens"),
        ({"token_type": 3}, "token_type for each .*got 3"),
        ({"token_type": [4, 3] + [1] * 257}, r"token_type for each .*got \[4, 3, 1"),  # one that is cut out of any text
        ({"merges": ["x y"]}, "is not a readable tokenizer.json"),
    ],
)
def test_other_tokenizers(changes, complaint, tmp_path):
    path = write(tmp_path / "t.gguf", TOKENIZER | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}, {})
    with pytest.raises(ValueError, match=rf"t\.gguf .*{complaint}"):
        gguf_tokenizer(path)


def test_a_tokenizer_beside_another_model(tmp_path):
    with pytest.raises(ValueError, match="states 259 words for a model of 11 tokens"):
        gguf_tokenizer(write(tmp_path / "t.gguf", TOKENIZER | NUMBERS, {}))


def spoilt(path: Path, word: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(word, b"\xff" + word[1:]))
    return path


@pytest.mark.parametrize(
    ("word", "read"),
    [(b"gpt2", gguf_tokenizer), (b"<|im_end|>", gguf_tokenizer), (b"llama", lambda path: gguf_config(path, SMALL))],
)
def test_words_that_are_no_text(word: bytes, read: Callable, tmp_path):
    with pytest.raises(ValueError, match=r"t\.gguf is damaged: its .* is not UTF-8"):
        read(spoilt(write(tmp_path / "t.gguf", TOKENIZER, {}), word))
