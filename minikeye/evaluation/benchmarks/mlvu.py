"""MLVU: seven tasks of choice about long videos (dev), or nine (test); the score is the mean over tasks.

    FOLDER/json/1_plotQA.json ... 7_topic_reasoning.json (or data/, or FOLDER itself)   FOLDER/video/1_plotQA/NAME ...
    FOLDER/test_multi_choice_tasks.json, test-ground-truth/test_mcq_gt.json if known    FOLDER/MLVU_Test/video/NAME

In the dev files the answer is an option's text, not a letter. The two tasks of free text (8 and 9) need a judge and are
not asked.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minikeye.evaluation.benchmarks.question import (
    Benchmark,
    Question,
    Reading,
    Row,
    lettered,
    load_rows,
    require_own_keys,
)

TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
FIELDS = ("video", "question", "candidates", "question_type")
TEST = "test_multi_choice_tasks.json"
TRUTH = Path("test-ground-truth") / "test_mcq_gt.json"
SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
PROMPT = "Question: {}\nOptions:\n{}\nOnly give the best option."


def read(folder: Path) -> list[Question]:
    """The dev set's tasks that are in the folder, else the test set. Raises ValueError as `Row`."""
    home = next((at for at in (folder / "json", folder / "data", folder) if any(at.glob("[1-7]_*.json"))), None)
    if home is not None:
        there = [task for task in TASKS if (home / f"{task}.json").is_file()]
        if there:
            return [one for task in there for one in _read_dev(home / f"{task}.json", folder / "video" / task)]
    if (folder / TEST).is_file():
        return require_own_keys(list(_read_test(folder)), folder / TEST)
    raise FileNotFoundError(f"neither {TASKS[0]}.json ... nor {TEST} in {folder}: --data names the folder of MLVU")


def _read_dev(file: Path, videos: Path) -> Iterator[Question]:
    for n, record in enumerate(load_rows(file)):
        row = Row.of(file, f"row {n}", record, [*FIELDS, "answer", "duration"], ["question_id"])
        row.number("duration")
        yield _question(row, f"{file.stem}/{n}", videos, row.text("answer"))


def _read_test(folder: Path) -> Iterator[Question]:
    truths = _truths(folder / TRUTH)
    for n, record in enumerate(load_rows(folder / TEST)):
        row = Row.of(folder / TEST, f"row {n}", record, [*FIELDS, "question_id"], ["answer", "duration"])
        key = row.text("question_id")
        if truths and key not in truths:
            raise row.error("question_id", f"is not in {TRUTH}: {key!r:.80}")
        yield _question(row, key, folder / "MLVU_Test" / "video", truths.get(key))


def _truths(file: Path) -> dict[str, str]:
    """question_id -> the right option, as text or letter; empty where the file is not there."""
    if not file.is_file():
        return {}
    other = [*FIELDS, "duration"]
    rows = (Row.of(file, f"row {n}", one, ["question_id", "answer"], other) for n, one in enumerate(load_rows(file)))
    return {row.text("question_id"): row.text("answer") for row in rows}


def _question(row: Row, key: str, videos: Path, answer: str | None) -> Question:
    candidates, task = row.texts("candidates"), row.text("question_type")
    letters, options = lettered(candidates, "({}) {}")
    truth = None
    if answer is not None:
        right = [letter for letter, text in zip(letters, candidates, strict=True) if text == answer]
        right = right or [letter for letter in letters if letter == answer]
        if len(right) != 1:
            raise row.error("answer", f"must be exactly one of the candidates {candidates}, got {answer!r:.80}")
        truth = right[0]
    return Question(
        benchmark="mlvu",
        key=key,
        video=row.path("video", videos),
        prompt=PROMPT.format(row.text("question"), options),
        letters=letters,
        truth=truth,
        splits={"task": task},
        system=SYSTEM,
        details={"question_id": row.content.get("question_id", key), "question_type": task},
    )


def official(readings: Sequence[Reading]) -> dict[str, Any]:
    """[{"question_id", "question_type", "option"}]; "" for an answer that could not be read (our choice)."""
    return {"test_res.json": [{**one.question.details, "option": one.said or ""} for one in readings]}


BENCHMARK = Benchmark(
    name="mlvu",
    read=read,
    official=official,
    rule="MLVU: the letter after the thought, none is wrong, no judge; M-Avg is the mean over tasks, not over "
    "questions; the two tasks of free text are left out",
    fps=2.0,
    whose="our choice: the report does not say its own",
)
