"""What a model's words say: an interval in seconds, or the letter of an option.

Two parsers for all benchmarks. Thoughts are taken off first: they hold times and letters too. What cannot be read is
None, counts wrong and is reported as a share of its own; nothing is guessed and nothing is drawn at random.
"""

import math
import re

from minikeye.inference.calling.calls import outside_thoughts
from minikeye.scores import Interval

# In the order they are tried. A number is taken from its first digit on: a run of digits is looked at once.
_CLOCK = re.compile(r"\b(?:\d{1,2}:\d\d|\d{1,2}):\d\d(?:\.\d+)?\b")  # h:mm:ss or m:ss
_NUMBER = r"(?<!\d)\d+(?:\.\d*)?"
_DASH = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_TO = re.compile(rf"({_NUMBER})\s+to\s+({_NUMBER})", re.IGNORECASE)
_ALONE = re.compile(r"\b(?:\d+\.\d+|\d+)\b")

# A capital that is a word, and not ruled out by "not". "A man", "I think": before a word in small letters these two are
# words, not options, unless that word is one that follows an option.
_AFTER = "and|as|because|best|correctly|describes|fits|is|matches|must|or|seems|should|since|was|would"
_LETTER = rf"(?<!\w)(?<![Nn]ot )([A-Z])(?![\w'’-])(?!(?<=[AI])[ \t]+(?!(?:{_AFTER})\b)[a-z])"
_NAMED = re.compile(
    r"(?i:\b(?:answer|(?:best|correct|right|final)\s+(?:option|choice|letter)))\b"
    rf"(?i:\W+(?:is|be|should|would|must|option|choice|letter|boxed|text)\b)*\W+{_LETTER}"
)
_FIRST = re.compile(rf"\W*{_LETTER}")
_ANY = re.compile(_LETTER)
_OR = re.compile(rf"\W*(?:[,/&]|\band\b|\bor\b)\W*{_LETTER}")  # after a letter: it was not the only one


def without_thoughts(text: str) -> str:
    """A reply without what stands between <think> and </think>, and without white space around it.

    A thought without an end takes all that follows: a reply that was cut while thinking says nothing. Where the prompt
    itself opened the thought, put `<think>` before a reply: one that was cut holds no mark to tell.
    """
    return outside_thoughts(text).strip()


def interval(text: str) -> Interval | None:
    """(start, end) in seconds that a reply names, by the rules of TimeLens-Bench; None without a pair.

    The first rule that finds a pair decides, and its first pair is the answer: clock times h:mm:ss or m:ss two by two,
    `a - b`, `a to b`, all numbers two by two. So "2 men, from 3 to 9" is (3, 9). As there, a unit that touches a number
    hides its decimals from the last rule ("3.5s" is 3), and the end may come before the start: that pair was read, and
    scores 0. Our choice: a number too large for a float is none.

    >>> interval("<think>at 00:01 or 00:02</think>[[00:05, 01:12.5]]")
    (5.0, 72.5)
    """
    said = without_thoughts(text)
    clocks = [_seconds(clock) for clock in _CLOCK.findall(said)]
    if len(clocks) > 1:
        return clocks[0], clocks[1]
    match = _DASH.search(said) or _TO.search(said)
    numbers = [float(number) for number in (match.groups() if match else _ALONE.findall(said)[:2])]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(map(math.isfinite, numbers)) else None


def option(text: str, letters: str) -> str | None:
    """The one of `letters` ("ABCD") that a reply chooses; None where it chooses none of them, or more than one.

    The first that is there decides: the last letter that is called the answer ("Final Answer: B", "the best option is
    (B)", "<answer>B</answer>"), the letter that a reply begins with ("B", "(B) a red ball"), or the only capital that
    stands alone. A letter beyond the options is an answer, a wrong one: no other is looked for.

    Our choice: only capitals that are words of their own. The harnesses take the first capital anywhere in the text, so
    that "A man walks", "Both" and "B or C" are answers there. A score of ours is lower where a harness finds a letter
    in words, and higher where the letter that it finds first is one that the reply rejects ("A is wrong. Answer: D").
    Raises ValueError unless `letters` are different capitals.

    >>> option("<think>Not A.</think>The answer is (B).", "ABCD")
    'B'
    """
    if not re.fullmatch("[A-Z]+", letters) or len(set(letters)) < len(letters):
        raise ValueError(f'letters must be different capitals such as "ABCD", got {letters!r}')
    said = without_thoughts(text)
    named = list(_NAMED.finditer(said))
    match = named[-1] if named else _FIRST.match(said)
    if match is None and len({found[1] for found in _ANY.finditer(said)}) == 1:
        match = _ANY.search(said)
    if match is None or match[1] not in letters:
        return None
    rival = _OR.match(said, match.end())
    return None if rival and rival[1] != match[1] else match[1]


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total
