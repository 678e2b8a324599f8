"""Questions about fresh test videos, answered and scored, with every score split by what the generator drew.

A mean hides cases: a model that is right about videos with one thing and guesses about those with two looks good on the
average. So each line of a report holds its scores for every level of every factor, the chance beside them, and a line
with a level missing is refused (`require_levels`).

Axes: b batch, f frame.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minikeye.inputs.prompt import FrameSpan
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.lessons import Lesson, Size, parts_right, question_prompts
from minikeye.minivid.scene import PLAIN, Difficulty
from minikeye.minivid.tasks import Event, Problem, grounding, parse_interval, score
from minikeye.model.record import Record
from minikeye.scores import SECONDS_TOLERANCE, bootstrap_mean, constant_iou, temporal_iou, wilson
from minikeye.training.step import autocast

SEED = 7  # of the test videos
FOOTAGE = {
    "plain": PLAIN,
    "hard": Difficulty(hard=True),
    "crowd": Difficulty(crowd=True),
    "two cards": Difficulty(hard=True, second_card=1.0),
}
CONTROLS = ("", "blank", "wrong word")
THIRDS = ("first third", "middle third", "last third")
FACTORS = {
    "N": {"things": ("one", "two"), "place": THIRDS, "digit": tuple("0123456789")},
    "G": {"things": ("one", "two"), "place": THIRDS, "duration": ("up to a quarter", "longer")},
    "D": {"visible": ("none", "one", "two"), "things": ("one", "two")},
    "Y": {"there": ("yes", "no"), "things": ("one", "two")},
}


def factors(task: str, footage: str) -> dict[str, tuple[str, ...]]:
    """What the generator draws for this task on this kind of footage: factor -> its levels."""
    return FACTORS[task] | ({"things": ("two", "three to six")} if footage == "crowd" else {})


@dataclass(frozen=True)
class Run:
    """One line of the report."""

    task: str  # "N" needle, "G" grounding, "D" naming, "Y" presence
    frames: int
    attention: str  # "sparse" or "dense"
    model: str  # "final", or "dense" for the checkpoint before the indexer was taught
    control: str = ""  # "blank": grey frames; "wrong word": G about a thing that is not there, scored as before
    height: int = 56  # pixels
    width: int = 56  # pixels
    footage: str = "plain"  # one of FOOTAGE
    n: int = 1000  # questions

    def __post_init__(self) -> None:
        for name, known in (("task", FACTORS), ("footage", FOOTAGE), ("control", CONTROLS)):
            if getattr(self, name) not in known:
                raise ValueError(f"expected a {name} of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if self.control == "wrong word" and self.task != "G":
            raise ValueError(f"expected task G, which asks for a thing by its name, for a wrong word, got {self.task}")


@dataclass(frozen=True)
class Question:
    """One question about a video, the levels it belongs to, and what is needed to say what chance would score."""

    problem: Problem
    other: Problem | None  # G: the same about the other thing, where the video has two
    levels: dict[str, str]  # factor: level
    seconds: tuple[float, ...]  # times of the video's frames


def questions(videos: MiniVideos, task: str) -> list[Question]:
    """The first question of the task about every video."""
    out = []
    for events, problems, clock in zip(videos.events, videos.problems, videos.seconds.tolist(), strict=True):
        problem = next(p for p in problems if p.task == task)
        things = [event for event in events if event.kind == "thing"]
        about = events[0] if task == "N" else things[0]
        levels = {"things": {1: "one", 2: "two"}.get(len(things), "three to six")}
        levels["place"] = THIRDS[min(2, 3 * about.first // len(clock))]
        levels["digit"] = events[0].name  # every question has every level: which of them count, `factors` says
        levels["duration"] = "longer" if 4 * (about.stop - about.first) > len(clock) else "up to a quarter"
        levels["visible"] = {"nothing": "none"}.get(problem.answer, "two" if " and " in problem.answer else "one")
        levels["there"] = problem.answer
        other = grounding(things[1]) if task == "G" and len(things) == 2 else None
        out.append(Question(problem, other, levels, tuple(clock)))
    return out


def chance(task: str, asked: Sequence[Question]) -> dict[str, float]:
    """What an answer that looks at nothing scores at best on these questions, each from 0 to 1.

    N: the most frequent digit; any frame's second. G: the best interval in twentieths of the duration; "coin": one of
    the two things' true intervals at random, where all videos have two. D and Y: the most frequent answer.
    """
    answers = Counter(q.problem.answer[:1] if task == "N" else q.problem.answer for q in asked)
    commonest = answers.most_common(1)[0][1] / len(asked)
    if task == "N":
        return {"digit": commonest, "second": sum(map(_any_second, asked)) / len(asked)}
    if task != "G":
        return {"exact": commonest}
    truths = [_interval(q.problem) for q in asked]
    out = {"tiou": constant_iou(truths, [q.seconds[-1] for q in asked])}
    if all(q.other is not None for q in asked):
        others = [temporal_iou([_interval(q.other)], [truth]) for q, truth in zip(asked, truths, strict=True)]
        out["coin"] = 0.5 + sum(others) / len(others) / 2
    return out


def _interval(problem: Problem) -> tuple[float, float]:
    return parse_interval(problem.answer)[0]


def _any_second(q: Question) -> float:
    """Share of the frames whose time would pass for the card's."""
    truth = float(q.problem.answer.split(" at ")[1].removesuffix(" s"))
    return sum(abs(t - truth) <= SECONDS_TOLERANCE + 1e-9 for t in q.seconds) / len(q.seconds)


def split(run: Run, asked: Sequence[Question], scores: Sequence[dict[str, float]]) -> dict[str, dict[str, dict]]:
    """Scores for each level of each factor of the run: n, percent, 95 % interval, and chance."""
    out: dict[str, dict[str, dict]] = {}
    for factor, levels in factors(run.task, run.footage).items():
        for level in levels:
            rows = [n for n, q in enumerate(asked) if q.levels[factor] == level]
            if rows:
                out.setdefault(factor, {})[level] = percent([scores[n] for n in rows]) | {
                    f"chance_{name}": round(100 * x, 2)
                    for name, x in chance(run.task, [asked[n] for n in rows]).items()
                }
    return out


def percent(scores: Sequence[dict[str, float]]) -> dict[str, float | list[float] | int]:
    """The mean of each score in percent, with its 95 % interval, and how many there are."""
    out: dict[str, float | list[float] | int] = {"n": len(scores)}
    for name in scores[0]:
        values = [s[name] for s in scores]
        estimate = bootstrap_mean(values) if name == "tiou" else wilson(int(sum(values)), len(values))
        out[name] = round(100 * estimate.mean, 2)
        out[f"{name}_95"] = [round(100 * estimate.low, 2), round(100 * estimate.high, 2)]
    return out


def require_levels(row: dict) -> None:
    """Raise ValueError where a line of a report lacks a level of a factor: a mean alone would hide it."""
    for factor, levels in factors(row["task"], row["footage"]).items():
        if missing := [level for level in levels if row["levels"].get(factor, {}).get(level, {"n": 0})["n"] < 1]:
            raise ValueError(
                f"expected every level of {factor} in the line {row['task']} at {row['frames']} frames, got none of "
                f"{', '.join(missing)}: ask more questions"
            )


def _wrong_word(events: Sequence[Event], problems: Sequence[Problem], number: int) -> tuple[Problem, ...]:
    """The same problems, but for a G about a thing that is not in the video; the answer stays."""
    absent = [kind for kind in KINDS if kind not in {event.name for event in events}]
    question = f"From when to when is the {absent[number % len(absent)]} visible?"
    return tuple(p._replace(question=question) if p.task == "G" else p for p in problems)


def batches(run: Run, tokens: int) -> Iterator[tuple[MiniVideos, list[Question], Size]]:
    """Videos, questions and size of one batch after the other."""
    batch = max(1, min(100, tokens // (13 * run.frames)))
    for first in range(0, run.n, batch):
        numbers = range(first, min(first + batch, run.n))
        videos = make_videos(SEED, numbers, run.frames, "test", difficulty=FOOTAGE[run.footage])
        asked = questions(videos, run.task)
        if run.control == "wrong word":
            rows = zip(videos.events, videos.problems, numbers, strict=True)
            videos = replace(videos, problems=tuple(_wrong_word(*row) for row in rows))
        yield videos, asked, Size(run.frames, len(numbers), run.height, run.width)


@torch.no_grad()
def exact(model: KeyeVL, run: Run, tokens: int = 262_144) -> dict:
    """Share of the questions that would be answered exactly, by one pass over prompt and answer each, with levels."""
    begun, asked, scores = time.monotonic(), [], []
    never = model.config.image_token_id, model.config.video_token_id
    for videos, some, size in batches(run, tokens):
        prompts = question_prompts(videos, run.task, size, model.config, answered=True)
        inputs = Lesson(prompts, videos, size).inputs(model.config, model.device, run.control == "blank")
        with autocast(model.device):
            logits = model(inputs, attention=run.attention).logits
        right = parts_right(logits, inputs["input_ids"], inputs["answer"], never)["exact"]
        asked, scores = asked + some, scores + [{"exact": float(x)} for x in right.tolist()]
    return _row(run, asked, scores, begun)


@torch.no_grad()
def measure(model: KeyeVL, run: Run, tokens: int = 262_144) -> dict:
    """Answer the questions greedily; one row: scores by level, share of keys selected, what the layers selected."""
    begun, tokenizer = time.monotonic(), load_tokenizer(model.config)
    stop, context, asked, scores = (tokenizer.token_id("<|im_end|>"),), 0, [], []
    recorded: list[dict[str, float]] = []  # scores of the answers whose selection is known
    selected: dict[str, list[Tensor]] = {}
    for videos, some, size in batches(run, tokens):
        prompts = question_prompts(videos, run.task, size, model.config)
        frames = prompts.pop("frames")
        mask = prompts["attention_mask"].to(model.device)
        inputs = Lesson(prompts, videos, size).inputs(model.config, model.device, run.control == "blank")
        with autocast(model.device):
            out = model.generate(inputs, max_new_tokens=40, stop_ids=stop, attention=run.attention, record=True)
        answers = [tokenizer.decode(out.row(row)) for row in range(len(some))]
        asked, scores = asked + some, scores + [score(q.problem, a) for q, a in zip(some, answers, strict=True)]
        if run.footage == "two cards":
            for of_video, answer, parts in zip(videos.events, answers, scores[-len(some) :], strict=True):
                parts["consistent"] = float(consistent(of_video, answer))
        context += int(mask.sum())
        if out.record is not None and run.task in "NG":  # None: every answer of the batch is empty
            recorded += scores[-len(some) :]
            padding = mask.shape[1] - mask.sum(dim=1)
            for name, keys in selected_keys(out.record, frames, videos, padding.tolist(), run.task).items():
                selected.setdefault(name, []).append(keys)
    row = _row(run, asked, scores, begun) | {"context": round(context / run.n)}
    read = row["context"] if run.attention == "dense" else model.config.indexer.topk
    row["selected_share"] = round(min(1.0, read / row["context"]), 4)
    if selected:
        row["selected"] = _selected_by_layer({name: torch.cat(keys, 1) for name, keys in selected.items()}, recorded)
    return row


def _row(run: Run, asked: list[Question], scores: list[dict[str, float]], begun: float) -> dict:
    row = {**vars(run), "seconds_taken": round(time.monotonic() - begun, 1), **percent(scores)}
    row |= {f"chance_{name}": round(100 * x, 2) for name, x in chance(run.task, asked).items()}
    return row | {"levels": split(run, asked, scores)}


def consistent(events: Sequence[Event], answer: str) -> bool:
    """Whether digit and second of an answer to N are those of one card, whichever of the video's."""
    cards = [event for event in events if event.kind == "card"]
    return any(score(Problem("N", "", f"{c.name} at {c.start:.1f} s", ""), answer)["both"] for c in cards)


def selected_keys(
    record: Record, frames: Sequence[Sequence[FrameSpan]], videos: MiniVideos, padding: Sequence[int], task: str
) -> dict[str, Tensor]:
    """Where the keys lie that the query of the first answer token selected, [layer b] each.

    "keys": how many there are. N: "card", those in the card's frame. G: "asked" and "other", those in frames that show
    the thing that was asked for, or the video's second thing, but not both. "..._there": visual tokens of such frames.
    """
    out: dict[str, Tensor] = {}

    def put(name: str, layer: int, row: int, value: int) -> None:
        shape = len(record.layers), len(frames)
        out.setdefault(name, torch.zeros(shape, dtype=torch.int64))[layer, row] = value

    for row, spans in enumerate(frames):
        card, *things = videos.events[row]
        shown = [set(range(event.first, event.stop)) for event in things if event.kind == "thing"]
        asked, other = (*shown, set(), set())[:2]
        groups = {"card": {card.first}} if task == "N" else {"asked": asked - other, "other": other - asked}
        for name, wanted in groups.items():
            places = [n + padding[row] for f in wanted for n in range(spans[f].start, spans[f].stop)]
            where = torch.tensor(places, dtype=torch.int64)
            for layer, kept in enumerate(record.layers):
                keys = kept.indices[row, 0].cpu().long()
                put(name, layer, row, int(torch.isin(keys, where).sum()))
                put(f"{name}_there", layer, row, len(places))
                put("keys", layer, row, int((keys >= 0).sum()))
    return out


def _selected_by_layer(selected: dict[str, Tensor], scores: Sequence[dict[str, float]]) -> dict:
    """Percent by layer. hit: at least one key of the card. Else, on videos with frames of either thing alone: share of
    the keys that lie there, over all, where the answer is right (tIoU of 0.5 or more), and where it is wrong."""
    if "card" in selected:
        return {"hit": [round(100 * float(x), 2) for x in (selected["card"] > 0).double().mean(dim=1)]}
    both = (selected["asked_there"][0] > 0) & (selected["other_there"][0] > 0)
    right = torch.tensor([s["tiou"] >= 0.5 for s in scores])
    out: dict[str, dict] = {}
    for name, rows in (("all", both), ("right", both & right), ("wrong", both & ~right)):
        some = {key: values[:, rows].double() for key, values in selected.items()}
        out[name] = {"n": int(rows.sum())}
        if out[name]["n"]:
            for thing in ("asked", "other"):
                share = (some[thing] / some["keys"]).mean(dim=1)
                density = some[thing].sum(dim=1) / some[f"{thing}_there"].sum(dim=1)
                out[name][f"{thing}_share"] = [round(100 * float(x), 2) for x in share]
                out[name][f"{thing}_density"] = [round(100 * float(x), 2) for x in density]
    return out
