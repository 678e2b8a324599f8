"""The order of training as data: what each stage learns, from which documents, in rows of which length.

| ours | report | learns | documents |
|---|---|---|---|
| language | its decoder, Qwen3-30B-A3B-Thinking-2507, comes trained | decoder | text alone |
| projector | stage 0, 8K tokens | projector | captions |
| general | stage 1, 32K | all | captions, text |
| multitask | stage 2, 64K | all | a new task, all earlier ones, text |
| switch | stage 3, 256K: dense warm-up (section 2.3) | indexers | as long |
| long | stage 3, 256K: sparse adaptation | all | long : short 1:1 |
| sft | SFT | all | answers with evidence, about 40 % text only |

The report does not say which stage the switch to DSA belongs to, nor whether the indexer learns in SFT; learning rates
and mixtures are not in it either. Stage 3 and yes are our choice, as are documents and shares but for the two it gives.
The taught tower, the report's own first step, is `tower.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from minikeye.config import KeyeConfig
from minikeye.training.pretrain.documents import Kind
from minikeye.training.pretrain.mixture import Mixture, PackedLesson, batches_from
from minikeye.training.stage import DENSE, SPARSE, WARMUP, Stage

SHORT, MIDDLE, LONG = 4, 6, 8  # frames of a video


@dataclass(frozen=True)
class Course:
    """A stage with what it reads."""

    stage: Stage
    report: str  # the stage of the report that it stands for
    phases: tuple[tuple[float, Mixture], ...]  # a mixture, and until which share of the steps it holds
    room: int  # tokens of a packed row

    def __post_init__(self) -> None:
        ends = [until for until, _ in self.phases]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise ValueError(f"expected phases that end at growing shares of the stage, the last at 1.0; got {ends}")

    def mixture_at(self, step: int, steps: int) -> Mixture:
        """The mixture of that step of `steps`."""
        return next(mixture for until, mixture in self.phases if step < until * steps)

    def lessons_from(self, config: KeyeConfig, steps: int, tokens: int) -> Callable[[int], Iterator[PackedLesson]]:
        """For `stage.teach`: packed batches of about `tokens` tokens; every stage reads documents of its own."""
        at = lambda step: self.mixture_at(step, steps)  # noqa: E731
        return batches_from(at, config, steps, self.stage.number, tokens, self.room)


SUM, WHEN, COLOUR, HALF = Kind("sum"), Kind("when", SHORT), Kind("colour", SHORT), Kind("half", SHORT)
WHEN_WORDS, COLOUR_WORDS = replace(WHEN, pixels=False), replace(COLOUR, pixels=False)
CHOICE = Kind("choice", SHORT)
TEXT = ((SUM, 0.1), (WHEN_WORDS, 0.1))  # of the stages that mix text in


def long_and_short(frames: int) -> Mixture:
    """Half of the tokens in long videos, half in everything that was learnt before (report: long to short 1:1)."""
    short = ((WHEN, 0.1), (COLOUR, 0.1), (HALF, 0.2), (SUM, 0.05), (WHEN_WORDS, 0.05))
    return Mixture(((replace(WHEN, frames=frames), 0.5), *short))


def once(*parts: tuple[Kind, float]) -> tuple[tuple[float, Mixture], ...]:
    """One mixture from the first step to the last."""
    return ((1.0, Mixture(parts)),)


def speaks(name: str) -> bool:
    """The decoder, without its indexers."""
    return name.startswith(("model.", "lm_head.")) and "sa_indexer" not in name


def connects(name: str) -> bool:
    """The projector."""
    return name.startswith("mlp_AR.")


COURSES = (
    Course(
        replace(DENSE, name="language", number=10, learns=speaks),
        "before",
        once((SUM, 0.2), (WHEN_WORDS, 0.4), (COLOUR_WORDS, 0.4)),
        160,
    ),
    Course(replace(DENSE, name="projector", number=11, learns=connects), "0", once((WHEN, 0.5), (COLOUR, 0.5)), 96),
    Course(replace(DENSE, name="general", number=12), "1", once((WHEN, 0.4), (COLOUR, 0.4), *TEXT), 160),
    Course(
        replace(DENSE, name="multitask", number=13), "2", once((WHEN, 0.15), (COLOUR, 0.15), (HALF, 0.5), *TEXT), 192
    ),
    Course(replace(WARMUP, name="switch", number=14), "3", ((1.0, long_and_short(LONG)),), 256),
    Course(
        replace(SPARSE, name="long", number=15), "3", ((0.4, long_and_short(MIDDLE)), (1.0, long_and_short(LONG))), 256
    ),
    Course(
        replace(SPARSE, name="sft", number=16),
        "SFT",
        once((CHOICE, 0.4), (replace(WHEN, frames=LONG), 0.1), (HALF, 0.1), (SUM, 0.2), (WHEN_WORDS, 0.2)),
        256,
    ),
)
ORDER = {course.stage.name: course for course in COURSES}

# The forgetting probe: what is asked after every stage, in the order in which it is learnt.
ABILITIES = {
    "sum": SUM,
    "second, in words": WHEN_WORDS,
    "second": WHEN,
    "colour": COLOUR,
    "half": HALF,
    "second, long": replace(WHEN, frames=LONG),
    "choice": CHOICE,
}
