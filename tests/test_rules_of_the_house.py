"""Imports point down, file by file; modules stay small; every line knows its room."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"minikeye": ROOT / "minikeye", "minikeye.kernels": ROOT / "kernels"}

# From the ground up. A file imports from its own room and from the rooms of lower lines, no exceptions.
LAYERS = [
    {"config", "config_json", "files", "progress", "scores", "results", "altered", "kernels"},
    {"ops"},
    {"model", "inputs"},
    {"cost", "minivid"},
    {"checkpoint", "inference"},
    {"keye"},
    {"training", "explore", "exercises"},
    {"rl"},
    {"evaluation"},
    {"cli"},
    {"__init__", "__main__"},  # the three public names, and `python -m minikeye`
]
PUBLIC = {"KeyeConfig": "minikeye.config", "KeyeVL": "minikeye.keye", "Processor": "minikeye.inputs.processor"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def modules() -> dict[str, Path]:
    """Every file of the package, kernels included, by the name that it is imported under."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


@cache
def imports(text: str, names: frozenset[str]) -> frozenset[str]:
    """The modules among `names` that a source text imports, at any depth: inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if node.module == "minikeye" and alias.name in PUBLIC:
                    found.add(PUBLIC[alias.name])
                elif inner in names:
                    found.add(inner)
                elif node.module in names and alias.name != "__version__":
                    found.add(node.module)
    return frozenset(found)


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules it imports. `import minikeye` alone, for its version, is no arrow."""
    names = frozenset(texts)
    return {name: set(imports(text, names)) - {name, "minikeye"} for name, text in texts.items()}


def room(module: str) -> str:
    """The folder of the package that a module lies in, or its own name where it lies in none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upwards(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Arrows that do not point down: to another room on the same line or above. The files that lie in no folder share
    one, so that those of one line may import each other."""
    level = {name: n for n, names in enumerate(LAYERS) for name in names}

    def points_down(a: str, b: str) -> bool:
        beside = a.count(".") == b.count(".") == 1 and level[room(a)] == level[room(b)]
        return room(a) == room(b) or beside or level[room(b)] < level[room(a)]

    return {(a, b) for a, below in arrows.items() for b in below if not points_down(a, b)}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a circle; empty where there is none."""
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        return error.args[1]
    return []


TEXTS = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
PATHS = sorted(MODULES.values())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_room_has_a_line():
    """A new room is put into LAYERS by whoever adds it."""
    assert {room(name) for name in MODULES} - set().union(*LAYERS) == set()


def test_imports_point_down():
    assert upwards(graph(TEXTS)) == set()


def test_no_circles():
    assert circle(graph(TEXTS)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("minikeye.ops.backend", "from minikeye.model.rope import rotate"),
        ("minikeye.model.rope", "from minikeye.inputs import prompt"),  # neither knows the other
        ("minikeye.inputs.prompt", "def f():\n    from minikeye import KeyeVL"),  # lazy, and by its public name
        ("minikeye.kernels.launch", "import minikeye.ops.checks"),
        ("minikeye.training.loop", "from minikeye.explore.ask import ask"),
        ("minikeye.scores", "from minikeye.minivid.tasks import score"),
        ("minikeye.checkpoint.loader", "from minikeye.keye import KeyeVL"),
    ],
)
def test_one_line_that_points_up_is_seen(module, line):
    changed = TEXTS | {module: f"{TEXTS[module]}\n{line}\n"}
    assert {a for a, _ in upwards(graph(changed))} == {module}


def test_one_line_that_closes_a_circle_is_seen():
    """Within a room every direction is allowed, once around is not."""
    changed = TEXTS | {"minikeye.model.rope": TEXTS["minikeye.model.rope"] + "\nfrom minikeye.model import attention\n"}
    assert upwards(graph(changed)) == set() and "minikeye.model.rope" in circle(graph(changed))


def test_recipes_are_imported_by_nobody():
    assert [(a, b) for a, below in graph(TEXTS).items() for b in below if ".recipes." in b] == []


def test_only_ops_imports_kernels():
    """Beside the scripts that check and time them."""
    users = {a for a, below in graph(TEXTS).items() for b in below if room(b) == "kernels" and room(a) != "kernels"}
    doors = {"minikeye.ops.door", "minikeye.ops.layer", "minikeye.ops.decode_step"}
    assert {name for name in users if not name.startswith("minikeye.evaluation.kernels.")} == doors


def test_the_model_holds_no_if_triton():
    """Only ops knows the word, and what asks ops which backend it takes."""
    assert [name for name, text in TEXTS.items() if room(name) == "model" and "triton" in text.lower()] == []


def test_kernels_import_kernels_only():
    found = {(a, b) for a, below in graph(TEXTS).items() for b in below if room(a) == "kernels"}
    assert sorted((a, b) for a, b in found if room(b) != "kernels") == []


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_at_most_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


def test_at_most_12_files_a_folder():
    """Exercises are numbered and may be more."""
    folders = {path.parent for path in PATHS if path.parent.name != "exercises"}
    assert {name_of(f): n for f in folders if (n := len(list(f.glob("*.py")))) > 12} == {}


def test_no_vague_names():
    folders = [*FOLDERS.values(), ROOT / "tests", ROOT / "notebooks"]
    found = [p for folder in folders for p in folder.rglob("*") if p.stem in VAGUE and "__pycache__" not in p.parts]
    assert found == []


def test_every_module_says_what_it_is():
    """A docstring at the top of every file."""
    assert [name for name, text in TEXTS.items() if not ast.get_docstring(ast.parse(text))] == []


def unsaid(text: str) -> list[int]:
    """Lines that read or write text in whatever encoding the machine prefers."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    texts = ("read_text", "write_text", "open", "fdopen")
    found = []
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        modes = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        binary = any("b" in mode and len(mode) <= 3 for mode in modes)
        other = owner in ("av", "Image", "os", "zipfile", "webbrowser")
        if name in texts and not binary and not other and "encoding" not in {word.arg for word in call.keywords}:
            found.append(call.lineno)
    return found


def test_text_is_utf8_everywhere():
    """A file written here can be read anywhere: on Windows and under LC_ALL=C the default is another."""
    assert {name: lines for name, text in TEXTS.items() if (lines := unsaid(text))} == {}
    assert unsaid("a.read_text()\nopen(p)\nopen(p, 'rb')\na.open('a', encoding='utf-8')\nImage.open(p)") == [1, 2]


def test_nothing_is_left_for_later():
    """No TODO, no NotImplementedError, no bare except."""
    marks = ("TODO", "FIXME", "NotImplementedError", "except:")
    assert [name for name, text in TEXTS.items() if any(mark in text for mark in marks)] == []
