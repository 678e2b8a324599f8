"""Attention and decoding in Triton's interpreter: a file beside the other half, since workers take files, not tests."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

LEAST = {"sparse": 126, "decode_attention": 49, "decode_select": 52}  # tests that must pass


@pytest.mark.slow
def test_in_the_interpreter(interpreted):
    interpreted(LEAST)


def test_no_file_is_left_out():
    """Every file that needs the interpreter is named by one of those that start it."""
    here = Path(__file__).resolve().parent
    names = {path.name.removesuffix("_interpreted.py") for path in here.glob("*_interpreted.py")}
    starters = [path.read_text() for path in here.glob("test_interpreted_*.py")]
    assert len(starters) == 4 and all(sum(f'"{name}":' in text for text in starters) == 1 for name in names)
