"""The README says what the results say."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_results() -> None:
    """Every table row that names a summary key holds that key's number."""
    summary = {}
    for path in (ROOT / "assets" / "results").glob("*.json"):
        summary |= json.loads(path.read_text())["summary"]
    rows = re.findall(r"\| ([\d.,-]+) \| `(\w+)` \|", README)
    assert len(rows) >= 8
    assert {key: float(number) for number, key in rows} == {key: summary[key] for _, key in rows}


def test_links_lead_somewhere() -> None:
    """Every relative link and picture of the README exists, and every picture says what it shows."""
    links = re.findall(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 10
    assert [target for _, _, target in links if not (ROOT / target).exists()] == []
    assert all(len(text.split()) > 5 for mark, text, _ in links if mark)


def test_every_module_is_named() -> None:
    """Whoever looks for a place finds it in the file tree: every module of the package and of the kernels."""
    tree = re.search(r"```\nkernels/.*?```", README, re.S)[0]
    named = set(re.findall(r"\w+", tree))
    paths = [path for folder in ("minikeye", "kernels") for path in (ROOT / folder).rglob("*.py")]
    modules = {path.stem for path in paths if path.parent.name != "exercises"} - {"__init__", "__main__"}
    folders = {path.parent.name for path in paths}
    assert (modules | folders) - named == set()
