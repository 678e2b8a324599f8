"""`minikeye read`: a language model answers a question about a text file, and the lines that it read are shown."""

import argparse
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minikeye.cli.commands import tell, try_page

if TYPE_CHECKING:
    from minikeye.explore.passage import PassageSelection
    from minikeye.explore.passage.reading import TextPrompt
    from minikeye.inputs.tokenizer import Tokenizer

SHOWN = 8  # lines
NARROWEST = 20  # characters of a line's text that are shown on any terminal


def read(arguments: argparse.Namespace) -> None:
    from minikeye.checkpoint.gguf_weights import gguf_config
    from minikeye.checkpoint.indexers import read_indexer, taught_length
    from minikeye.checkpoint.smollm2 import smollm2
    from minikeye.cli.opening import remark
    from minikeye.cli.wording import say
    from minikeye.explore.passage.reading import INDEXERS, ReadText, TextPrompt, load_reader
    from minikeye.inference.text_stream import TextStream
    from minikeye.inputs.gguf_tokenizer import gguf_tokenizer

    begun = time.perf_counter()
    text, first_line = text_of(arguments.file, arguments.lines)
    try_page(arguments.html)
    try_page(arguments.json, "--json")
    path, folder = smollm2(), arguments.indexers or INDEXERS
    config = gguf_config(path, read_indexer(folder))
    check_numbers(arguments, config.text.layers)
    tokenizer = gguf_tokenizer(path)
    prompt = TextPrompt.of(path, tokenizer, text, arguments.question, first_line)
    require_room(arguments, prompt, tokenizer, config.text.max_positions)
    taught, length = config.indexer.topk, len(prompt.ids)
    topk = arguments.topk or taught
    reads = "all of them" if arguments.dense or length <= topk else f"{topk:,} of them"
    remark("prompt", f"{length:,} tokens; a query reads {reads}")
    if topk != taught:
        remark("keys", f"the indexers were taught with {taught:,} keys a query; this reads {topk:,}")
    if length > (longest := taught_length(folder)) and not arguments.dense:
        remark("length", f"the indexers were taught on {longest:,} tokens and choose badly beyond: --lines or --dense")
    model = load_reader(path, folder)
    tell("load", time.perf_counter() - begun, f"{path.name}, indexers of {folder}")
    begun, stream, told = time.perf_counter(), TextStream(tokenizer), []

    def on_token(token) -> None:
        if not told:
            told.append(tell("prefill", time.perf_counter() - begun, f"{length:,} tokens read"))
            say("\nanswer   ")
        say(stream.add(int(token[0])))

    options = {"max_new_tokens": arguments.max_new_tokens, "topk": arguments.topk, "on_token": on_token}
    known = ReadText.of(model, tokenizer, prompt, attention="dense" if arguments.dense else "sparse", **options)
    print(stream.end(), end="\n\n", flush=True)
    selection = known.selection()
    print(table(selection, arguments.layer), end="\n\n")
    print(selection.sentence(arguments.layer), flush=True)
    if arguments.json is None and arguments.html is None:
        return
    begun = time.perf_counter()
    whole = selection if selection.reads_all else known.selection(heads=True)
    for path, write in ((arguments.json, whole.save), (arguments.html, whole.to_html)):
        if path is not None:
            write(path)
            tell("wrote", time.perf_counter() - begun, str(path))
            begun = time.perf_counter()


def text_of(path: Path, lines: tuple[int, int] | None) -> tuple[str, int]:
    """The text of a file, or of some of its lines, and the number of its first line.

    Raises FileNotFoundError where there is no file, ValueError for one without words, in another encoding, or without
    these lines.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no text file {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start + 1:,} begins no character; convert it, e.g. with iconv"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty: expected a text with words")
    if lines is None:
        return text, 1
    first, last = lines
    every = text.removesuffix("\n").split("\n")
    if first > len(every):
        raise ValueError(f"--lines {first}-{last}: {path} has {len(every):,} lines")
    part = "\n".join(every[first - 1 : last])
    if not part.strip():
        raise ValueError(f"--lines {first}-{last}: these lines of {path} are empty")
    return part, first


def check_numbers(arguments: argparse.Namespace, layers: int) -> None:
    """Raise ValueError for numbers out of range, before the seconds that loading takes."""
    for option, number in (("--topk", arguments.topk), ("--max-new-tokens", arguments.max_new_tokens)):
        if number is not None and number < 1:
            raise ValueError(f"{option} must be at least 1, got {number}")
    if arguments.layer is not None and not 0 <= arguments.layer < layers:
        raise ValueError(f"--layer must lie in 0..{layers - 1}, the layers of this model, got {arguments.layer}")


def require_room(arguments: argparse.Namespace, prompt: "TextPrompt", tokenizer: "Tokenizer", most: int) -> None:
    """Raise ValueError for a prompt that exceeds the context, saying how many of its lines fit."""
    length, new = len(prompt.ids), arguments.max_new_tokens
    if length + new - 1 <= most:
        return
    lines, room = prompt.text.split("\n"), most - new + 1
    other = length - (prompt.passage[1] - prompt.passage[0]) + 2  # 2: text that is cut elsewhere may join otherwise
    low, high = 0, min(len(lines) - 1, most)
    while low < high:  # most lines whose tokens fit
        middle = (low + high + 1) // 2
        fits = len(tokenizer.encode("\n".join(lines[:middle]))) + other <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    first = arguments.lines[0] if arguments.lines else 1
    remedy = f"its first {low:,} lines do, --lines {first}-{first + low - 1}" if low else "not even its first line does"
    raise ValueError(
        f"{arguments.file} makes a prompt of {length:,} tokens, which with {new:,} of answer do not fit into the "
        f"model's context of {most:,}: {remedy}"
    )


def table(selection: "PassageSelection", layer: int | None) -> str:
    """The most-read lines, a row each, as wide as the terminal."""
    from minikeye.explore.words import percent

    rows = [("line", "attention", "keys", "by chance", "text")]
    for line in selection.most_read(SHOWN, layer):
        numbers = percent(line.attention), percent(line.keys), percent(line.chance)
        rows.append((f"{line.number}", *numbers, shown(line.text)))
    if len(rows) == 1:
        return "No line was read."
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    room = max(NARROWEST, shutil.get_terminal_size().columns - sum(widths) - 8)
    lines = (
        "  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), cut(row[4], room)]) for row in rows
    )
    return "\n".join(lines)


def shown(text: str) -> str:
    """A line's text as a terminal may have it: no tabs, and nothing that would move the cursor or change colours."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text.strip().replace("\t", " "))


def cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"
