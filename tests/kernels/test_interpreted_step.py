"""The fused decode step in Triton's interpreter."""

import pytest

pytest.importorskip("triton")

LEAST = {"decode_step": 78}  # tests that must pass


@pytest.mark.slow
def test_in_the_interpreter(interpreted):
    interpreted(LEAST)
