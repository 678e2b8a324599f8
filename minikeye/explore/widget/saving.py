"""The explorer's files: where they go, and what is in them."""

import io
import json
from pathlib import Path
from typing import Any, Literal

import matplotlib

from minikeye.explore import strip
from minikeye.explore.frames import FrameSelection
from minikeye.explore.selection import FrameCounts
from minikeye.explore.widget import panels
from minikeye.explore.widget.view import View

ENDINGS = (".png", ".svg", ".pdf", ".json", ".csv")


def free_path(name: str, ending: str) -> tuple[Path, str]:
    """Where a file called `name` goes: its whole path, and the name it could not have because that was taken, else "".

    An ending of ENDINGS is exchanged, so that "x.png" is no "x.png.png"; where a file is there already, a number is
    added: nothing is overwritten. Raises ValueError without a name.
    """
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in ENDINGS else name
    if not Path(stem).name or stem.endswith(("/", "\\")):
        raise ValueError("it has no name")
    wanted = Path(f"{stem}{ending}").expanduser().resolve()
    path, number = wanted, 2
    while path.exists():
        path, number = wanted.with_name(f"{wanted.name.removesuffix(ending)}-{number}{ending}"), number + 1
    return path, wanted.name if path != wanted else ""


def content(
    path: Path, selection: FrameSelection, view: View, png: bytes, settings: dict[str, Any], thumbnails: bool
) -> bytes:
    """What belongs into a file with the ending of `path`. Raises ValueError for an ending that is not in ENDINGS."""
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise ValueError(f"expected a name that ends in {', '.join(ENDINGS)}, got {path.name}")
    if kind == ".png":
        return png
    if kind == ".csv":
        return selection.to_csv().encode()
    if kind == ".json":
        document = json.loads(selection.to_json(thumbnails)) | {"view": settings}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return drawing(panels.cut(selection, view.first, view.last), kind[1:])


def drawing(selection: FrameCounts, kind: Literal["svg", "pdf"]) -> bytes:
    """All layers, by matplotlib: the same bytes at every call."""
    file, undated = io.BytesIO(), {"svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "minikeye", "pdf.fonttype": 42}):
        strip.draw(selection).savefig(file, format=kind, metadata=undated)
    return file.getvalue()
