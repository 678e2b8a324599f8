"""The tokens of a conversation: ChatML turns, one block of placeholders per image or video frame, 3D positions.

Layout (report, section 2.2, and the released ids):
    <|im_start|>user\\n<|vision_start|> <|frame|>12.5<|video_pad|>*n ... <|vision_end|>question<|im_end|>\\n
    <|im_start|>assistant\\nanswer<|im_end|>\\n
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye.rope import position_ids
from minikeye.tokenizer import Tokenizer

Grid = tuple[int, int, int]  # (1, rows, columns) of one image or frame, in patches


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

    def begin(self, role: str) -> None:
        """Open a turn of "system", "user" or "assistant"."""
        self._special("<|im_start|>")
        self.text(f"{role}\n")

    def end(self) -> None:
        """Close the turn."""
        self._special("<|im_end|>")
        self.text("\n")

    def text(self, text: str) -> None:
        """Plain text inside a turn."""
        self._add(self.tokenizer.encode(text))

    def answer_turn(self, text: str) -> None:
        """A whole assistant turn whose text and end mark are to be learnt."""
        self.begin("assistant")
        first = len(self.ids)
        self.text(text)
        self._special("<|im_end|>")
        self.answer[first:] = [True] * (len(self.ids) - first)
        self.text("\n")

    def image(self, grid: Grid) -> None:
        """One image: a placeholder for each of its visual tokens."""
        self._special("<|vision_start|>")
        self._block("<|image_pad|>", grid)
        self._special("<|vision_end|>")

    def video(self, seconds: list[float], grid: Grid) -> None:
        """Every frame: a mark, its time in seconds with one decimal, its visual tokens."""
        self._special("<|vision_start|>")
        for time in seconds:
            self._special("<|frame|>")
            self.text(format(time, ".1f"))
            start = len(self.ids)
            self._block("<|video_pad|>", grid)
            self.frames.append(FrameSpan(start, len(self.ids), float(time), self.videos))
        self._special("<|vision_end|>")
        self.videos += 1

    def positions(self) -> Int[Tensor, "3 t"]:
        """Temporal, height and width position of every token (`rope.position_ids`)."""
        return position_ids(self.visual, self.grids, self.merge)

    def _block(self, placeholder: str, grid: Grid) -> None:
        count = grid[1] * grid[2] // self.merge**2
        self._add([self.tokenizer.token_id(placeholder)] * count, visual=True)
        self.grids.append(grid)

    def _special(self, name: str) -> None:
        self._add([self.tokenizer.token_id(name)])

    def _add(self, ids: list[int], visual: bool = False) -> None:
        self.ids += ids
        self.answer += [False] * len(ids)
        self.visual += [visual] * len(ids)


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
