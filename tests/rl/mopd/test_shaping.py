"""Kinds of token by hand; loops found where a reader would put his finger."""

import random

import pytest

from minikeye.config import KeyeConfig
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.rl.mopd.shaping import LONGEST, REPEATS, SHORTEST, collapse_start, token_weights


def test_digits_and_letters_weigh_more_than_brackets():
    tokenizer = load_tokenizer(config := KeyeConfig.nano())
    weights = token_weights(tokenizer.decode, config.text.vocab, formatting=0.25)
    assert len(weights) == config.text.vocab
    for letter, weight in zip("7a.[], ", (1, 1, 0.25, 0.25, 0.25, 0.25, 0.25), strict=True):
        assert float(weights[ord(letter)]) == weight
    assert float(weights[tokenizer.token_id("<|im_end|>")]) == 0.25


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", None),
        ("[[3.0, 9.5]] 7.5 during", None),
        ("1111", None),  # a number
        ("a" * SHORTEST, 1),
        ("well " + "a" * 20, 6),
        ("abcabcabc", None),  # three times
        ("abcabcabcabc", 3),
        ("so abcabcabcabc", 6),
        ("[[1.0, 2.0], [1.0, 2.0]]", None),
        ("no, no, no, no, no", 4),
        (("0123456789abcdefX" * 5), None),  # a piece longer than is looked for
        (("0123456789abcdef" * 4), 16),
        ("abcabcabcabc, and then it went on", 3),
    ],
)
def test_where_a_loop_begins(text, start):
    assert collapse_start(list(text.encode())) == start


def test_the_constants_are_those_of_the_cases():
    assert (REPEATS, SHORTEST, LONGEST) == (4, 8, 16)


def test_against_a_slow_search():
    """Every start, every length, every count, by slices: random answers of two letters are full of repeats."""

    def slow(ids):
        found = [
            start + length
            for length in range(1, LONGEST + 1)
            for start in range(len(ids))
            for times in [max(REPEATS, -(-SHORTEST // length))]
            if start + times * length <= len(ids)
            and ids[start : start + length] * times == ids[start : start + times * length]
        ]
        return min(found, default=None)

    rng, loops = random.Random(0), 0
    for _ in range(400):
        piece = [rng.randrange(3) for _ in range(rng.randint(1, 6))]
        ids = [rng.randrange(3) for _ in range(rng.randint(0, 9))] + piece * rng.randint(1, 9)
        assert collapse_start(ids) == slow(ids)
        loops += slow(ids) is not None
    assert 100 < loops < 400
