"""Checkers of exercises refuse the usual wrong answers, for the right reason.

`tests/notebooks/wrong_answers/nbNN.py` belongs to `minikeye/exercises/nbNN.py` and holds
`WRONG_ANSWERS = [(checker, wrong answer, regular expression that the message must contain), ...]`.
Right answers are run where readers find them: in notebooks/solutions, by `make validate`.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import execute
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = sorted((ROOT / "minikeye" / "exercises").glob("nb*.py"))
WRONG = Path(__file__).parent / "wrong_answers"


def load(path: Path) -> ModuleType:
    """Import a file that is not part of a package."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accepted(wrong_answers: list[tuple]) -> list[str]:
    """The wrong answers that their checker accepts, or refuses without the expected words."""
    found = []
    for checker, answer, message in wrong_answers:
        try:
            checker(answer)
        except AssertionError as error:
            if not re.search(message, str(error)):
                found.append(f"{checker.__name__} refuses a wrong answer with {str(error)!r}, not {message!r}")
        else:
            found.append(f"{checker.__name__} accepts a wrong answer; expected {message!r}")
    return found


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_checkers_refuse_wrong_answers(path):
    wrong_answers = load(WRONG / path.name).WRONG_ANSWERS
    assert accepted(wrong_answers) == []
    tried = {checker.__name__ for checker, _, _ in wrong_answers}
    assert tried == set(re.findall(r"^def (check_\w+)", path.read_text(), re.M)), "a checker without wrong answers"


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_checkers_are_used_in_lesson_and_solutions(path):
    pair = [notebook for notebook in execute.all_notebooks() if notebook.name.startswith(path.stem[2:] + "_")]
    assert len(pair) == 2, f"expected a lesson and its solutions, found {pair}"
    for notebook in pair:
        for checker in re.findall(r"^def (check_\w+)", path.read_text(), re.M):
            assert f"{checker}(" in notebook.read_text(), f"{checker} is not used in {notebook}"


def check_doubled(answer):
    """A toy checker, to test the tests."""
    assert answer(3) != 9, "squared: double the number, do not multiply it by itself"
    assert answer(3) == 6, f"expected 6, got {answer(3)}"


@pytest.mark.parametrize(
    ("answer", "message", "found"),
    [
        (lambda x: x * x, "squared", 0),
        (lambda x: x * x, "tripled", 1),  # refused for another reason
        (lambda x: x + x, "expected 6", 1),  # a right answer is not refused
    ],
)
def test_this_test_bites(answer, message, found):
    assert len(accepted([(check_doubled, answer, message)])) == found
