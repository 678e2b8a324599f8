"""How every script of this project writes down what it measured."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minikeye.files import write_whole

Row = dict[str, Any]


def write_result(
    path: str | Path,
    what: str,
    command: str,
    rows: list[dict[str, Any]],
    summary: dict[str, Any],
    seeds: list[int],
    packages: tuple[str, ...] = ("torch", "numpy"),
    where: str | None = None,
) -> None:
    """Write assets/results/NAME.json: what was measured, by which command, on what, and the numbers.

    rows: the measurements. summary: flat names to numbers, the ones a README may quote. where: the hardware, if it is
    not all this machine. The file is written whole or not at all. Raises ValueError where a summary value is not a
    finite number.
    """
    if bad := {
        k: v for k, v in summary.items() if isinstance(v, bool) or not (isinstance(v, int | float) and math.isfinite(v))
    }:
        raise ValueError(f"summary holds flat names and finite numbers, got {bad}")
    result = {"what": what, **_origin(command, packages, where), "seeds": seeds, "rows": rows, "summary": summary}
    _write(path, result)


def begin_run(
    path: str | Path, part: str, command: str, settings: Row, packages: tuple[str, ...] = ("torch", "numpy")
) -> Callable[[Row], None]:
    """Append a run to the list of runs in a JSON file; returns what adds a row to it. What a kill leaves is whole.

    For parts of a result that are measured apart, on machines that may go away. A run: part, command, commit, hardware,
    versions, settings, rows. Floats of rows keep five digits. Raises ValueError for a file that holds no list.
    """
    path = Path(path)
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not isinstance(runs, list):
        raise ValueError(f"expected a list of runs in {path}, got {type(runs).__name__}: name another file")
    rows: list[Row] = []
    runs.append({"part": part, **_origin(command, packages), "settings": settings, "rows": rows})
    _write(path, runs)

    def add(row: Row) -> None:
        rows.append({name: float(f"{x:.5g}") if isinstance(x, float) else x for name, x in row.items()})
        _write(path, runs)

    return add


def _origin(command: str, packages: tuple[str, ...], where: str | None = None) -> Row:
    return {
        "command": command,
        "commit": commit(),
        "hardware": where or hardware(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in packages}},
    }


def _write(path: str | Path, content: Row | list[Row]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, (json.dumps(content, indent=1) + "\n").encode())


def hardware() -> str:
    """The accelerator if there is one, else the processor and its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    """The commit of the working tree, "+changes" where it differs, "unknown" outside git."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
