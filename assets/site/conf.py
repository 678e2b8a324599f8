"""How Sphinx reads what `build.py` has laid out, and how the pages look.

Why these libraries: Sphinx with myst-nb shows notebooks with their saved outputs and runs none of them, and its autodoc
reads signatures off the objects themselves, so that jaxtyping's shapes stand in them. Jupyter Book and MyST would need
Node and have no API reference. The theme is furo: fonts of the reader's system, scripts and styles beside the pages,
nothing from a CDN, a skip link and landmarks. Formulas become MathML while the site is built: browsers draw it without
a script, and screen readers read it. A warning is an error (`build.py`), and none is silenced.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from sources import linkcode_resolve  # noqa: E402, F401 - sphinx.ext.linkcode wants it here

import minikeye  # noqa: E402

project = "minikeye"
author = "The minikeye authors"
version = release = minikeye.__version__
project_copyright = "the minikeye authors, MIT licence"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "formulas", "docstrings", "landmarks", "sources"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
myst_url_schemes = ["http", "https", "source"]  # source: a line of a file, see sources.py

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["ray"]  # an extra that this environment need not have
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
toc_object_entries = False
add_module_names = False
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "minikeye"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False  # thousands of names; search and the API pages find them
html_domain_indices = False
html_show_search_summary = False  # fetches pages, which browsers refuse to pages opened as files
html_permalinks_icon = "#"
html_theme_options = {"navigation_with_keys": False, "top_of_page_buttons": []}
