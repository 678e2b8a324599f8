"""A GGUF file, its header read once: numbers and words by name, tensors still to be dequantised (library `gguf`)."""

from functools import lru_cache
from pathlib import Path

from gguf import GGUFReader


def open_gguf(path: str | Path) -> GGUFReader:
    """The file, mapped. A header takes seconds to read (tens of thousands of words), so the last one is kept.

    Raises FileNotFoundError where there is no file, ValueError for one that is no GGUF.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"expected a GGUF file at {path}, found none")
    about = path.stat()
    return _opened(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(path: Path, size: int, changed: int) -> GGUFReader:
    try:
        return GGUFReader(path)
    except Exception as error:  # numpy's and the library's own, for files that are cut or are something else
        raise ValueError(f"{path} is not a readable GGUF file: {error!s:.200}") from error
