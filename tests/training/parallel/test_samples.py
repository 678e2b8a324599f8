"""Processes that share samples, or rows, learn what one process does: losses, and parameters after three steps."""

from pathlib import Path

import pytest

from minikeye.evaluation.training.parallel_equal import CASES, WAYS, apart_by, found_by
from minikeye.training.parallel.mesh import ALONE


@pytest.fixture(scope="module")
def one() -> dict:
    """What one process found."""
    return found_by(ALONE)


@pytest.fixture(scope="module", params=WAYS)
def many(request, play) -> list[dict]:
    """What every rank found, in rank order."""
    processes, ep, cp = WAYS[request.param]
    return play(Path(__file__).with_name("parallel_steps.py"), processes, (ep, cp))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_many_processes_learn_what_one_does(one, many, case):
    for rank in many:
        found = apart_by(one[case], rank[case])
        assert max(found.values()) < 1e-5, found
