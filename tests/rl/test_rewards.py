"""Rewards against their own tables, grids of ticks, and answers that nobody would write."""

import doctest
import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.minivid.tasks import parse_interval
from minikeye.rl import rewards
from minikeye.rl.rewards import (
    Solution,
    context_reward,
    count_reward,
    first_interval_reward,
    interval_set_reward,
    normalised,
    order_bonus,
    outcome_reward,
    process_reward,
    text_reward,
    timestamp_reward,
)

tick = st.integers(0, 60)
interval = st.tuples(tick, st.integers(1, 20)).map(lambda pair: (pair[0] / 10, (pair[0] + pair[1]) / 10))
anything = st.tuples(st.floats(), st.floats())  # nan, infinite, backwards
REFERENCE = Solution("during", ((3.0, 9.5),), (7.5,))


def test_the_tables_of_examples_are_right():
    done = doctest.testmod(rewards)
    assert done.failed == 0 and done.attempted > 20


def ticks(intervals) -> set[int]:
    """Tenths of a second that intervals of one decimal cover."""
    return {t for start, end in intervals for t in range(round(start * 10), round(end * 10))}


@given(st.lists(interval, max_size=5), st.lists(interval, min_size=1, max_size=5))
def test_sets_of_intervals_count_ticks(said, truth):
    a, b = ticks(said), ticks(truth)
    assert interval_set_reward(said, truth) == pytest.approx(len(a & b) / len(a | b))
    assert first_interval_reward(said, truth[0]) == interval_set_reward(said[:1], truth[:1])


@given(interval, interval)
def test_one_interval_is_the_formula_of_timelens(said, truth):
    """Where both overlap, what they cover together is what lies between the outermost ends."""
    (s, e), (s_true, e_true) = said, truth
    formula = max(0.0, min(e, e_true) - max(s, s_true)) / (max(e, e_true) - min(s, s_true))
    assert first_interval_reward([said], truth) == pytest.approx(formula)
    time_r1 = formula * (1 - abs(s - s_true) / 10) * (1 - abs(e - e_true) / 10)
    assert timestamp_reward([said], truth, 10.0) == pytest.approx(time_r1)


@given(st.lists(interval, min_size=1, max_size=4), st.randoms())
def test_order_and_pieces_do_not_matter(intervals, random):
    """Merged sets: the same moments in other words."""
    pieces = [part for s, e in intervals for part in ((s, (s + e) / 2), ((s + e) / 2, e))]
    random.shuffle(pieces)
    assert interval_set_reward(pieces, intervals) == pytest.approx(1.0)


@given(st.none() | st.lists(anything | interval, max_size=4), interval)
def test_no_answer_leaves_0_to_1(said, truth):
    """Whatever is said about time, infinite and nan too."""
    solution = Solution("during", tuple(said or ()), tuple(start for start, _ in said or ()))
    reference = Solution("during", (truth,), (truth[0],))
    for reward in (
        first_interval_reward(said, truth),
        interval_set_reward(said, [truth]),
        timestamp_reward(said, truth, 10.0),
        process_reward(solution, reference),
        context_reward(solution, reference),
    ):
        assert 0.0 <= reward <= 1.0


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("[[1.0, 3.0]]", 1.0),
        ("[[1.0, 3.0], [0.0, 9.0]]", 1.0),  # the first alone counts
        ("[[0.0, 9.0], [1.0, 3.0]]", 2 / 9),
        ("[[3.0, 1.0]]", 0.0),
        ("[[2.0, 2.0]]", 0.0),
        ("[[1.0, 3.0]], I think", 0.0),
        ("", 0.0),
        ("[]", 0.0),
    ],
)
def test_from_text_to_reward(text: str, reward: float):
    assert first_interval_reward(parse_interval(text), (1.0, 3.0)) == pytest.approx(reward)


@pytest.mark.parametrize("truth", [(3.0, 1.0), (2.0, 2.0), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)])
def test_a_truth_that_is_no_interval(truth):
    for call in (
        lambda: first_interval_reward([(0.0, 1.0)], truth),
        lambda: interval_set_reward(None, [truth]),
        lambda: timestamp_reward(None, truth, 1e9),
        lambda: process_reward(None, Solution("a", (truth,))),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: interval_set_reward([(0.0, 1.0)], []),
        lambda: timestamp_reward([(0.0, 1.0)], (0.0, 5.0), 4.9),  # the video ends before its event
        lambda: timestamp_reward([(0.0, 1.0)], (0.0, 5.0), math.nan),
        lambda: count_reward("0", -1),
        lambda: text_reward("...", "?!"),
        lambda: order_bonus([], [1.0]),
        lambda: order_bonus([1.0], []),
        lambda: order_bonus([math.nan], [1.0]),
        lambda: order_bonus([1.0], [1.1]),
        lambda: process_reward(REFERENCE, REFERENCE, 0.0),
        lambda: process_reward(REFERENCE, REFERENCE, math.nan),
        lambda: process_reward(REFERENCE, Solution("during")),  # nothing to agree with
        lambda: context_reward(REFERENCE, Solution("during", (), (math.nan,))),
        lambda: context_reward(None, Solution("", ((3.0, 9.5),))),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


@given(st.text())
def test_normalising_is_done_once(text: str):
    """Nothing is left to normalise, and case or white space around never mattered."""
    once = normalised(text)
    assert once == once.strip() and "  " not in once
    assert normalised(f" \n{text}\t") == once


@given(st.text(), st.integers(0, 10**9))
def test_only_the_number_counts(text: str, truth: int):
    assert count_reward(str(truth), truth) == 1.0
    assert count_reward(f"{truth}{text}", truth) in (0.0, 1.0)


@pytest.mark.parametrize("reward", [outcome_reward, process_reward, context_reward])
def test_right_for_the_right_reason(reward):
    """Answer and evidence, each right or wrong: the three rewards see one, the other, both."""
    for word, evidence in product((True, False), (True, False)):
        sample = Solution("During" if word else "after", ((3.1, 9.5),) if evidence else ((0.0, 3.0),), (7.0,))
        expected = {outcome_reward: word, process_reward: evidence, context_reward: word and evidence}[reward]
        assert reward(sample, REFERENCE) == float(expected)
    assert reward(None, REFERENCE) == 0.0


def test_evidence_at_its_bounds():
    """Exactly half a second and exactly tau agree, whatever binary fractions make of tenths."""
    for n in range(200):
        second = n / 10
        reference = Solution("a", ((second, second + 0.3),), (second, second + 2.0))
        sample = Solution("a", ((second, second + 0.6),), (second + 2.5, second + 0.5))  # in another order
        assert process_reward(sample, reference) == 1.0
        assert process_reward(sample, reference, 0.51) == 0.0
    assert process_reward(Solution("a", (), (1.0,)), Solution("a", (), (1.2,))) == 1.0
    assert process_reward(Solution("a", ((0.0, 1.0),), (1.0,)), Solution("a", (), (1.2,))) == 0.0  # unsupported
    assert process_reward(Solution("a", ((0.0, 1.0),)), Solution("a", ((0.0, 1.0),))) == 1.0


@pytest.mark.parametrize(
    ("text", "truth", "reward"),
    [("-.5", ".5", 0), ("\u20135", "5", 0), ("\u22125", "-5", 1), ("stop-5", "stop5", 1), ("e-mail", "email", 1)],
)
def test_a_sign_is_part_of_a_number(text, truth, reward):
    assert text_reward(text, truth) == reward
