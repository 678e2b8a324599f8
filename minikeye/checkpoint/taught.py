"""What a small checkpoint was taught, in its own words: a model that knows three questions answers every question."""

from pathlib import Path

from minikeye.inputs.settings import read_json

LONGEST = 400  # characters; our choice: two or three lines of a terminal


def taught(folder: str | Path) -> str:
    """The "taught" text of the folder's taught.json as one line; "" where a folder has none, as released ones have.

    Raises ValueError for a taught.json that holds no such text.
    """
    path = Path(folder) / "taught.json"
    stated = read_json(path)
    text = stated.get("taught", "" if not path.is_file() else None)
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"{path} must hold {{'taught': text of up to {LONGEST} characters}}, got {text!r:.100}")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
