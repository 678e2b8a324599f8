"""Data folders of three rows in the form of each benchmark."""

import json
from pathlib import Path


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def timelens_rows() -> dict:
    return {
        "AB12": {
            "duration": 30.5,
            "spans": [[0.0, 10], [5.2, 20.0]],
            "queries": ["a  person opens\na door.", "he sits down"],
        },
        "CD34": {"duration": 12.0, "spans": [[1.0, 4.0]], "queries": ["the dog barks"]},
    }


def video_mme_rows() -> list[dict]:
    """One group of relevance and one of logic; the rows of the first are out of order."""
    row = {
        "video_id": "001",
        "question": "What is on the table?",
        "options": "\n".join(f"{letter}. thing {n}" for n, letter in enumerate("ABCDEFGH")),
        "answer": "C",
        "group_type": "relevance",
        "group_structure": "None",
        "second_head": "objects",
        "third_head": "things",
    }
    first = [{**row, "question_id": f"001-{n}", "level": (n + 1) // 2} for n in (2, 1, 4, 3)]
    logic = {**row, "video_id": "002", "group_type": "logic", "group_structure": "[1, [2, 3], 4]", "level": 3}
    return [*first, *({**logic, "question_id": f"002-{n}"} for n in (1, 2, 3, 4))]


def long_video_bench_rows() -> list[dict]:
    row = {
        "video_id": "v1",
        "video_path": "v1.mp4",
        "subtitle_path": "v1_en.json",
        "duration": 12.5,
        "starting_timestamp_for_subtitles": 0,
        "duration_group": 15,
        "question_category": "S2E",
        "question": "Who stands there?",
        "candidates": ["a man", "a dog", "a cat"],
        "correct_choice": 1,
    }
    other = {"id": "v2_0", "video_id": "v2", "video_path": "v2.mp4", "duration_group": 3600, "question_category": "T3O"}
    return [{**row, "id": "v1_0"}, {**row, "id": "v1_1", "correct_choice": 0}, {**row, **other}]


def mlvu_rows(task: str, count: int = 3) -> list[dict]:
    row = {
        "duration": 480.1,
        "question": "What colour is the car?",
        "candidates": ["red", "green", "blue", "white"],
        "answer": "green",
        "question_type": task,
    }
    return [{**row, "video": f"{task}_{n}.mp4"} for n in range(count)]
