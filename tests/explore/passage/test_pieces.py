"""Tokens that split characters become pieces that can be read, and pieces become lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.explore.passage.pieces import Pieces
from minikeye.inputs.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


class Chunks(ByteTokenizer):
    """A tokenizer whose tokens are stretches of bytes of any length: the worst that a byte-level BPE can do."""

    def __init__(self, chunks: list[bytes]):
        super().__init__()
        self.chunks = chunks

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return b"".join(self.chunks[n] for n in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "pieces", "tokens"),
    [
        ("ab", ("a", "b"), (1, 1)),
        ("a😀b", ("a", "😀", "b"), (1, 4, 1)),
        ("漢字", ("漢", "字"), (3, 3)),
        ("é\n", ("é", "\n"), (2, 1)),
        ("\ufffdx", ("\ufffd", "x"), (3, 1)),  # the sign for broken bytes is a character, too
        ("", (), ()),
    ],
)
def test_characters_of_several_bytes(text, pieces, tokens):
    assert Pieces.of(BYTES.encode(text), BYTES) == Pieces(pieces, tokens)


def test_bytes_that_are_no_character():
    """Each stands alone; a character that is never finished is one piece at the end."""
    assert Pieces.of([0xFF, 0x41, 0xE6, 0xBC], BYTES) == Pieces(("\ufffd", "A", "\ufffd"), (1, 1, 2))


def test_special_tokens_show_by_name():
    ids = [BYTES.token_id("<|im_start|>"), *BYTES.encode("a")]
    assert Pieces.of(ids, BYTES) == Pieces(("<|im_start|>", "a"), (1, 1))


@given(st.text(max_size=40), st.lists(st.integers(1, 7), min_size=1))
def test_pieces_are_whole_text_however_it_is_cut(text, lengths):
    """Together they are the text and all tokens; each is what its own tokens say; none could be cut further."""
    data, chunks = text.encode("utf-8", "replace"), []
    text = data.decode()
    while data:
        length = lengths[len(chunks) % len(lengths)]
        chunks.append(data[:length])
        data = data[length:]
    tokenizer, ids = Chunks(chunks), list(range(len(chunks)))
    pieces = Pieces.of(ids, tokenizer)
    assert "".join(pieces.texts) == text and sum(pieces.tokens) == len(ids)
    ends, at = [], 0
    for piece, tokens in zip(pieces.texts, pieces.tokens, strict=True):
        assert tokens >= 1 and tokenizer.decode(ids[at : at + tokens]) == piece
        at += tokens
        ends.append(at)
    whole = [n for n in range(1, len(ids) + 1) if _is_text(b"".join(chunks[:n]))]  # a loop over all places to cut
    assert ends == whole


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.text(alphabet="a\n", min_size=1, max_size=4), max_size=12))
def test_lines_are_those_of_the_text(texts):
    """As str.split has them; every piece lies in one line, the one in which its first character stands."""
    pieces = Pieces(tuple(texts), (1,) * len(texts))
    whole = "".join(texts)
    expected = whole.split("\n")
    if expected[-1] == "":
        expected.pop()  # the end of the last line begins no other
    lines = pieces.lines()
    assert [text for text, _, _ in lines] == expected
    where, at = [], 0
    for text in texts:
        where.append(whole.count("\n", 0, at))
        at += len(text)
    assert [n for n, (_, first, stop) in enumerate(lines) for _ in range(first, stop)] == where


def test_a_carriage_return_ends_a_line_too():
    assert [text for text, _, _ in Pieces(("a\r\n", "b"), (1, 1)).lines()] == ["a", "b"]


@pytest.mark.parametrize(
    ("span", "pieces"), [((0, 1), (0, 1)), ((1, 2), (1, 2)), ((2, 6), (1, 3)), ((5, 6), (2, 3)), ((0, 6), (0, 3))]
)
def test_tokens_within_a_piece_take_the_whole_piece(span, pieces):
    """Of pieces of 1, 4 and 1 tokens."""
    assert Pieces(("a", "😀", "b"), (1, 4, 1)).holding(*span) == pieces


@pytest.mark.parametrize("span", [(2, 2), (5, 1), (-1, 2), (0, 7)])
def test_spans_without_tokens_are_refused(span):
    with pytest.raises(ValueError, match=f"expected 0 <= first < stop <= 6 tokens, got {span[0]} and {span[1]}"):
        Pieces(("a", "😀", "b"), (1, 4, 1)).holding(*span)
