"""Where the explorer gets its selections: a model that was watched while it answered, or a record of that.

`Probed` can select again, from any text token, with one indexer head or all, and any k. `Recorded` shows what was
recorded and nothing else.

Axes: b batch, t token, l layer, f frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm.auto import tqdm

from minikeye.checkpoint.taught import taught
from minikeye.cost.memory import CHUNK
from minikeye.explore.ask import model_and_processor, read_clip
from minikeye.explore.frames import FrameSelection
from minikeye.explore.probe import Probe
from minikeye.explore.selection import shrink
from minikeye.explore.widget.view import Query, as_recorded, of_query, quoted, recorded, writes
from minikeye.inputs.processor import Inputs, Processor
from minikeye.inputs.prompt import FrameSpan
from minikeye.inputs.tokenizer import Tokenizer
from minikeye.keye import KeyeVL
from minikeye.model.step import AttentionTrace, Mode
from minikeye.progress import wanted

AROUND = 10  # tokens of the text on either side of a query that are quoted with it
BAR = "{desc} {bar} {elapsed}"
ANSWER, QUESTION, BETWEEN = "the answer", "text outside the video", "times in the video"


@runtime_checkable
class Source(Protocol):
    """What the explorer asks for."""

    queries: Mapping[str, Sequence[Query]]  # by where they stand
    heads: int  # indexer heads to choose from; 0 where the selection cannot be made again
    topk: int  # the model's k
    longest: int  # largest k that makes sense

    def select(self, query: Query, head: int | None, topk: int) -> FrameSelection:
        """All layers, one query."""

    def how(self, query: Query, layer: int, head: int | None, topk: int) -> str:
        """How those keys were chosen, in words."""


class Recorded:
    """A FrameSelection of one or more queries, as it is."""

    heads = 0

    def __init__(self, selection: FrameSelection):
        self.selection = selection
        self.topk = self.longest = max(1, int(selection.keys.max()))
        self.queries = {ANSWER: recorded(selection)}

    def select(self, query: Query, head: int | None, topk: int) -> FrameSelection:
        return of_query(self.selection, query.position)

    def how(self, query: Query, layer: int, head: int | None, topk: int) -> str:
        return as_recorded(self.selection, layer, query.position)


@dataclass(frozen=True, eq=False)
class Probed:
    """A model's answer, and all that is needed to see what any text token read, or would have read."""

    answer: str
    probe: Probe
    frames: tuple[FrameSpan, ...]  # where each frame stands in the prompt
    queries: Mapping[str, Sequence[Query]]
    thumbnails: UInt8[Tensor, "f 3 height width"] | None = None
    truth: tuple[int, ...] = ()  # numbers of the frames that hold the answer; () where not known
    subject: str = ""  # what those frames show: "the card"
    question: str = ""  # what was asked; "" where not known
    taught: str = ""  # what the checkpoint was taught, where it says so
    notes: tuple[str, ...] = ()  # in what the model sees less of the video than there is

    @classmethod
    def of(
        cls,
        model: KeyeVL,
        processor: Processor,
        inputs: Inputs,
        *,
        thumbnails: UInt8[Tensor, "f 3 height width"] | None = None,
        truth: Sequence[int] = (),
        subject: str = "",
        question: str = "",
        taught: str = "",
        max_new_tokens: int = 32,
        attention: Mode = "sparse",
        backend: str = "auto",
    ) -> "Probed":
        """Answer the one conversation of `inputs`, greedily, and keep every text token of prompt and answer as a query.

        thumbnails: the frames' pictures. question, taught: to be shown with the answer. Raises ValueError for several
        conversations, a prompt without video, and thumbnails or truth that do not fit its frames.
        """
        ids, frames = inputs["input_ids"], inputs["frames"][0]
        if len(ids) != 1 or not frames:
            raise ValueError(f"expected one conversation with a video, got {len(ids)} with {len(frames)} frames")
        text = (~model.is_visual(ids)[0]).nonzero().flatten().tolist()
        prompt = ids.shape[1]
        probe = Probe(model.config.indexer.topk, {*text, *range(prompt, prompt + max_new_tokens)})
        stop = {"stop_ids": processor.stop_ids, "max_new_tokens": max_new_tokens}
        passes = model.config.text.layers * -(-prompt // CHUNK)
        with Waiting(f"2 of 2: reading {prompt:,} tokens, answering", passes, probe) as watched:
            out = model.generate(inputs, attention=attention, backend=backend, observer=watched, **stop)
        queries = queries_of(ids[0].tolist(), text, out.row(), frames, processor.tokenizer)
        small = None if thumbnails is None else shrink(thumbnails.cpu())
        answer = processor.tokenizer.decode(out.row())
        made = cls(answer, probe, tuple(frames), queries, small, tuple(truth), subject, question, taught, inputs.notes)
        made.select(made.queries[QUESTION][0], None, made.topk)  # complains about what does not fit
        return made

    @classmethod
    def from_video(
        cls,
        path: str | Path,
        question: str,
        *,
        insert_card: tuple[int, float | int] | None = None,
        card_seed: int = 0,
        checkpoint: str | Path | None = None,
        model: KeyeVL | None = None,
        processor: Processor | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "Probed":
        """Ask `question` about a video file. insert_card: (digit, seconds), card_seed: as in `ask.ask`.

        checkpoint, model, processor, device: as `ask.model_and_processor` takes them. options: max_new_tokens,
        attention, backend. Raises as these and `of` do.
        """
        model, processor = model_and_processor(checkpoint, model, processor, device)
        known = "" if processor.folder is None else taught(processor.folder)
        with Waiting(f"1 of 2: reading {Path(path).name}"):
            clip, truth = read_clip(processor, path, insert_card, card_seed)
        content = [{"type": "video", "video": clip}, {"type": "text", "text": question}]
        inputs = processor([{"role": "user", "content": content}]).to(model.device)
        if truth and abs(clip.seconds[truth[0]] - insert_card[1]) >= 0.05:  # as many decimals as are shown
            went = f"the card went to {clip.seconds[truth[0]]:.1f} s, the sampled frame nearest to {insert_card[1]:g} s"
            inputs.notes = (*inputs.notes, went)
        shown = {"thumbnails": clip.frames, "truth": truth, "subject": "the card" if truth else ""}
        return cls.of(model, processor, inputs, **shown, question=question, taught=known, **options)

    @property
    def heads(self) -> int:
        return self.probe.heads

    @property
    def topk(self) -> int:
        return self.probe.topk

    @property
    def longest(self) -> int:
        return self.probe.tokens

    def select(self, query: Query, head: int | None = None, topk: int | None = None) -> FrameSelection:
        record = self.probe.record(query.position, head, topk)
        known = {name: getattr(self, name) for name in ("thumbnails", "truth", "subject", "question", "answer")}
        return FrameSelection.from_record(record, list(self.frames), length=self.probe.tokens, **known)

    def how(self, query: Query, layer: int, head: int | None, topk: int) -> str:
        if head is None:
            return f"all {self.heads} heads, k = {topk}"
        gate = self.probe.gates(query.position)[layer, head].item()
        against = ", which counts against the keys it matches" if gate < 0 else ""
        return f"indexer head {head} alone (gate {gate:.2f}{against}), k = {topk}"


class Waiting:
    """A bar for somebody who waits. As an observer it moves on at every layer, and hands all it sees on to `probe`."""

    def __init__(self, what: str, total: int = 1, probe: Probe | None = None):
        self.probe, self._what, self._total = probe, what, total

    def __enter__(self) -> "Waiting":
        self._bar = tqdm(total=self._total, desc=self._what, leave=False, disable=not wanted(), bar_format=BAR)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._bar.update(
                self._total - self._bar.n
            )  # in a notebook, a bar that is not full stays as one that failed
        self._bar.close()

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        self.probe.attention(layer, trace)
        self._bar.update(self._bar.n < self._total)

    def routing(self, layer: int, probabilities: Tensor, chosen: Tensor) -> None:
        self.probe.routing(layer, probabilities, chosen)


def queries_of(
    ids: list[int], text: list[int], answer: list[int], frames: list[FrameSpan], tokenizer: Tokenizer
) -> dict[str, list[Query]]:
    """The tokens that can be the query: those that wrote the answer, then those of the prompt that are no pixels."""
    starts = torch.tensor([span.start for span in frames])
    sees = torch.searchsorted(starts, torch.tensor(text), right=True).tolist()
    written = [quoted(tokenizer.decode([n], skip_special=False)) for n in answer]
    queries: dict[str, list[Query]] = {ANSWER: [], QUESTION: [], BETWEEN: []}
    for n, token in enumerate(written):
        queries[ANSWER].append(writes(len(ids) - 1 + n, n, len(answer), token, len(frames)))
    among = set(text)
    for at, seen in zip(text, sees, strict=True):
        token, before, after = (
            tokenizer.decode([ids[n] for n in part if n in among], skip_special=False) for part in _around(at, among)
        )
        group = queries[BETWEEN if frames[0].start <= at < frames[-1].stop else QUESTION]
        quote = f"“{before}[{token}]{after}”".replace("\n", "⏎")
        group.append(Query(at, f"{at} {quoted(token)}", f"the query at [ ] in {quote}, token {at} of the prompt", seen))
    return {name: group for name, group in queries.items() if group}


def _around(at: int, among: set[int]) -> tuple[list[int], list[int], list[int]]:
    """The token at `at`, and up to AROUND text tokens before and after it without a gap."""
    before, after = [], []
    while at - len(before) - 1 in among and len(before) < AROUND:
        before.append(at - len(before) - 1)
    while at + len(after) + 1 in among and len(after) < AROUND:
        after.append(at + len(after) + 1)
    return [at], before[::-1], after
