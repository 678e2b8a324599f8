"""Are the ranges of pyproject.toml true? Runs `make quick`'s tests with the lowest, then the newest allowed versions.

python tests/ranges.py [lowest] [newest] [--dry-run] [-- arguments of pytest]

--dry-run: only ask pip whether the versions exist and agree with each other. Else each set of versions gets a virtual
environment under build/ranges. torch and triton, which are gigabytes and which requirements.txt pins, come from the
environment that runs this. A set that cannot be installed, or whose tests fail, ends the run; its environment stays.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIVEN = ("torch", "triton")
QUICK = ["-q", "-m", "not slow", "--ignore", "tests/kernels", "--ignore", "tests/explore/test_browser.py"]


def requirements(which: str) -> list[str]:
    """What to install: everything that minikeye, its notebooks and its tests need, `name==lowest` or `name>=lowest`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"], *(line for part in project["optional-dependencies"].values() for line in part)]
    pairs = dict(line.split(">=") for line in ranges)
    sign = {"lowest": "==", "newest": ">="}[which]
    return [f"{name}{sign}{low}" for name, low in pairs.items() if name not in GIVEN]


def environment(which: str, dry: bool) -> Path:
    """The Python of a fresh environment with these versions; without them where it is a dry run."""
    folder = ROOT / "build" / "ranges" / which
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    own = Path(subprocess.run([python, "-c", PURELIB], capture_output=True, text=True, check=True).stdout.strip())
    # torch, triton and what is pinned behind them are found there; what pip installs here comes before it.
    (own / "zz_given.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*pip, "--upgrade-strategy", "eager", *["--dry-run"] * dry, *requirements(which)], check=True)
    if not dry:
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return python


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


def main() -> None:
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, more = sys.argv[1:at], sys.argv[at + 1 :]
    for which in [word for word in given if word != "--dry-run"] or ["lowest", "newest"]:
        print(f"==> {which}: {' '.join(requirements(which))}", flush=True)
        python = environment(which, dry="--dry-run" in given)
        if "--dry-run" not in given:
            # The environment's own pytest, which leaves the repository off the path (CONTRIBUTING.md).
            command = [python.parent / "pytest", *(more or QUICK)]
            subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


if __name__ == "__main__":
    main()
