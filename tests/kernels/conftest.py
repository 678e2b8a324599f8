"""What the kernels' tests share: memory that shows what was never written, and a process in which Triton interprets."""

import os
import re
import subprocess
import sys
from collections import Counter
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
def interpreted() -> Callable[[dict[str, int]], None]:
    """Asserts that files NAME_interpreted.py pass in a process of their own, each with at least so many tests.

    Triton reads TRITON_INTERPRET when a kernel is defined: too late for this process. -P: as CONTRIBUTING.md has it,
    the repository is not on the path. The options of pyproject.toml and plugins are for the whole suite: these files
    need none of them, nor workers of their own.
    """

    def passes(least: dict[str, int]) -> None:
        plain = ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers"]
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "pytest",
                "-v",
                "--tb=short",
                *plain,
                *(str(HERE / f"{x}_interpreted.py") for x in least),
            ],
            cwd=HERE.parent.parent,
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:  # what remains ends with a line for each failure
            pytest.fail(re.sub(r".* PASSED .*\n", "", done.stdout)[-6000:] + done.stderr[-2000:], pytrace=False)
        passed = Counter(re.findall(r"(\w+)_interpreted\.py::.* PASSED", done.stdout))
        assert all(passed[file] >= number for file, number in least.items()), passed

    return passes
