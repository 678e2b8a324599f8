"""What is read off a reply, and what is not: every rule and every trap by an example."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.evaluation.benchmarks.answers import interval, option, without_thoughts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>not 3 - 4</think>\n 5 - 6 ", "5 - 6"),
        ("thinking went on</think>B", "B"),  # the prompt opened the thought
        ("<think>is it 3 - 4, or", ""),  # cut while thinking
        ("", ""),
    ],
)
def test_thoughts_say_nothing(text, said):
    assert without_thoughts(text) == said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The event happens in 3.5 - 9.0 seconds.", (3.5, 9.0)),
        ("The event happens in 3-9 seconds", (3.0, 9.0)),
        ("<think>00:05 - 00:12 is too early</think>The event happens in 30 - 42.5 seconds.", (30.0, 42.5)),
        ("00:05 - 00:12 is too early</think>It is 30 to 42", (30.0, 42.0)),
        ("<think>from 00:05 to 00:12, or", None),
        ("00:05 - 01:12", (5.0, 72.0)),
        ("from 1:02:03.5 to 01:02:10", (3723.5, 3730.0)),
        ("[[00:05, 00:12], [01:00, 01:10]]", (5.0, 12.0)),  # the report's form of evidence; the first pair counts
        ("[[mm:ss]] is [[02:05.25,02:06]]", (125.25, 126.0)),
        ("[[3.0, 9.5], [20, 30]]", (3.0, 9.5)),
        ("<answer>[[3.0, 9.5]]</answer>", (3.0, 9.5)),
        ("at 00:05 and 00:12, that is 5 - 13", (5.0, 12.0)),  # clock times come first
        ("In 1 video, from 00:05 to 00:12", (5.0, 12.0)),
        ("2 men run from 3 to 9", (3.0, 9.0)),  # not (2, 3)
        ("2 MEN RUN FROM 3 TO 9", (3.0, 9.0)),
        ("From 3 TO 9, of 10 - 15 at most", (10.0, 15.0)),  # a dash comes before a word
        ("2-3 men run from 5 to 9", (2.0, 3.0)),  # as the official rules have it
        ("Starting time: 0.8 seconds. Ending time: 1.1 seconds", (0.8, 1.1)),
        ("start: 0.8, end: 1.1, sure: 9", (0.8, 1.1)),  # of three numbers the first two
        ("from 3.5s to 9.25s", (3.0, 9.0)),  # as the official rules have it: the unit hides the decimals
        ("9 - 3", (9.0, 3.0)),  # read; scores 0
        ("7.5 – 9.5", (7.5, 9.5)),  # another dash
        ("one clock time 00:05 alone", (0.0, 5.0)),  # as the official rules have it: no pair of clocks, two numbers
        ("at 7 seconds", None),
        ("5.", None),
        ("It does not happen.", None),
        ("start - end", None),
        ("", None),
        ("1" * 400 + " - 9", None),  # no float
        ("1" * 20_000, None),  # ends: a run of digits is looked at once
    ],
)
def test_intervals(text, expected):
    assert interval(text) == expected


@given(
    start=st.integers(0, 9999), end=st.integers(0, 9999), form=st.sampled_from(["{} - {}", "{} to {}", "[[{}, {}]]"])
)
def test_every_pair_comes_back(start, end, form):
    pair = (start / 10, end / 10)
    assert interval(f"<think>1 - 2</think>The event happens in {form.format(*pair)} seconds.") == pair


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        (" (B)", "B"),
        ("B) the red ball", "B"),  # goes on after "Best option: ("
        ("B. A red ball", "B"),
        ("**B**", "B"),
        ("[B]\n", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A. man in red", "A"),
        ("A\na man in red", "A"),
        ("A because he runs", "A"),
        ("The answer is A since he runs.", "A"),
        ("Final Answer: C", "C"),
        ("final answer: C.", "C"),
        ("The best option is (D).", "D"),
        ("The correct option is: **D**", "D"),
        ("The answer is option C.", "C"),
        ("The answer should be C", "C"),
        (r"The answer is $\boxed{C}$.", "C"),
        ("<answer>C</answer>", "C"),
        ("<think>The answer is A.</think><answer>C</answer>", "C"),
        ("A is wrong, B too. Answer: D", "D"),  # what is called the answer comes before what comes first
        ("Answer: B. No: the answer is D.", "D"),  # of two the last
        ("The answer is D, not A.", "D"),
        ("I think it is C.", "C"),
        ("It is C, not B.", "C"),
        ("A best describes it, not B", "A"),
        ("A would be right", "A"),
        ("It must be option C, the red one", "C"),
        ("Best option: (B) A man and a dog", "B"),
        ("Answer: B, B is the only one", "B"),
        # no answer
        ("A man walks into the room.", None),
        ("The video shows A man.", None),
        ("The answer is A man who runs.", None),
        ("I think so.", None),
        ("A-frame houses", None),
        ("Both men run.", None),
        ("Because Dogs Can Bark", None),
        ("b", None),
        ("the red ball", None),
        ("", None),
        ("1", None),
        ("A or B", None),
        ("Answer: B, C", None),
        ("The answer is A and C.", None),
        ("(A)/(B)", None),
        ("It is B, perhaps it is C", None),
        ("Neither B nor C", None),
        ("Not B.", None),
        ("The answer is not B", None),
        ("<think>The answer is B", None),  # cut while thinking
        ("<think>B</think>", None),
        # beyond the options
        ("E", None),
        ("Answer: F", None),
        ("The answer is E, B is wrong.", None),
        ("E. B is wrong", None),
        ("It must be H, not B", None),
    ],
)
def test_options(text, expected):
    assert option(text, "ABCD") == expected


def test_a_letter_counts_where_there_are_so_many_options():
    assert [option("Answer: F", "ABCDEFGH"[:n]) for n in (4, 5, 6, 8)] == [None, None, "F", "F"]


@given(st.text(alphabet="ABCDEFGHIabc .,:()\n*<>/thinkanswerisor", max_size=60))
def test_what_is_read_stands_there(text):
    """Nothing is guessed: the letter is a word of what was said aloud, and an option."""
    said = option(text, "ABCDE")
    assert said is None or (said in "ABCDE" and re.search(rf"(?<!\w){said}(?!\w)", without_thoughts(text)))


@pytest.mark.parametrize("letters", ["", "abcd", "AAB", "A-D"])
def test_letters_are_capitals(letters):
    with pytest.raises(ValueError, match="must be different capitals"):
        option("A", letters)
