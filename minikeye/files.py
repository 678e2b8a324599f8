"""Where files lie, and how they are written: whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The checkpoint that comes with the repository. The installed package alone does not have it.
CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "mini"


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises as `whole_file` does."""
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A neighbouring file to write to, which takes the name `path` when the block ends: nobody ever sees half a file.

    After an error in the block it is removed. Raises NotADirectoryError or IsADirectoryError where `path` cannot be a
    file, other OSErrors of the disk.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected the name of a file, got the folder {path}")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"expected a file in an existing folder, got {path}: make {path.parent} first")
    part = _beside(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A neighbouring folder to fill, which takes the name `path`, and the place of what was there, when the block ends.

    Its parents are made. After an error in the block it is removed and what was there stays. A kill leaves the old
    folder or the new one; within the two renames that replace one, the old one under the name .NAME-old.
    """
    target = Path(path).resolve()  # a link stays a link to the new folder
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(target)
    part.mkdir()
    try:
        yield part
        _replace_folder(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses, so that two writers do not mix their files."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}")


def _replace_folder(new: Path, target: Path) -> None:
    """Swap the folders by renames; the old one goes only when the new one is in place."""
    if not target.exists():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:  # Ctrl-C too
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder itself, or the local copy of a hub repository, downloaded where it is not there yet.

    weights: whether the download needs them; a Processor does not. Raises FileNotFoundError for anything else.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or str(name).count("/") != 1:
        raise FileNotFoundError(f"no folder {name}: give a checkpoint folder or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", *(["*.safetensors"] if weights else [])]
    return Path(snapshot_download(str(name), allow_patterns=patterns))
