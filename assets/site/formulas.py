"""Formulas as MathML, made while the site is built: no script, no fonts to load, and screen readers read them."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# latex2mathml writes \mathrm{softmax} letter by letter; as one identifier it is upright by itself, and read as a word.
LETTERS = re.compile(r'(?:<mi mathvariant="normal">\w</mi>){2,}')


def mathml(tex: str, display: str) -> str:
    """The <math> element of a formula. display: "inline" or "block". Raises what latex2mathml raises for bad TeX."""

    def joined(match: re.Match) -> str:
        return f"<mi>{''.join(re.findall(r'>(.)<', match[0]))}</mi>"

    return LETTERS.sub(joined, convert(tex, display=display))


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
