"""minikeye's docstrings are plain text with `code` in it: what autodoc would take for reStructuredText is escaped.

Indented lines are formulas, tables or code, and stay as they are written. Fields of a dataclass have no docstrings:
what the code says behind their # is listed below that of the class.
"""

import ast
import inspect
import io
import re
import sys
import tokenize
from functools import cache

from sphinx.application import Sphinx

ITEM = re.compile(r"(\d+\.|-) ")


def marked_up(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: indented lines literally, `code` as code, anything else as plain words."""
    out: list[str] = []
    before = ""  # kind of the line above: "", "text", "item", "literal"
    for line in lines:
        if not line.strip():
            out.append("")
            before = before if before == "literal" else ""
        elif line.startswith("  ") and before != "item":
            out += [line] if before == "literal" else ["", "::", "", line]
            before = "literal"
        else:
            item = bool(ITEM.match(line))
            apart = before == "literal" or (before == "text" and item)
            out += [""] * apart + [_escaped(line)]
            before = "item" if item or (before == "item" and line.startswith("  ")) else "text"
    return out


def _escaped(line: str) -> str:
    """A line in which only `code` means something."""
    parts = re.split(r"`+([^`]+)`+", line)
    words = [re.sub(r"([*_|\\`\[\]])", r"\\\1", text) for text in parts[::2]]
    codes = [f"\\ ``{code.strip()}``\\ " for code in parts[1::2]]
    return words[0] + "".join(code + word for code, word in zip(codes, words[1:], strict=True))


@cache
def comments(text: str) -> dict[str, str]:
    """Class.field -> the comment on its line, in a Python source."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {
        f"{part.name}.{field.target.id}": said[field.end_lineno]
        for part in ast.walk(ast.parse(text))
        if isinstance(part, ast.ClassDef)
        for field in part.body
        if isinstance(field, ast.AnnAssign) and field.end_lineno in said
    }


def _process(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    if isinstance(item, type) and name == f"{item.__module__}.{item.__qualname__}":
        said = comments(inspect.getsource(sys.modules[item.__module__]))
        fields = [(key.split(".")[1], text) for key, text in said.items() if key.split(".")[0] == item.__qualname__]
        lines += [""] + [f"- `{field}`: {text}" for field, text in fields]
    lines[:] = marked_up(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
