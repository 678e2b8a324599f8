"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: str | Path, data: bytes) -> None:
    """Write to a neighbouring file first, then rename: a reader never sees half a file.

    Raises NotADirectoryError or IsADirectoryError where `path` cannot be a file, other OSErrors of the disk.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected the name of a file, got the folder {path}")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"expected a file in an existing folder, got {path}: make {path.parent} first")
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
