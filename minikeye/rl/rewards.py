"""Rewards that rules can give: the text of an answer, or what was read from it, in; a float out.

Every reward is in 0..1 and none is ever nan. What could not be read (None) earns 0; a truth or a setting that makes no
sense is a ValueError, because it would teach nonsense without a sound. Boxes are in `boxes`. A model as a judge, which
the report uses for captions, spatial questions and proofs, is left out: nothing here needs one, the synthetic world
keeps its own reference solutions.

Reading is `minivid.tasks`' business: `first_interval_reward(parse_interval(text), truth)`.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from minikeye.scores import SECONDS_TOLERANCE, Interval, temporal_iou

Pairs = Sequence[tuple[float, float]] | None  # as they were said, backwards ones included; None: could not be read

_NO_TAG = r"(?:(?!</?(?:think|answer)>).)*"
THOUGHT_AND_ANSWER = re.compile(rf"\s*<think>{_NO_TAG}</think>\s*<answer>{_NO_TAG}</answer>\s*", re.DOTALL)
_COUNT = re.compile(r"\s*([0-9]{1,18})\s*")  # int() refuses thousands of digits: such an answer is no count either
# What holds a number together: 3.5 is not 35, -5 not 5, .5 not 5, -.5 none of them.
_KEPT = re.compile(r"(?<=[0-9])[.,:/-](?=[0-9])|(?<![^\W_])(?:-(?=\.?[0-9])|\.(?=[0-9]))")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-"})  # a minus sign and an en dash, which stands for one
_LONGEST = 1e9  # seconds, thirty years: sums of such intervals stay exact enough to divide


@dataclass(frozen=True)
class Solution:
    """An answer and the evidence given for it: a sample's, or the reference solution's."""

    answer: str
    intervals: tuple[tuple[float, float], ...] = ()  # seconds
    moments: tuple[float, ...] = ()  # seconds


def format_reward(text: str, form: re.Pattern[str]) -> float:
    """1 where the whole text has the form, else 0. A gate: the report multiplies outcomes by it.

    >>> format_reward("<think>two of them</think> <answer>2</answer>", THOUGHT_AND_ANSWER)
    1.0
    >>> format_reward("<answer>2</answer>", THOUGHT_AND_ANSWER)  # no thought
    0.0
    >>> format_reward("<think>a</think><answer>2</answer><answer>3</answer>", THOUGHT_AND_ANSWER)  # two bets
    0.0
    """
    return float(form.fullmatch(text) is not None)


def count_reward(text: str, truth: int) -> float:
    """1 where the text is a whole number, nothing else (the format gate), and the right one.

    >>> count_reward("3", 3), count_reward(" 03 ", 3), count_reward("4", 3), count_reward("3 or 4", 3)
    (1.0, 1.0, 0.0, 0.0)
    >>> count_reward("3.0", 3), count_reward("three", 3), count_reward("", 0), count_reward("9" * 5000, 9)
    (0.0, 0.0, 0.0, 0.0)
    """
    if truth < 0:
        raise ValueError(f"expected a count of 0 or more as the truth, got {truth}")
    match = _COUNT.fullmatch(text)
    return float(match is not None and int(match[1]) == truth)


def normalised(text: str) -> str:
    """Text without case, punctuation (Unicode's P), and white space beyond single spaces inside.

    Our choice: what holds a number together stays, and forms that mean the same letter become one (NFKC).

    >>> normalised("  STOP!\\n Sign. "), normalised("12:30, e-mail"), normalised("(-5)"), normalised("3.50.")
    ('stop sign', '12:30 email', '-5', '3.50')
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(_MINUS)
    kept = {match.start() for match in _KEPT.finditer(text)}
    bare = (c for n, c in enumerate(text) if n in kept or not unicodedata.category(c).startswith("P"))
    return " ".join("".join(bare).split())


def text_reward(text: str, truth: str) -> float:
    """1 where both are the same once `normalised` (OCR), else 0. ValueError for a truth of which nothing is left.

    >>> text_reward("stop  sign", "STOP SIGN!"), text_reward("stop", "STOP SIGN"), text_reward("35", "3.5")
    (1.0, 0.0, 0.0)
    >>> text_reward("", "STOP"), text_reward("ｓｔｏｐ", "stop")
    (0.0, 1.0)
    """
    if not (wanted := normalised(truth)):
        raise ValueError(f"expected a truth with a letter, a digit or a sign, got {truth!r}: any dots would match it")
    return float(normalised(text) == wanted)


def first_interval_reward(pairs: Pairs, truth: Interval) -> float:
    """Temporal IoU of the first pair said, as TimeLens gives it:
    max(0, min(e, e*) - max(s, s*)) / (max(e, e*) - min(s, s*)); 0 without a pair, or where it is no interval.

    >>> first_interval_reward([(0.0, 2.0)], (1.0, 3.0)), first_interval_reward([(1.0, 3.0)], (1.0, 3.0))
    (0.3333333333333333, 1.0)
    >>> first_interval_reward([(0.0, 1.0), (1.0, 3.0)], (1.0, 3.0))  # the second is not looked at
    0.0
    >>> first_interval_reward(None, (1.0, 3.0)), first_interval_reward([(3.0, 1.0)], (1.0, 3.0))
    (0.0, 0.0)
    """
    return interval_set_reward(pairs[:1] if pairs else None, [truth])


def interval_set_reward(pairs: Pairs, truth: Sequence[Interval]) -> float:
    """Temporal IoU of two sets: moments in both over moments in either; each moment once (VideoChat-R1).

    0 for no pairs, and where one of them is no interval, however good the rest (our choice, as `parse_interval` reads).

    >>> interval_set_reward([(0.0, 1.0), (2.0, 3.0)], [(0.0, 3.0)])
    0.6666666666666666
    >>> interval_set_reward([(0.0, 2.0), (1.0, 3.0), (0.0, 2.0)], [(0.0, 1.5), (1.5, 3.0)])  # merged: both are 0 to 3
    1.0
    >>> interval_set_reward([], [(0.0, 3.0)]), interval_set_reward([(0.0, 3.0), (2.0, 2.0)], [(0.0, 3.0)])
    (0.0, 0.0)
    """
    if not truth or not all(map(_is_interval, truth)):
        raise ValueError(f"expected a truth of one or more (start, end) in seconds, start < end, got {list(truth)}")
    # many intervals of one decimal add up to a little more than 1
    return min(1.0, temporal_iou(pairs, truth)) if pairs and all(map(_is_interval, pairs)) else 0.0


def timestamp_reward(pairs: Pairs, truth: Interval, duration: float) -> float:
    """Time-R1: IoU * (1 - |s - s*| / D) * (1 - |e - e*| / D) of the first pair, D the video's seconds.

    Each factor is at least 0 (our choice): two ends that are more than D off would make a product above 0.

    >>> timestamp_reward([(0.0, 2.0)], (1.0, 3.0), 10.0)  # 1/3 * .9 * .9
    0.27
    >>> timestamp_reward([(1.0, 3.0)], (1.0, 3.0), 10.0), timestamp_reward([(-20.0, 30.0)], (1.0, 3.0), 10.0)
    (1.0, 0.0)
    """
    if not (math.isfinite(duration) and duration >= truth[1]):
        raise ValueError(f"expected a duration that reaches the end of the truth {truth}, got {duration}")
    iou = first_interval_reward(pairs, truth)
    if iou == 0:
        return 0.0
    near = [max(0.0, 1 - abs(said - true) / duration) for said, true in zip(pairs[0], truth, strict=True)]
    return iou * near[0] * near[1]


def order_bonus(ordered: Sequence[float], shuffled: Sequence[float]) -> list[float]:
    """T-GRPO: what each answer of a group earns more because the order of the frames helped.

    ordered, shuffled: accuracies (0..1) of answers to one question on the video and on the same frames shuffled.
    +0.3 for every ordered answer with accuracy > 0.1, if mean(ordered) >= 0.8 * mean(shuffled). The 0.8 is in the code
    of Video-R1: a group that is a little worse in order earns it too. Add it to a reward, which may then reach 1.3.

    >>> order_bonus([1.0, 0.0, 1.0], [0.0, 1.0])
    [0.3, 0.0, 0.3]
    >>> order_bonus([0.4, 0.1], [0.25]), order_bonus([1.0, 0.0], [1.0, 0.0, 1.0])  # .25 >= .2; .5 < .8 * 2/3
    ([0.3, 0.0], [0.0, 0.0])
    >>> order_bonus([0.0], [0.0])  # nothing is right: nothing to add to
    [0.0]
    """
    for name, values in (("ordered", ordered), ("shuffled", shuffled)):
        if not values or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"expected accuracies in 0..1, at least one, as {name}; got {list(values)}")
    helped = sum(ordered) / len(ordered) >= 0.8 * sum(shuffled) / len(shuffled)
    return [0.3 if helped and accuracy > 0.1 else 0.0 for accuracy in ordered]


def outcome_reward(sample: Solution | None, reference: Solution) -> float:
    """1 where the answer is right (`text_reward`), whatever the evidence: the control of `context_reward`.

    >>> outcome_reward(Solution("During.", ((50.0, 60.0),)), Solution("during", ((3.0, 9.5),), (7.5,)))
    1.0
    """
    right = text_reward(sample.answer if sample else "", reference.answer)
    return right if sample else 0.0


def process_reward(sample: Solution | None, reference: Solution, tau: float = 0.5) -> float:
    """1 where the evidence agrees with the reference solution's: intervals with temporal IoU >= tau as merged sets,
    and as many moments, in order of time each within 0.5 s of its own.

    tau is our choice. So is: evidence of a kind that the reference does not hold is unsupported, and disagrees.

    >>> reference = Solution("during", ((3.0, 9.5),), (7.5,))
    >>> [process_reward(Solution("", *evidence), reference) for evidence in (
    ...     (((3.0, 9.5),), (8.0,)),  # agrees
    ...     (((0.0, 3.0), (3.0, 13.0)), (7.5,)),  # 6.5 of 13 s: just
    ...     (((0.0, 13.5),), (7.5,)),  # 6.5 of 13.5 s
    ...     (((3.0, 9.5),), (8.1,)),  # another moment
    ...     (((3.0, 9.5),), (7.5, 7.5)),  # two where there is one
    ...     ((), (7.5,)),  # the interval is missing
    ... )]
    [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    if not 0 < tau <= 1:
        raise ValueError(f"expected a tau above 0 and up to 1, got {tau}")
    if not (reference.intervals or reference.moments) or not all(map(math.isfinite, reference.moments)):
        raise ValueError(f"expected a reference solution with evidence, moments finite, got {reference}")
    said = sample.intervals if sample else ()
    spans = interval_set_reward(said, reference.intervals) if reference.intervals else float(not said)
    if sample is None:
        return 0.0
    moments, true = sorted(sample.moments), sorted(reference.moments)
    # times have one decimal: the small terms keep what is exactly at a bound from rounding past it
    near = all(abs(a - b) <= SECONDS_TOLERANCE + 1e-9 for a, b in zip(moments, true, strict=False))
    return float(spans >= tau - 1e-9 and len(moments) == len(true) and near)


def context_reward(sample: Solution | None, reference: Solution, tau: float = 0.5) -> float:
    """Context-RL by rule: 1 where answer AND evidence agree with the reference solution; right for the right reason.

    The report asks a judge that sees the whole reference solution; here the synthetic world knows it exactly.

    >>> reference = Solution("during", ((3.0, 9.5),), (7.5,))
    >>> context_reward(Solution("during", ((3.0, 9.0),), (7.5,)), reference)
    1.0
    >>> context_reward(Solution("during", ((20.0, 29.0),), (7.5,)), reference)  # right for a wrong reason
    0.0
    >>> context_reward(Solution("before", ((3.0, 9.5),), (7.5,)), reference), context_reward(None, reference)
    (0.0, 0.0)
    """
    return outcome_reward(sample, reference) * process_reward(sample, reference, tau)


def _is_interval(pair: tuple[float, float]) -> bool:
    """An end after its start, both within reason; nan compares false."""
    return -_LONGEST <= pair[0] < pair[1] <= _LONGEST
