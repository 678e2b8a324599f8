"""Links to the lines of a module, kept true: [`select_topk`](../minikeye/ops/door.py#L90-L120).

The text names what is meant, and the lines are worked out from it. So a module may change:
`notebooks/execute.py --links` writes the new lines into all notebooks, and a rule of the notebooks
refuses old ones.
"""

import ast
import re
from functools import cache
from pathlib import Path

LINK = re.compile(r"\[`([\w.]+)`\]\((\.\.[\w./]*\.py)(?:#L\d+-L\d+)?\)")


def places(text: str) -> dict[str, tuple[int, int]]:
    """Functions, classes, constants and Class.methods of a Python source -> first and last line."""
    found = {}
    for node in ast.parse(text).body:
        for name, part in _named(node):
            decorators = [decorator.lineno for decorator in getattr(part, "decorator_list", [])]
            found[name] = min([part.lineno, *decorators]), part.end_lineno
    return found


def _named(node: ast.stmt) -> list[tuple[str, ast.stmt]]:
    if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
        return [(node.name, node), *((f"{node.name}.{m.name}", m) for m in methods)]
    if isinstance(node, ast.FunctionDef):
        return [(node.name, node)]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [(target.id, node) for target in targets if isinstance(target, ast.Name)]


@cache
def _places(path: Path) -> dict[str, tuple[int, int]]:
    return places(path.read_text(encoding="utf-8"))


def relink(source: str, folder: Path) -> str:
    """The text of a cell of a notebook in `folder`, each link with the lines of its name today.

    Raises ValueError for a link to a file that is not there, or to a name that it does not define.
    """

    def now(match: re.Match) -> str:
        name, file = match[1], match[2]
        path = (folder / file).resolve()
        known = _places(path) if path.is_file() else {}
        if name not in known:
            reason = f"it defines {', '.join(known)}" if path.is_file() else "there is no such file"
            raise ValueError(f"link to `{name}` in {file}: {reason}")
        first, last = known[name]
        return f"[`{name}`]({file}#L{first}-L{last})"

    return LINK.sub(now, source)
