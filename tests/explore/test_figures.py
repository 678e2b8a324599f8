"""Figures come with words, and the palette stays apart without colour vision."""

from itertools import combinations

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from minikeye.explore.figures import _LINE_COLOURS, PALETTE, STYLE, bundle, plot_range, show

ALT = "One line that rises from zero to one."


@pytest.fixture
def published(monkeypatch):
    """The (data, metadata) pairs that reach the notebook."""
    pairs = []
    monkeypatch.setattr(IPython.display, "publish_display_data", lambda *pair: pairs.append(pair))
    return pairs


def test_show(published):
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        axes.plot([0, 1])
        show(figure, ALT)
    [(data, metadata)] = published
    assert data["text/plain"] == ALT == metadata["image/png"]["alt"]
    assert data["text/html"].startswith(f'<p><img alt="{ALT}" src="data:image/png;base64,iVBOR')
    assert data["text/html"].endswith(f"<p>{ALT}</p>")
    assert data["image/png"].startswith(b"\x89PNG")
    assert not plt.fignum_exists(figure.number)


def test_words_cannot_end_the_alt_text():
    """A label of a reader's own video may hold quotes and brackets."""
    html = bundle(b"png", 'The card says "7" < 8 & more.')["text/html"]
    said = "The card says &quot;7&quot; &lt; 8 &amp; more."
    assert html == f'<p><img alt="{said}" src="data:image/png;base64,cG5n"></p>\n<p>{said}</p>'


@pytest.mark.parametrize("alt", ["", "a line", "a line that rises without a stop"])
def test_show_refuses_a_figure_without_words(published, alt):
    with pytest.raises(ValueError, match="alt must be a sentence"):
        show(plt.figure(), alt)
    plt.close("all")
    assert published == []


# Viénot, Brettel and Mollon (1999): what protanopes and deuteranopes see, in linear RGB.
DICHROMATS = {
    "protanopia": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deuteranopia": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("kind", DICHROMATS)
def test_line_colours_differ_for_dichromats(kind):
    def seen(name):
        linear = np.array(DICHROMATS[kind]) @ np.array(to_rgb(PALETTE[name])) ** 2.2
        return np.clip(linear, 0, 1) ** (1 / 2.2)

    for one, two in combinations(_LINE_COLOURS, 2):
        assert np.abs(seen(one) - seen(two)).max() > 0.08, (one, two)


def test_plot_range_draws_mean_and_extremes():
    _, axes = plt.subplots()
    plot_range(axes, (1, 2), torch.tensor([[0.0, 4.0], [1.0, 2.0], [5.0, 3.0]]), marker="o")
    [line], [area] = axes.lines, axes.collections
    assert line.get_ydata().tolist() == [2.0, 3.0] and line.get_marker() == "o"
    corners = {tuple(point) for point in area.get_paths()[0].vertices.tolist()}
    assert corners == {(1.0, 0.0), (1.0, 5.0), (2.0, 2.0), (2.0, 4.0)}
    assert to_rgb(area.get_facecolor()[0][:3]) == to_rgb(line.get_color())
    plt.close("all")
