"""Results as tables that sort: a page for every file of assets/results, the summary first, then its lines."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_COLUMNS = 14  # of a table of lines; what is nested or varies more stays in the file


def write(results: Path, folder: Path) -> list[str]:
    """Write a page for each results/*.json and an index of them into `folder`. Returns the pages' names."""
    folder.mkdir()
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    for name, result in files.items():
        shutil.copy(results / f"{name}.json", folder)
        (folder / f"{name}.md").write_text(page(name, result), encoding="utf-8")
    lines = [
        [f"[{name}]({name}.md)", f"{r['what']}", f"{r['hardware']}", len(r["seeds"]), len(r["summary"]), len(r["rows"])]
        for name, r in files.items()
    ]
    head = ["file", "what was measured", "on", "seeds", "numbers", "lines"]
    text = (
        "# Results\n\nEvery number that README and lessons quote, from the files that scripts wrote. A button in a "
        "table's head sorts by its column; once more turns the order round.\n\n"
    )
    tree = "\n".join(["```{toctree}", ":hidden:", "", *files, "```", ""])
    (folder / "index.md").write_text(f"{text}{table(head, lines)}\n\n{tree}", encoding="utf-8")
    return list(files)


def page(name: str, result: dict[str, Any]) -> str:
    """One file: what, how and on what, its summary, and the scalars of its lines."""
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    facts = [
        f"- made by: `{result['command']}`",
        f"- on: {_plain(result['hardware'])}; {versions}",
        f"- commit: `{result['commit']}`; seeds: {', '.join(map(str, result['seeds'])) or 'none'}",
        f"- the whole file: [{name}.json]({name}.json)",
    ]
    parts = [f"# {name}", _plain(result["what"]), "\n".join(facts), "## Summary"]
    parts.append(table(["key", "number"], [[f"`{key}`", value] for key, value in result["summary"].items()]))
    head = columns(result["rows"])
    if head:
        left = sum(len(row.keys() - set(head)) > 0 for row in result["rows"])
        parts += ["## Lines", f"What is nested stays in the file ({left} of {len(result['rows'])} lines hold more)."]
        parts.append(table(head, [[row.get(key, "") for key in head] for row in result["rows"]]))
    return "\n\n".join(parts) + "\n"


def columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Keys that hold a number or a word in some line, those of most lines first in the order of their first line."""
    count: dict[str, int] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, str | int | float | None):
                count[key] = count.get(key, 0) + 1
    kept = sorted(count, key=lambda key: -count[key])[:MOST_COLUMNS]
    return [key for key in count if key in kept]


def table(head: list[str], lines: list[list[Any]]) -> str:
    """A table that sorts; columns in which most entries are numbers stand to the right."""
    if not lines:
        return "None."
    numbers = [sum(isinstance(line[n], int | float) for line in lines) * 2 > len(lines) for n, _ in enumerate(head)]
    rows = [head, ["--:" if right else "---" for right in numbers], *lines]
    text = "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)
    return f":::{{table}}\n:class: sortable\n\n{text}\n:::"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    return text if text.startswith(("`", "[", "--")) else _plain(text)


def _plain(text: str) -> str:
    """Words in which no sign means anything to Markdown."""
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>|$#{}" else sign for sign in text.replace("\n", " "))
