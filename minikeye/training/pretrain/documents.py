"""What the stages read: kinds of documents, of text alone and of video.

| task | question | answer |
|---|---|---|
| sum | 3+4? | 7 |
| when | When is the card? | 3.5 s |
| colour | Colour at 3.5 s? | red |
| half | Is the card in the first or the second half? | second: 3.5 s |
| choice | When is the card: A 0.7 B 3.5 C 2.8? | 3.5 s, B |

A video comes in pixels or, as text alone, in words: each frame's time, then two letters, C for the card and the first
of the colour, - for none. Questions are short because a token is a byte here, and a notebook has seconds. All of it is
our choice: the report's documents are captions, interleaved image-text, text, OCR, grounding, long video and more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import Prompt
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.draws import generator
from minikeye.minivid.tasks import things_of

Task = Literal["sum", "when", "colour", "half", "choice"]
SIDE = 56  # pixels, height and width of a frame: four visual tokens
MARKS = ("<|vision_start|>", "<|frame|>", "<|vision_end|>")


@dataclass(frozen=True)
class Kind:
    """A kind of document."""

    task: Task
    frames: int = 0  # of its video; 0 for a sum, which has none
    pixels: bool = True  # whether its video is shown; else it is told in words

    def __post_init__(self) -> None:
        if (self.frames == 0) != (self.task == "sum") or 0 < self.frames < 4:
            raise ValueError(f"expected a sum without frames, or a video of at least 4 with another task; got {self}")

    @property
    def text_only(self) -> bool:
        """Whether it holds no pixels."""
        return not (self.frames and self.pixels)


@dataclass(frozen=True)
class Documents:
    """Prompts of one kind, with their answers, and their videos if any is shown."""

    kind: Kind
    prompts: list[Prompt]
    videos: MiniVideos | None


def documents(kind: Kind, config: KeyeConfig, seed: int, numbers: Sequence[int], split: Split) -> Documents:
    """The documents of those numbers. Number n of (kind, seed, split) is the same in every batch."""
    tokenizer = load_tokenizer(config)
    prompts = [Prompt(tokenizer, config.vision.merge) for _ in numbers]
    videos = make_videos(seed, numbers, kind.frames, split) if kind.frames else None
    side = SIDE // config.vision.patch_size
    for row, (prompt, n) in enumerate(zip(prompts, numbers, strict=True)):
        prompt.begin("user")
        if videos is None:
            question, answer = small_sum(seed, split, n)
        else:
            question, answer = asked(kind.task, videos, row, n)
            if kind.pixels:
                prompt.video(videos.seconds[row].tolist(), (1, side, side))
            else:
                prompt.marked(in_words(videos, row), MARKS)
        prompt.text(question)
        prompt.end()
        prompt.answer_turn(answer)
    return Documents(kind, prompts, videos if kind.pixels else None)


def small_sum(seed: int, split: Split, n: int) -> tuple[str, str]:
    """A sum of two figures. There are a hundred of them, in both splits: learnt by heart, not held out."""
    a, b = torch.randint(10, (2,), generator=generator(seed, split, "sum", n)).tolist()
    return f"{a}+{b}?", str(a + b)


def asked(task: Task, videos: MiniVideos, row: int, n: int) -> tuple[str, str]:
    """Question and answer about the video of a row; its number n says which frame is asked for, and where B stands."""
    card, times = videos.events[row][0], videos.seconds[row].tolist()
    when = f"{card.start:.1f} s"
    match task:
        case "when":
            return "When is the card?", when
        case "colour":
            frame = n * 7 % len(times)
            return f"Colour at {times[frame]:.1f} s?", colours(videos, row)[frame]
        case "half":
            half = "first" if 2 * card.first < len(times) else "second"
            return "Is the card in the first or the second half?", f"{half}: {when}"
        case _:
            others = [time for frame, time in enumerate(times) if frame != card.first]
            draw = generator("choice", n)
            shown = [others[i] for i in torch.randperm(len(others), generator=draw)[:2].tolist()]
            place = int(torch.randint(3, (), generator=draw))
            shown.insert(place, card.start)
            a, b, c = (f"{time:.1f}" for time in shown)
            return f"When is the card: A {a} B {b} C {c}?", f"{when}, {'ABC'[place]}"


def colours(videos: MiniVideos, row: int) -> list[str]:
    """The colour of the first thing that each frame shows; "none" where it shows none."""
    things = things_of(videos.events[row])
    frames = range(videos.seconds.shape[1])
    return [next((e.name.split()[0] for e in things if e.first <= f < e.stop), "none") for f in frames]


def in_words(videos: MiniVideos, row: int) -> str:
    """The video of a row as text, with the marks that a video in pixels has."""
    card, told = videos.events[row][0], []
    for frame, (time, colour) in enumerate(zip(videos.seconds[row].tolist(), colours(videos, row), strict=True)):
        letters = ("C" if frame == card.first else "-") + ("-" if colour == "none" else colour[0])
        told.append(f"<|frame|>{time:.1f}{letters}")
    return f"<|vision_start|>{''.join(told)}<|vision_end|>"
