"""`minikeye evaluate`: a published benchmark, from its data folder to scores and official files."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minikeye.cli.commands import columns, try_folder
from minikeye.evaluation.benchmarks.question import Benchmark, Question
from minikeye.evaluation.benchmarks.run import BENCHMARKS, answers_in, ask_all, digest
from minikeye.files import write_whole

NEEDLES, NEEDLE_OPTIONS = "niah", ("video", "lengths", "depths", "needles", "needles-json")  # asked in a way of its own
EVALUATIONS = Path("minikeye-evaluations")  # a folder for each benchmark, where none is named


def evaluate(arguments: argparse.Namespace) -> None:
    from minikeye.cli.asking import asker, of_model
    from minikeye.cli.opening import Opened, remark
    from minikeye.evaluation.benchmarks.report import export, report

    out = arguments.out or EVALUATIONS / arguments.name
    if arguments.name == NEEDLES:
        from minikeye.cli.needles import evaluate_needles

        return evaluate_needles(arguments, out)
    require_data(arguments)
    benchmark = BENCHMARKS[arguments.name]
    fps, frames = chosen(arguments, benchmark)
    questions = benchmark.read(arguments.data)
    asked = questions[: arguments.limit]
    require_videos(asked, arguments)
    try_folder(out)
    opened = Opened.of(arguments, [])
    settings = {
        "benchmark": benchmark.name,
        "rule": benchmark.rule,
        "fps": fps,
        "frames": frames,
        "blind": arguments.blind,
        "questions": digest(questions),
        **of_model(opened),
    }
    ask = asker(opened, fps, frames, arguments.blind)
    answers = ask_all(asked, ask, out, settings, lambda text: remark("evaluate", text))
    blind = {} if arguments.blind else answers_in(out, {**settings, "blind": True})
    found = report(asked, answers, settings, blind) | {"of": len(questions)}
    name = "blind-report.json" if arguments.blind else "report.json"
    write_whole(out / name, (json.dumps(found, indent=1) + "\n").encode())
    files = [] if arguments.blind else export(asked, answers, out)
    print(format_report(found, benchmark))
    print("\n".join(f"wrote     {path}" for path in [out / name, *files]))


def require_data(arguments: argparse.Namespace) -> None:
    """Raise ValueError where no data folder is named, and for what only needles have."""
    given = {name: getattr(arguments, name.replace("-", "_")) for name in NEEDLE_OPTIONS}
    if strange := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(strange)} is for niah alone, got {arguments.name}")
    if arguments.data is None:
        raise ValueError(f"{arguments.name} needs --data FOLDER, the folder that the benchmark unpacks to")


def chosen(arguments: argparse.Namespace, benchmark: Benchmark) -> tuple[float | None, int | None]:
    """Frames per second or frames of a video: as asked for, else the benchmark's. ValueError for what is none."""
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1 question, got {arguments.limit}")
    if arguments.frames is not None and arguments.frames < 1:
        raise ValueError(f"--frames must be at least 1, got {arguments.frames}")
    if arguments.fps is not None and not 0 < arguments.fps < float("inf"):
        raise ValueError(f"--fps must be a number above 0, got {arguments.fps}")
    if arguments.frames is None and arguments.fps is None:
        return benchmark.fps, benchmark.frames
    return arguments.fps, arguments.frames


def require_videos(questions: list[Question], arguments: argparse.Namespace) -> None:
    """Raise FileNotFoundError where not one of the videos is there: then the folder is wrong, not a video."""
    if not arguments.blind and not any(one.video.is_file() for one in questions):
        raise FileNotFoundError(f"none of the videos is there, such as {questions[0].video}: unpack them, or --blind")


# ----------------------------------------------------------------------------------------------------------- in words


def format_report(found: Mapping[str, Any], benchmark: Benchmark) -> str:
    """A report as it is printed: how much, by which rule, from how many frames, and a line for every score."""
    settings = found["settings"]
    own = (settings["fps"], settings["frames"]) == (benchmark.fps, benchmark.frames)
    rate = f"{settings['fps']:g} frames/s" if settings["frames"] is None else f"{settings['frames']} frames a video"
    seen = [_between(found[name]) for name in ("frames", "frame_tokens", "prompt_tokens")]
    lines = [
        f"{found['benchmark']}: {found['questions']:,} of {found['of']:,} questions, videos: {found['videos']:,}; "
        f"unparsed: {found['unparsed']}, of these never asked for an error: {found['errors']}",
        f"rule      {found['rule']}",
        f"model     {settings['checkpoint']}, {settings['dtype']}, {settings['attention']} attention, temperature "
        f"{settings['temperature']:g}, up to {settings['max_new_tokens']:,} new tokens",
        "sampling  blind: no video was shown"
        if settings["blind"]
        else f"sampling  {rate} ({benchmark.whose if own else 'as asked for'}); seen: {seen[0]} frames of "
        f"{seen[1]} tokens, prompts of {seen[2]} tokens; "
        f"allowed: {settings['frame_tokens'][0]} to {settings['frame_tokens'][1]} tokens a frame, "
        f"{settings['video_tokens']:,} a video, {settings['context']:,} in all",
    ]
    if found["secret"]:
        lines.append(f"secret    {found['secret']:,} questions have no truth in these files and no score")
    return "\n".join(lines) + ("\n\n" + _table(found["scores"]) + "\n" if found["scores"] else "")


def _between(three: list[int | float]) -> str:
    """Least to most."""
    return "no" if not three else f"{three[0]:,}" if three[0] == three[2] else f"{three[0]:,} to {three[2]:,}"


def _table(scores: list[dict[str, Any]]) -> str:
    rows = [
        [
            one["name"],
            one["split"],
            f"{one['n']:,}",
            f"{one['value']:.1f}",
            f"{one['low']:.1f} to {one['high']:.1f}",
            f"{one['chance']:.1f}",
            "-" if one["blind"] is None else f"{one['blind']:.1f}",
            str(one["unparsed"]),
        ]
        for one in scores
    ]
    return columns(["score, %", "split", "n", "value", "95 %", "chance", "blind", "unparsed"], rows)
