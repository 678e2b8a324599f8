"""A page of its own for a FrameSelection: layer, query and frames are chosen in any browser, without Python or network.

    selection.to_html("frames.html")

It offers what the explorer in a notebook offers for a record, in the same words. The explorer draws in Python, so the
page has code of its own to draw with: words.js, draw.js, page.js and, as in all pages, numbers.js, which go into it as
they are. Without JavaScript it shows one layer and one query.

Axes: l recorded layer, t recorded query, f frame.
"""

import base64
import hashlib
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch

import minikeye
from minikeye.explore.figures import PALETTE
from minikeye.explore.layout import MAX_COLUMNS, time_ticks
from minikeye.explore.selection import FrameCounts
from minikeye.explore.standalone.pack import pack, pictures
from minikeye.explore.strip import ACCENT, GAMMA
from minikeye.explore.widget import view
from minikeye.explore.widget.panels import colours
from minikeye.explore.words import finding, percent, sentence, when
from minikeye.files import write_whole

HERE = Path(__file__).parent
SCRIPTS = ("numbers.js", "words.js", "draw.js", "page.js")
STYLES = ("base.css", "page.css")
ROOM = 2_900_000  # bytes of a page, if pictures can bring that about
LEAST = 500_000  # bytes that pictures may take in any case


def write(selection: FrameCounts, path: str | Path) -> None:
    """Write one web page that shows the selection, whole or not at all; a file of that name is replaced.

    Pictures get smaller until the page has no more than 3 MB, as far as its numbers leave them 0.5 MB.
    Raises ValueError for a name that does not end in .html or .htm, and for a selection that a page cannot show:
    without a layer, query or frame, or with numbers that are not finite. Raises OSError where the folder is not there
    (it is not made), where the path is a folder, a device or a link to nowhere, and where it cannot be written.
    """
    check_name(path)
    check_numbers(selection)
    write_whole(path, document(selection).encode("utf-8", "replace"))


def check_name(path: str | Path) -> None:
    """Raise ValueError for the name of a file that a browser would not show as a page."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"expected the name of a web page, which ends in .html, got {path}")


def check_numbers(s: FrameCounts) -> None:
    """Raise ValueError where there is nothing to choose from, and for nan, which the page's JSON does not know."""
    if not s.counts.numel():
        raise ValueError(f"expected a layer, a query and a frame at least, got counts [l t f] {list(s.counts.shape)}")
    for name, numbers in (("mass", s.mass), ("kept", s.kept), ("seconds", torch.tensor(s.seconds))):
        if not numbers.isfinite().all():
            raise ValueError(f"expected {name} to be finite, got nan or infinity: look at the model that was recorded")


def document(selection: FrameCounts) -> str:
    """The page. What comes from outside is escaped, and a policy in the page lets no other script run."""
    layer, query = _start(selection)
    words = [_words(selection, one) for one in view.recorded(selection)]
    script = joined(*(HERE / name for name in SCRIPTS))
    parts = {
        "version": minikeye.__version__,
        "title": escape(selection.question or "Which frames were read"),
        "asked": "".join(f'<p id="asked">{escape(line)}</p>' for line in view.asked(selection)),
        "finding": escape(sentence(selection)),
        **{part: escape(said) for part, said in words[query][layer].items()},
        "marks": f" Orange marks: {escape(_subject(selection))}." if selection.truth else "",
        "measure": "attention" if selection.reads_all else "keys",
        "digest": digest(script),
        "script": script,
        "style": joined(*(HERE / name for name in STYLES)),
        "numbers": pack(_header(selection, words) | {"start": {"layer": layer, "query": query}}, selection),
    }
    room = max(LEAST, ROOM - sum(map(len, parts.values())) - 400 * len(selection.seconds))
    return template(HERE / "page.html").substitute(parts, film=_film(selection, layer, query, room))


def template(page: Path) -> Template:
    """A page, its own part behind the head that all pages share: the policy in it, the place of style and title."""
    return Template(joined(HERE / "head.html", page))


def joined(*paths: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in paths)


def digest(script: str) -> str:
    """By which a page's policy knows its own script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _subject(s: FrameCounts) -> str:
    return s.subject or "the answer"


def _start(s: FrameCounts) -> tuple[int, int]:
    """The layer that the finding is about, and the query that reads most of the truth there, or of one frame: most by
    keys, then by attention."""
    layer, truth = finding(s)[0] or 0, list(s.truth)
    share, mass = ((x[:, truth].sum(-1) if truth else x.amax(-1)).tolist() for x in (s.shown[layer], s.mass[layer]))
    return layer, max(range(len(share)), key=lambda query: (share[query], mass[query]))


def _words(s: FrameCounts, query: view.Query) -> list[dict[str, str]]:
    """What is said of one query, layer by layer, by the place in the page where it is said."""
    one, said = view.of_query(s, query.position), []
    for layer in range(len(s.layers)):
        there = view.View(query, layer, 0, len(s.seconds) - 1, view.as_recorded(s, layer, query.position))
        parts = {"settings": view.settings(one, there), "findings": view.findings(one, there)}
        said.append(
            {name: " ".join(sentences) for name, sentences in parts.items()} | {"reads": view.reads(one, there)}
        )
    return said


def _header(s: FrameCounts, words: list[list[dict[str, str]]]) -> dict[str, Any]:
    """What the page's script is told beside keys and attention. words: by query and layer."""
    places, names, unit = time_ticks(s)
    return {
        "shape": list(s.counts.shape),
        "layers": s.layers,
        "times": [when(s, n) for n in range(len(s.seconds))],
        "queries": [query.name for query in view.recorded(s)],
        "truth": s.truth,
        "keys": s.keys.tolist(),
        "kept": s.kept.tolist(),
        "readsAll": [view.of_query(s, n).reads_all for n in range(len(words))],
        "settings": [[layer["settings"] for layer in query] for query in words],
        "findings": [[layer["findings"] for layer in query] for query in words],
        "ticks": {"places": places, "names": names, "unit": unit},
        "columns": MAX_COLUMNS,
        "gamma": GAMMA,
        "colours": _colours(),
        "accent": ACCENT,
        "blue": PALETTE["blue"],
        "orange": PALETTE["orange"],
    }


def _colours() -> list[str]:
    """The heat map's, dark to light."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours(128).tolist()]


def _film(s: FrameCounts, layer: int, query: int, room: int) -> str:
    """The frames as items of a list; `showFilm` in page.js makes them say what is chosen."""
    one = view.of_query(s, query)
    share, palette = one.shown[:, 0], _colours()
    shades = ((share[layer] / share.max().clamp(min=1e-12)) ** GAMMA).tolist()
    codes = [""] * len(shades) if s.thumbnails is None else pictures(s.thumbnails, room)
    items = []
    for n, (shade, code) in enumerate(zip(shades, codes, strict=True)):
        keys = int(one.counts[layer, 0, n])
        amount = percent(one.mass[layer, 0, n].item()) if one.reads_all else f"{keys or 'no'} key{'s' * (keys != 1)}"
        style = f"--shade:{shade:.4g};--colour:{palette[round(shade * (len(palette) - 1))]}"
        picture = f'<img alt="" src="{code}">' if code else ""
        told = "quiet" if n - 1 in s.truth else "tag"  # in a run of truth the first frame says so for all, to the eye
        truth = f'<span class="{told}"><bdi>{escape(_subject(s))}</bdi></span>' if n in s.truth else ""
        words = f'<b>{when(s, n)}</b> <span class="amount">{amount}</span> {truth}'
        button = f'<button type="button" disabled{" class=truth" * bool(truth)} style="{style}">'
        items.append(f'<li>{button}{picture}<span class="stripe"></span>{words}</button></li>')
    return "\n".join(items)
