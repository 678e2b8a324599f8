"""What the commands of the command line do. cli.py reads their arguments.

Modules that need torch are imported inside the commands, so that --help answers at once. Answers go to stdout,
what they take to stderr.
"""

import argparse
import importlib.util
import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import minikeye
from minikeye.config import KeyeConfig
from minikeye.files import CHECKPOINT, place_of_file

PRESETS = {
    "keye_vl_2_30b_a3b": KeyeConfig.keye_vl_2_30b_a3b,
    "mini": KeyeConfig.mini,
    "nano": KeyeConfig.nano,
}


def info(arguments: argparse.Namespace) -> None:
    from minikeye.cost import active_parameters, parameters
    from minikeye.inputs.settings import unread_keys

    c = read_config(arguments.config)
    see, text, index = c.vision, c.text, c.indexer
    tower = see and f"{see.layers} layers, width {see.width}, {see.heads} heads, patches of {see.patch_size} pixels"
    rows = [
        ("vision", tower or "none: text alone"),
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
    if arguments.config not in PRESETS and (unread := unread_keys(Path(arguments.config))):
        print("\n" + "\n".join(f"not read  {key}" for key in unread))


def cost(arguments: argparse.Namespace) -> None:
    from minikeye.cost import decode_bytes, decode_flops, prefill_flops, scaled, video_cost
    from minikeye.model.cache import cache_bytes_per_token

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

    if arguments.checkpoint is None and arguments.context is not None:
        raise ValueError("--context counts for a model: name one with --checkpoint, a folder or a preset")
    if arguments.context is not None and arguments.context < 1:
        raise ValueError(f"--context must be at least 1 token, got {arguments.context}")
    config = None if arguments.checkpoint is None else read_config(arguments.checkpoint)
    rows = [
        ("minikeye", minikeye.__version__),
        ("python", f"{platform.python_version()} on {platform.platform(terse=True)}"),
    ]
    rows += [(name, _version(name)) for name in ("torch", "triton", "accelerate", "av", "safetensors", "tokenizers")]
    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    for device in devices:
        kind = f"threads: {torch.get_num_threads()}" if device == "cpu" else torch.cuda.get_device_name(device)
        backend, why = choose_backend("auto", device)
        rows += [(device, kind), ("", f"backend auto takes {backend}: {why}")]
    rows.append(("default", str(CHECKPOINT) if CHECKPOINT.is_dir() else f"none at {CHECKPOINT}"))
    print("\n".join(f"{name:<12} {what}" for name, what in rows))
    if config is not None:
        print("\n" + memory_table(config, arguments.context, devices[1:]))


def memory_table(config: KeyeConfig, context: int | None, gpus: list[str]) -> str:
    """What the model needs in each way it can be held here, against what is free."""
    import torch

    from minikeye.cost.memory import format_table, free_bytes, needs

    context = config.text.max_positions if context is None else context
    rows, free = {}, free_bytes("cpu")
    for streaming in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"cpu, {str(dtype).removeprefix('torch.')}{', streaming' * streaming}"
            rows[name] = needs(config, context=context, dtype=dtype, streaming=streaming), free
    on_gpu = needs(config, context=context, dtype=torch.bfloat16, device="cuda")
    rows |= {f"{gpu}, bfloat16": (on_gpu, free_bytes(gpu)) for gpu in gpus}
    if len(gpus) > 1:
        rows["all GPUs, bfloat16"] = on_gpu, sum(map(free_bytes, gpus))
    most = config.text.max_positions
    beyond = f"; the model refuses more than its context of {most:,}" if context > most else ""
    return f"memory for {context:,} tokens, with as much video as they hold{beyond}\n{format_table(rows)}"


def fake_checkpoint(arguments: argparse.Namespace) -> None:
    from minikeye.checkpoint.fake import fake_config, write_fake_checkpoint
    from minikeye.cost import scaled

    write_fake_checkpoint(arguments.folder, fake_config(arguments.layers, small=arguments.small), seed=arguments.seed)
    size = sum(path.stat().st_size for path in arguments.folder.iterdir())
    print(f"{arguments.folder}: {scaled(size, 'B')} of random weights; what this model says means nothing")


def answer(arguments: argparse.Namespace) -> None:
    from minikeye.cli.opening import Opened, remark_notes
    from minikeye.cli.plan import content
    from minikeye.cli.wording import say
    from minikeye.inference.text_stream import TextStream

    opened = Opened.of(arguments, [arguments.video])
    planned = opened.foresee(arguments.question)
    parts = [*content([arguments.video]), {"type": "text", "text": arguments.question}]
    inputs = opened.processor([{"role": "user", "content": parts}], **opened.thinking())
    remark_notes(inputs.notes, planned)
    model = opened.load(inputs)
    stream = TextStream(opened.processor.tokenizer)
    model.generate(
        inputs.to(model.device),
        max_new_tokens=arguments.max_new_tokens,
        stop_ids=opened.processor.stop_ids,
        attention=arguments.attention,
        backend=arguments.backend,
        on_token=lambda token: say(stream.add(int(token[0]))),
        **opened.sampling(),
    )
    print(stream.end())


def frames(arguments: argparse.Namespace) -> None:
    from minikeye.cli.opening import Opened, remark_notes
    from minikeye.explore.ask import ask

    begun = time.perf_counter()
    opened = Opened.of(arguments, [arguments.video])
    planned = opened.foresee(arguments.question)
    if not planned:
        raise ValueError(f"{arguments.video} is a picture and has no frames to choose from: use `minikeye answer`")
    try_folder(arguments.out)
    try_page(arguments.html)
    model = opened.load()
    tell("load", time.perf_counter() - begun, arguments.checkpoint or str(CHECKPOINT))
    asked = ask(
        model,
        opened.processor,
        arguments.video,
        arguments.question,
        insert_card=arguments.insert_card,
        card_seed=arguments.seed or 0,
        max_new_tokens=arguments.max_new_tokens,
        attention=arguments.attention,
        backend=arguments.backend,
        on_step=tell,
        on_answer=lambda text: print(f"\nanswer   {text}", flush=True),
        **opened.given(),
    )
    remark_notes(asked.clip.notes, planned)
    if asked.card is not None:
        print(f"card     {placed(*arguments.insert_card, asked.card[1])}: {asked.verdict()}")
    print(f"\n{asked.selection.format_table()}\n\n{asked.selection.sentence()}\n", flush=True)
    begun = time.perf_counter()
    picture = asked.save(arguments.out)
    tell("picture", time.perf_counter() - begun, str(picture))
    if arguments.html is not None:
        begun = time.perf_counter()
        asked.selection.to_html(arguments.html)
        tell("page", time.perf_counter() - begun, str(arguments.html))


def chat(arguments: argparse.Namespace) -> None:
    from minikeye.cli.opening import Opened
    from minikeye.cli.plan import content
    from minikeye.cli.talking import converse
    from minikeye.inference.calling.calls import announced
    from minikeye.inference.calling.functions import named, schemas_of
    from minikeye.inference.calling.shipped import shipped
    from minikeye.inference.chat import Chat
    from minikeye.inputs.pixels import is_picture

    opened = Opened.of(arguments, arguments.videos)
    videos = [path for path in arguments.videos if not is_picture(path)]
    with shipped(arguments.tools, opened.processor, *videos) as tools:
        planned = opened.foresee(announced(schemas_of(named(tools))) if tools else "")
        options = {"attention": arguments.attention, "backend": arguments.backend, "context": arguments.max_context}
        talk = Chat(opened.load(), opened.processor, tools=tools, **options, **opened.thinking())
        options = {"max_new_tokens": arguments.max_new_tokens, **opened.sampling()}
        converse(talk, content(arguments.videos), planned, options)


# -------------------------------------------------------------------------------------------------------- their parts


def read_config(name: str) -> KeyeConfig:
    """A preset by name, else a folder's config.json. Raises FileNotFoundError, listing the presets."""
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no preset and no folder {name!r}: give a folder or one of {', '.join(PRESETS)}")
    return KeyeConfig.from_folder(name)


def try_folder(folder: Path) -> None:
    """Make the folder of `--out` and write into it, before the minutes of work whose result is to go there.

    Raises OSError, naming the option, where that does not work.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("selection.json", "selection.png"):
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a folder")
        _try_writing(folder)
    except OSError as error:
        raise type(error)(f"--out {folder}: expected a folder to write into: {error.strerror or error}") from error


def try_page(path: Path | None, option: str = "--html") -> None:
    """Write beside the file of `--html` or `--json`, as early. Raises ValueError or OSError, naming the option."""
    from minikeye.explore.standalone.document import check_name

    if path is None:
        return
    try:
        if option == "--html":
            check_name(path)
        _try_writing(place_of_file(path).parent)
    except (OSError, ValueError) as error:
        raise type(error)(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from error


def _try_writing(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def placed(digit: int, wanted: float, got: float) -> str:
    """Where a card went, and that it is another time than was asked for, if so: only sampled frames are seen."""
    if abs(wanted - got) < 0.05:  # as many decimals as are printed
        return f"{digit} at {got:.1f} s"
    return f"{digit} at {got:.1f} s, the sampled frame nearest to {wanted:g} s"


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
