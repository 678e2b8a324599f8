"""Two real processes for the tests beside this file."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def play(tmp_path_factory) -> Callable[[str], list[dict]]:
    """Runs a script twice at once, with a folder and its rank, and loads what each rank saved there as `RANK.pt`.

    The scripts' process groups end a rank whose partner does not answer for a minute; none outlives the call.
    """

    def run(script: str) -> list[dict]:
        folder = tmp_path_factory.mktemp("ranks")
        with ExitStack() as stack:
            started = []
            for rank in range(2):
                command = [sys.executable, script, str(folder), str(rank)]
                started.append(process := subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
                stack.callback(process.wait)
                stack.callback(process.kill)
            errors = [process.communicate()[1] for process in started]
            assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]

    return run
