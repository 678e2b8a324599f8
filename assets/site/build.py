"""Build the site: README, lessons with their saved outputs, results, API reference; no network, nothing is run.

    make site                     into build/site; open build/site/index.html
    python assets/site/build.py --out FOLDER

The sources lie all over the repository, so they are laid out first, as Markdown, reStructuredText and notebooks with
their links turned to pages of the site; Sphinx reads that. This folder is under assets/ because the site, like figures
and results, is made by a script from what the others hold.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import layout  # noqa: E402 - beside this file


def build(out: Path, work: Path) -> int:
    """Write the site into `out`, by way of `work`; both are replaced. Returns Sphinx's exit status; a warning is 1."""
    for folder in (out, work):
        shutil.rmtree(folder, ignore_errors=True)
    layout.lay_out(work / "sources")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(HERE), "-d", str(work / "doctrees")]
    status = sphinx([*options, str(work / "sources"), str(out)])
    for page in layout.explorers():
        (out / "explorer").mkdir(exist_ok=True)
        shutil.copy(page, out / "explorer")
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=layout.ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--work", type=Path, default=layout.ROOT / "build" / "site-work", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    start = time.perf_counter()
    status = build(asked.out.resolve(), asked.work.resolve())
    if status == 0:
        pages = list(asked.out.rglob("*.html"))
        size = sum(path.stat().st_size for path in asked.out.rglob("*") if path.is_file()) / 1e6
        print(f"==> {len(pages)} pages, {size:.0f} MB, {time.perf_counter() - start:.0f} s: {asked.out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
