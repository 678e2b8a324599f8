"""LongVideoBench: referring questions about videos of up to an hour; options A to E.

    FOLDER/lvb_val.json, or lvb_test_wo_gt.json where no truth is known; or the same as .parquet, where the options
    FOLDER/videos/...                                                     stand in option0 .. option4, "N/A" is none

Videos alone: no subtitles are shown (`val_v` of the harnesses).
"""

from collections.abc import Sequence
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

FILES = (
    "lvb_val.json",
    "validation-00000-of-00001.parquet",
    "lvb_test_wo_gt.json",
    "test-00000-of-00001.parquet",
)
FIELDS = ("id", "video_id", "video_path", "duration", "duration_group", "question_category", "question")
OTHER = (  # known, and not needed for a video alone
    "subtitle_path",
    "starting_timestamp_for_subtitles",
    "question_wo_referring_query",
    "topic_category",
    "position",
    "level",
    "view_count",
)
OPTIONS = tuple(f"option{n}" for n in range(5))
PROMPT = "Question: {}\n{}\nAnswer with the option's letter from the given choices directly."


def read(folder: Path) -> list[Question]:
    """The validation set, else the test set, whose questions have no truth. Raises ValueError as `Row`."""
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"none of {', '.join(FILES)} in {folder}: --data names the folder of LongVideoBench")
    rows = enumerate(load_rows(file))
    return require_own_keys([_read_row(file, n, record, folder) for n, record in rows], file)


def _read_row(file: Path, n: int, record: object, folder: Path) -> Question:
    split = isinstance(record, dict) and "option0" in record  # the form of the parquet files
    needed = [*FIELDS, *(OPTIONS if split else ("candidates",))]
    secret = file.name.startswith(("lvb_test", "test"))
    needed += [] if secret else ["correct_choice"]
    row = Row.of(file, f"row {n}", record, needed, [*OTHER, "correct_choice"])
    letters, options = lettered(_options(row) if split else row.texts("candidates"))
    truth = None if secret else letters[row.choice("correct_choice", range(len(letters)))]
    group = row.content["duration_group"]
    if isinstance(group, bool) or not str(group).isdecimal():
        raise row.error("duration_group", f"must be a whole number of seconds, got {group!r:.80}")
    row.number("duration")
    return Question(
        benchmark="longvideobench",
        key=row.text("id"),
        video=row.path("video_path", folder / "videos"),
        prompt=PROMPT.format(row.text("question"), options),
        letters=letters,
        truth=truth,
        splits={"duration": str(group), "category": row.text("question_category")},
    )


def _options(row: Row) -> list[str]:
    """option0 .. option4 up to the first "N/A": behind it only more of them may stand."""
    texts = [row.text(name) for name in OPTIONS]
    count = texts.index("N/A") if "N/A" in texts else len(texts)
    if count < 2 or set(texts[count:]) - {"N/A"}:
        raise row.error("option0", f"to option4 must be at least two options, then 'N/A', got {texts!r:.80}")
    return texts[:count]


def official(readings: Sequence[Reading]) -> dict[str, Any]:
    """{id: letter}; "" for an answer that could not be read (our choice)."""
    return {"longvideobench.json": {one.question.key: one.said or "" for one in readings}}


BENCHMARK = Benchmark(
    name="longvideobench",
    read=read,
    official=official,
    rule="LongVideoBench: the letter after the thought; none is wrong, where other harnesses draw a random option; "
    "accuracy over questions; frames evenly spread to the end of the video; no subtitles",
    fps=2.0,
)
