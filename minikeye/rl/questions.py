"""Questions about synthetic videos to learn from, by reward or by imitation of the same labels, and how a policy does.

A `Course` says which videos are asked what, and who annotated them. Its prompts are for `learn.reinforce`, its lessons
for `training.stage.teach`; `ask` puts its test questions to a model. All three take what is `Asking`: the courses of
`mopd.domains` ask about images and about text alone too.

Axes: b prompt, f frame, p visual token of a frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.labels import annotated
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.minivid.questions.scoring import score
from minikeye.minivid.scene import Difficulty
from minikeye.minivid.tasks import Problem, parse_interval, parse_order
from minikeye.model.step import Mode
from minikeye.rl.groups import Prompts, share_of
from minikeye.rl.learn import with_visual_tokens
from minikeye.rl.parallel.agreement import by_rows
from minikeye.rl.rewards import Solution, context_reward, outcome_reward
from minikeye.scores import constant_iou
from minikeye.training.parallel.mesh import ALONE, Ranks, gathered
from minikeye.training.step import autocast


@runtime_checkable
class Asking(Protocol):
    """What can be learnt from and examined: `Course`, and its like."""

    def examination(self) -> "Asking":
        """The same questions about what no policy learns from, with true answers."""
        ...

    def questions(self, first: int, count: int) -> tuple[MiniVideos | None, list[Problem]]:
        """What is shown, None where it is text alone, and a question about each with the answer to learn."""
        ...

    def size(self, count: int) -> Size: ...

    def tokens(
        self,
        videos: MiniVideos | None,
        problems: Sequence[Problem],
        config: KeyeConfig,
        answered: bool = False,
        length: int = 0,
    ) -> dict[str, Tensor]:
        """Prompts as `inputs.prompt.pad` gives them, of that length at least: on the left, or on the right with their
        answers."""
        ...


@dataclass(frozen=True)
class Course:
    """Which videos are asked what, and how carefully they are annotated."""

    task: Literal["N", "G", "P"]
    frames: int  # of each video
    side: int = 56  # height and width of the frames in pixels
    span: int = 0  # frames by which the ends of an interval may be off, see `minivid.labels`; 0: true labels
    spot: int = 0  # frames by which the frame of a card may be off
    seed: int = 0  # of videos and annotator
    split: Split = "train"
    difficulty: Difficulty = Difficulty(alone=True)

    def examination(self) -> "Course":
        """The same questions about test videos, truly annotated."""
        return replace(self, split="test", span=0, spot=0)

    def questions(self, first: int, count: int) -> tuple[MiniVideos, list[Problem]]:
        """Videos `first` to `first + count - 1`, and a question about each with the annotator's answer."""
        numbers = range(first, first + count)
        videos = make_videos(self.seed, numbers, self.frames, self.split, difficulty=self.difficulty)
        return videos, annotated(videos, self.task, self.seed, self.span, self.spot)

    def size(self, count: int) -> Size:
        return Size(self.frames, count, self.side, self.side, turns=1)

    def tokens(
        self,
        videos: MiniVideos,
        problems: Sequence[Problem],
        config: KeyeConfig,
        answered: bool = False,
        length: int = 0,
    ) -> dict[str, Tensor]:
        """A video, then its question; padded on the left, or with the answer on the right."""
        prompts = question_prompts(videos, problems, self.size(len(problems)), config, answered, length)
        return {name: value for name, value in prompts.items() if name != "frames"}


def lessons_from(
    model: KeyeVL, course: Asking, count: int, steps: int, first: int = 0
) -> Callable[[int], Iterator[Lesson]]:
    """For `stage.teach`: imitation of the annotator, `count` videos a step, video `first` the first of step 0."""

    def lessons(step: int) -> Iterator[Lesson]:
        for n in range(step, steps):
            videos, problems = course.questions(first + n * count, count)
            size = course.size(count)
            # A GPU's graphs hold for one shape; a CPU is spared the padding.
            length = size.tokens(model.config) if model.device.type == "cuda" else 0
            yield Lesson(course.tokens(videos, problems, model.config, True, length), videos, size)

    return lessons


def prompts_from(
    model: KeyeVL, course: Asking, count: int, first: int = 0, *, ranks: Ranks = ALONE
) -> Callable[[int], tuple[Prompts, list[Problem]]]:
    """For `learn.reinforce`: batch n asks about videos first + n * count and on; known is the annotator's problem.

    ranks: over which the model is spread; all get all prompts, the tower's work is shared.
    """

    def batch(number: int) -> tuple[Prompts, list[Problem]]:
        videos, problems = course.questions(first + number * count, count)
        return prompts_of(model, course, videos, problems, ranks=ranks), problems

    return batch


@torch.no_grad()
def prompts_of(
    model: KeyeVL,
    course: Asking,
    videos: MiniVideos | None,
    problems: Sequence[Problem],
    blank: bool = False,
    *,
    ranks: Ranks = ALONE,
) -> Prompts:
    """Prompts with visual tokens in the place of pixels, padded on the left. blank: grey pixels, the blind control.

    ranks: as of `learn.with_visual_tokens`.
    """
    prompts = course.tokens(videos, problems, model.config)
    inputs = Lesson(prompts, videos, course.size(len(problems))).inputs(model.config, model.device, blank)
    mask = prompts["attention_mask"].to(model.device)
    return with_visual_tokens(model, inputs | {"attention_mask": mask}, ranks=ranks)


def shuffled(prompts: Prompts, frames: int, seed: int) -> Prompts:
    """The control that must fail: the same frames under the same timestamps, but in another order."""
    rows, visual = len(prompts["input_ids"]), prompts["visual"]
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(frames, generator=generator) for _ in range(rows)]).to(visual.device)
    parted = visual.unflatten(0, (rows, frames, -1))  # [b f p d]
    moved = parted[torch.arange(rows, device=visual.device)[:, None], order]
    return prompts | {"visual": moved.flatten(0, 2)}


@dataclass(frozen=True)
class Answered:
    """Test questions with their true answers, and what a model said. All lists are equally long."""

    problems: list[Problem]
    answers: list[str]
    durations: list[float]  # seconds from the first frame to the last; 0 for an image and for text alone

    def scores(self) -> dict[str, list[float]]:
        """What is right about each answer, by the parts of `scoring.score`."""
        parts = [score(problem, said) for problem, said in zip(self.problems, self.answers, strict=True)]
        return {name: [part[name] for part in parts] for name in parts[0]}

    def wrong_evidence(self) -> list[bool]:
        """Task P: whether the evidence disagrees with the truth, of every answer whose word is right."""
        pairs = zip(self.problems, self.answers, strict=True)
        return [not evidence_reward(said, problem) for problem, said in pairs if word_reward(said, problem)]

    def constant(self) -> float:
        """Task G: mean temporal IoU of the best answer that looks at no video."""
        return constant_iou([parse_interval(problem.answer)[0] for problem in self.problems], self.durations)


@torch.no_grad()
def ask(
    model: KeyeVL,
    course: Asking,
    count: int,
    attention: Mode = "dense",
    shuffle: bool = False,
    rows: int = 64,
    blank: bool = False,
    *,
    ranks: Ranks = ALONE,
) -> Answered:
    """Greedy answers to the first `count` questions of the course's examination. rows: prompts in a batch.

    shuffle: with every video's frames in another order. blank: with grey frames. The model is left in evaluation mode.
    ranks: which share the questions and all get all answers; where the model is spread over them, each has it whole in
    its memory meanwhile.
    """
    tokenizer, test, out = load_tokenizer(model.config), course.examination(), Answered([], [], [])
    stop = (tokenizer.token_id("<|im_end|>"),)
    model.eval()
    for first in range(0, count, rows):
        videos, problems = test.questions(first, min(rows, count - first))
        prompts = prompts_of(model, test, videos, problems, blank, ranks=ranks)
        prompts = shuffled(prompts, test.size(len(problems)).frames, first) if shuffle else prompts

        def work(part: slice, prompts: Prompts = prompts) -> list[str]:
            own = share_of(prompts, part)
            with autocast(model.device):
                said = model.generate(own, max_new_tokens=40, stop_ids=stop, attention=attention)
            return [tokenizer.decode(said.row(row)) for row in range(len(own["input_ids"]))]

        with gathered(model, ranks):
            texts = by_rows(ranks, len(problems), work)
        out.problems.extend(problems)
        out.answers.extend(text for part in texts for text in part)
        out.durations.extend([0.0] * len(problems) if videos is None else videos.seconds[:, -1].tolist())
    return out


def interval_reward(text: str, known: Problem) -> float:
    """Temporal IoU with the annotator's interval; tasks G and P."""
    return score(known, text)["tiou"]


def second_reward(text: str, known: Problem) -> float:
    """1 where the card's second is the annotator's to 0.5 s; tasks N and P."""
    return score(known, text)["second"]


def word_reward(text: str, known: Problem) -> float:
    """Outcome alone, task P: 1 where the word is right, whatever the evidence."""
    return outcome_reward(solution(text), solution(known.answer))


def evidence_reward(text: str, known: Problem) -> float:
    """Context-RL, task P: 1 where the word is right and the evidence agrees with the annotator's."""
    return context_reward(solution(text), solution(known.answer))


def solution(text: str) -> Solution | None:
    """Answer and evidence of an answer to task P; None where it cannot be read."""
    said = parse_order(text)
    if said is None or said.interval is None:
        return None
    return Solution(said.word, tuple(said.interval), (said.second,))
