"""One question about one text: a language model's answer, and what its queries selected of the text.

    read = ReadText.from_text(Path("notes.txt").read_text(encoding="utf-8"), "Who has the key?")
    print(read.answer, read.selection().sentence())

The prompt is the text, an empty line and the question, as one user's turn in the chat template of the model's file.
On a CPU the prompt is read under a mask (the numbers of sparse attention, and several times as fast there); what is
written is read sparsely.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minikeye.checkpoint.gguf_weights import load_gguf
from minikeye.checkpoint.indexers import load_indexers, read_indexer
from minikeye.checkpoint.smollm2 import smollm2
from minikeye.explore.passage.counts import Spans, check_spans
from minikeye.explore.passage.pieces import Pieces
from minikeye.explore.passage.selection import PassageSelection
from minikeye.explore.probe import Probe
from minikeye.explore.widget.view import Query, quoted, writes
from minikeye.files import CHECKPOINT
from minikeye.inputs.gguf_tokenizer import conversation_ids, gguf_tokenizer
from minikeye.inputs.tokenizer import Tokenizer
from minikeye.keye import KeyeVL
from minikeye.model.record import Record
from minikeye.model.step import Mode
from minikeye.ops.backend import learning_mode

INDEXERS = CHECKPOINT.parent / "retrofit"  # come with the repository, not with the installed package
BETWEEN = "\n\n"  # text and question
CHUNK = 512  # tokens of a prompt that a layer reads at a time: of 512, 1,024, 2,048 and 4,096 it takes least time
END = "<|im_end|>"
ANSWER, AFTER = "the answer", "what follows the text"
OnToken = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class TextPrompt:
    """A prompt that shows a text and asks a question about it."""

    ids: tuple[int, ...]
    passage: tuple[int, int]  # tokens (first, stop) that are the text
    text: str
    question: str
    first_line: int  # number of the line that the passage's first token begins in

    @classmethod
    def of(cls, gguf: str | Path, tokenizer: Tokenizer, text: str, question: str, first_line: int = 1) -> "TextPrompt":
        """By the chat template of the model's file. text: the words, not a path. first_line: number of the text's first
        line in its file. Raises TypeError for a text or question that is no str, ValueError for one of blanks alone,
        and as `conversation_ids`.
        """
        for name, words in (("text", text), ("question", question)):
            if not isinstance(words, str):
                raise TypeError(f"expected {name} as a str, the words themselves, got {type(words).__name__}")
            if not words.strip():
                raise ValueError(f"expected a {name} with words, got {words[:40]!r}")
        ids = conversation_ids(gguf, tokenizer, [("user", f"{text}{BETWEEN}{question}")])
        pieces = Pieces.of(ids, tokenizer)
        body = text.strip()  # templates may strip the rest
        begins = "".join(pieces.texts).rfind(f"{body}") - text.index(body)
        passage = _tokens_within(pieces, begins, begins + len(text), whole=True)
        skipped = "".join(pieces.texts)[begins : _character(pieces, passage[0])]
        return cls(tuple(ids), passage, text, question, first_line + skipped.count("\n"))

    def find(self, words: str, tokenizer: Tokenizer) -> tuple[int, int]:
        """The tokens (first, stop) of the first place where the text says `words`. ValueError where none does."""
        first, stop = self.passage
        pieces = Pieces.of(self.ids[first:stop], tokenizer)
        at = "".join(pieces.texts).find(words.strip())
        if at < 0 or not words.strip():
            raise ValueError(f"expected words that stand in the text, got {words[:80]!r}")
        a, b = _tokens_within(pieces, at, at + len(words.strip()))
        return first + a, first + b


@dataclass(frozen=True, eq=False)
class ReadText:
    """An answer about a text, and all that is needed to see what any query behind the text read, or would have read."""

    answer: str
    probe: Probe
    prompt: TextPrompt
    written: tuple[int, ...]  # the answer's tokens
    tokenizer: Tokenizer
    queries: Mapping[str, Sequence[Query]]  # by where they stand
    topk: int  # k that was read with; with dense attention `longest`
    truth: tuple[tuple[int, int], ...] = ()  # tokens (first, stop) that hold the answer
    subject: str = ""

    @classmethod
    def of(
        cls,
        model: KeyeVL,
        tokenizer: Tokenizer,
        prompt: TextPrompt,
        *,
        truth: Spans = (),
        subject: str = "",
        max_new_tokens: int = 32,
        attention: Mode = "sparse",
        topk: int | None = None,
        on_token: OnToken | None = None,
    ) -> "ReadText":
        """Answer the prompt, greedily, and keep every token behind the text as a query, up to the one that writes the
        last of the answer: what writes the end mark is not among `queries`.

        truth: a sequence of spans (first, stop), tokens of the prompt within `prompt.passage`. attention: "dense" reads
        every key. topk: keys to select instead of the k that the indexers were taught with, not with "dense".
        on_token: gets each token [1] as it is written. Before the model runs, raises ValueError for numbers out of
        range, a truth that lies elsewhere, topk with "dense" and a prompt that is too long; RuntimeError for an empty
        answer.
        """
        check_spans(truth, prompt.passage, "each span of truth")
        if attention == "dense" and topk is not None:
            raise ValueError(f"dense attention reads every key: leave out topk, got {topk}, or attention")
        context, ids = model.config.text.max_positions, torch.tensor([prompt.ids], device=model.device)
        length = len(prompt.ids)
        topk = model.config.indexer.topk if topk is None else topk
        if max_new_tokens < 1 or topk < 1:
            raise ValueError(f"expected max_new_tokens and topk of at least 1, got {max_new_tokens} and {topk}")
        if length + max_new_tokens - 1 > context:
            raise ValueError(f"a prompt of {length:,} tokens and {max_new_tokens} new ones exceed {context:,}")
        probe = Probe(topk, range(prompt.passage[1], length + max_new_tokens))
        cache = model.new_cache(length + max_new_tokens)
        with keys_of(model, topk), torch.no_grad():
            mode = learning_mode(attention, model.config, length, model.device)  # the same numbers, the faster way
            model({"input_ids": ids[:, :-1]}, cache, attention=mode, observer=probe, last=1, chunk=CHUNK)
            last, stop = {"input_ids": ids[:, -1:]}, (tokenizer.token_id(END),)
            options = {"attention": attention, "observer": probe, "on_token": on_token}
            out = model.generate(last, max_new_tokens, cache=cache, stop_ids=stop, **options)
        written = out.row()
        if not written:
            raise RuntimeError("the model's answer is empty, so no query can be shown: ask another question")
        queries = queries_of(prompt, written, tokenizer)
        known = {"truth": tuple(truth), "subject": subject}
        most = length + len(written) - 1 if attention == "dense" else topk
        return cls(tokenizer.decode(written), probe, prompt, tuple(written), tokenizer, queries, most, **known)

    @classmethod
    def from_text(
        cls,
        text: str,
        question: str,
        *,
        gguf: str | Path | None = None,
        indexers: str | Path | None = None,
        model: KeyeVL | None = None,
        tokenizer: Tokenizer | None = None,
        truth: str = "",
        first_line: int = 1,
        **options: Any,
    ) -> "ReadText":
        """Ask `question` about a text. text: the words, not a path. truth: words of it that hold the answer, to be
        marked. first_line: number of its first line in its file.

        gguf: the model's file, None: SmolLM2, which `make real` fetches. indexers: a folder of them, None: those that
        come with the repository. model, tokenizer: of that file, both, where they are loaded already, indexers too.
        options: subject, max_new_tokens, attention, topk, on_token of `of`. Raises FileNotFoundError where there is no
        such file, ValueError for a model without tokenizer or with indexers beside it, else as `of`, `TextPrompt.of`,
        `TextPrompt.find` and `load_reader`.
        """
        if (model is None) != (tokenizer is None):
            raise ValueError("expected model and tokenizer together, or neither: they are loaded from gguf then")
        if model is not None and indexers is not None:
            raise ValueError(f"a model that is given keeps its indexers: leave out indexers, got {indexers}")
        path = smollm2() if gguf is None else Path(gguf)
        tokenizer = gguf_tokenizer(path) if tokenizer is None else tokenizer
        prompt = TextPrompt.of(path, tokenizer, text, question, first_line)
        spans = [prompt.find(truth, tokenizer)] if truth else []
        model = load_reader(path, indexers) if model is None else model
        return cls.of(model, tokenizer, prompt, truth=spans, **options)

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of prompt and answer."""
        return self.prompt.ids + self.written

    @property
    def heads(self) -> int:
        """Number of indexer heads of a layer."""
        return self.probe.heads

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return len(self.probe.gates(len(self.prompt.ids) - 1))

    @property
    def longest(self) -> int:
        """The most keys that one of `queries` sees: a larger k makes no difference."""
        return len(self.ids) - 1

    def selection(self, heads: bool = False) -> PassageSelection:
        """What the queries that wrote the answer read, in all layers. heads: also each indexer head alone."""
        first = len(self.prompt.ids) - 1
        places = range(first, first + len(self.written))
        alone = [self._record(places, n) for n in range(self.heads)] if heads else []
        return self._shown(self._record(places, None, self.topk), heads=alone)

    def select(self, query: Query, head: int | None = None, topk: int | None = None) -> PassageSelection:
        """All layers, one query; with one indexer head (from 0), or another k, what would have been read.

        query: one of `queries`, such as `read.queries["the answer"][0]`, or `["what follows the text"][0]`. Raises
        TypeError for anything else, such as a number; ValueError for a query, head or k that is not there.
        """
        if not isinstance(query, Query):
            raise TypeError(f"expected a Query of read.queries, got {type(query).__name__}")
        topk = self.topk if topk is None else topk
        return self._shown(self.probe.record(query.position, head, topk))

    def _shown(self, record: Record, **rest: Any) -> PassageSelection:
        known = {"question": self.prompt.question, "answer": self.answer, "first_line": self.prompt.first_line}
        shown = {"passage": self.prompt.passage, "truth": self.truth, "subject": self.subject}
        return PassageSelection.from_record(record, self.ids, self.tokenizer, **known, **shown, **rest)

    def _record(self, places: range, head: int | None, topk: int | None = None) -> Record:
        records = [self.probe.record(place, head, topk) for place in places]
        whole = records[0]
        for record in records[1:]:
            whole = whole.extend(record)
        return whole


def load_reader(gguf: str | Path, indexers: str | Path | None = None) -> KeyeVL:
    """The model in the file with a folder of indexers; None: those that come with the repository.

    Raises FileNotFoundError where there are none, else as `load_gguf` and `load_indexers`.
    """
    folder = INDEXERS if indexers is None else Path(indexers)
    model = load_gguf(KeyeVL, gguf, read_indexer(folder))
    load_indexers(model, folder)
    return model


@contextmanager
def keys_of(model: KeyeVL, topk: int) -> Iterator[None]:
    """Inside the block every layer selects `topk` keys; `model.config` stays as it is. ValueError for topk < 1."""
    if topk < 1:
        raise ValueError(f"expected at least 1 key a query, got {topk}")
    layers = [layer.self_attn for layer in model.model.layers]
    before = [layer.topk for layer in layers]
    try:
        for layer in layers:
            layer.topk = topk
        yield
    finally:
        for layer, k in zip(layers, before, strict=True):
            layer.topk = k


def queries_of(prompt: TextPrompt, written: Sequence[int], tokenizer: Tokenizer) -> dict[str, list[Query]]:
    """The tokens that can be the query: those that wrote the answer, then those of the prompt behind the text."""
    last, after = len(prompt.ids) - 1, range(prompt.passage[1], len(prompt.ids))
    said = lambda n: quoted(tokenizer.decode([n], skip_special=False))  # noqa: E731
    answer = [writes(last + n, n, len(written), said(token), last + n + 1) for n, token in enumerate(written)]
    question = [Query(n, f"{n} {said(prompt.ids[n])}", f"the query at {said(prompt.ids[n])}", n + 1) for n in after]
    return {ANSWER: answer, AFTER: question}


def _tokens_within(pieces: Pieces, first: int, stop: int, whole: bool = False) -> tuple[int, int]:
    """Tokens (first, stop) of the pieces that hold characters first..stop; whole: of those that begin among them."""
    inside, at, token = [], 0, 0
    for text, tokens in zip(pieces.texts, pieces.tokens, strict=True):
        if first <= at < stop if whole else at < stop and at + len(text) > first:
            inside += [token, token + tokens]
        at, token = at + len(text), token + tokens
    return inside[0], inside[-1]


def _character(pieces: Pieces, token: int) -> int:
    """Number of the first character of a token that begins a piece."""
    at = 0
    for text, tokens in zip(pieces.texts, pieces.tokens, strict=True):
        if token <= 0:
            break
        at, token = at + len(text), token - tokens
    return at
