"""TimeLens-Bench: from when to when does it happen? Charades, ActivityNet and QVHighlights, cleaned; scored apart.

    FOLDER/charades-timelens.json  activitynet-timelens.json  qvhighlights-timelens.json
    FOLDER/videos/charades/VIDEO.mp4 ...
    {VIDEO: {"duration": seconds, "spans": [[start, end], ...], "queries": [text, ...]}}

Span i belongs to query i. Sets whose file is not there are left out (our choice).
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minikeye.evaluation.benchmarks.question import Benchmark, Question, Reading, Row, load_json

SETS = ("charades", "activitynet", "qvhighlights")
FIELDS = ("duration", "spans", "queries")
PROMPT = (
    "Please find the visual event described by the sentence '{}', determining its starting and ending times. "
    "The format should be: 'The event happens in <start time> - <end time> seconds'."
)


def read(folder: Path) -> list[Question]:
    """The queries of all sets in the folder. Raises FileNotFoundError where it holds none, ValueError as `Row`."""
    files = {name: folder / f"{name}-timelens.json" for name in SETS}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        names = ", ".join(file.name for file in files.values())
        raise FileNotFoundError(f"none of {names} in {folder}: --data names the folder that TimeLens-Bench unpacks to")
    return [question for name, file in there.items() for question in _read_set(name, file)]


def _read_set(name: str, file: Path) -> Iterator[Question]:
    videos = load_json(file)
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f"{file} must hold an object with a record for every video, got {videos!r:.80}")
    for video, record in videos.items():
        row = Row.of(file, f"video {video!r}", record, FIELDS)
        seconds, queries, spans = row.number("duration"), row.texts("queries"), row.content["spans"]
        if not isinstance(spans, list) or len(spans) != len(queries):
            raise row.error("spans", f"must be a list of a span for each of {len(queries)} queries, got {spans!r:.80}")
        path = Row(file, row.name, {"video": f"{video}.mp4"}).path("video", file.parent / "videos" / name)
        for n, (query, span) in enumerate(zip(queries, spans, strict=True)):
            query = re.sub(r"\s+", " ", query).strip().rstrip(".")
            yield Question(
                benchmark="timelens",
                key=f"{name}/{video}/{n}",
                video=path,
                prompt=PROMPT.format(query),
                letters="",
                truth=_span(row, span),
                splits={"set": name},
                details={"video": video, "query": query, "span": span, "duration": seconds},
            )


def _span(row: Row, span: Any) -> tuple[float, float]:
    numbers = isinstance(span, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in span)
    if not numbers or len(span) != 2 or not 0 <= span[0] < span[1] < float("inf"):
        raise row.error("spans", f"must hold [start, end] pairs in seconds, 0 <= start < end, got {span!r:.80}")
    return float(span[0]), float(span[1])


def official(readings: Sequence[Reading]) -> dict[str, Any]:
    """A file a set: {"VIDEO>>>QUERY>>>[start, end]": {"timestamps": [[start, end]], "answers": text}}.

    Thoughts are left out: the published parser takes the first pair of the whole text. Of queries that are equal in all
    three the first is kept; the form has room for no other, and its n is smaller than the report's.
    """
    files: dict[str, Any] = {}
    for one in readings:
        facts, file = one.question.details, files.setdefault(f"timelens-{one.question.splits['set']}.json", {})
        times = {} if one.said is None else {"timestamps": [list(one.said)]}
        key = f"{facts['video']}>>>{facts['query']}>>>{json.dumps(facts['span'])}"
        file.setdefault(key, {**times, "answers": one.words})
    return files


BENCHMARK = Benchmark(
    name="timelens",
    read=read,
    official=official,
    rule="TimeLens: the first pair of times after the thought; IoU with the one true span, 0 where there is no pair or "
    "it does not end after it starts; sets apart, no pooled number",
    fps=4.0,
)
