"""The README says what the results say."""

import json
import re
from pathlib import Path

import torch

from minikeye.checkpoint.taught import taught
from minikeye.config import KeyeConfig
from minikeye.cost import scaled
from minikeye.cost.memory import needs

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_results() -> None:
    """Every table row that names a summary key holds that key's number."""
    summary = {}
    for path in (ROOT / "assets" / "results").glob("*.json"):
        summary |= json.loads(path.read_text())["summary"]
    rows = re.findall(r"\| ([\d.,-]+) \| `(\w+)` (?=\|)", README)  # a row may hold a second pair: chance
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


def test_what_a_card_of_80_gb_holds() -> None:
    """The sentence's numbers are those of the memory bill; 80 GB on a card's box are 79.2 GiB or more."""
    config, card = KeyeConfig.keye_vl_2_30b_a3b(), 79.2 * 2**30
    bills = {n: needs(config, context=n, dtype=torch.bfloat16, device="cuda").total for n in (32_768, 131_072, 262_144)}
    assert bills[131_072] < card < bills[262_144]
    text = " ".join(README.split())
    sizes = [scaled(bill, "B") for bill in bills.values()]
    assert f"131,072 tokens ({sizes[1]} of its 85.0 GB" in text and f"32,768 tokens take {sizes[0]})" in text
    assert f"not 262,144 tokens ({sizes[2]})" in text


def test_the_limits_stand_before_the_invitation() -> None:
    """What the small checkpoint was taught is said before a reader asks it about a video of their own."""
    code = README.index("FrameExplorer.from_video(")
    for question in re.findall(r'"([^"]*\?)"', taught(ROOT / "assets" / "checkpoints" / "mini")):
        assert question in " ".join(README[:code].split()), question
