"""What surrounds attention, in Triton's interpreter."""

import pytest

pytest.importorskip("triton")

LEAST = {"prefill": 63}  # tests that must pass


@pytest.mark.slow
def test_in_the_interpreter(interpreted):
    interpreted(LEAST)
