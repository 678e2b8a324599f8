"""Every notebook keeps the rules, and every lesson has its solutions."""

import execute
import pytest
from notebook_rules import complaints

NOTEBOOKS = execute.all_notebooks()


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebooks found: the tests below would pass by checking nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rules(path):
    assert complaints(path) == []


def test_every_lesson_has_solutions():
    lessons = {path.name for path in NOTEBOOKS if path.parent.name != "solutions"}
    solutions = {path.name for path in NOTEBOOKS if path.parent.name == "solutions"}
    assert lessons == solutions


def test_lessons_without_their_model_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIKEYE_REAL", str(tmp_path))
    monkeypatch.delenv("MINIKEYE_REQUIRE_REAL", raising=False)
    execute.left_out.cache_clear()
    said = {path.name: why for path in NOTEBOOKS if (why := execute.left_out(path))}
    execute.left_out.cache_clear()
    assert list(said) == ["16_retrofit.ipynb"] and "make real" in said["16_retrofit.ipynb"]
