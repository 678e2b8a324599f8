"""Tokens as pieces of whole text, and the lines that they make.

A token of a byte-level tokenizer may end in the middle of a character. Such tokens are joined with their neighbours
until each piece can be read; what is counted of tokens is then summed over a piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minikeye.inputs.tokenizer import Tokenizer

BROKEN = "\ufffd"  # how a decoder shows bytes that are no character


@dataclass(frozen=True)
class Pieces:
    """A text in pieces: `"".join(texts)` is what all tokens together say."""

    texts: tuple[str, ...]
    tokens: tuple[int, ...]  # tokens of each piece, at least 1

    @classmethod
    def of(cls, ids: Sequence[int], tokenizer: Tokenizer) -> "Pieces":
        """As many pieces as there can be. Special tokens show by their names, broken bytes as U+FFFD."""
        decode = lambda part: tokenizer.decode(list(part), skip_special=False)  # noqa: E731
        texts, tokens, first = [], [], 0
        for stop in range(1, len(ids) + 1):
            text = decode(ids[first:stop])
            # A character that is begun and goes on is one U+FFFD or itself, its parts alone are two U+FFFD.
            after = ids[stop : stop + 1]
            if BROKEN in text and text + decode(after) != decode([*ids[first:stop], *after]):
                continue
            texts.append(text)
            tokens.append(stop - first)
            first = stop
        return cls(tuple(texts), tuple(tokens))

    def holding(self, first: int, stop: int) -> tuple[int, int]:
        """The pieces (first, stop) that hold tokens first..stop: whole ones, so that they may hold a token more.

        Raises ValueError for a span that holds no token, or some that are not there.
        """
        if not 0 <= first < stop <= sum(self.tokens):
            raise ValueError(f"expected 0 <= first < stop <= {sum(self.tokens)} tokens, got {first} and {stop}")
        inside, at = [], 0
        for n, tokens in enumerate(self.tokens):
            if at < stop and at + tokens > first:
                inside.append(n)
            at += tokens
        return inside[0], inside[-1] + 1

    def lines(self) -> list[tuple[str, int, int]]:
        """(text, first piece, piece behind the last) of each line. A piece belongs to the line that it begins in.

        The pieces of all lines, in order, are all pieces. A line whose end the piece before it holds, as "\\n\\n" does
        of the empty line between its ends, has none.
        """
        found, first, line = [], 0, ""
        for n, text in enumerate(self.texts):
            ended, *rest = text.split("\n")
            line += ended
            for more in rest:
                found.append((line, first, n + 1))
                line, first = more, n + 1
        if line or first < len(self.texts):
            found.append((line, first, len(self.texts)))
        return [(text.removesuffix("\r"), start, stop) for text, start, stop in found]
