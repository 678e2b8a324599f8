"""Scores of a run: per split, beside chance and the blind run, with intervals and what could not be read.

Intervals draw videos, not questions: the questions about one video are not independent. Chance is a letter drawn at
random; for an interval, the best answer that looks at no video: the same shares of every duration.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minikeye.evaluation.benchmarks.answers import interval, option, without_thoughts
from minikeye.evaluation.benchmarks.choice_scores import accuracy, bootstrap, mean_over
from minikeye.evaluation.benchmarks.group_scores import expected_score, group_score, non_linear
from minikeye.evaluation.benchmarks.question import Question, Reading
from minikeye.evaluation.benchmarks.run import BENCHMARKS, Answer
from minikeye.evaluation.benchmarks.timelens_scores import iou, recalls
from minikeye.files import write_whole

SEED = 0  # of the intervals
PARTS = 10  # shares of a duration that the constant answer is tried at: our choice
Parts = dict[str, list[Reading]]


@dataclass(frozen=True)
class Score:
    """One number of a report, in percent."""

    name: str
    split: str  # "all", or "task: ego"
    n: int  # questions, of the non-linear score groups
    value: float
    low: float  # 95 %
    high: float
    chance: float
    unparsed: int  # answers among them that could not be read
    blind: float | None = None  # the same without the videos, where the folder has it


def readings_of(questions: Sequence[Question], answers: Sequence[Answer]) -> list[Reading]:
    """What each answer says once its thought is taken away."""
    readings = []
    for question, answer in zip(questions, answers, strict=True):
        words = without_thoughts(answer.text)
        said = option(words, question.letters) if question.letters else interval(words)
        readings.append(Reading(question, words, said))
    return readings


def report(
    questions: Sequence[Question],
    answers: Sequence[Answer],
    settings: Mapping[str, Any],
    blind: Mapping[str, Answer] | None = None,
) -> dict[str, Any]:
    """What report.json holds: the rule, all settings, what was seen, and the scores.

    blind: answers to all these questions without their videos, by key. Questions whose truth is secret are not scored.
    """
    readings = readings_of(questions, answers)
    known = [one for one in readings if one.question.truth is not None]
    scores = scores_of(known) if known else []
    if blind and known and all(one.question.key in blind for one in known):
        asked = [one.question for one in known]
        unseen = scores_of(readings_of(asked, [blind[one.key] for one in asked]))
        values = {(one.name, one.split): one.value for one in unseen}
        scores = [replace(one, blind=values[one.name, one.split]) for one in scores]
    seen = [answer for answer in answers if answer.frames]
    return {
        "benchmark": settings["benchmark"],
        "rule": settings["rule"],
        "settings": dict(settings),
        "questions": len(questions),
        "videos": len({one.clip for one in questions}),
        "secret": len(readings) - len(known),
        "unparsed": sum(one.said is None for one in readings),
        "errors": sum(bool(answer.error) for answer in answers),
        "frames": _range(answer.frames for answer in seen),
        "frame_tokens": _range(answer.frame_tokens for answer in seen),
        "prompt_tokens": _range(answer.prompt_tokens for answer in answers if not answer.error),
        "scores": [asdict(one) for one in scores],
    }


def export(questions: Sequence[Question], answers: Sequence[Answer], folder: Path) -> list[Path]:
    """Write the benchmark's official files of these answers, for the published scripts' own word; which ones."""
    files = BENCHMARKS[questions[0].benchmark].official(readings_of(questions, answers))
    for name, content in files.items():
        write_whole(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    return [folder / name for name in files]


def scores_of(readings: Sequence[Reading]) -> list[Score]:
    """Those of the benchmark that the questions are from, whose truth is known."""
    makers = {"timelens": _timelens, "video-mme-v2": _video_mme, "longvideobench": _accuracies, "mlvu": _mlvu}
    return makers[readings[0].question.benchmark](readings)


# ------------------------------------------------------------------------------------------------------ one benchmark


def _timelens(readings: Sequence[Reading]) -> list[Score]:
    """Mean IoU and recalls of each set, never pooled."""
    scores = []
    for split, part in _by(readings, "set").items():
        ious = [iou(one.said, one.question.truth) for one in part]
        chance = _constant(part)
        for name, value in recalls(ious).items():
            reach = float(name.rpartition("@")[2]) if "@" in name else None
            values = [100 * (x if reach is None else float(x >= reach)) for x in ious]
            scores.append(_score(name, split, part, value, values, chance[name]))
    return scores


def _accuracies(readings: Sequence[Reading]) -> list[Score]:
    """Over all questions, and in each part of each division."""
    parts = {"all": list(readings)}
    for division in readings[0].question.splits:
        parts |= _by(readings, division)
    return [_accuracy(split, part) for split, part in parts.items()]


def _mlvu(readings: Sequence[Reading]) -> list[Score]:
    """The mean over tasks, and each task.

    For the interval each question says how far it moves that mean away from where it is: a question of a small task by
    more than one of a large task (our choice; drawing tasks anew would need questions of every task in every draw).
    """
    tasks = _by(readings, "task")
    value = mean_over({task: [one.right for one in part] for task, part in tasks.items()})
    values = []
    for one in readings:
        part = tasks[f"task: {one.question.splits['task']}"]
        apart = one.right - sum(other.right for other in part) / len(part)
        values.append(value + 100 * apart * len(readings) / (len(tasks) * len(part)))
    chance = sum(_guess(part) for part in tasks.values()) / len(tasks)
    return [_score("M-Avg", "all", readings, value, values, chance), *_accuracies(readings)]


def _video_mme(readings: Sequence[Reading]) -> list[Score]:
    """Accuracy, and the non-linear score of the groups whose four questions were all asked."""
    groups: Parts = defaultdict(list)
    for one in readings:
        groups[one.question.group].append(one)
    whole = [group for group in groups.values() if len(group) == 4]
    parts = {"all": whole} if whole else {}
    for division in readings[0].question.splits:
        for group in whole:
            parts.setdefault(f"{division}: {group[0].question.details['splits'][division]}", []).append(group)
    return [*(_non_linear(split, part) for split, part in parts.items()), *_accuracies(readings)]


def _non_linear(split: str, groups: Sequence[Sequence[Reading]]) -> Score:
    values, chances = [], []
    for group in groups:
        facts = group[0].question.details["structure"], group[0].question.details["kind"]
        values.append(group_score([one.right for one in group], *facts))
        chances.append(100 * expected_score([1 / len(one.question.letters) for one in group], *facts))
    firsts = [group[0] for group in groups]
    percent, chance = [100 * value for value in values], sum(chances) / len(chances)
    score = _score("non-linear", split, firsts, non_linear(values), percent, chance)
    return replace(score, unparsed=sum(one.said is None for group in groups for one in group))


# -------------------------------------------------------------------------------------------------------- their parts


def _score(
    name: str, split: str, readings: Sequence[Reading], value: float, values: Sequence[float], chance: float
) -> Score:
    """values: in percent, one for each reading; their mean is the value."""
    low, high = bootstrap(values, [one.question.clip for one in readings], SEED)
    return Score(name, split, len(readings), value, low, high, chance, sum(one.said is None for one in readings))


def _accuracy(split: str, readings: Sequence[Reading]) -> Score:
    right = [one.right for one in readings]
    return _score("accuracy", split, readings, accuracy(right), [100.0 * hit for hit in right], _guess(readings))


def _guess(readings: Sequence[Reading]) -> float:
    """Percent right of a letter drawn at random."""
    return 100 * sum(1 / len(one.question.letters) for one in readings) / len(readings)


def _constant(readings: Sequence[Reading]) -> dict[str, float]:
    """For each score by itself the best that the same shares of every duration reach."""
    best: dict[str, float] = {}
    asked = [(one.question.details["duration"] / PARTS, one.question.truth) for one in readings]
    for stop in range(1, PARTS + 1):
        for start in range(stop):
            found = recalls([iou((start * part, stop * part), truth) for part, truth in asked])
            best = {name: max(value, best.get(name, 0.0)) for name, value in found.items()}
    return best


def _by(readings: Sequence[Reading], division: str) -> Parts:
    """ "task: ego" -> the readings of that part, in the order in which parts come."""
    parts: Parts = defaultdict(list)
    for one in readings:
        parts[f"{division}: {one.question.splits[division]}"].append(one)
    return dict(parts)


def _range(values: Iterable[int]) -> list[int | float]:
    """Least, mean and most; empty where there are none."""
    values = list(values)
    return [min(values), sum(values) / len(values), max(values)] if values else []
