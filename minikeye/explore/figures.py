"""How this project shows figures: one palette, one style, and never a picture without words.

A figure reaches the reader as HTML: the picture with its alt text, and below it the same words for all. JupyterLab and
nbconvert's default template give a bare PNG no alt text, whatever its metadata say; HTML they take first, as GitHub
does. The PNG is there too, for PDF and other formats without HTML. The text/plain of the output is the same sentence,
so that terminals show it and the notebook check compares it.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

import matplotlib.pyplot as plt
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's eight colours, distinguishable with all common kinds of colour blindness.
PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}

# For bars and areas that lie side by side: colour is never the only difference.
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--", "++")

_LINE_COLOURS = ("blue", "vermilion", "green", "orange", "purple", "sky", "black")
_LINE_STYLES = ("-", "--", "-.", ":", "-", "--", "-.")

# Use as `plt.rcParams.update(STYLE)` or `with plt.rc_context(STYLE):`. Lines differ in dash as well as in colour.
STYLE = {
    "figure.figsize": (7.0, 3.0),  # inches
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "image.cmap": "cividis",  # perceptually even, and even without red or green
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=[PALETTE[name] for name in _LINE_COLOURS]) + cycler(linestyle=_LINE_STYLES),
}


def bundle(png: bytes, words: str) -> dict[str, bytes | str]:
    """One output in its forms: a picture that says `words` to those who do not see it, and below it to all."""
    said, code = escape(words), b64encode(png).decode()
    html = f'<p><img alt="{said}" src="data:image/png;base64,{code}"></p>\n<p>{said}</p>'
    return {"text/html": html, "image/png": png, "text/plain": words}


def show(figure: Figure, alt: str) -> None:
    """Display `figure` as a picture with alt text, the same text below it, and close the figure.

    alt: one or two full sentences that say what the figure shows, with the number that matters.
    Raises ValueError when `alt` is not a sentence.
    """
    from IPython.display import publish_display_data  # only notebooks call show; the palette must not need IPython

    if len(alt.split()) < 5 or not alt.endswith("."):
        raise ValueError(
            f"alt must be a sentence of at least five words that ends with a full stop, got {alt!r}: "
            "say what the figure shows, with the number that matters"
        )
    png = BytesIO()
    # The Software entry would put matplotlib's version into every picture.
    figure.savefig(png, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)  # otherwise the inline backend shows it a second time, without words
    publish_display_data(bundle(png.getvalue(), alt), {"image/png": {"alt": alt}})


def plot_range(axes: Axes, x: Sequence[int | float], runs: Float[Tensor, "n points"], **look) -> None:
    """Draw the mean of `runs` over `x` as a line, and from their least to their greatest a pale area."""
    [line] = axes.plot(x, runs.mean(dim=0), **look)
    axes.fill_between(x, runs.amin(dim=0), runs.amax(dim=0), alpha=0.2, color=line.get_color())
