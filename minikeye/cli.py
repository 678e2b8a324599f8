"""The command line: minikeye info | cost | check | answer | frames.

Modules that need torch are imported inside the commands, so that --help answers at once.
"""

import argparse
import importlib.util
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import minikeye
from minikeye.config import KeyeConfig
from minikeye.shipped import CHECKPOINT

PRESETS = {
    "keye_vl_2_30b_a3b": KeyeConfig.keye_vl_2_30b_a3b,
    "mini": KeyeConfig.mini,
    "nano": KeyeConfig.nano,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 after an error (told in one line on stderr), 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("minikeye: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"minikeye: error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minikeye", description="Keye-VL-2.0, readable: ask, look inside, count the cost."
    )
    top.add_argument("--version", action="version", version=f"minikeye {minikeye.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    info_ = _command(commands, info, "the numbers of a model and where its parameters are", "--config mini")
    _add_config(info_)

    cost_ = _command(commands, cost, "tokens, memory and FLOP of a video, dense and sparse", "--seconds 600 --fps 1")
    cost_.add_argument("--seconds", type=float, required=True, help="length of the video")
    _add_config(cost_)
    cost_.add_argument("--width", type=int, default=1280, help="pixels (default: 1280)")
    cost_.add_argument("--height", type=int, default=720, help="pixels (default: 720)")
    cost_.add_argument("--fps", type=float, help="frames per second to sample (default: the config's)")

    _command(commands, check, "versions, devices, and the backend that `auto` takes on each", "")

    answer_ = _command(
        commands, answer, "ask a question about a video", 'clip.mp4 "From when to when is the red circle visible?"'
    )
    _add_question(answer_)

    question = '"Which digit is on the card, and at which second?"'
    frames_ = _command(
        commands, frames, "ask, and show which frames were read", f"clip.mp4 {question} --insert-card 7@3.0"
    )
    _add_question(frames_)
    help_ = "put a card with this digit into the sampled frame nearest to that second, e.g. 7@3.0"
    frames_.add_argument("--insert-card", type=parse_card, metavar="DIGIT@SECONDS", help=help_)
    frames_.add_argument(
        "--out", type=Path, default=Path("minikeye-out"), help="folder to write (default: minikeye-out)"
    )
    return top


def _command(commands, run, summary: str, example: str) -> argparse.ArgumentParser:
    name = run.__name__
    one = commands.add_parser(
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
    command.add_argument(
        "--config", default=default, help=f"{names}, or a folder with a config.json (default: {default})"
    )


def _add_question(command: argparse.ArgumentParser) -> None:
    command.add_argument("video", metavar="VIDEO", help="any file that PyAV reads")
    command.add_argument("question", metavar="QUESTION")
    command.add_argument("--checkpoint", metavar="FOLDER", help="default: assets/checkpoints/mini of the repository")
    command.add_argument("--max-new-tokens", type=int, default=32, help="longest answer (default: 32)")
    command.add_argument("--attention", choices=("sparse", "dense"), default="sparse", help="default: sparse")
    command.add_argument("--backend", choices=("auto", "torch", "triton"), default="auto", help="default: auto")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")


# ---------------------------------------------------------------------------------------------------------- commands


def info(arguments: argparse.Namespace) -> None:
    from minikeye.cost import active_parameters, parameters

    c = read_config(arguments.config)
    see, text, index = c.vision, c.text, c.indexer
    rows = [
        ("vision", f"{see.layers} layers, width {see.width}, {see.heads} heads, patches of {see.patch_size} pixels"),
        ("decoder", f"{text.layers} layers, width {text.width}, vocabulary {text.vocab:,}"),
        ("attention", f"{text.heads} query heads, {text.kv_heads} KV heads, head width {text.head_width}"),
        ("experts", f"{text.experts_per_token} of {text.experts} per token, width {text.expert_width}"),
        ("indexer", f"{index.heads} heads, width {index.width}, selects {index.topk:,} keys"),
        ("context", f"{text.max_positions:,} tokens"),
        ("video", f"{c.video.fps:g} frames/s, {c.video.min_frame_tokens} to {c.video.max_frame_tokens} tokens a frame"),
    ]
    print("\n".join(f"{name:<10} {what}" for name, what in rows), end="\n\n")
    held, active = parameters(c), active_parameters(c)
    parts = [*vars(held), "total"]
    print(
        columns(
            ["parameters", "held", "per token"],
            [[p, f"{getattr(held, p):,}", f"{getattr(active, p):,}"] for p in parts],
        )
    )


def cost(arguments: argparse.Namespace) -> None:
    from minikeye.cache import cache_bytes_per_token
    from minikeye.cost import decode_bytes, decode_flops, prefill_flops, scaled, video_cost

    c = read_config(arguments.config)
    v = video_cost(c, arguments.seconds, arguments.width, arguments.height, fps=arguments.fps)
    row, index_row = cache_bytes_per_token(c)
    print(f"video   {v.frames:,} frames of {v.width}x{v.height} pixels, {v.frame_tokens} visual tokens each")
    print(f"tokens  {v.visual_tokens:,} visual + {v.text_tokens:,} for marks and times = {v.tokens:,}")
    held, index_held = scaled(row * v.tokens, "B"), scaled(index_row * v.tokens, "B")
    print(f"cache   {held} keys and values + {index_held} index keys (bfloat16)")
    if v.tokens > c.text.max_positions:
        print(f"        more than the context of {c.text.max_positions:,} tokens: the model refuses this video")
    modes = ("dense", "sparse")
    bills = {
        "prefill": ("FLOP", [prefill_flops(c, v.tokens, v.frames, v.frame_tokens, mode) for mode in modes]),
        "decode step": ("FLOP", [decode_flops(c, v.tokens, mode) for mode in modes]),
        "decode reads": ("B", [decode_bytes(c, v.tokens, mode) for mode in modes]),
    }
    for name, (unit, (dense, sparse)) in bills.items():
        parts = [p for p in vars(dense) if getattr(dense, p) or getattr(sparse, p)]
        rows = [[p.replace("_", " "), *(scaled(getattr(bill, p), unit) for bill in (dense, sparse))] for p in parts]
        rows.append(
            ["total", scaled(dense.total, unit), scaled(sparse.total, unit), f"{sparse.total / dense.total:.2f}x"]
        )
        print("\n" + columns([name, "dense", "sparse (DSA)", ""], rows))


def check(arguments: argparse.Namespace) -> None:
    import torch

    from minikeye.ops import choose_backend

    rows = [
        ("minikeye", minikeye.__version__),
        ("python", f"{platform.python_version()} on {platform.platform(terse=True)}"),
    ]
    rows += [(name, _version(name)) for name in ("torch", "triton", "av", "safetensors", "tokenizers")]
    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    for device in devices:
        kind = f"threads: {torch.get_num_threads()}" if device == "cpu" else torch.cuda.get_device_name(device)
        backend, why = choose_backend("auto", device)
        rows += [(device, kind), ("", f"backend auto takes {backend}: {why}")]
    rows.append(("checkpoint", str(CHECKPOINT) if CHECKPOINT.is_dir() else f"none at {CHECKPOINT}"))
    print("\n".join(f"{name:<12} {what}" for name, what in rows))


def answer(arguments: argparse.Namespace) -> None:
    from minikeye.explore.ask import to_device

    model, processor = load(arguments)
    content = [{"type": "video", "video": arguments.video}, {"type": "text", "text": arguments.question}]
    inputs = to_device(processor([{"role": "user", "content": content}]), arguments.device)
    out = model.generate(
        inputs,
        max_new_tokens=arguments.max_new_tokens,
        stop_ids=processor.stop_ids,
        attention=arguments.attention,
        backend=arguments.backend,
    )
    print(processor.tokenizer.decode(out.row()))


def frames(arguments: argparse.Namespace) -> None:
    from minikeye.explore.ask import ask

    begun = time.perf_counter()
    model, processor = load(arguments)
    tell("load", time.perf_counter() - begun, arguments.checkpoint or str(CHECKPOINT))
    asked = ask(
        model,
        processor,
        arguments.video,
        arguments.question,
        insert_card=arguments.insert_card,
        max_new_tokens=arguments.max_new_tokens,
        attention=arguments.attention,
        backend=arguments.backend,
        on_step=tell,
    )
    begun = time.perf_counter()
    picture = asked.save(arguments.out)
    tell("picture", time.perf_counter() - begun, "drawn")
    print(f"\nanswer   {asked.answer}")
    if asked.card is not None:
        print(f"card     {asked.card[0]} at {asked.card[1]:.1f} s: {asked.verdict()}")
    print(f"\n{asked.selection.format_table()}\n\n{asked.selection.sentence()}\n\npicture  {picture}")


# -------------------------------------------------------------------------------------------------------- their parts


def read_config(name: str) -> KeyeConfig:
    """A preset by name, else a folder's config.json. Raises FileNotFoundError, listing the presets."""
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no preset and no folder {name!r}: give a folder or one of {', '.join(PRESETS)}")
    return KeyeConfig.from_folder(name)


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """KeyeVL and Processor of the checkpoint. Raises where the video, the checkpoint or the device is absent."""
    if not Path(arguments.video).is_file():  # before the seconds that loading takes
        raise FileNotFoundError(f"no video file {arguments.video}")
    if arguments.checkpoint is None and not CHECKPOINT.is_dir():
        raise FileNotFoundError(
            f"no checkpoint in {CHECKPOINT}: it comes with the repository, not with the installed package. "
            "Name one: --checkpoint FOLDER"
        )
    import torch

    from minikeye.checkpoint import local_folder
    from minikeye.model import KeyeVL
    from minikeye.processor import Processor

    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: torch sees no CUDA device here; see minikeye check")
    folder = local_folder(arguments.checkpoint or CHECKPOINT)
    processor = Processor(folder)
    return KeyeVL.from_pretrained(folder, device=arguments.device), processor


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


def tell(step: str, seconds: float, what: str) -> None:
    print(f"{step:<8} {seconds:6.2f} s  {what}", flush=True)


def columns(head: list[str], rows: list[list[str]]) -> str:
    """A plain-text table: the first column to the left, the others to the right."""
    lines = [head, *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    cells = (
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "present" if importlib.util.find_spec(package) else "not installed"


if __name__ == "__main__":
    sys.exit(main())
