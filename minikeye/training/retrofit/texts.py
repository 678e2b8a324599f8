"""Real text that is on every machine: the Python library's sources and the licence texts beside them.

Which texts there are depends on the Python version: `Texts.digest` says what a result was measured on. A text is held
out by a hash of its name, so that the split is the same in every run; licences of one family (LGPL-2, LGPL-3) go
together. Tests are left out (they repeat themselves), and so is a text that was there before under another name.
"""

import hashlib
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minikeye.inputs.tokenizer import Tokenizer

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
LICENCES = Path("/usr/share/common-licenses")  # where Debian and its relatives keep them; elsewhere there are none
HELD_OUT = 10  # every n-th text, by hash


@dataclass(frozen=True)
class Text:
    """A text and its name within the library, with / between folders."""

    name: str
    words: str

    @property
    def held_out(self) -> bool:
        family = re.split(r"[-\d]", self.name)[0] if self.name.startswith("licence:") else self.name
        return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") % HELD_OUT == 0


@dataclass(frozen=True)
class Texts:
    """All texts, in the order of their names."""

    all: tuple[Text, ...]

    @cached_property
    def train(self) -> tuple[Text, ...]:
        return tuple(text for text in self.all if not text.held_out)

    @cached_property
    def held(self) -> tuple[Text, ...]:
        return tuple(text for text in self.all if text.held_out)

    @property
    def digest(self) -> str:
        """SHA-256 over names and words of the held-out texts."""
        found = hashlib.sha256()
        for text in self.held:
            found.update(f"{text.name}\0{text.words}\0".encode())
        return found.hexdigest()


def library_texts(library: str | Path | None = None, licences: str | Path = LICENCES) -> Texts:
    """The texts of this Python. library: another folder of sources. licences: a folder of them, which may be absent.
    Raises ValueError where there are no sources, no texts to learn from or none to hold out."""
    library, licences = Path(sysconfig.get_path("stdlib") if library is None else library), Path(licences)
    found = [(path.relative_to(library).as_posix(), path) for path in library.rglob("*.py") if path.is_file()]
    found = [(name, path) for name, path in found if not LEFT_OUT & set(Path(name).parts)]
    if not found:
        raise ValueError(f"expected a folder with Python sources, found none in {library}")
    if licences.is_dir():
        own = [path for path in licences.iterdir() if path.is_file() and not path.is_symlink()]
        found += [(f"licence:{path.name}", path) for path in own]
    seen: dict[str, Text] = {}
    for name, path in sorted(found):
        try:
            words = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a source in another encoding: a handful, made to test just that
        if words.strip():
            seen.setdefault(words, Text(name, words))
    texts = Texts(tuple(seen.values()))
    if not texts.train or not texts.held:
        raise ValueError(f"expected texts to learn from and to hold out in {library}, got {len(texts.all)} in all")
    return texts


def token_stream(texts: Sequence[Text], tokenizer: Tokenizer, seed: int = 0) -> Int[Tensor, " n"]:
    """All texts one after the other in an order drawn from `seed`, "<|endoftext|>" behind each.

    texts: `Texts.train` or `Texts.held`. Raises KeyError for a tokenizer without that token.
    """
    end, order = tokenizer.token_id("<|endoftext|>"), torch.randperm(len(texts), generator=_draws(seed)).tolist()
    return torch.tensor([token for n in order for token in [*tokenizer.encode(texts[n].words), end]], dtype=torch.long)


@dataclass(frozen=True)
class Windows:
    """Stretches of a token stream to learn from, one a step; step and seed alone decide which.

    Text seldom needs a key from far away. A passage that is said again does, token after token: in a share of the
    windows, passages of 8 to 128 tokens are, each anywhere behind the place where it stood, until they make up a
    quarter of the window (all our choice).

    Raises ValueError for a stream that is no 1-D tensor of integers or no longer than a window, for a length below 64
    and for repeats outside 0..1.
    """

    stream: Int[Tensor, " n"]
    length: int  # tokens of a window
    repeats: float = 0.5  # share of windows in which passages are said again
    seed: int = 0

    def __post_init__(self) -> None:
        tensor = isinstance(self.stream, Tensor)
        if not tensor or self.stream.dtype not in (torch.int64, torch.int32) or self.stream.ndim != 1:
            got = f"{self.stream.dtype} {list(self.stream.shape)}" if tensor else type(self.stream).__name__
            raise ValueError(f"expected a stream as a 1-D tensor of integers, as token_stream gives it, got {got}")
        if not (len(self.stream) > self.length >= 64 and 0 <= self.repeats <= 1):
            raise ValueError(
                f"expected a stream longer than a window of 64 tokens or more, repeats in 0..1; got "
                f"{len(self.stream)}, {self.length} and {self.repeats}"
            )

    def at(self, step: int) -> Int[Tensor, " t"]:
        """The window of a step."""
        first, passages = self._drawn(step)
        window = self.stream[first : first + self.length].clone()
        for source, place, span in passages:
            window[place : place + span] = window[source : source + span].clone()
        return window

    def again(self, step: int) -> Bool[Tensor, " t"]:
        """Which tokens of `at(step)` are said again, each behind the token that it stood behind before."""
        marks = torch.zeros(self.length, dtype=torch.bool)
        for _, place, span in self._drawn(step)[1]:
            marks[place : place + span] = True
            marks[[place, min(place + span, self.length - 1)]] = False  # nothing announces the first, nor what follows
        return marks

    def _drawn(self, step: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Where the window begins in the stream; (where it stood, where it is said again, tokens) of each passage, in
        the order of the window: what lies before a passage is then final, and a source stays what it was."""
        draws = _draws(self.seed * 1_000_003 + step + 1)
        first, left, passages = _one(len(self.stream) - self.length, draws), 0, []
        if float(torch.rand((), generator=draws)) < self.repeats:
            left = self.length // 4
        while left > 0:
            span = min(8 + _one(121, draws), self.length // 4)
            place = span + _one(self.length - 2 * span + 1, draws)
            passages.append((_one(place - span + 1, draws), place, span))
            left -= span
        return first, sorted(passages, key=lambda passage: passage[1])


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _one(below: int, draws: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=draws))
