"""Are the ranges of pyproject.toml true? Runs tests with the lowest, then with the newest allowed versions.

python tests/ranges.py [lowest] [newest] [--dry-run] [-- arguments of pytest]

`make ranges` gives it the arguments of `make quick`. --dry-run: only ask pip whether the versions exist and agree with
each other. Else each set of versions gets a virtual environment under build/ranges. torch and triton, which are
gigabytes and which requirements.txt pins, come from the environment that runs this. A set that cannot be installed, or
whose tests fail, ends the run; only its environment stays.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIVEN = ("torch", "triton")


def requirements(which: str) -> list[str]:
    """What to install: everything that minikeye, its notebooks and its tests need, `name==lowest` or `name>=lowest`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"], *(line for part in project["optional-dependencies"].values() for line in part)]
    pairs = dict(line.split(">=") for line in ranges)
    sign = {"lowest": "==", "newest": ">="}[which]
    # What is given is named too, as it is: to upgrade it is what pip would do for a package that needs it.
    given = [f"{name}=={version(name)}" for name in GIVEN]
    return given + [f"{name}{sign}{low}" for name, low in pairs.items() if name not in GIVEN]


def environment(which: str, dry: bool) -> Path:
    """The Python of a fresh environment with these versions; without them where it is a dry run."""
    folder = ROOT / "build" / "ranges" / which
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    own = Path(subprocess.run([python, "-c", PURELIB], capture_output=True, text=True, check=True).stdout.strip())
    # torch, triton and what is pinned behind them are found there; what pip installs here comes before it.
    (own / "zz_given.pth").write_text(f"{distribution('torch').locate_file('')}\n", encoding="utf-8")
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
            # -P leaves the repository off the path (CONTRIBUTING.md). No bin/pytest where the given one is the newest.
            command = [python, "-P", "-m", "pytest", *more]
            # What is found in the given environment may be a program there, such as the sandbox's.
            paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": paths}
            subprocess.run(command, cwd=ROOT, env=env, check=True)
        shutil.rmtree(python.parent.parent)


if __name__ == "__main__":
    main()
