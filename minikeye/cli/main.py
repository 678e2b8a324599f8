"""The command line: minikeye info | cost | check | fake-checkpoint | answer | frames | chat | read | evaluate.

What each command does is in commands.py, of the last two in reading.py and evaluating.py.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import minikeye
from minikeye.cli import commands
from minikeye.cli.commands import PRESETS
from minikeye.cli.evaluating import EVALUATIONS, NEEDLES, evaluate
from minikeye.cli.reading import read
from minikeye.evaluation.benchmarks.run import BENCHMARKS

QUESTION = '"Which digit is on the card, and at which second?"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 after an error (told in one line on stderr), 130 after Ctrl-C, 141
    where nobody reads on."""
    # Idle threads are to sleep: while they spin, one other busy process makes answers ten times slower. Read by torch's
    # thread library when it starts, which the commands bring about.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        try:
            arguments = parser().parse_args(argv)
            arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `| head` has; the rest goes nowhere, also when Python leaves
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("minikeye: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError, ModuleNotFoundError) as error:
        from minikeye.cli.wording import in_flags

        print(f"minikeye: error: {in_flags(error)}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minikeye", description="Keye-VL-2.0, readable: ask, look inside, count the cost."
    )
    top.add_argument("--version", action="version", version=f"minikeye {minikeye.__version__}")
    _add_counting(group := top.add_subparsers(required=True, metavar="COMMAND"))
    _add_asking(group)
    _add_reading(group)
    _add_evaluating(group)
    return top


def _add_counting(group) -> None:
    """The commands that load no model."""
    info = _command(group, commands.info, "the numbers of a model and where its parameters are", "--config mini")
    _add_config(info)

    summary = "tokens, memory and FLOP of a video, dense and sparse"
    cost = _command(group, commands.cost, summary, "--seconds 600 --fps 1")
    cost.add_argument("--seconds", type=float, required=True, help="length of the video")
    _add_config(cost)
    cost.add_argument("--width", type=int, default=1280, help="pixels (default: 1280)")
    cost.add_argument("--height", type=int, default=720, help="pixels (default: 720)")
    cost.add_argument("--fps", type=float, help="frames per second to sample (default: the config's)")

    summary = "versions, devices, the backend that `auto` takes on each, and what a model needs in memory"
    check = _command(group, commands.check, summary, "--checkpoint keye_vl_2_30b_a3b --context 131072")
    help_ = "print the memory bill of this model: a folder with a config.json, or a preset's name"
    check.add_argument("--checkpoint", metavar="FOLDER", help=help_)
    check.add_argument("--context", type=int, metavar="N", help="tokens to count for (default: the model's context)")

    summary = "write a folder of the released layout with random weights, to try things on"
    fake = _command(group, commands.fake_checkpoint, summary, "fake --layers 4")
    fake.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write; must not be there, or be empty")
    fake.add_argument("--layers", type=int, metavar="N", help="decoder layers, 1.3 GB each (default: 48, 62 GB in all)")
    fake.add_argument("--seed", type=int, default=0, help="default: 0")
    fake.add_argument("--small", action="store_true", help="the widths of `nano`, under 1 MB, instead of the released")


def _add_asking(group) -> None:
    """The commands that load one."""
    summary = "ask a question about a video or a picture"
    answer = _command(group, commands.answer, summary, 'clip.mp4 "From when to when is the red circle visible?"')
    _add_question(answer)
    _add_model(answer, longest=32)

    summary = "ask, and show which frames were read"
    frames = _command(group, commands.frames, summary, f"clip.mp4 {QUESTION} --insert-card 7@3.0")
    _add_question(frames)
    seed = "draw the same answer and the same card again: its handwriting, size, place and colours (card's default: 0)"
    _add_model(frames, longest=32, seed=seed)
    help_ = "put a card with this digit into the sampled frame nearest to that second, e.g. 7@3.0; --seed for another"
    frames.add_argument("--insert-card", type=parse_card, metavar="DIGIT@SECONDS", help=help_)
    default = Path("minikeye-out")
    frames.add_argument("--out", type=Path, default=default, help=f"folder to write (default: {default})")
    help_ = "write a web page as well, to look at it layer by layer in any browser: NAME.html in a folder that is there"
    frames.add_argument("--html", type=Path, metavar="PATH", help=help_)

    summary = "talk about videos; an empty line or Ctrl-D ends it, /reset starts again"
    chat = _command(group, commands.chat, summary, "--checkpoint Keye-VL-2.0-30B-A3B --streaming clip.mp4 --tools look")
    chat.add_argument("videos", metavar="VIDEO", nargs="*", help="shown with the first question")
    help_ = "what the model may call: look (seconds of the video again, more finely), python (code, in a sandbox)"
    chat.add_argument("--tools", type=parse_names, default=[], metavar="NAME,...", help=help_)
    _add_model(chat, longest=1024)


def _add_reading(group) -> None:
    """The command that asks a language model about a text."""
    summary = (
        "ask a language model (SmolLM2 with this repository's indexers) about a text, and show which lines it read"
    )
    one = _command(group, read, summary, 'notes.txt "Who has the key?"')
    add = one.add_argument
    add("file", metavar="FILE", type=Path, help="a text in UTF-8")
    add("question", metavar="QUESTION")
    add("--lines", type=parse_lines, metavar="A-B", help="show only these lines; 3-3: one, 3-99999: up to the end")
    add("--layer", type=int, metavar="N", help="what this layer read, from 0 (default: the mean of all layers)")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--topk", type=int, metavar="K", help="keys that each query reads (default: as taught, 512)")
    how.add_argument(
        "--dense", action="store_true", help="read every key; the lines are then those with most attention"
    )
    add("--max-new-tokens", type=int, default=48, metavar="N", help="longest answer (default: 48)")
    add("--indexers", type=Path, metavar="FOLDER", help="default: assets/checkpoints/retrofit of the repository")
    help_ = "write a web page as well, to look at every token, layer and indexer head in any browser"
    add("--html", type=Path, metavar="PATH", help=help_)
    add("--json", type=Path, metavar="PATH", help="write the numbers as well, for PassageSelection.from_json")


def _add_evaluating(group) -> None:
    """The command that asks a benchmark's questions."""
    summary = "ask the questions of a published benchmark, score the answers, go on where a run was stopped"
    one = _command(group, evaluate, summary, "timelens --data TimeLens-Bench --checkpoint FOLDER --device cuda")
    names = [*BENCHMARKS, NEEDLES]
    one.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    help_ = "the folder that the benchmark unpacks to; nothing is downloaded (niah needs none)"
    one.add_argument("--data", type=Path, metavar="FOLDER", help=help_)
    how = one.add_mutually_exclusive_group()
    how.add_argument("--frames", type=int, metavar="N", help="frames of every video, evenly spread")
    how.add_argument("--fps", type=float, metavar="F", help="frames per second (default of both: the benchmark's)")
    one.add_argument("--limit", type=int, metavar="N", help="ask the first N questions only")
    one.add_argument("--blind", action="store_true", help="ask without the videos, to see what the words alone give")
    _add_needles(one)
    help_ = f"for answers, report and official files; for niah's map, niah.png (default: {EVALUATIONS}/NAME)"
    one.add_argument("--out", type=Path, metavar="FOLDER", help=help_)
    _add_model(one, longest=1024, temperature="0")
    one.set_defaults(temperature=0.0)


def _add_needles(command: argparse.ArgumentParser) -> None:
    """What niah alone has."""
    example = "e.g. minikeye evaluate niah --video film.mp4 --lengths 64 --checkpoint FOLDER --device cuda"
    add = command.add_argument_group("niah: needles in a film, by length and depth", example).add_argument
    add("--video", type=Path, metavar="FILE", help="the film (default: the repository's clip, of 132 frames)")
    add(
        "--lengths", type=int, nargs="+", metavar="N", help="frames to show, spread over all of it (default: 32 64 128)"
    )
    add("--depths", type=float, nargs="+", metavar="D", help="0 first frame, 1 last (default: 0 0.2 0.4 0.6 0.8 1)")
    add("--needles", type=int, metavar="N", help="needles at each length and depth (default: 64); pictures take turns")
    help_ = 'pictures to hide instead of cards: a JSON list of {"path", "prompt", "answer"}, paths beside FILE'
    add("--needles-json", type=Path, metavar="FILE", help=help_)


def _command(group, run, summary: str, example: str) -> argparse.ArgumentParser:
    name = run.__name__.replace("_", "-")
    one = group.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example: minikeye {name} {example}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.set_defaults(run=run)
    return one


def _add_config(command: argparse.ArgumentParser) -> None:
    names = ", ".join(PRESETS)
    default = next(iter(PRESETS))
    help_ = f"{names}, or a folder with a config.json (default: {default})"
    command.add_argument("--config", default=default, help=help_)


def _add_question(command: argparse.ArgumentParser) -> None:
    command.add_argument("video", metavar="VIDEO", help="any file that PyAV reads; `answer` takes a picture too")
    command.add_argument("question", metavar="QUESTION")


def _add_model(
    command: argparse.ArgumentParser,
    longest: int,
    seed: str = "draw the same answer again",
    temperature: str = "the checkpoint's, else 0",
) -> None:
    """Which model, where and how it is held, and how it speaks. What is not given is the checkpoint's own."""
    add = command.add_argument
    add("--checkpoint", metavar="FOLDER", help="folder or hub id (default: assets/checkpoints/mini of the repository)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ..., or auto: the GPUs there are, layers split over several")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32 on a CPU, else as stored)")
    add("--streaming", action="store_true", help="leave the weights on disk and read one layer after the other")
    add("--max-context", type=int, metavar="N", help="most tokens of prompt and answer; a video gets fewer frames")
    add("--attention", choices=("sparse", "dense"), default="sparse", help="default: sparse")
    add("--backend", choices=("auto", "torch", "triton"), default="auto", help="default: auto")
    add("--max-new-tokens", type=int, default=longest, metavar="N", help=f"longest answer (default: {longest})")
    help_ = "let the model think before it answers, or not (default: the checkpoint's way)"
    add("--thinking", action=argparse.BooleanOptionalAction, help=help_)
    add("--temperature", type=float, help=f"0 takes the most likely token (default: {temperature})")
    add("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 0: all")
    add("--top-p", type=float, metavar="P", help="draw from the most likely tokens that make up probability P; 1: all")
    add("--seed", type=int, help=seed)


def parse_names(text: str) -> list[str]:
    """ "look,python" -> ["look", "python"]."""
    return [name.strip() for name in text.split(",")]


def parse_lines(text: str) -> tuple[int, int]:
    """ "10-200" -> (10, 200)."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"expected A-B such as 10-200, lines counted from 1, got {text!r}")
    return int(first), int(last)


def parse_card(text: str) -> tuple[int, float]:
    """ "7@3.0" -> (7, 3.0)."""
    digit, _, seconds = text.partition("@")
    try:
        card = int(digit), float(seconds)
    except ValueError:
        card = (-1, 0.0)
    if not 0 <= card[0] <= 9:
        raise argparse.ArgumentTypeError(f"expected DIGIT@SECONDS such as 7@3.0, got {text!r}")
    return card
