"""What a script leaves behind: read back from disk, key by key."""

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from minikeye import results
from minikeye.results import begin_run, commit, hardware, write_result


def write(path: Path, **changes) -> dict:
    given = dict(what="speed", command="python -m x", rows=[{"a": 1, "b": [0.5]}], summary={"best": 1.5}, seeds=[0, 1])
    write_result(path, **(given | changes))
    return json.loads(path.read_text())


def test_content(tmp_path):
    """Every key of the contract, in a folder that was not there yet."""
    got = write(tmp_path / "new" / "speed.json", packages=("torch", "numpy", "no-such-package"))
    assert got == {
        "what": "speed",
        "command": "python -m x",
        "commit": commit(),
        "hardware": hardware(),
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": version("torch"),
            "numpy": np.__version__,
            "no-such-package": "not installed",
        },
        "seeds": [0, 1],
        "rows": [{"a": 1, "b": [0.5]}],
        "summary": {"best": 1.5},
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["speed.json"]


def test_measured_elsewhere(tmp_path):
    assert write(tmp_path / "speed.json", where="a GPU; a CPU")["hardware"] == "a GPU; a CPU"


@pytest.mark.parametrize(
    "value", ["1.5", None, True, [1.0], {"a": 1}, math.nan, math.inf, torch.tensor(1.0), np.int64(3)]
)
def test_a_summary_holds_numbers(value, tmp_path):
    """Nothing is written; the message shows the culprit and no other."""
    with pytest.raises(ValueError, match=r"flat names and finite numbers, got \{'bad'"):
        write_result(tmp_path / "x.json", "w", "c", [], {"good": 1, "fine": np.float64(2.0)} | {"bad": value}, [])
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing(tmp_path, monkeypatch):
    """The old result stays whole: the new one is written beside it and renamed."""
    path = tmp_path / "speed.json"
    before = write(path)
    replace = os.replace

    def killed(source, target):
        assert json.loads(Path(source).read_text())["what"] == "news" and Path(target) == path
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(path, what="news")
    assert json.loads(path.read_text()) == before
    monkeypatch.setattr(os, "replace", replace)
    assert write(path, what="news")["what"] == "news" and len(list(tmp_path.iterdir())) == 1


def test_commit_is_gits(tmp_path, monkeypatch):
    """In a repository made here: the hash, a mark once something changed, "unknown" outside."""

    def git(*command: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *command], capture_output=True, text=True, check=True
        ).stdout

    module = tmp_path / "results.py"
    module.write_text("one")
    monkeypatch.setattr(results, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert commit() == git("rev-parse", "HEAD").strip() and len(commit()) == 40
    module.write_text("two")
    assert commit() == git("rev-parse", "HEAD").strip() + "+changes"


def test_hardware_names_a_processor(monkeypatch):
    """On a machine without a GPU, its cores are counted; with one, its name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware().endswith(f", {os.cpu_count()} cores") and len(hardware().split(",")[0]) > 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert hardware() == "a GPU"


def test_runs_are_appended(tmp_path):
    """Whole after every row; floats keep five digits; a file of another kind is left alone."""
    path = tmp_path / "part.json"
    add = begin_run(path, "speed", "python -m x", {"n": 1})
    assert json.loads(path.read_text())[0]["rows"] == []
    add({"ms": 1.23456789, "n": 123456789})
    begin_run(path, "speed", "python -m x", {"n": 2})
    first, second = json.loads(path.read_text())
    assert first["rows"] == [{"ms": 1.2346, "n": 123456789}] and second["rows"] == []
    assert (first["part"], first["settings"], first["commit"], first["versions"]["torch"]) == (
        "speed", {"n": 1}, commit(), version("torch"),
    )  # fmt: skip
    write(path.with_name("whole.json"))
    with pytest.raises(ValueError, match=r"expected a list of runs in .*, got dict"):
        begin_run(path.with_name("whole.json"), "speed", "python -m x", {})
