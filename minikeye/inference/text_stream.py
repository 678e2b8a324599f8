"""Tokens in, text out while they are still coming; and what of a reply was thought, and what was said.

A token of either tokenizer is a run of bytes and may end in the middle of a character. What has been shown cannot be
taken back, so a character is given out when it is whole.
"""

from collections.abc import Iterable, Sequence

from minikeye.inputs.prompt import THINK, THOUGHT
from minikeye.inputs.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # how a decoder shows bytes that are no character, or not yet one


class TextStream:
    """`add` tokens as they come for the text that has become certain; `end` gives the rest.

    The pieces together are `tokenizer.decode` of all tokens. Special tokens do not show. One stream a row; a row that
    has ended, -1 in a batch, has nothing to add.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # tokens since every character was last whole
        self._given = 0  # characters of their text that are out

    def add(self, ids: int | Iterable[int]) -> str:
        """The text that one more token, or a few, make certain; often "".

        Bytes at the end that later ones may complete are one U+FFFD to the decoder, and all before it is certain. A
        U+FFFD that stands for broken bytes waits for the character after it as well: it looks the same.
        """
        self._ids += [ids] if isinstance(ids, int) else ids
        text = self._tokenizer.decode(self._ids)
        if not text.endswith(UNFINISHED):
            return self._finish(text)
        first, self._given = self._given, len(text) - 1
        return text[first:-1]

    def end(self) -> str:
        """What is left: U+FFFD for a character that stayed unfinished, else "". The stream is as new afterwards."""
        return self._finish(self._tokenizer.decode(self._ids))

    def _finish(self, text: str) -> str:
        first, self._given, self._ids = self._given, 0, []
        return text[first:]


def split_thought(tokenizer: Tokenizer, ids: Sequence[int], opened: bool = False) -> tuple[list[int], list[int]]:
    """(thought, answer) of a reply's tokens, without the marks <think> and </think>.

    By tokens, not by text: where the marks are special tokens, no text shows them. opened: the prompt ended inside a
    thought. A </think> that nothing opened ends a thought that began with the reply. A thought without an end takes all
    that follows; without marks everything is answer. Only the first thought counts, and what stands before it belongs
    to the answer (our choice). Raises KeyError for a tokenizer without these marks.
    """
    ids, mark, end_mark = list(ids), tokenizer.token_id(THINK), tokenizer.token_id(THOUGHT)
    stop = ids.index(end_mark) if end_mark in ids else len(ids)
    if not opened and mark in ids[:stop]:
        start = ids.index(mark)
        return ids[start + 1 : stop], ids[:start] + ids[stop + 1 :]
    if opened or stop < len(ids):
        return ids[:stop], ids[stop + 1 :]
    return [], ids
