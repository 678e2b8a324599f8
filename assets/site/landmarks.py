"""What the theme's pages lack for screen readers and keyboards, put in after they are written.

Found by axe-core and by the Tab key: navigation that is no landmark, headings without a level, a list without terms in
long signatures, and two switches for small screens that only a pointer reaches (`site.js` gives them their keys).
"""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

SWITCH = 'tabindex="0" role="button" aria-expanded="false" aria-label="{}"'
EVERYWHERE = {
    '<aside class="sidebar-drawer"': '<aside class="sidebar-drawer" aria-label="Site"',
    '<aside class="toc-drawer': '<aside aria-label="This page" class="toc-drawer',
    '<div class="sidebar-tree"': '<div class="sidebar-tree" role="navigation" aria-label="All pages"',
    '<p class="caption" role="heading"': '<p class="caption" role="heading" aria-level="2"',
    '<label class="nav-overlay-icon"': f'<label class="nav-overlay-icon" {SWITCH.format("All pages")}',
}
WHERE_THERE_IS_ONE = {
    '<div class="toc-tree">': '<div class="toc-tree" role="navigation" aria-label="On this page">',
    '<label class="toc-overlay-icon toc-header-icon"': (
        f'<label class="toc-overlay-icon toc-header-icon" {SWITCH.format("On this page")}'
    ),
    '<label class="toc-overlay-icon toc-content-icon"': (
        f'<label class="toc-overlay-icon toc-content-icon" {SWITCH.format("On this page")}'
    ),
}
PARAMETERS = re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*</dd>\n)+)</dl>')


def with_landmarks(html: str) -> str:
    """The page with names, roles and levels. Raises SphinxError where the theme no longer writes what is looked for."""
    for old, new in EVERYWHERE.items():
        if old not in html:
            raise SphinxError(f"the theme's page has no {old}>: see what it writes now, and change landmarks.py")
        html = html.replace(old, new)
    for old, new in WHERE_THERE_IS_ONE.items():
        html = html.replace(old, new)
    return PARAMETERS.sub(_parameters, html)


def _parameters(match: re.Match) -> str:
    lines = match[1].replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")
    return f'<span class="parameters">\n{lines}</span>'


def _write(app: Sphinx, error: Exception | None) -> None:
    for path in [] if error else Path(app.outdir).rglob("*.html"):
        path.write_text(with_landmarks(path.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _write, priority=400)  # before sources.py writes pages of another form
    return {"parallel_read_safe": True, "parallel_write_safe": True}
