"""A page for every Python file that the site speaks of, with an anchor for each line, and links that find them.

In the laid-out texts such a link is written `source:minikeye/ops/door.py#L-90`; here it gets the path from its page.
These pages are written after Sphinx's, by a template of their own: there are hundreds, and the theme would work out its
list of all pages for each.
"""

import sys
from functools import cache
from html import escape
from pathlib import Path
from string import Template

from docutils import nodes
from layout import ROOT, source_links
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

SCHEME = "source:"
EXPLORER = "explorer/"  # pages that build.py copies beside the others
TEMPLATE = Template((Path(__file__).with_name("source.html")).read_text(encoding="utf-8"))


@cache
def _lines(file: str) -> dict[str, tuple[int, int]]:
    """Names in a Python file -> their first and last line."""
    return source_links.places((ROOT / file).read_text(encoding="utf-8"))


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Where an object of the API reference is written; sphinx.ext.linkcode calls it."""
    file = Path(sys.modules[info["module"]].__file__).resolve().relative_to(ROOT).as_posix()
    first = _lines(file).get(info["fullname"])
    return first and f"{SCHEME}{file}#L-{first[0]}"


def _resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Relative addresses for links to source pages; SphinxError where there is no such file or line."""
    for node in doctree.findall(nodes.reference):
        if not node.get("refuri", "").startswith(SCHEME):
            continue
        file, _, anchor = node["refuri"].removeprefix(SCHEME).partition("#")
        if file.startswith(EXPLORER):
            page = file.removesuffix(".html")
        else:
            if not (ROOT / file).is_file():
                raise SphinxError(f"{docname} links to {file}, which is not there")
            page = f"source/{file}"
        node["refuri"] = app.builder.get_relative_uri(docname, page) + (anchor and f"#{anchor}")
        node["internal"] = True


def _modules() -> set[str]:
    paths = [path for folder in ("minikeye", "kernels") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix() for path in paths}


def _linked(out: Path) -> set[str]:
    """Files outside of the package that some page links to."""
    others = [
        path.relative_to(ROOT).as_posix()
        for folder in ("tests", "notebooks", "assets", "minikeye", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    ]
    pages = [path.read_text(encoding="utf-8") for path in out.glob("**/*.html")]
    return {file for file in others if any(f"source/{file}.html" in page for page in pages)}


def _write(app: Sphinx, error: Exception | None) -> None:
    """Every module, and every other file that is linked to."""
    if error:
        return
    lexer = PythonLexer()
    form = HtmlFormatter(
        linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True, cssclass="highlight source"
    )
    for file in sorted(_modules() | _linked(Path(app.outdir))):
        page = Path(app.outdir, "source", f"{file}.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        code = highlight((ROOT / file).read_text(encoding="utf-8"), lexer, form)
        up = "../" * (file.count("/") + 1)
        page.write_text(TEMPLATE.substitute(file=escape(file), up=up, code=code), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _resolve)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
