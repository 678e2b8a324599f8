"""The tokens of a conversation: ChatML turns, one block of placeholders per image or video frame, 3D positions.

Layout (report, section 2.2, and the released ids):
    <|im_start|>user\\n<|vision_start|> <|frame|>12.5<|video_pad|>*n ... <|vision_end|>question<|im_end|>\\n
    <|im_start|>assistant\\nanswer<|im_end|>\\n
A checkpoint that ships a chat template is laid out by it (`minikeye.inputs.template`) into the same Prompt.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye.inputs.positions import position_ids
from minikeye.inputs.tokenizer import Tokenizer

Grid = tuple[int, int, int]  # (1, rows, columns) of one image or frame, in patches
THINK, THOUGHT = "<think>", "</think>"  # around what an assistant thinks before it answers
RESPONSE, RESPONDED = "<tool_response>", "</tool_response>"  # in a user's turn, around what a call gave


@dataclass(frozen=True)
class Visual:
    """An image or a video on its way into a prompt."""

    grid: Grid  # of the image or of each frame
    seconds: list[float] | None = None  # time of each frame; None for an image

    @property
    def kind(self) -> str:
        """What a message calls it: "image" or "video"."""
        return "image" if self.seconds is None else "video"


Turn = tuple[str, Sequence[str | Visual]]  # role, and what was said and shown, in order


@dataclass(frozen=True)
class FrameSpan:
    """Where one video frame stands in the prompt."""

    start: int  # first of its visual tokens
    stop: int  # one past its last visual token
    seconds: float  # its time in the video
    video: int  # number of its video in the prompt, from 0


@dataclass
class Prompt:
    """Grows by turns; `answer` marks the tokens that an assistant would have to produce."""

    tokenizer: Tokenizer
    merge: int  # patches along one side of a visual token
    ids: list[int] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    visual: list[bool] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    frames: list[FrameSpan] = field(default_factory=list)
    videos: int = 0
    notes: list[str] = field(default_factory=list)  # sentences for the user about its videos
    _run: tuple[int, str] = (0, "")  # first token and words of the text that the prompt ends with

    def begin(self, role: str) -> None:
        """Open a turn of "system", "user" or "assistant"."""
        self._special("<|im_start|>")
        self.text(f"{role}\n")

    def end(self) -> None:
        """Close the turn."""
        self._special("<|im_end|>")
        self.text("\n")

    def text(self, text: str) -> None:
        """Plain text inside a turn. Neighbouring texts are encoded as one, as if they had come in one piece."""
        first, words = self._run[0], self._run[1] + text
        del self.ids[first:], self.answer[first:], self.visual[first:]
        self._add(self.tokenizer.encode(words))
        self._run = first, words

    def marked(self, text: str, names: Iterable[str]) -> None:
        """Text in which tokens of these names count as such: a template's own words, never a user's."""
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"  # or never
        for n, piece in enumerate(re.split(f"({pattern})", text)):
            if n % 2:
                self._special(piece)
            elif piece:
                self.text(piece)

    def said(self, text: str) -> None:
        """What an assistant said earlier: the marks around its thoughts are tokens, as when it said them."""
        self.marked(text, {THINK, THOUGHT} & self.tokenizer.marks.keys())

    def answer_turn(self, text: str) -> None:
        """A whole assistant turn whose text and end mark are to be learnt."""
        self.begin("assistant")
        first = len(self.ids)
        self._run = first, ""  # an answer is generated token by token from here on: no token spans the border
        self.text(text)
        self._special("<|im_end|>")
        self.answer[first:] = [True] * (len(self.ids) - first)
        self.text("\n")

    def drawn(self, ids: Sequence[int], learn: bool | Sequence[bool] = True) -> None:
        """Tokens that a model drew, as they are: text that is encoded again need not give the same tokens.

        learn: which of them count as answer, all or none, or one mark a token: not what a tool wrote. Where they end
        with the mark of the turn's end, as `Generation.drawn` gives them, go on with text("\\n"), not with `end`.
        Raises ValueError for marks of another length, and for placeholders of pixels, which nobody can say.
        """
        ids, marks = list(ids), [learn] * len(ids) if isinstance(learn, bool) else list(learn)
        pixels = {self.tokenizer.token_id(name) for name in ("<|image_pad|>", "<|video_pad|>")}
        whole = all(type(token) is int and token >= 0 for token in ids) and all(type(mark) is bool for mark in marks)
        if not whole or len(marks) != len(ids) or pixels & set(ids):
            raise ValueError(
                f"expected tokens from 0 on that stand for no pixels, and one mark for each or one for all; got "
                f"{ids!r:.100} and {len(marks)} marks"
            )
        first = len(self.ids)
        self._add(ids)
        self.answer[first:] = marks

    def image(self, grid: Grid) -> None:
        """One image: a placeholder for each of its visual tokens."""
        self.show(Visual(grid))

    def video(self, seconds: list[float], grid: Grid) -> None:
        """Every frame: a mark, its time in seconds with one decimal, its visual tokens."""
        self.show(Visual(grid, seconds))

    def show(self, visual: Visual) -> None:
        """An image or a video between <|vision_start|> and <|vision_end|>."""
        self._special("<|vision_start|>")
        self.block(visual)
        self._special("<|vision_end|>")

    def block(self, visual: Visual) -> None:
        """What stands between those two marks."""
        if visual.seconds is None:
            self._pixels("<|image_pad|>", visual.grid)
            return
        for time in visual.seconds:
            self._special("<|frame|>")
            self.text(format(time, ".1f"))
            start = len(self.ids)
            self._pixels("<|video_pad|>", visual.grid)
            self.frames.append(FrameSpan(start, len(self.ids), float(time), self.videos))
        self.videos += 1

    def positions(self) -> Int[Tensor, "3 t"]:
        """Temporal, height and width position of every token (`rope.position_ids`)."""
        return position_ids(self.visual, self.grids, self.merge)

    def _pixels(self, placeholder: str, grid: Grid) -> None:
        count = grid[1] * grid[2] // self.merge**2
        self._add([self.tokenizer.token_id(placeholder)] * count, visual=True)
        self.grids.append(grid)

    def _special(self, name: str) -> None:
        self._add([self.tokenizer.token_id(name)])

    def _add(self, ids: list[int], visual: bool = False) -> None:
        self.ids += ids
        self.answer += [False] * len(ids)
        self.visual += [visual] * len(ids)
        self._run = len(self.ids), ""


def chatml(prompt: Prompt, conversation: Sequence[Turn], thinking: bool = True) -> None:
    """Write a conversation as the released constants have it, up to where the assistant is to speak.

    thinking: False opens the answer with an empty thought, which is Qwen3's way to ask for none (our choice here).
    """
    for role, parts in conversation:
        prompt.begin(role)
        for part in parts:
            if isinstance(part, Visual):
                prompt.show(part)
            elif role == "assistant":
                prompt.said(part)
            else:
                prompt.text(part)
        prompt.end()
    prompt.begin("assistant")
    if not thinking:
        prompt.said(f"{THINK}\n\n{THOUGHT}\n\n")


def pad(prompts: list[Prompt], side: str, length: int = 0) -> dict[str, Tensor]:
    """A batch of prompts: input_ids [b t], positions [3 b t], attention_mask and answer bool [b t].

    side: "left" for generation, "right" for training, where causal attention never looks at the padding.
    length: pad to that many tokens at least. Padding takes the id of <|endoftext|> and position 0. Raises ValueError
    without prompts or for another side.
    """
    if not prompts or side not in ("left", "right"):
        raise ValueError(f'expected at least one prompt and side "left" or "right", got {len(prompts)} and {side!r}')
    t = max(length, *(len(p.ids) for p in prompts))
    filler = prompts[0].tokenizer.token_id("<|endoftext|>")
    batch = {
        "input_ids": torch.full((len(prompts), t), filler),
        "positions": torch.zeros(3, len(prompts), t, dtype=torch.long),
        "attention_mask": torch.zeros(len(prompts), t, dtype=torch.bool),
        "answer": torch.zeros(len(prompts), t, dtype=torch.bool),
    }
    for row, p in enumerate(prompts):
        place = slice(t - len(p.ids), t) if side == "left" else slice(0, len(p.ids))
        batch["input_ids"][row, place] = torch.tensor(p.ids)
        batch["positions"][:, row, place] = p.positions()
        batch["attention_mask"][row, place] = True
        batch["answer"][row, place] = torch.tensor(p.answer)
    return batch
