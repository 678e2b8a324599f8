"""The command line as a process of its own: readers that leave, and Ctrl-C at any time."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# A module that says where Python is, and then waits to be interrupted; it stands for one that takes long.
WAITS = """
import sys, time
print("here", file=sys.stderr, flush=True)
time.sleep(60)
"""


def start(*argv: str, before: Path | None = None, **options) -> subprocess.Popen:
    """The command, in the repository; `before` is a folder whose modules are found first."""
    paths = [str(before)] * (before is not None) + [str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minikeye", *argv]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("argv", [["info"], ["cost", "--seconds", "60"], ["--help"], ["frames", "--help"]])
def test_a_reader_that_leaves_ends_it_quietly(argv):
    """As `minikeye info | head -1` does, only that here nobody reads at all."""
    read, write = os.pipe()
    os.close(read)
    with start(*argv, stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=120)
    assert err == "" and process.returncode in (0, 141)  # argparse ends with 0 whoever reads its help


def interrupted(process: subprocess.Popen) -> tuple[int, str]:
    """Ctrl-C when the process says that it is "here": its status, and what it says on stderr after that."""
    with process:
        try:
            assert process.stderr.readline() == "here\n"
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, err


def test_ctrl_c_while_modules_are_imported(tmp_path):
    (tmp_path / "argparse.py").write_text(WAITS)  # the first that cli.main imports
    assert interrupted(start("info", before=tmp_path)) == (130, "")


def test_ctrl_c_while_a_command_imports(tmp_path):
    (tmp_path / "jaxtyping.py").write_text(WAITS)  # which whatever counts or computes needs
    assert interrupted(start("info", before=tmp_path, stdout=subprocess.DEVNULL)) == (130, "minikeye: stopped\n")


def test_ctrl_c_while_python_leaves(tmp_path):
    """What an exit handler does is not shown either."""
    handler = (
        f"import atexit\n\n\n@atexit.register\ndef wait():\n    {WAITS.strip().replace(chr(10), chr(10) + '    ')}\n"
    )
    (tmp_path / "sitecustomize.py").write_text(handler)
    assert interrupted(start("info", "--config", "nano", before=tmp_path, stdout=subprocess.DEVNULL)) == (130, "")


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"minikeye": "minikeye.__main__:run"}
