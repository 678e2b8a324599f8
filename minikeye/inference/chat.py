"""A conversation of several turns in which nothing is read twice.

    chat = Chat(model, processor)
    chat.ask([{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What happens?"}]).answer
    chat.ask("And then?", on_text=print)

Each turn writes the whole conversation as a prompt, asks how much of it the cache still holds, and gives the model the
rest. So a template may rewrite the past as it likes, for example drop old thoughts: what differs is read anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from minikeye.inference.generate import Generation, generate
from minikeye.inference.text_stream import TextStream, split_thought
from minikeye.inputs.pixels import patchify
from minikeye.inputs.processor import Inputs, Message, Processor
from minikeye.inputs.prompt import THINK, THOUGHT, FrameSpan, Prompt
from minikeye.model.keye import KeyeModel
from minikeye.model.record import Record
from minikeye.model.step import Mode


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model said, and what it took."""

    answer: str  # without its thought, and without line breaks at either end
    thought: str  # what stood between <think> and </think>, likewise; "" where there was none
    ids: tuple[int, ...]  # every token generated, thought and marks included, the stop token not
    record: Record | None  # what was read for each of them, at positions of the whole conversation
    frames: tuple[FrameSpan, ...]  # where every video frame of the conversation stands
    read: int  # tokens of the prompt that were read for this reply
    reused: int  # tokens of the prompt that the cache held


class Chat:
    """One conversation: its messages, and the cache of what the model has read of them.

    system: words put before everything. thinking: whether the model may think before it answers (`Processor.build`).
    attention, backend: as in `generate`. record: keep in each reply what the model read for it. context: tokens that
    the conversation may have and that the cache makes room for at once; None: as many as the model takes, in a cache
    that grows. Raises ValueError for a context that the model does not have.
    """

    def __init__(
        self,
        model: KeyeModel,
        processor: Processor,
        *,
        system: str | None = None,
        thinking: bool = True,
        attention: Mode = "sparse",
        backend: str = "auto",
        record: bool = False,
        context: int | None = None,
    ):
        most = model.config.text.max_positions
        if context is not None and not 1 <= context <= most:
            raise ValueError(f"expected a context of 1 to {most} tokens, got {context}")
        self.model, self.processor, self.thinking, self.context = model, processor, thinking, context
        self._options = {"attention": attention, "backend": backend, "record": record}
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, as `Processor` takes it; videos are Clips, images tensors. Not to be changed."""
        return list(self._messages)

    def reset(self) -> None:
        """Forget everything but the system's words."""
        self._messages = list(self._system)
        self._cache = self.model.new_cache(self.context or 0)  # 0: it grows
        self._held: list[int] = []  # the tokens that the cache holds, as far as they may be used again

    def ask(
        self,
        content: str | list[Any],
        *,
        max_new_tokens: int = 1024,
        on_text: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> Reply:
        """The model's reply to the user's next turn; both are part of the conversation from then on.

        content: a string or a list of parts, as in a message of `Processor`. A video or image is read once and kept at
        the size it got. The videos of one question share a budget, and later ones change nothing about it (our choice).
        on_text: gets each piece of the reply, thought included, when it is certain. sampling: temperature, top_k, top_p
        and seed of `generate`. The reply ends at one of `processor.stop_ids` or after max_new_tokens.
        Raises ValueError for content that does not fit, and where prompt and reply could exceed the context. Whatever
        is raised, Ctrl-C too, the conversation stays as it was before the question.
        """
        messages = [*self._messages, {"role": "user", "content": keep(content, self.processor)}]
        prompt, pixels = self.processor.build(messages, thinking=self.thinking)
        self._require_room(len(prompt.ids), max_new_tokens)
        reused = reusable(prompt, self._held)
        # Until the reply is whole, nothing beyond this counts as held: were it broken off, the next question would find
        # the same tokens there, but they may stand for other pixels.
        self._held = self._held[:reused]
        self._cache.truncate(reused)
        out = self._generate(unread(prompt, pixels, reused), max_new_tokens, on_text, sampling)
        thought, answer = self._read(out.row(), in_thought(prompt))
        self._messages = [*messages, {"role": "assistant", "content": spoken(thought, answer)}]
        self._held = (prompt.ids + out.row())[: self._cache.length]
        return Reply(
            answer.strip("\n"),
            thought.strip("\n"),
            tuple(out.row()),
            out.record,
            tuple(prompt.frames),
            read=len(prompt.ids) - reused,
            reused=reused,
        )

    def _generate(
        self, inputs: Inputs, max_new_tokens: int, on_text: Callable[[str], None] | None, sampling: dict
    ) -> Generation:
        """Continue what the cache holds by the inputs and a reply, and hand out its text on the way."""
        stream = TextStream(self.processor.tokenizer)

        def say(text: str) -> None:
            if text and on_text is not None:
                on_text(text)

        out = generate(
            self.model,
            inputs.to(self.model.device),
            max_new_tokens=max_new_tokens,
            cache=self._cache,
            stop_ids=self.processor.stop_ids,
            on_token=(lambda tokens: say(stream.add(int(tokens[0])))) if on_text is not None else None,
            **self._options,
            **sampling,
        )
        say(stream.end())
        return out

    def _read(self, ids: list[int], opened: bool) -> tuple[str, str]:
        """Thought and answer, in words."""
        thought, answer = split_thought(self.processor.tokenizer, ids, opened)
        return self.processor.tokenizer.decode(thought), self.processor.tokenizer.decode(answer)

    def _require_room(self, tokens: int, more: int) -> None:
        most = self.model.config.text.max_positions if self.context is None else self.context
        if tokens + more - 1 > most:  # the last token is said, not read
            raise ValueError(
                f"a conversation of {tokens} tokens and a reply of up to {more} exceed the context of {most}: allow "
                f"fewer max_new_tokens, show fewer frames, or start again with reset()"
            )


def keep(content: str | list[Any], processor: Processor) -> str | list[Any]:
    """A user's content with its videos and images read: what the conversation remembers. It shares no memory with what
    the caller may change, Clips apart. What is no content is left for `Processor.build` to complain about.
    """
    if not isinstance(content, list):
        return content
    videos = sum(isinstance(part, Mapping) and part.get("type") == "video" for part in content)
    kept = []
    for part in content:
        match part:
            case {"type": "video", "video": _}:
                kept.append({"type": "video", "video": processor.clip(part, videos)})
            case {"type": "image", "image": source}:
                kept.append({"type": "image", "image": processor.image(source).clone()})
            case _:
                kept.append(dict(part) if isinstance(part, Mapping) else part)
    return kept


def blocks(prompt: Prompt) -> list[tuple[int, int]]:
    """First token, and one past the last, of each image and video frame, in order."""
    visual = [n for n, is_visual in enumerate(prompt.visual) if is_visual]
    counts = [rows * columns // prompt.merge**2 for _, rows, columns in prompt.grids]
    firsts = accumulate(counts, initial=0)
    return [(visual[first], visual[first] + count) for first, count in zip(firsts, counts, strict=False)]


def reusable(prompt: Prompt, held: Sequence[int]) -> int:
    """How many of the prompt's first tokens need not be read, given the tokens a cache holds.

    No part of an image or frame, whose pixels come whole; and never all, because the last token says what comes next.
    """
    pairs = enumerate(zip(prompt.ids, held, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(prompt.ids) - 1, len(held)))
    return next((start for start, stop in blocks(prompt) if start < same < stop), same)


def unread(prompt: Prompt, pixels: list[UInt8[Tensor, "_ 3 _ _"]], first: int) -> Inputs:
    """The model's inputs from token number `first` on, as a batch of one; 3D positions count from the prompt's start.

    pixels: as `Processor.build` gives them, for the whole prompt.
    """
    ids, positions = torch.tensor(prompt.ids[first:])[None], prompt.positions()[:, None, first:]
    inputs = Inputs(input_ids=ids, positions=positions)
    frames = [frame for group in pixels for frame in group]
    places = zip(frames, prompt.grids, blocks(prompt), strict=True)
    if new := [(frame, grid) for frame, grid, (start, _) in places if start >= first]:
        inputs["patches"] = torch.cat([patchify(frame[None], frame.shape[1] // grid[1]) for frame, grid in new])
        inputs["grids"] = torch.tensor([grid for _, grid in new])
    return inputs


def in_thought(prompt: Prompt) -> bool:
    """Whether the prompt ends inside a thought, which some templates open themselves."""
    number = prompt.tokenizer.token_id
    turn = prompt.ids[len(prompt.ids) - prompt.ids[::-1].index(number("<|im_start|>")) :]
    return number(THINK) in turn and number(THOUGHT) not in turn


def spoken(thought: str, answer: str) -> str:
    """A reply as a message keeps it: a template sees the marks and may drop the thought. An unfinished one is closed,
    so that what follows does not seem to be thought (our choice)."""
    return f"{THINK}{thought}{THOUGHT}{answer}" if thought else answer
