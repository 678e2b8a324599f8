"""The indexer's losses and its selection in Triton's interpreter: about half of what there is to interpret."""

import pytest

pytest.importorskip("triton")

LEAST = {"loss": 70, "select": 95}  # tests that must pass


@pytest.mark.slow
def test_in_the_interpreter(interpreted):
    interpreted(LEAST)
