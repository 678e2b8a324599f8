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
