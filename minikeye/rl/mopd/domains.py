"""Domains that experts are made for, and probes of what is forgotten on the way.

| domain | modality | task | what is asked | reward, and score |
|---|---|---|---|---|
| grounding | video | G | From when to when is the red circle visible? | temporal IoU |
| order | video | P | Is the card before, during or after the red circle? | word and evidence right |
| second | video | N | Which digit is on the card, and at which second? | second right; the digit is not asked of it |
| counting | video | C | How many red things are visible in the video? | exact |
| naming | image | D | What is visible? | exact |
| sums | text | T | What is 12+34? | exact |
| presence | video | Y | Is the red circle visible at 3.5 s? | exact; a probe, no expert |
| words | text | T | (a video told in words) When is the card? | exact; a probe, no expert |

Base and experts learn from an annotator who is careless in all but the probes, rewards and examinations know the truth.
A `DomainCourse` is `questions.Asking`: `prompts_from`, `lessons_from` and `ask` of `rl.questions` take it.

The report's experts are of other domains and made by other people's data; these six are our choice, as is all else
here: three modalities, answers that rules can judge, and abilities that a tiny model has or can be given.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.minivid.careless import slipped
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.labels import annotated
from minikeye.minivid.lessons import Size, patch_grid, question_prompts
from minikeye.minivid.questions.asking import problems_of
from minikeye.minivid.questions.scoring import score
from minikeye.minivid.scene import PLAIN, Difficulty
from minikeye.minivid.tasks import Problem, named, text_sums, things_of
from minikeye.rl.questions import evidence_reward, interval_reward, second_reward
from minikeye.training.pretrain.documents import MARKS, asked, in_words

FRAMES, SIDE = 8, 56  # of videos; pixels of frames and images: four visual tokens each
SHOWN = 0.8  # share of images with something in them, and more by chance
LOOK = "What is visible?"
ALONE = Difficulty(alone=True)


def exact_reward(text: str, known: Problem) -> float:
    """1 where the answer is the expected text."""
    return score(known, text)["exact"]


@dataclass(frozen=True)
class Domain:
    """One kind of question, and what an answer to it is worth."""

    name: str
    modality: Literal["video", "image", "text"]
    task: Literal["G", "P", "N", "C", "D", "T", "Y"]
    reward: Callable[[str, Problem], float]  # 0..1; its mean over greedy answers is the score that is reported
    measure: str  # what that score is called
    max_new_tokens: int  # enough for every answer and its end
    expert: bool = True  # whether an expert is made for it; else it is a probe of forgetting
    difficulty: Difficulty = PLAIN  # of its videos
    slips: float = 0.0  # share of careless answers that are wrong, see `minivid.careless`
    span: int = 0  # frames by which a careless interval may be off, see `minivid.labels`
    spot: int = 0  # frames by which a careless card may be off

    @property
    def frames(self) -> int:
        """Frames that a prompt shows."""
        return {"video": FRAMES, "image": 1, "text": 0}[self.modality]


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("grounding", "video", "G", interval_reward, "mean temporal IoU", 18, difficulty=ALONE, span=2),
        Domain("order", "video", "P", evidence_reward, "word and evidence right", 30, difficulty=ALONE, span=1, spot=1),
        Domain("second", "video", "N", second_reward, "second right", 14, spot=3),
        Domain("counting", "video", "C", exact_reward, "exact", 4, slips=0.46),
        Domain("naming", "image", "D", exact_reward, "exact", 36, slips=0.5),
        Domain("sums", "text", "T", exact_reward, "exact", 6, slips=0.5),
        Domain("presence", "video", "Y", exact_reward, "exact", 6, expert=False),
        Domain("words", "text", "T", exact_reward, "exact", 10, expert=False),
    )
}
EXPERTS = tuple(name for name, domain in DOMAINS.items() if domain.expert)
PROBES = tuple(name for name, domain in DOMAINS.items() if not domain.expert)


@dataclass(frozen=True)
class DomainCourse:
    """Questions of one domain."""

    domain: Domain
    seed: int = 0  # of videos, sums and annotator
    careless: bool = False  # whether the answers are a careless annotator's; else they are true
    split: Split = "train"

    def examination(self) -> "DomainCourse":
        """The same kind of questions of the test split, with true answers."""
        return replace(self, split="test", careless=False)

    def size(self, count: int) -> Size:
        return Size(self.domain.frames, count, SIDE, SIDE)

    def questions(self, first: int, count: int) -> tuple[MiniVideos | None, list[Problem]]:
        """Questions `first` to `first + count - 1` and the videos they are about: of images one frame, of text None."""
        numbers, domain = range(first, first + count), self.domain
        slips = domain.slips if self.careless else 0.0
        if domain.name == "sums":
            return None, slipped(text_sums(self.seed, numbers, self.split), numbers, self.seed, slips)
        videos = make_videos(self.seed, numbers, FRAMES, self.split, difficulty=domain.difficulty)
        if domain.name == "words":
            return None, told(videos)
        if domain.modality == "image":
            videos, problems = pictured(videos, self.seed)
            return videos, slipped(problems, numbers, self.seed, slips)
        if domain.task == "C":
            return videos, slipped(problems_of(videos, "C", self.seed), numbers, self.seed, slips)
        if domain.task == "Y":
            return videos, [next(p for p in problems if p.task == "Y") for problems in videos.problems]
        span, spot = (domain.span, domain.spot) if self.careless else (0, 0)
        return videos, annotated(videos, domain.task, self.seed, span, spot)

    def tokens(
        self,
        videos: MiniVideos | None,
        problems: Sequence[Problem],
        config: KeyeConfig,
        answered: bool = False,
        length: int = 0,
    ) -> dict[str, Tensor]:
        """What is shown, then the question; padded on the left, or with the answer on the right."""
        size = self.size(len(problems))
        if self.domain.modality == "video":
            prompts = question_prompts(videos, problems, size, config, answered, length)
            return {name: value for name, value in prompts.items() if name != "frames"}
        prompts, tokenizer = [], load_tokenizer(config)
        for problem in problems:
            prompts.append(prompt := Prompt(tokenizer, config.vision.merge))
            prompt.begin("user")
            if self.domain.modality == "image":
                prompt.image(patch_grid(size, config))
            prompt.marked(problem.question, MARKS)
            prompt.end()
            prompt.answer_turn(problem.answer) if answered else prompt.begin("assistant")
        return pad(prompts, "right" if answered else "left", length)


def pictured(videos: MiniVideos, seed: int) -> tuple[MiniVideos, list[Problem]]:
    """One frame of each video as a video of its own, and what is visible in it (task D, of an image).

    Four frames of five show something, others are any. The events stay those of the whole video.
    """
    count, frames = videos.seconds.shape
    chosen, problems = [], []
    for events in videos.events:
        rng = random.Random(repr((seed, videos.spec.split, "image", events)))
        things = named(things_of(events))
        there = [f for f in range(frames) if any(thing.first <= f < thing.stop for thing in things)]
        frame = rng.choice(there) if rng.random() < SHOWN else rng.randrange(frames)
        answer = " and ".join(thing.name for thing in things if thing.first <= frame < thing.stop) or "nothing"
        problems.append(Problem("D", LOOK, answer, f"The picture shows {answer}."))
        chosen.append(frame)
    order = (torch.tensor(chosen)[:, None] + torch.arange(frames)) % frames  # the chosen frame first
    spec = videos.spec.reordered(order).take(range(count), [0])
    return replace(videos, spec=spec, seconds=torch.zeros(count, 1, dtype=torch.float64)), problems


def told(videos: MiniVideos) -> list[Problem]:
    """When the card is, asked of videos that are told in words: no pixel is shown."""
    problems = []
    for row, events in enumerate(videos.events):
        question, answer = asked("when", videos, row, row)
        solution = f"The card is told of at {events[0].start:.1f} s."
        problems.append(Problem("T", in_words(videos, row) + question, answer, solution))
    return problems
