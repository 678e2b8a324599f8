"""Videos and their questions as batches: one a step, made from the step's number alone.

The token side is made on the CPU by worker processes; the pixels are rendered where the model lives, from the same
random numbers, so data is made as fast as it is eaten.
"""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minikeye.config import KeyeConfig
from minikeye.inputs.pixels import patchify
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.minivid.dataset import MAX_HARD_STEP, MiniVideos, make_videos
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.scene import PLAIN, Difficulty, render, render_blank
from minikeye.minivid.tasks import Problem, text_sums


@dataclass(frozen=True)
class Size:
    """Shape of one batch."""

    frames: int  # frames of each video; 0: text only
    videos: int  # prompts in the batch
    height: int = 56  # pixels
    width: int = 56  # pixels
    turns: int = 4  # questions to a prompt, at most: a plain video has five or six, and some get a sum
    difficulty: Difficulty = PLAIN  # of the videos

    def tokens(self, config: KeyeConfig) -> int:
        """Length that every batch of this size is padded to: room for the longest times and for all questions."""
        visual = self.height * self.width // config.token_pixels**2
        times = sum(len(f"{n * MAX_HARD_STEP:.1f}") for n in range(self.frames))
        questions = 16 + 88 * self.turns  # the longest question with its answer takes 88
        return 64 * -(-(questions + self.frames * (1 + visual) + times) // 64)


@dataclass
class Lesson:
    tokens: dict[str, Tensor]  # input_ids, positions, attention_mask, answer
    videos: MiniVideos | None
    size: Size

    def part(self, rows: list[int]) -> "Lesson":
        """These rows alone, with their videos."""
        videos = self.videos
        if videos is not None:
            events, problems = (tuple(of[row] for row in rows) for of in (videos.events, videos.problems))
            spec = videos.spec.take(rows, range(videos.spec.shape[1]))
            videos = MiniVideos(spec, videos.seconds[rows], events, problems)
        tokens = {name: t[..., rows, :] for name, t in self.tokens.items()}
        return Lesson(tokens, videos, replace(self.size, videos=len(rows)))

    def inputs(self, config: KeyeConfig, device: torch.device | str, blank: bool = False) -> dict[str, Tensor]:
        """Model inputs on `device`, pixels rendered there. blank: grey frames, the control that must fail.

        attention_mask is among them only where rows are padded on the left: on the right no real token sees padding.
        """
        left = not bool(self.tokens["attention_mask"][:, 0].all())
        kept = {name: t for name, t in self.tokens.items() if left or name != "attention_mask"}
        out = {name: t.to(device, non_blocking=True) for name, t in kept.items()}
        if self.videos is not None:
            draw = render_blank if blank else render
            frames = draw(self.videos.spec, self.size.height, self.size.width, device)
            out |= pixels(frames.flatten(0, 1), config)
        return out


def pixels(frames: Tensor, config: KeyeConfig) -> dict[str, Tensor]:
    """patches and grids of frames [f 3 height width] whose sides are multiples of one visual token."""
    size = config.vision.patch_size
    grid = torch.tensor([[1, frames.shape[2] // size, frames.shape[3] // size]])
    return {"patches": patchify(frames, size), "grids": grid.expand(len(frames), -1)}


class Lessons(Dataset):
    """Training batches by step. Every video comes with all its questions as turns in random order, right padded."""

    def __init__(self, config: KeyeConfig, size_at: Callable[[int], Size], steps: range, seed: int):
        self.config, self.size_at, self.steps, self.seed = config, size_at, steps, seed
        self.tokenizer = load_tokenizer(config)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, n: int) -> Lesson:
        step = self.steps[n]
        size, rng = self.size_at(step), random.Random(f"{self.seed} {step}")
        numbers = range(step * 4096, step * 4096 + size.videos)  # no two steps share a video
        sums = text_sums(self.seed, [4096 * step + n for n in range(4 * size.videos)], "train")
        if not size.frames:
            prompts = [self.conversation(sums[4 * row : 4 * row + 4]) for row in range(size.videos)]
            return Lesson(pad(prompts, "right", size.tokens(self.config)), None, size)
        videos = make_videos(self.seed, numbers, size.frames, "train", difficulty=size.difficulty)
        prompts = []
        for row, problems in enumerate(videos.problems):
            needle, *others = problems  # every video is asked for its card: one question of many would be too few
            others += [sums[row]] * (rng.random() < 0.25)
            turns = [needle, *rng.sample(others, min(len(others), size.turns - 1))]
            rng.shuffle(turns)
            prompts.append(self.conversation(turns, videos.seconds[row].tolist(), patch_grid(size, self.config)))
        return Lesson(pad(prompts, "right", size.tokens(self.config)), videos, size)

    def conversation(
        self, turns: list[Problem], seconds: list[float] | None = None, grid: tuple[int, int, int] = (1, 0, 0)
    ) -> Prompt:
        """A video, if there is one, then questions and answers."""
        prompt = Prompt(self.tokenizer, self.config.vision.merge)
        for n, turn in enumerate(turns):
            prompt.begin("user")
            if n == 0 and seconds is not None:
                prompt.video(seconds, grid)
            prompt.text(turn.question)
            prompt.end()
            prompt.answer_turn(turn.answer)
        return prompt


def patch_grid(size: Size, config: KeyeConfig) -> tuple[int, int, int]:
    return 1, size.height // config.vision.patch_size, size.width // config.vision.patch_size


def question_prompts(
    videos: MiniVideos,
    asked: str | Sequence[Problem],
    size: Size,
    config: KeyeConfig,
    answered: bool = False,
    length: int = 0,
) -> dict[str, Tensor | list]:
    """One question for every video: prompts padded on the left that end where the answer begins.

    asked: a task, whose first question each video is asked, or a problem for each video. answered: with the answer
    instead, padded on the right to `length` tokens at least, for learning it or reading off how likely it is. Raises
    ValueError for another number of problems than videos.
    """
    tokenizer, prompts = load_tokenizer(config), []
    if isinstance(asked, str):
        asked = [next(p for p in problems if p.task == asked) for problems in videos.problems]
    if len(asked) != len(videos.problems):
        raise ValueError(f"expected a problem for each of {len(videos.problems)} videos, got {len(asked)}")
    for row, problem in enumerate(asked):
        prompt = Prompt(tokenizer, config.vision.merge)
        prompt.begin("user")
        prompt.video(videos.seconds[row].tolist(), patch_grid(size, config))
        prompt.text(problem.question)
        prompt.end()
        if answered:
            prompt.answer_turn(problem.answer)
        else:
            prompt.begin("assistant")
        prompts.append(prompt)
    if answered:
        return pad(prompts, "right", length)
    return {**pad(prompts, "left"), "frames": [p.frames for p in prompts]}


def needle_lesson(config: KeyeConfig, seed: int, first: int, count: int, frames: int, split: Split) -> Lesson:
    """Needle questions with their answers about videos first, first + 1, ..., of 28x28 pixels, right padded."""
    size, videos = Size(frames, count, 28, 28), make_videos(seed, range(first, first + count), frames, split)
    return Lesson(question_prompts(videos, "N", size, config, answered=True), videos, size)


def needles(
    config: KeyeConfig, seed: int, first: int, count: int, frames: int, split: Split, blank: bool = False
) -> dict[str, Tensor]:
    """Model inputs of a `needle_lesson`, on the CPU.

    answer bool [b t] marks the answer tokens. blank: grey frames, the control that must fail.
    """
    return needle_lesson(config, seed, first, count, frames, split).inputs(config, "cpu", blank)


@torch.no_grad()
def right(model, inputs: dict[str, Tensor], attention: str) -> dict[str, float]:
    """Share of the answers whose digit, and whose second, is right (`parts_right`). model: a KeyeVL."""
    never = model.config.image_token_id, model.config.video_token_id
    parts = parts_right(model(inputs, attention=attention).logits, inputs["input_ids"], inputs["answer"], never)
    return {part: float(parts[part].float().mean()) for part in ("digit", "second")}


def batches(lessons: Dataset, workers: int, start: str = "fork") -> Iterator[Any]:
    """Lessons, or what else a data set makes, in order, made ahead by worker processes.

    They travel as bytes: a lesson holds some fifty small tensors, and shared memory would spend a file handle on each.
    start: how workers start; to all but "fork" the data set must travel, too.
    """
    ahead = {"prefetch_factor": 4, "multiprocessing_context": start} if workers else {}
    packed = DataLoader(_Packed(lessons), batch_size=None, num_workers=workers, **ahead)
    return (pickle.loads(lesson) for lesson in packed)


class _Packed(Dataset):
    def __init__(self, lessons: Dataset):
        self.lessons = lessons

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, n: int) -> bytes:
        return pickle.dumps(self.lessons[n])


def parts_right(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], answer: Bool[Tensor, "b t"], never: Sequence[int]
) -> dict[str, Bool[Tensor, " b"]]:
    """Which answers, and which parts, consist of most likely tokens, given the true tokens before them.

    "digit": the first token of the answer, "second": those after it (the parts of a needle answer), "exact": all, which
    is what greedy decoding would write. never: tokens that `generate` cannot say, image and video placeholders.
    """
    said = logits[:, :-1].index_fill(-1, torch.tensor(never, device=logits.device), -torch.inf).argmax(dim=-1)
    answer = answer[:, 1:]
    right = (said == ids[:, 1:]) | ~answer
    first = answer & (answer.cumsum(dim=1) == 1)
    digit, second = (right | ~first).all(dim=1), (right | first).all(dim=1)
    return {"digit": digit, "second": second, "exact": digit & second}
