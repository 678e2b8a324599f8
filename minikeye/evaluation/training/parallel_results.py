"""Joins what was measured of work spread over many ranks, part by part, into one result. Measures nothing.

    python -m minikeye.evaluation.training.parallel_results parallel_equal.json tower_memory.json balanced_step.json

Each file is a list of runs, as `results.begin_run` writes it; of a part that was run several times with the same
settings the last run counts, and no smoke test does. A new part is a line of PARTS.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minikeye.evaluation.training import balanced_step, parallel_equal, tower_memory
from minikeye.results import Row, write_result


@dataclass(frozen=True)
class Part:
    command: str  # makes its file
    summarise: Callable[[list[Row]], dict[str, float]]  # its rows -> flat names and numbers


PARTS = {
    parallel_equal.PART: Part(f"{parallel_equal.COMMAND} --out FILE", parallel_equal.summarise),
    tower_memory.PART: Part(f"{tower_memory.COMMAND} --out FILE", tower_memory.summarise),
    balanced_step.PART: Part(f"{balanced_step.COMMAND} --out FILE", balanced_step.summarise),
}


def runs_in(files: Sequence[Path]) -> list[Row]:
    """The runs that count. Raises ValueError for a file that is no list of runs, and where a part has no run or one
    that was broken off before its first row, naming the command that makes it.
    """
    last: dict[str, Row] = {}
    for path in files:
        runs = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(runs, list) or not all(isinstance(r, dict) and r.get("part") in PARTS for r in runs):
            raise ValueError(f"expected a list of runs of {', '.join(PARTS)} in {path}: give files that they wrote")
        for run in runs:
            if run["rows"] and not run["settings"].get("smoke"):
                last[json.dumps([run["part"], run["settings"]], sort_keys=True)] = run
    found = {run["part"] for run in last.values()}
    if missing := [part.command for name, part in PARTS.items() if name not in found]:
        raise ValueError(f"expected runs of {', '.join(PARTS)}, got {sorted(found)}: make the others by {missing}")
    return list(last.values())


def join(files: Sequence[Path], out: Path) -> None:
    """Writes `out`. rows: those of the runs, each with its part, hardware, commit and torch. Raises as `runs_in`."""
    runs = runs_in(files)
    rows, summary = [], {}
    for name, part in PARTS.items():
        own = [run for run in runs if run["part"] == name]
        for run in own:
            origin = {"part": name, "hardware": run["hardware"], "commit": run["commit"]}
            rows += [origin | {"torch": run["versions"]["torch"]} | row for row in run["rows"]]
        try:
            summary |= part.summarise([row for run in own for row in run["rows"]])
        except (StopIteration, ValueError) as error:
            raise ValueError(f"expected whole runs of {name}, got one that was broken off: {part.command}") from error
    what = (
        "work over ranks: whether many learn what one does; memory and time of the tower, a step as drawn and balanced"
    )
    command = "python -m minikeye.evaluation.training.parallel_results " + " ".join(f"{name}.json" for name in PARTS)
    seeds = sorted({row.get("seed", 0) for row in rows})
    write_result(out, what, command, rows, summary, seeds, where="; ".join(sorted({run["hardware"] for run in runs})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="what the parts wrote")
    parser.add_argument("--out", type=Path, default=Path("assets/results/parallel.json"))
    options = parser.parse_args()
    try:
        join(options.files, options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
