"""Imports point one way, modules stay small, and every line knows its room."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "minikeye"
MODULES = sorted(path for path in HOUSE.rglob("*.py") if path.name != "__init__.py" or path.parent != HOUSE)

# From the ground floor up. A module imports from its own floor and those below it.
FLOORS = [
    {"config", "rope", "progress", "shipped", "whole"},
    {"ops", "selection", "gathered", "vision", "moe", "indexer", "attention", "cache", "record"},
    {"model"},
    {"tokenizer", "prompt", "template", "released", "sampling", "container", "video", "processor", "text_stream"}
    | {"chat", "generate", "graphed", "checkpoint", "streaming", "devices", "fake", "cost", "memory"},
    {"minivid", "training", "evaluation", "explore", "exercises"},
    {"cli", "commands", "opened"},
]
# Conveniences on a class that is defined below what they call: imported inside the method.
UPWARDS = {("model", "generate"), ("model", "checkpoint")}
PUBLIC = {"minikeye.KeyeConfig": "config", "minikeye.KeyeVL": "model", "minikeye.Processor": "processor"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def room(path: Path) -> str:
    """The module, or the package it lives in."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of everything of minikeye that a file imports, at any depth. Relative imports are not used here."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("minikeye.")}


def edges() -> set[tuple[str, str]]:
    """(room, room it imports from)"""
    pairs = {(room(path), PUBLIC.get(name, name.split(".")[1])) for path in MODULES for name in imports(path)}
    return {(a, b) for a, b in pairs if a != b and b != "__version__"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_a_floor():
    """A new module or package is put into FLOORS by whoever adds it."""
    assert {room(path) for path in MODULES} - set().union(*FLOORS) == set()


def test_imports_point_down():
    floor = {name: n for n, names in enumerate(FLOORS) for name in names}
    floor["kernels"] = 0
    assert {(a, b) for a, b in edges() if floor[a] < floor[b]} == UPWARDS


def test_no_circles():
    graph: dict[str, set[str]] = {}
    for a, b in edges() - UPWARDS:
        graph.setdefault(a, set()).add(b)
    assert list(TopologicalSorter(graph).static_order())


def test_only_ops_imports_kernels():
    assert {path.name for path in MODULES if any(n.startswith("minikeye.kernels") for n in imports(path))} <= {"ops.py"}


def test_the_model_holds_no_if_triton():
    """Of the modules that compute, only ops knows the word."""
    names = FLOORS[1] | FLOORS[2] | {"generate"}
    assert [p.name for p in MODULES if room(p) in names - {"ops"} and "triton" in p.read_text().lower()] == []


def test_kernels_import_kernels_only():
    """The scripts are no kernels: they compare them with the rest and write down what they found."""
    scripts = {"bench.py", "compiled.py", "counters.py", "full_size.py", "proof.py", "proof_model.py", "small.py"}
    found = {(p.name, n) for p in (ROOT / "kernels").rglob("*.py") if p.name not in scripts for n in imports(p)}
    assert sorted((name, n) for name, n in found if not n.startswith("minikeye.kernels.")) == []


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "kernels").rglob("*.py"))], ids=name_of)
def test_at_most_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


def test_no_vague_names():
    folders = [HOUSE, ROOT / "kernels", ROOT / "tests", ROOT / "notebooks"]
    found = [p for folder in folders for p in folder.rglob("*") if p.stem in VAGUE and "__pycache__" not in p.parts]
    assert found == []


def test_every_module_says_what_it_is():
    """A docstring at the top of every file."""
    assert [name_of(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_nothing_is_left_for_later():
    """No TODO, no NotImplementedError, no bare except."""
    for path in [*MODULES, *(ROOT / "kernels").rglob("*.py")]:
        text = path.read_text()
        assert not any(mark in text for mark in ("TODO", "FIXME", "NotImplementedError", "except:")), name_of(path)
