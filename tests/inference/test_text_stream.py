"""Pieces of text against the decoders of Python and of `tokenizers`, cut at every byte; thoughts against a table."""

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from minikeye.inference.text_stream import TextStream, split_thought
from minikeye.inputs.tokenizer import SPECIAL_TOKENS, ByteTokenizer, ReleasedTokenizer

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people and two joiners: one picture, 18 bytes
TEXTS = ["What is 12+34?", "Größe: 7 bei 12,5 s", "视频里有什么?", f"é 🎬 {FAMILY} e\u0301", "", " \n\t"]


@pytest.fixture(scope="module")
def fast(tmp_path_factory) -> tuple[FastTokenizer, str]:
    """A byte-level BPE as Qwen3's, and its file: some tokens are several characters, some are parts of one."""
    made = FastTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS * 3, trainer)
    thoughts = ("<think>", "</think>")
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS if name not in thoughts])
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in thoughts])  # as Qwen3 has them
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return made, str(path)


@pytest.fixture(scope="module")
def released(fast) -> ReleasedTokenizer:
    return ReleasedTokenizer(fast[1])


@pytest.fixture(params=["bytes", "released"], scope="module")
def tokenizer(request, released):
    return ByteTokenizer() if request.param == "bytes" else released


def byte_ids(tokenizer, text: str) -> list[int]:
    """One token for each byte of the text: byte-level BPE writes a byte as a letter, and every letter is a token."""
    if isinstance(tokenizer, ByteTokenizer):
        return list(text.encode())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer._fast.token_to_id(letter) for word, _ in words for letter in word]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """What each token makes certain, and what the end adds."""
    stream = TextStream(tokenizer)
    return [*(stream.add(n) for n in ids), stream.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_come_when_they_are_whole(tokenizer, text):
    """Byte by byte: each character with its last byte, nothing with the others, nothing left at the end."""
    expected = [part for c in text for part in [""] * (len(c.encode()) - 1) + [c]]
    ids = byte_ids(tokenizer, text)
    assert len(ids) == len(text.encode()) and pieces(tokenizer, ids) == [*expected, ""]


def test_the_sign_for_broken_bytes_as_a_character(tokenizer):
    """It looks like an unfinished character, so it waits for the next one, or the end."""
    assert pieces(tokenizer, byte_ids(tokenizer, "a\ufffdb")) == ["a", "", "", "", "\ufffdb", ""]
    assert pieces(tokenizer, byte_ids(tokenizer, "a\ufffd")) == ["a", "", "", "", "\ufffd"]


def test_a_character_that_stays_unfinished(tokenizer):
    """Broken by what follows, or by the end; then the stream is as new."""
    half = byte_ids(tokenizer, "视")[:2]
    after = byte_ids(tokenizer, "a")
    assert pieces(tokenizer, half + after) == ["", "", "\ufffda", ""]
    stream = TextStream(tokenizer)
    assert [stream.add(half), stream.end(), stream.end(), stream.add(after)] == ["", "\ufffd", "", "a"]


def test_broken_bytes_do_not_pile_up(tokenizer):
    """Three bytes that begin no character: the first two are certain as soon as the third is there."""
    (tail,) = byte_ids(tokenizer, "é")[1:]
    assert pieces(tokenizer, [tail] * 3) == ["", "\ufffd", "\ufffd", "\ufffd"]


def test_special_tokens_do_not_show(tokenizer):
    """Not even in the middle of a character."""
    first, last = byte_ids(tokenizer, "é")
    mark = tokenizer.token_id("<|im_start|>")
    assert pieces(tokenizer, [mark, first, mark, last, mark]) == ["", "", "", "é", "", ""]


@given(data=st.data())
def test_together_they_are_the_whole_text(tokenizer, data):
    """Any tokens at all, in chunks of any size; and no U+FFFD before the decoder is sure of it."""
    ids = data.draw(st.lists(st.integers(0, 301)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    stream = TextStream(tokenizer)
    chunks = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    given_out, seen = "", []
    for chunk in chunks:
        given_out, seen = given_out + stream.add(iter(chunk)), seen + chunk
        for later in ([], byte_ids(tokenizer, "a"), byte_ids(tokenizer, "视")[1:]):
            assert tokenizer.decode(seen + later).startswith(given_out)
    assert given_out + stream.end() == tokenizer.decode(ids)


@given(data=st.lists(st.integers(0, 255)).map(bytes))
@example(data=b"\xed\xa0\x80")
def test_bytes_are_as_certain_as_python_says(data):
    """Its incremental decoder, for any bytes: never ahead of it, and behind only by U+FFFD at the end.

    Python keeps two bytes of a surrogate back for handlers that let them pass; nothing makes them whole.
    """
    stream, theirs = TextStream(ByteTokenizer()), codecs.getincrementaldecoder("utf-8")("replace")
    mine, sure = "", ""
    for n in data:
        mine, sure = mine + stream.add(n), sure + theirs.decode(bytes([n]))
        kept, _ = theirs.getstate()
        certain = sure + "\ufffd\ufffd" if kept[:1] == b"\xed" and kept[1:] >= b"\xa0" else sure
        assert certain.startswith(mine) and certain[len(mine) :] in ("", "\ufffd")
    assert mine + stream.end() == sure + theirs.decode(b"", final=True)


@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_text_comes_no_later_than_from_the_librarys_stream(fast, released, text):
    """`tokenizers` has a stream of its own, which has no end, and which keeps a whole character back where the same
    token begins another. Never behind it, and level with it whenever it gives something.
    """
    stream, theirs = TextStream(released), DecodeStream(skip_special_tokens=True)
    mine, library = "", ""
    for n in released.encode(text):
        piece = theirs.step(fast[0], n)
        mine, library = mine + stream.add(n), library + (piece or "")
        assert mine == library if piece else mine.startswith(library)
    assert stream.end() == "" and mine == library == text


# ------------------------------------------------------------------------------------------------------------ thoughts


@pytest.mark.parametrize(
    ("said", "opened", "thought", "answer"),
    [
        ("hello", False, "", "hello"),
        ("(a)b", False, "a", "b"),
        ("(a)b", True, "(a", "b"),  # a mark within a thought that the prompt opened is part of it
        ("a)b", True, "a", "b"),
        ("a)b", False, "a", "b"),
        ("a", True, "a", ""),
        ("(a", False, "a", ""),
        ("()b", False, "", "b"),
        (")b", True, "", "b"),
        ("x(a)b", False, "a", "xb"),
        ("(a)b(c)d", False, "a", "b(c)d"),
        ("(a)b)c", False, "a", "b)c"),
        ("a)b(c", False, "a", "b(c"),
        ("((a)b", False, "(a", "b"),
        ("", False, "", ""),
        ("", True, "", ""),
    ],
)
def test_thought_and_answer(tokenizer, said, opened, thought, answer):
    """( stands for <think>, ) for </think>."""

    def ids(text: str) -> list[int]:
        marks = {"(": tokenizer.token_id("<think>"), ")": tokenizer.token_id("</think>")}
        return [marks[c] if c in marks else byte_ids(tokenizer, c)[0] for c in text]

    assert split_thought(tokenizer, ids(said), opened) == (ids(thought), ids(answer))


def test_the_letters_of_a_mark_are_no_mark():
    ids = ByteTokenizer().encode("<think>a</think>b")
    assert split_thought(ByteTokenizer(), ids) == ([], ids)


def test_a_tokenizer_without_thoughts(tmp_path):
    FastTokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(KeyError, match="<think>"):
        split_thought(ReleasedTokenizer(tmp_path / "tokenizer.json"), [])
