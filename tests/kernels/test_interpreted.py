"""All kernels in Triton's interpreter: runs the files *_interpreted.py in processes of their own."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).resolve().parent
LEAST = {"sparse": 85, "decode_attention": 49, "decode_select": 52, "loss": 67, "select": 80}  # tests that must pass
# Two processes that take about as long, which pytest-xdist can run side by side. Five import torch three times more,
# one cannot be shared between two workers.
PROCESSES = [["sparse", "decode_attention", "decode_select"], ["loss", "select"]]


@pytest.mark.slow
@pytest.mark.parametrize("files", PROCESSES, ids=", ".join)
def test_in_the_interpreter(files):
    """Triton reads TRITON_INTERPRET when a kernel is defined: too late for this process."""
    # -P: as CONTRIBUTING.md has it, the repository is not on the path. The options of pyproject.toml and plugins are
    # for the whole suite: these files need none of them, nor workers of their own.
    pytest_here = [sys.executable, "-P", "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers"]
    done = subprocess.run(
        [
            *pytest_here,
            "-v",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            *(str(HERE / f"{x}_interpreted.py") for x in files),
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
    assert all(passed[file] >= LEAST[file] for file in files), passed


def test_no_file_is_left_out():
    there = {path.name.removesuffix("_interpreted.py") for path in HERE.glob("*_interpreted.py")} - {"test"}
    assert there == set(LEAST) == {file for files in PROCESSES for file in files}
