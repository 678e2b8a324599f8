"""Video-MME-v2: four linked questions about each of 800 videos, eight options; scored apart and as groups.

FOLDER/test.parquet, or the same rows as a list in test.json (our choice, for those without pyarrow)
FOLDER/videos/VIDEO_ID.mp4
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minikeye.evaluation.benchmarks.group_scores import CHAINS
from minikeye.evaluation.benchmarks.question import Benchmark, Question, Reading, Row, load_rows, require_own_keys

FIELDS = (
    "video_id",
    "question_id",
    "question",
    "options",
    "answer",
    "group_type",
    "group_structure",
    "level",
    "second_head",
    "third_head",
)
HEADS = ("level", "second_head", "third_head")
PROMPT = (
    "These are the frames of a video. Select the best answer to the following multiple-choice question based on the "
    "video. Respond with only the letter ({}) of the correct option.\nQuestion: {}\n{}"
)


def read(folder: Path) -> list[Question]:
    """All questions, those of a group together and in order. Raises ValueError as `Row`, and for a broken group."""
    file = folder / "test.parquet"
    file = file if file.is_file() or not (folder / "test.json").is_file() else folder / "test.json"
    if not file.is_file():
        raise FileNotFoundError(f"no test.parquet in {folder}: --data names the folder of Video-MME-v2")
    groups: dict[str, list[Question]] = defaultdict(list)
    for n, record in enumerate(load_rows(file)):
        one = _read_row(Row.of(file, f"row {n}", record, FIELDS), folder)
        groups[one.group].append(one)
    return require_own_keys([one for group in groups.values() for one in _whole(group, file)], file)


def _read_row(row: Row, folder: Path) -> Question:
    video, key, options = row.text("video_id"), row.text("question_id"), row.text("options").strip()
    letters = "".join(re.findall(r"^\s*([A-Z])\.", options, re.M))
    if letters != "ABCDEFGH"[: len(letters)] or len(letters) < 2:
        raise row.error("options", f"must be lines 'A. ...' to 'H. ...' in order, got {options!r:.80}")
    if not re.fullmatch(re.escape(video) + r"-[1-4]", key):
        raise row.error("question_id", f"must be the video's id and -1 to -4, got {key!r:.80}")
    kind = row.choice("group_type", ("relevance", "logic"))
    structure = _structure(row) if kind == "logic" else None
    if isinstance(row.content["level"], bool) or str(row.content["level"]) not in ("1", "2", "3"):
        raise row.error("level", f"must be 1, 2 or 3, got {row.content['level']!r:.80}")
    return Question(
        benchmark="video-mme-v2",
        key=key,
        video=Row(row.file, row.name, {"video_id": f"{video}.mp4"}).path("video_id", folder / "videos"),
        prompt=PROMPT.format(_named(letters), row.text("question"), options),
        letters=letters,
        truth=row.choice("answer", letters),
        splits={"level": str(row.content["level"]), **{head: row.text(head) for head in HEADS[1:]}},
        group=video,
        details={"kind": kind, "structure": structure},
    )


def _structure(row: Row) -> list[Any]:
    """Which steps a chain has."""
    text = row.text("group_structure")
    found = [one for one in CHAINS if json.dumps(one).replace(" ", "") == re.sub(r"\s", "", text)]
    if not found:
        raise row.error("group_structure", f"must be one of {', '.join(map(str, CHAINS))}, got {text!r:.80}")
    return found[0]


def _named(letters: str) -> str:
    """ "ABC" -> "A, B, or C"."""
    return f"{', '.join(letters[:-1])}, or {letters[-1]}"


def _whole(group: list[Question], file: Path) -> list[Question]:
    """The four of a video in their order; what the group is scored as is the same in all of them."""
    group = sorted(group, key=lambda one: one.key)
    if [one.key.rpartition("-")[2] for one in group] != ["1", "2", "3", "4"]:
        raise ValueError(
            f"{file}: a group has the questions -1 to -4 of one video, got {', '.join(one.key for one in group)}"
        )
    if any(one.details != group[0].details for one in group):
        raise ValueError(f"{file}: group_type and group_structure must be the same in all rows of {group[0].group!r}")
    last = dict(group[-1].splits)  # a group is of the level and the heads of its last question, as published
    return [replace(one, details={**one.details, "splits": last}) for one in group]


def official(readings: Sequence[Reading]) -> dict[str, Any]:
    """No file: none is published for predictions made elsewhere."""
    return {}


BENCHMARK = Benchmark(
    name="video-mme-v2",
    read=read,
    official=official,
    rule="Video-MME-v2: the letter after the thought, none is wrong; accuracy over questions, and the non-linear "
    "score: relevance (N/4)^2, logic by its longest right prefix, mean over groups; no subtitles",
    frames=64,
    whose="the report's setting beside 512 (--frames 512)",
)
