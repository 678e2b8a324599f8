"""The four group structures of Video-MME-v2: all 64 patterns, in a table and by the rule as its authors word it."""

from itertools import product

import pytest

from minikeye.evaluation.benchmarks.group_scores import expected_score, group_score, non_linear

PLAIN, MIDDLE, FRONT = "[1, 2, 3, 4]", "[1, [2, 3], 4]", "[[1, 2], 3, 4]"
# Right answers -> sixteenths of a relevance group, sixteenths, twelfths and tenths of a logic group.
TABLE = {
    "0000": (0, 0, 0, 0),
    "0001": (1, 0, 0, 0),
    "0010": (1, 0, 0, 0),
    "0011": (4, 0, 0, 0),
    "0100": (1, 0, 0, 1),
    "0101": (4, 0, 0, 1),
    "0110": (4, 0, 0, 1),
    "0111": (9, 0, 0, 1),
    "1000": (1, 1, 1, 1),
    "1001": (4, 1, 1, 1),
    "1010": (4, 1, 4, 1),
    "1011": (9, 1, 4, 1),
    "1100": (4, 4, 4, 2),
    "1101": (9, 4, 4, 2),
    "1110": (9, 9, 7, 5),
    "1111": (16, 16, 12, 10),
}


def bits(pattern: str) -> list[bool]:
    return [bit == "1" for bit in pattern]


@pytest.mark.parametrize("pattern", TABLE)
def test_all_patterns_by_hand(pattern):
    right = bits(pattern)
    got = [group_score(right, None, "relevance"), *(group_score(right, s, "logic") for s in (PLAIN, MIDDLE, FRONT))]
    assert got == pytest.approx([part / whole for part, whole in zip(TABLE[pattern], (16, 16, 12, 10), strict=True)])


def by_prefix(right: list[bool], structure: str) -> float:
    """The rule as it is worded for the benchmark: how far from the front all is right, and one more for the second of
    a pair whose first is wrong; then a list of what so many are worth."""
    n = 0
    while n < 4 and right[n]:
        n += 1
    if (structure == MIDDLE and n == 1 and right[2]) or (structure == FRONT and n == 0 and right[1]):
        n += 1
    worth = {PLAIN: (0, 1, 4, 9, 16), MIDDLE: (0, 1, 4, 7, 12), FRONT: (0, 1, 2, 5, 10)}[structure]
    return worth[n] / worth[4]


@pytest.mark.parametrize("structure", [PLAIN, MIDDLE, FRONT])
def test_all_patterns_by_the_rule(structure):
    for right in product((False, True), repeat=4):
        assert group_score(right, structure, "logic") == pytest.approx(by_prefix(list(right), structure))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("1101", (1 / 4, 1 / 3, 1 / 5)),
        ("1011", (1 / 16, 1 / 3, 1 / 10)),
        ("1001", (1 / 16, 1 / 12, 1 / 10)),
        ("0111", (0, 0, 1 / 10)),
    ],
)
def test_what_is_easily_got_wrong(pattern, expected):
    """A pair half right ends the chain; "one of a pair is enough" would go on to the last answer."""
    assert [group_score(bits(pattern), s, "logic") for s in (PLAIN, MIDDLE, FRONT)] == pytest.approx(expected)


def test_a_structure_may_be_text_or_lists():
    for text, lists in (("[1,[2,3],4]", [1, [2, 3], 4]), ("[[1, 2], 3, 4]", [[1, 2], 3, 4])):
        assert group_score(bits("1010"), text, "logic") == group_score(bits("1010"), lists, "logic")


def test_non_linear_is_the_mean_over_groups():
    assert non_linear([1 / 4, 1 / 4, 1.0]) == pytest.approx(50.0)
    for groups in ([], [25.0], [float("nan")]):  # not percent
        with pytest.raises(ValueError, match="at least one group, each from 0 to 1"):
            non_linear(groups)


@pytest.mark.parametrize("p", [0.0, 0.125, 0.25, 0.5, 0.9, 1.0])
def test_expected_scores_are_those_of_independent_answers(p):
    """In closed form: E[(N/4)^2] = p/4 + 3p^2/4; a chain earns 1, 3, 5, 7 sixteenths at its n-th answer, with p^n."""
    assert expected_score([p] * 4, None, "relevance") == pytest.approx(p / 4 + 3 * p**2 / 4)
    assert expected_score([p] * 4, PLAIN, "logic") == pytest.approx((p + 3 * p**2 + 5 * p**3 + 7 * p**4) / 16)
    assert expected_score([p] * 4, MIDDLE, "logic") == pytest.approx((p + 6 * p**2 + 5 * p**4) / 12)
    assert expected_score([p] * 4, FRONT, "logic") == pytest.approx((2 * p + 3 * p**3 + 5 * p**4) / 10)


@pytest.mark.parametrize(
    ("right", "structure", "kind", "message"),
    [
        ("111", PLAIN, "logic", "four answers, got 3"),
        ("1111", PLAIN, "chain", "relevance.* or .*logic.*, got 'chain'"),
        ("1111", "[1, 2, [3, 4]]", "logic", "structure of a logic group is one of"),
        ("1111", "[1, 2", "logic", "structure of a logic group is one of"),
        ("1111", None, "logic", "structure of a logic group is one of"),
    ],
)
def test_other_groups_are_refused(right, structure, kind, message):
    with pytest.raises(ValueError, match=message):
        group_score(bits(right), structure, kind)


def test_each_answer_has_its_own_chance():
    """1 and 2 surely right, 3 never: a chain that ends with the second, a relevance group with the fourth as well."""
    assert expected_score([1.0, 1.0, 0.0, 0.5], PLAIN, "logic") == 1 / 4
    assert expected_score([1.0, 1.0, 0.0, 0.5], None, "relevance") == pytest.approx((4 + 9) / 2 / 16)
    with pytest.raises(ValueError, match=r"chances from 0 to 1, got \[12\.5"):
        expected_score([12.5] * 4, None, "relevance")
