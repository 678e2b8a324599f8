"""One question of a published benchmark, whatever file it came from; and how the rows of such files are read.

A row must have every field that its benchmark names, of the right kind, and no other: a file that was changed, cut or
mixed up is an error that names file, row and field, not a lower score.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Said = str | tuple[float, float] | None  # a letter, (start, end) in seconds, or neither


@dataclass(frozen=True)
class Question:
    """What is asked, what would be right, and everything that a score or an official file needs besides."""

    benchmark: str
    key: str  # of this question alone
    video: Path
    prompt: str
    letters: str  # of the options, "ABCD"; "" where an interval is asked for
    truth: Said  # None where the file keeps it secret
    splits: Mapping[str, str]  # name of a division -> the part that this question is in
    group: str = ""  # questions that are scored together share one
    system: str = ""  # words before everything, where the benchmark has some
    details: Mapping[str, Any] = field(default_factory=dict)  # what one benchmark's score or export needs

    @property
    def clip(self) -> str:
        """The video as intervals count it: questions about one video are not independent."""
        return str(self.video)


@dataclass(frozen=True)
class Reading:
    """A question, and what an answer to it says."""

    question: Question
    words: str  # the answer without its thought
    said: Said  # None where it cannot be read

    @property
    def right(self) -> bool:
        return self.said is not None and self.said == self.question.truth


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it is run here."""

    name: str
    read: Callable[[Path], list[Question]]  # of a data folder
    official: Callable[[Sequence[Reading]], dict[str, Any]]  # name of an official file of predictions -> its JSON
    rule: str  # how answers are read and scored, and in what this differs from other rules: part of every report
    fps: float | None = None  # frames per second of the report's own setting
    frames: int | None = None  # or so many of every video, evenly spread
    whose: str = "the report's setting"  # where that comes from


@dataclass(frozen=True)
class Row:
    """One record of a file, whose fields are read by name and kind."""

    file: Path
    name: str  # "row 3", or the key it stands under
    content: Mapping[str, Any]

    @classmethod
    def of(cls, file: Path, name: str, content: Any, needed: Collection[str], other: Collection[str] = ()) -> "Row":
        """Raises ValueError for what is no record, a missing field, and one that is neither needed nor known."""
        if not isinstance(content, Mapping):
            raise ValueError(
                f"{file}, {name}: expected an object with the fields {listed(needed)}, got {content!r:.80}"
            )
        row = cls(file, name, content)
        for one in needed:
            if one not in content:
                raise row.error(one, "is missing: is this another version of the benchmark, or a part of its file?")
        for one in content:
            if one not in needed and one not in other:
                raise row.error(one, f"is unknown: expected {listed([*needed, *other])}")
        return row

    def error(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.file}, {self.name}, field {name!r} {what}")

    def text(self, name: str) -> str:
        """A string that is not empty."""
        value = self.content[name]
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f"must be a text that is not empty, got {value!r:.80}")
        return value

    def choice(self, name: str, among: Sequence[Any]) -> Any:
        """One of some values, of their kind: 1 is not True."""
        value = self.content[name]
        if not any(type(value) is type(one) and value == one for one in among):
            raise self.error(name, f"must be one of {listed(among)}, got {value!r:.80}")
        return value

    def number(self, name: str) -> float:
        """A number above 0."""
        value = self.content[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, f"must be a number above 0, got {value!r:.80}")
        return float(value)

    def texts(self, name: str) -> list[str]:
        """A list of at least one string that is not empty."""
        value = self.content[name]
        if not isinstance(value, list) or not value or not all(isinstance(x, str) and x.strip() for x in value):
            raise self.error(name, f"must be a list of texts that are not empty, got {value!r:.80}")
        return value

    def path(self, name: str, folder: Path) -> Path:
        """A file in `folder`, there or not; links are followed, a name that leads out of the folder is none."""
        path = folder / self.text(name)
        if ".." in Path(self.content[name]).parts or not path.is_relative_to(folder):
            raise self.error(name, f"must name a file in {folder}, got {self.content[name]!r:.80}")
        return path


def load_json(file: Path) -> Any:
    """What a JSON file holds. Raises FileNotFoundError, and ValueError for what is no JSON."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: --data names the folder into which the benchmark was downloaded")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def load_rows(file: Path) -> list[Any]:
    """The records of a JSON list or of a parquet file. Raises ValueError for anything else, and for an empty one."""
    rows = load_parquet(file) if file.suffix == ".parquet" else load_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a list of at least one row, got {rows!r:.80}")
    return rows


def load_parquet(file: Path) -> list[Any]:
    """The rows of a parquet file. Raises ModuleNotFoundError, saying what to install, where pyarrow is not there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} is a parquet file, which needs pyarrow: pip install 'minikeye[benchmarks]', or pip install pyarrow"
        ) from error
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


def lettered(options: Sequence[str], form: str = "{}. {}") -> tuple[str, str]:
    """The letters of the options, and a line for each: "AB", "A. a dog\\nB. a cat"."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    return letters, "\n".join(form.format(letter, option) for letter, option in zip(letters, options, strict=True))


def require_own_keys(questions: Sequence[Question], file: Path) -> list[Question]:
    """The questions. Raises ValueError where two share a key: one would overwrite the other's answer."""
    seen = set[str]()
    for one in questions:
        if one.key in seen:
            raise ValueError(f"{file}: two questions have the key {one.key!r}, expected one")
        seen.add(one.key)
    return list(questions)


def listed(values: Collection[Any]) -> str:
    return ", ".join(str(value) for value in values)
