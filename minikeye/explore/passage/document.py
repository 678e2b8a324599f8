"""A page of its own for a PassageSelection: query, layer and head are chosen in any browser, without Python or network.

    selection.to_html("passage.html")

All that it says comes from Python, a sentence for each choice; its script, page.js, shades the text and tells about one
token, in the words of `words.token`. Without JavaScript it shows the mean of all layers and queries.

Axes: l recorded layer, t recorded query, p piece.
"""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

import minikeye
from minikeye.explore.passage.counts import PassageCounts
from minikeye.explore.passage.shades import BOUNDS, COLOURS, THICK, levels
from minikeye.explore.passage.words import asked, sentence, shown_by
from minikeye.explore.standalone import document as standalone
from minikeye.explore.standalone.pack import planes, zipped
from minikeye.explore.widget.view import quoted
from minikeye.files import write_whole

HERE = Path(__file__).parent
ROOM = 3_000_000  # bytes of a page, as far as its text leaves room
UNITS = (1e-6, 4e-6, 1.6e-5, 6.4e-5, 2.56e-4)  # of the attention, from fine to coarse: the first is that of the JSON
SHADES = {
    "keys": "the larger the share of the chosen layers and queries that select it, from none to all",
    "attention": "the more attention it gets, from none to the most that a token gets; every key is read here",
}
LEFT_OUT = (
    "The indexer heads alone are left out: with them, this page would have more than 3 MB. The JSON file has them."
)


def write(selection: PassageCounts, path: str | Path) -> None:
    """Write one web page that shows the selection, whole or not at all; a file of that name is replaced.

    Above 3 MB attention is kept more coarsely, then the heads alone are left out, and the page says so.
    Raises ValueError for a name that does not end in .html or .htm, and for a selection that a page cannot show:
    without a layer, query or token, or with numbers that are not finite; OSError as `FrameSelection.to_html`.
    """
    standalone.check_name(path)
    check_numbers(selection)
    write_whole(path, document(selection).encode("utf-8", "replace"))


def check_numbers(s: PassageCounts) -> None:
    """Raise ValueError where there is nothing to choose from, and for nan, which the page's JSON does not know."""
    if not s.counts.numel():
        raise ValueError(f"expected a layer, a query and a token at least, got counts [l t p] {list(s.counts.shape)}")
    for name in ("mass", "kept"):
        if not getattr(s, name).isfinite().all():
            raise ValueError(f"expected {name} to be finite, got nan or infinity: look at the model that was recorded")


def document(selection: PassageCounts) -> str:
    """The page. What comes from outside is escaped, and a policy in the page lets no other script run."""
    script = standalone.joined(standalone.HERE / "numbers.js", HERE / "page.js")
    style = standalone.joined(standalone.HERE / "base.css", HERE / "page.css")
    parts = {
        "version": minikeye.__version__,
        "title": escape(selection.question or "Which lines were read"),
        "asked": "".join(f'<p id="asked">{escape(line)}</p>' for line in asked(selection)),
        "sentence": escape(sentence(selection)),
        "shade": SHADES[shown_by(selection)],
        "scale": "".join(f'<span class="s{n}">{"abcdefghi"[n]}</span>' for n in range(len(COLOURS))),
        "marks": f" An orange frame: <bdi>{escape(_subject(selection))}</bdi>." if selection.truth else "",
        "first_line": str(selection.first_line),
        "passage": lines(selection, levels(selection)),
        "digest": standalone.digest(script),
        "script": script,
        "style": style.replace("$levels", rules("")),
    }
    room = ROOM - sum(len(part.encode("utf-8", "replace")) for part in parts.values()) - 4000
    numbers, whole = numbers_within(selection, room)
    left_out = "" if whole else f'<p class="note">{LEFT_OUT}</p>'
    return standalone.template(HERE / "page.html").substitute(parts, numbers=numbers, left_out=left_out)


def lines(s: PassageCounts, shades: Int[Tensor, " p"]) -> str:
    """The passage as items of a list, a span a piece; the truth in <mark>, with its name behind the line."""
    levels_, held, items = shades.tolist(), set(s.truth_pieces), []
    begun = [""] * (len(s.line_pieces) + 1)  # what a piece of an earlier line holds of this one: its indentation
    for n, (_, a, b) in enumerate(s.line_pieces):
        code, inside = escape(begun[n]), False
        for piece in range(a, b):
            if inside != (piece in held):
                inside = not inside
                code += "<mark>" if inside else "</mark>"
            *ended, rest = s.pieces[piece].replace("\r", "").split("\n")
            shown = "⏎".join([*ended, ""]) if ended else rest
            begun[n + len(ended)] = rest if ended else ""
            code += f'<span class="s{levels_[piece]}" tabindex="-1">{escape(shown)}</span>'
        tag = f'<span class="tag">{escape(_subject(s))}</span>' if not held.isdisjoint(range(a, b)) else ""
        items.append(f"<li><b>{s.first_line + n}</b><code>{code}{'</mark>' * inside}</code>{tag}</li>")
    return "\n".join(items)


def rules(within: str) -> str:
    """How the levels look. within: a selector that they are confined to."""
    return "\n".join(
        f"{within}.s{n} {{ background: rgb{colour}; box-shadow: inset 0 -{thick}px 0 #0072b2; }}"
        for n, (colour, thick) in enumerate(zip(COLOURS, THICK, strict=True))
    )


def numbers_within(s: PassageCounts, room: int) -> tuple[str, bool]:
    """What the script is told, in at most `room` characters if that can be; and whether the heads alone are in it."""
    said = _sentences(s)
    for heads in (True, False) if s.heads is not None else (False,):
        for unit in UNITS:
            code = packed(s, unit, said if heads else said[:1])
            if len(code) <= room:
                return code, heads or s.heads is None
    return code, s.heads is None


def packed(s: PassageCounts, unit: float, sentences: list[list[list[str]]]) -> str:
    """Header, counts as planes of bits, attention of what is selected in whole units."""
    alone = [] if s.heads is None else [s.heads[n] for n in range(len(sentences) - 1)]
    counts = [x.numpy().astype(np.uint16) for x in (s.counts, *alone)]
    bits = [max(1, int(x.max()).bit_length()) for x in counts]
    body = b"".join(
        np.packbits((x >> plane & 1).astype(np.uint8).reshape(-1)).tobytes()
        for x, n in zip(counts, bits, strict=True)
        for plane in range(n)
    )
    mass = (s.mass.double() / unit).round().long().numpy()[counts[0] > 0]
    header = _header(s, sentences) | {"bits": bits, "selected": len(mass), "unit": unit}
    return zipped(header, body + planes(mass))


def _sentences(s: PassageCounts) -> list[list[list[str]]]:
    """By head, layer and query, all of them first."""
    heads = [None, *range(0 if s.heads is None else len(s.heads))]
    layers, queries = ([None, *range(total)] for total in s.keys.shape)
    return [[[sentence(s, layer, query, head) for query in queries] for layer in layers] for head in heads]


def _header(s: PassageCounts, sentences: list[list[list[str]]]) -> dict[str, Any]:
    """What the page's script is told beside counts and attention."""
    l, t = s.keys.shape  # noqa: E741 - the axis letter
    labels = s.labels or ("",) * t
    queries = [f"{n + 1} {quoted(label)}" if label else f"token {s.seen[n] - 1}" for n, label in enumerate(labels)]
    return {
        "shape": list(s.counts.shape),
        "queries": [f"all {t}" if t > 1 else "all", *queries],
        "layers": [f"all {l}" if l > 1 else "all", *(f"layer {n}" for n in s.layers)],
        "heads": ["all together", *(f"head {n} alone" for n in range(len(sentences) - 1))],
        "tokens": s.tokens,
        "names": [quoted(piece) for piece in s.pieces],
        "whole": [[False] * t] * l if s.whole is None else s.whole.tolist(),
        "bounds": BOUNDS,
        "shades": [SHADES["keys"], SHADES["attention"]],
        "sentences": sentences,
    }


def _subject(s: PassageCounts) -> str:
    return s.subject or "the answer's place"
