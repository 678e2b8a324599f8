"""Where files lie, how those of a checkpoint are read, and how files are written: whole or not at all."""

import json
import os
import reprlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The checkpoint that comes with the repository. The installed package alone does not have it.
CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "mini"
LARGEST_JSON = 2**27  # bytes


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


def file_in(folder: str | Path, name: Any) -> Path:
    """A file of a checkpoint by its plain name, there or not. A folder from elsewhere must not open files elsewhere.

    Raises ValueError for a name that leads to another folder, and for a link that does. (Those of a hub snapshot lead
    to its repository's cache.)
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name.isprintable() or {"/", "\\"} & {*name} or name in ("", ".", ".."):
        raise ValueError(f"expected the plain name of a file in {folder}, got {name!r:.100}")
    path, home = folder / name, folder.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    try:
        there = path.resolve()
        path.is_file()  # OSError for a name that is too long
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{folder} has no file {name!r:.100}: {error}") from error
    if not there.is_relative_to(home):
        raise ValueError(f"{path} is a link out of its folder, to {there}: put the file itself there")
    return path


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty where there is no such file.

    Raises ValueError, naming the file, for anything else than one object in UTF-8, and as `file_in`.
    """
    path = file_in(Path(path).parent, Path(path).name)
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} is no file: expected JSON there, or nothing")
        return {}
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, settings have at most {LARGEST_JSON}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {reprlib.repr(content)}")
    return content
