"""Careless answers: wrong as often as told, by one of the errors that a person makes, the same for the same number."""

import random
from collections import Counter

import pytest

from minikeye.minivid.careless import misnamed, one_more, slipped
from minikeye.minivid.tasks import Problem, text_sums


def problems(task: str, answer: str, count: int) -> list[Problem]:
    return [Problem(task, "?", answer, "because")] * count


@pytest.mark.parametrize(
    ("error", "answer", "expected"),
    [
        (one_more, "3", {"4"}),
        (one_more, "0", {"1"}),
        (one_more, "99", {"100"}),
        (misnamed, "nothing", {"nothing"}),
        (misnamed, "red circle", {"green circle"}),
        (misnamed, "yellow square", {"red square"}),
        (misnamed, "red circle and blue square", {"green circle and blue square", "red circle and yellow square"}),
    ],
)
def test_every_error_of_its_kind_and_no_other(error, answer, expected):
    assert {error(answer, random.Random(seed)) for seed in range(40)} == expected


def test_as_many_slips_as_told_and_nothing_else_changes():
    n = 2000
    for task, answer in (("C", "3"), ("D", "red circle"), ("T", "46")):
        true = problems(task, answer, n)
        out = slipped(true, range(n), 0, 0.5)
        wrong = sum(a != b for a, b in zip(out, true, strict=True))
        assert abs(wrong / n - 0.5) < 4 * (0.25 / n) ** 0.5
        assert [p._replace(answer=answer) for p in out] == true
        assert slipped(true, range(n), 0, 0.0) == true
        assert all(p.answer != answer for p in slipped(true, range(n), 0, 1.0))


def test_a_number_slips_again_and_another_annotator_slips_elsewhere():
    sums = text_sums(0, range(40), "train")
    first = slipped(sums, range(40), 0, 0.5)
    assert slipped(sums[7:9], range(7, 9), 0, 0.5) == first[7:9] and slipped(sums, range(40), 1, 0.5) != first
    assert Counter(map(bool, (a != b for a, b in zip(first, sums, strict=True)))).keys() == {True, False}


@pytest.mark.parametrize(("task", "numbers", "share"), [("G", 1, 0.5), ("C", 2, 0.5), ("C", 1, 1.5)])
def test_what_it_refuses(task, numbers, share):
    with pytest.raises(ValueError, match="expected problems of tasks C, D, T"):
        slipped(problems(task, "1", 1), range(numbers), 0, share)
