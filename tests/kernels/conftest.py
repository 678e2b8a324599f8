"""What the kernels' tests share: a process in which Triton interprets, and memory that shows what was never written."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent


@pytest.fixture
def poison() -> Iterator[None]:
    """torch.empty gives nan and the largest integers."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def interpreted() -> Callable[[str, int], None]:
    """Asserts that a test file passes in a process of its own where Triton interprets, with at least so many tests.

    Triton reads TRITON_INTERPRET when a kernel is defined: too late for this process.
    """

    def passes(file: str, least: int) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
        done = subprocess.run(
            command,
            cwd=HERE.parent.parent,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least

    return passes
