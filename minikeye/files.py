"""Where files lie, how those of a checkpoint are read, and how files are written: whole or not at all."""

import fcntl
import glob
import json
import os
import re
import reprlib
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# The checkpoint that comes with the repository. The installed package alone does not have it.
CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "mini"
LARGEST_JSON = 2**27  # bytes
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises as `whole_file` does."""
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A neighbouring file to write to, which takes the name `path` when the block ends: nobody ever sees half a file.

    After an error in the block it is removed; what a kill leaves goes at the next writing. A link stays a link to the
    new file. Raises as `place_of_file`, and other OSErrors of the disk.
    """
    path = place_of_file(path)
    part = _beside(path)
    with open(part, "xb") as held, _locked(held.fileno()):  # whoever cannot lock it knows that its writer lives
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def place_of_file(path: str | Path) -> Path:
    """Where a file called `path` is written: there, or where a link leads.

    Raises NotADirectoryError or IsADirectoryError where `path` cannot be a file, FileExistsError for what is no file (a
    pipe, a device), FileNotFoundError for a link to nowhere.
    """
    if (path := Path(path)).is_dir():
        raise IsADirectoryError(f"expected the name of a file, got the folder {path}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"expected the name of a file, got {path}, which is a pipe or a device")
    path = _target(path)
    if not path.parent.is_dir():
        raise NotADirectoryError(f"expected a file in an existing folder, got {path}: make {path.parent} first")
    return path


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A neighbouring folder to fill, which takes the name `path`, and the place of what was there, when the block ends.

    Its parents are made. After an error in the block it is removed and what was there stays. A kill leaves the old
    folder or the new one; within the two renames that replace one, the old one under the name .NAME-old, where
    `local_folder` finds it and the next writing puts it back. Raises NotADirectoryError for what is no folder,
    FileNotFoundError for a link to nowhere, OSError for a mount point, which cannot be renamed.
    """
    target = _target(path).resolve()  # a link stays a link to the new folder
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"expected the name of a folder, got {target}, which is there and none")
    if os.path.ismount(target):
        raise OSError(f"{target} is a mount point, which cannot be replaced as a whole: name a folder inside it")
    target.parent.mkdir(parents=True, exist_ok=True)
    _restore(target)
    part = _beside(target)
    part.mkdir()
    with _opened(part) as held, _locked(held):
        try:
            yield part
            with _opened(target.parent) as parent, _locked(parent, wait=True):  # one swap at a time
                _replace_folder(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def require_room(path: str | Path, size: int) -> None:
    """Raise OSError where the disk of `path` has less than `size` bytes free: before the work, not after it."""
    parent = next(folder for folder in Path(path).resolve().parents if folder.is_dir())
    if (free := shutil.disk_usage(parent).free) < size:
        raise OSError(f"{path} needs {size / 2**30:.1f} GiB, {parent} has {free / 2**30:.1f} GiB free")


def _target(path: str | Path) -> Path:
    """Where a path leads, if it is a link."""
    if not (path := Path(path)).is_symlink():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which is not there: remove it first")
    return path.resolve()


def _beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses, so that two writers do not mix their files.

    What killed writers left under such names is removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}-????????.part"):
        with suppress(OSError), _opened(left) as held, _locked(held) as free:
            if free:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file or folder, opened so that it can be locked."""
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


@contextmanager
def _locked(number: int, wait: bool = False) -> Iterator[bool]:
    """A lock on an open file, which ends with the process that holds it. False where another one does.

    Also where the file system knows no locks: then nothing is swept, and writers of one folder must not meet.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        yield False
        return
    yield True  # closing the file gives the lock back


def _old(target: Path) -> Path:
    """The name of what a folder replaces, between the two renames."""
    return target.with_name(f".{target.name}-old")


def _replace_folder(new: Path, target: Path) -> None:
    """Swap the folders by renames; the old one goes only when the new one is in place."""
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:  # Ctrl-C too
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore(target: Path) -> None:
    """Put back what a writer had moved aside when it was killed."""
    if not target.exists() and _old(target).is_dir():
        with _opened(target.parent) as parent, _locked(parent, wait=True):
            if not target.exists():
                os.replace(_old(target), target)


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder itself, or the local copy of a hub repository, downloaded where it is not there yet.

    weights: whether the download needs them; a Processor does not. Raises FileNotFoundError for anything else, and
    where the hub gives no such repository.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if _old(folder).is_dir():
        warnings.warn(f"{folder} was being replaced when its writer was killed: reading {_old(folder)}", stacklevel=2)
        return _old(folder)
    if isinstance(name, Path) or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"no folder {name}: give a checkpoint folder or a hub id such as owner/name")
    if folder.parent.is_dir():
        there = f"{folder.parent} is a folder here, so this is a path and no hub id"
        raise FileNotFoundError(f"no folder {name}: {there}; give a checkpoint folder, or ask the hub from elsewhere")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # no network, no such repository, no right to read it: the library has an error for each
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"no folder {name}, and no such repository from the hub: {reason:.200}") from error


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
