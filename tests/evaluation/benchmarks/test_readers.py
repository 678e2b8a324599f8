"""Every reader on three hand-made rows in its form; what is missing, unknown or of a wrong kind is named."""

import copy
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minikeye.evaluation.benchmarks import long_video_bench, mlvu, timelens, video_mme
from minikeye.evaluation.benchmarks.question import load_parquet

from .conftest import long_video_bench_rows, mlvu_rows, timelens_rows, video_mme_rows, write


def options(row: dict) -> dict:
    """A row with its options in five fields, as the parquet copies have them."""
    padded = [*row["candidates"], *["N/A"] * 5][:5]
    return {k: v for k, v in row.items() if k != "candidates"} | {f"option{n}": text for n, text in enumerate(padded)}


def parquet_rows() -> list[dict]:
    return [options(row) for row in long_video_bench_rows()]


def secret_rows() -> list[dict]:
    rows = mlvu_rows("sportsQA")
    for n, row in enumerate(rows):
        row["question_id"] = f"SQA_{n}"
        del row["answer"]
    return rows


@dataclass(frozen=True)
class Form:
    """A form of file: where it lies, what is in it, and which fields cannot be left out."""

    read: Callable
    file: str
    rows: Callable[[], Any]
    needed: tuple[str, ...]
    wrong: dict[str, Any]  # a field -> a value that it cannot have
    name: str = "row 1"  # of the record that is changed


LVB = {
    "id": 7,
    "video_path": "../../etc/passwd",
    "duration": "long",
    "duration_group": 15.5,
    "question_category": "",
    "question": None,
    "correct_choice": 3,
}
MLVU = {"video": 3, "question": " ", "candidates": "red", "question_type": ["ego"]}
FORMS = {
    "timelens": Form(
        timelens.read,
        "charades-timelens.json",
        timelens_rows,
        timelens.FIELDS,
        {"duration": -1, "spans": [[4.0, 4.0]], "queries": [3]},
        "video 'CD34'",
    ),
    "video-mme-v2": Form(
        video_mme.read,
        "test.json",
        video_mme_rows,
        video_mme.FIELDS,
        {
            "video_id": "",
            "question_id": "001-5",
            "question": 5,
            "options": "A. one\nC. two",
            "answer": "I",
            "group_type": "logical",
            "level": 4,
            "second_head": None,
            "third_head": "",
        },
    ),
    "longvideobench": Form(
        long_video_bench.read,
        "lvb_val.json",
        long_video_bench_rows,
        (*long_video_bench.FIELDS, "candidates", "correct_choice"),
        {**LVB, "candidates": []},
    ),
    "longvideobench, five options": Form(
        long_video_bench.read,
        "lvb_val.json",
        parquet_rows,
        (*long_video_bench.FIELDS, *long_video_bench.OPTIONS[1:], "correct_choice"),
        {**LVB, "option0": "N/A"},
    ),
    "mlvu": Form(
        mlvu.read,
        "json/3_ego.json",
        lambda: mlvu_rows("ego"),
        (*mlvu.FIELDS, "answer", "duration"),
        {**MLVU, "answer": "black", "duration": True},
    ),
    "mlvu, test": Form(mlvu.read, mlvu.TEST, secret_rows, (*mlvu.FIELDS, "question_id"), {**MLVU, "question_id": 4}),
}


def record(form: Form, rows: Any) -> dict:
    return rows[1] if isinstance(rows, list) else rows["CD34"]


def refused(form: Form, folder: Path, rows: Any, field: str) -> str:
    """What the error says, which must name file, row and field."""
    file = write(folder / form.file, rows)
    with pytest.raises(ValueError) as caught:
        form.read(folder)
    said = str(caught.value)
    assert said.startswith(f"{file}, {form.name}, field {field!r} "), said
    return said


each = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@each
def test_a_missing_field_is_named(form, tmp_path):
    for field in form.needed:
        rows = copy.deepcopy(form.rows())
        del record(form, rows)[field]
        assert "is missing" in refused(form, tmp_path, rows, field)


@each
def test_an_unknown_field_is_named(form, tmp_path):
    rows = form.rows()
    record(form, rows)["speed"] = 3
    assert "is unknown: expected " in refused(form, tmp_path, rows, "speed")


@each
def test_a_wrong_kind_is_named(form, tmp_path):
    for field, value in form.wrong.items():
        rows = copy.deepcopy(form.rows())
        record(form, rows)[field] = value
        assert "must " in refused(form, tmp_path, rows, field)


@each
def test_a_record_that_is_none(form, tmp_path):
    rows = form.rows()
    if isinstance(rows, list):
        rows[1] = ["A"]
    else:
        rows["CD34"] = ["A"]
    file = write(tmp_path / form.file, rows)
    with pytest.raises(ValueError, match=re.escape(f"{file}, {form.name}: expected an object with the fields ")):
        form.read(tmp_path)


@each
def test_files_that_are_none(form, tmp_path):
    with pytest.raises(FileNotFoundError, match="--data names the folder"):
        form.read(tmp_path)
    file = write(tmp_path / form.file, [])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} must hold"):
        form.read(tmp_path)
    file.write_text("[{", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is not JSON"):
        form.read(tmp_path)


# ------------------------------------------------------------------------------------------------------- what is read


def test_timelens(tmp_path):
    write(tmp_path / "charades-timelens.json", timelens_rows())
    write(tmp_path / "qvhighlights-timelens.json", timelens_rows())
    questions = timelens.read(tmp_path)
    assert [one.key for one in questions] == [
        f"{name}/{at}" for name in ("charades", "qvhighlights") for at in ("AB12/0", "AB12/1", "CD34/0")
    ]
    one = questions[0]
    assert one.prompt == (
        "Please find the visual event described by the sentence 'a person opens a door', determining its starting and "
        "ending times. The format should be: 'The event happens in <start time> - <end time> seconds'."
    )
    assert (one.truth, one.letters, dict(one.splits)) == ((0.0, 10.0), "", {"set": "charades"})
    assert one.video == tmp_path / "videos" / "charades" / "AB12.mp4"
    assert questions[4].truth == (5.2, 20.0)


def test_video_mme_brings_groups_together(tmp_path):
    write(tmp_path / "test.json", video_mme_rows())
    questions = video_mme.read(tmp_path)
    assert [one.key for one in questions] == [f"00{video}-{n}" for video in (1, 2) for n in (1, 2, 3, 4)]
    one = questions[0]
    assert (one.letters, one.truth, one.group) == ("ABCDEFGH", "C", "001")
    assert one.prompt.startswith("These are the frames of a video. Select the best answer")
    assert "letter (A, B, C, D, E, F, G, or H) of" in one.prompt and one.prompt.endswith("\nH. thing 7")
    assert [dict(q.splits)["level"] for q in questions[:4]] == ["1", "1", "2", "2"]
    assert one.details["splits"]["level"] == "2"  # of the group: its last question's
    assert questions[4].details["structure"] == [1, [2, 3], 4] and one.details["structure"] is None


def test_video_mme_takes_no_broken_group(tmp_path):
    write(tmp_path / "test.json", video_mme_rows()[:-1])
    with pytest.raises(ValueError, match=r"questions -1 to -4 of one video, got 002-1, 002-2, 002-3$"):
        video_mme.read(tmp_path)
    rows = video_mme_rows()
    rows[5]["group_type"] = "relevance"
    write(tmp_path / "test.json", rows)
    with pytest.raises(ValueError, match="the same in all rows of '002'"):
        video_mme.read(tmp_path)
    rows[5] |= {"group_type": "logic", "group_structure": "[4, 3, 2, 1]"}
    write(tmp_path / "test.json", rows)
    with pytest.raises(ValueError, match=r"row 5, field 'group_structure' must be one of \[1, 2, 3, 4\], "):
        video_mme.read(tmp_path)


@pytest.mark.parametrize("rows", [long_video_bench_rows, parquet_rows])
def test_long_video_bench_in_both_forms(tmp_path, rows):
    write(tmp_path / "lvb_val.json", rows())
    one, two, other = long_video_bench.read(tmp_path)
    assert one.prompt == (
        "Question: Who stands there?\nA. a man\nB. a dog\nC. a cat\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (one.truth, two.truth, one.letters) == ("B", "A", "ABC")
    assert one.video == two.video == tmp_path / "videos" / "v1.mp4"
    assert dict(other.splits) == {"duration": "3600", "category": "T3O"}


def test_true_is_no_number(tmp_path):
    rows = long_video_bench_rows()
    rows[1]["correct_choice"] = True
    said = refused(FORMS["longvideobench"], tmp_path, rows, "correct_choice")
    assert said.endswith("must be one of 0, 1, 2, got True")


def test_long_video_bench_without_truth(tmp_path):
    rows = long_video_bench_rows()
    for row in rows:
        del row["correct_choice"]
    write(tmp_path / "lvb_test_wo_gt.json", rows)
    assert [one.truth for one in long_video_bench.read(tmp_path)] == [None] * 3


def test_two_questions_of_one_key(tmp_path):
    rows = long_video_bench_rows()
    rows[2]["id"] = rows[0]["id"]
    file = write(tmp_path / "lvb_val.json", rows)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: two questions have the key 'v1_0'"):
        long_video_bench.read(tmp_path)


@pytest.mark.parametrize("home", ["json", "data", "."])
def test_mlvu_answers_are_texts(tmp_path, home):
    write(tmp_path / home / "3_ego.json", mlvu_rows("ego"))
    write(tmp_path / home / "1_plotQA.json", mlvu_rows("plotQA", 1))
    write(tmp_path / home / "9_summary.json", [{"free": "text"}])  # not asked
    questions = mlvu.read(tmp_path)
    assert [one.key for one in questions] == ["1_plotQA/0", "3_ego/0", "3_ego/1", "3_ego/2"]
    one = questions[1]
    assert one.truth == "B" and dict(one.splits) == {"task": "ego"}
    assert one.prompt == (
        "Question: What colour is the car?\nOptions:\n(A) red\n(B) green\n(C) blue\n(D) white\n"
        "Only give the best option."
    )
    assert one.system.startswith("Carefully watch this video")
    assert one.video == tmp_path / "video" / "3_ego" / "ego_0.mp4"


def test_mlvu_test_set(tmp_path):
    write(tmp_path / mlvu.TEST, secret_rows())
    assert [one.truth for one in mlvu.read(tmp_path)] == [None] * 3
    truths = [{"question_id": f"SQA_{n}", "answer": text} for n, text in enumerate(("red", "D", "blue"))]
    write(tmp_path / mlvu.TRUTH, truths)
    questions = mlvu.read(tmp_path)
    assert [one.truth for one in questions] == ["A", "D", "C"]
    assert questions[0].video == tmp_path / "MLVU_Test" / "video" / "sportsQA_0.mp4"
    write(tmp_path / mlvu.TRUTH, truths[:2])
    with pytest.raises(ValueError, match="row 2, field 'question_id' is not in "):
        mlvu.read(tmp_path)


# ----------------------------------------------------------------------------------------------------------- parquet


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match=r"needs pyarrow: pip install"):
        video_mme.read(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(video_mme_rows()), tmp_path / "test.parquet")
    assert len(video_mme.read(tmp_path)) == 8
    lvb = tmp_path / "validation-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(parquet_rows()), lvb)
    assert [one.truth for one in long_video_bench.read(tmp_path)] == ["B", "A", "B"]
    lvb.write_bytes(b"no table")
    with pytest.raises(ValueError, match=rf"{re.escape(str(lvb))} is not a parquet file"):
        load_parquet(lvb)
