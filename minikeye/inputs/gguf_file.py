"""A GGUF file, its header read once: numbers and words by name, tensors still to be dequantised (library `gguf`)."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader


def open_gguf(path: str | Path) -> GGUFReader:
    """The file, mapped. A header takes seconds to read (tens of thousands of words), so the last one is kept.

    Raises FileNotFoundError where there is no file, ValueError for one that is no GGUF, or of the other byte order.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"expected a GGUF file at {path}, found none")
    about = path.stat()
    return _opened(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(path: Path, size: int, changed: int) -> GGUFReader:
    try:
        reader = GGUFReader(path)
    except Exception as error:  # numpy's and the library's own, for files that are cut or are something else
        raise ValueError(f"{path} is not a readable GGUF file: {error!s:.200}") from error
    if reader.byte_order != "I":  # the library would read its tensors as if it were
        raise ValueError(f"{path} is a GGUF file of another byte order than this machine's: convert it first")
    at = reader.data_offset
    for t in reader.tensors:  # one after the other, as llama.cpp wants them: a damaged header would read other numbers
        if t.data_offset != at:
            raise ValueError(f"{path} is damaged: {t.name} begins at byte {t.data_offset}, expected {at}")
        at += -(-t.n_bytes // reader.alignment) * reader.alignment
    return reader


def stated(path: str | Path, key: str) -> Any:
    """The number, words or list of them that the header states under a name, None where it states none.

    Raises as `open_gguf`, ValueError also for words that are not UTF-8.
    """
    field = open_gguf(path).fields.get(key)
    try:
        return None if field is None else field.contents()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: its {key} is not UTF-8") from error
