"""The frame explorer: a widget to play with which frames DeepSeek Sparse Attention selects.

    FrameExplorer.from_video("clip.mp4", "Which digit is on the card, and at which second?", insert_card=(7, 13.0))

Every control is a standard widget; what is seen is also said in a sentence; without a kernel the picture and the
sentence stay (GitHub, nbconvert). Nothing is drawn in the browser: callbacks only set traits.
"""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from minikeye.explore.figures import bundle
from minikeye.explore.frames import FrameSelection
from minikeye.explore.widget import panels, view
from minikeye.explore.widget.controls import ALL_HEADS, FIXED, Controls, named
from minikeye.explore.widget.sources import Probed, Recorded
from minikeye.files import write_whole


class FrameExplorer(widgets.VBox):
    """Controls, a picture, a sentence. `controls` holds the widgets; setting their values is the same as moving them:
    `layer.value` and `topk.value` (numbers, kept within their limits), `head.value` (-1: all), `where.value` (a group
    of tokens), `token.index` (a number within the group), `frames.value` (first, last).

    source: a `Probed`, or a FrameSelection, of which layer, query and frames can be chosen but not head and k. Raises
    TypeError for anything else, such as a path: that is for `from_video`.
    """

    def __init__(self, source: FrameSelection | Probed):
        if not isinstance(source, FrameSelection | Probed):
            raise TypeError(f"expected a FrameSelection or a Probed, got {type(source).__name__}; see from_video")
        self.source = Recorded(source) if isinstance(source, FrameSelection) else source
        where = next(iter(self.source.queries))
        self._chosen = (self.source.queries[where][0], None, self.source.topk)
        self.selection = self.source.select(*self._chosen)
        self.controls = Controls.of(self.source, self.selection)
        self.picture, self.words = widgets.HTML(), widgets.HTML()
        self.status = widgets.HTML("" if self.source.heads else _paragraph(FIXED))
        *choices, files = self.controls.rows()
        super().__init__([*choices, self.words, self.picture, files, self.status])
        self.controls.where.observe(self._offer_tokens, "value")
        for control in self.controls.choices():
            control.observe(self._refresh, "value")
        self.controls.save_png.on_click(lambda _: self._save(".png"))
        self.controls.save_json.on_click(lambda _: self._save(".json"))
        self._refresh()

    @classmethod
    def from_video(cls, path: str | Path, question: str, **options: Any) -> "FrameExplorer":
        """Ask the model about a video file, then look at what it read. options and errors: `Probed.from_video`."""
        return cls(Probed.from_video(path, question, **options))

    @property
    def view(self) -> view.View:
        """What the controls are set to."""
        query, head, topk = self._chosen
        layer, (first, last) = self.controls.layer.index, self.controls.frames.value
        return view.View(query, layer, first, last, self.source.how(query, layer, head, topk))

    @property
    def sentence(self) -> str:
        """What is to be seen, with numbers."""
        return view.sentence(self.selection, self.view)

    @property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        return self._page.png()

    def save_png(self, path: str | Path) -> None:
        """Write the picture, whole or not at all. Raises ValueError for another ending than .png, OSError."""
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"the picture is a PNG: expected a name that ends in .png, got {Path(path).name}")
        write_whole(path, self.png)

    def save_json(self, path: str | Path) -> None:
        """Write the selection of the chosen query in all layers, and the settings, whole or not at all.

        `FrameSelection.from_json` reads the file; the settings are under "view". Raises OSError.
        """
        v, (query, head, topk) = self.view, self._chosen
        settings = {
            "query": query.place,
            "position": query.position,
            "head": head,
            "topk": topk,
            "layer": self.selection.layers[v.layer],
            "frames": [v.first, v.last],
            "sentence": self.sentence,
        }
        document = json.loads(self.selection.to_json()) | {"view": settings}
        write_whole(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())

    def _offer_tokens(self, _: Any) -> None:
        self.controls.token.options = named(self.source, self.controls.where.value)

    def _refresh(self, _: Any = None) -> None:
        c = self.controls
        chosen = (c.token.value, None if c.head.value == ALL_HEADS else c.head.value, c.topk.value)
        if chosen != self._chosen:
            self.selection, self._chosen = self.source.select(*chosen), chosen
        self._page = panels.draw(self.selection, self.view)
        alt, code = view.picture(self.selection, self.view), base64.b64encode(self.png).decode()
        size = f"width: 100%; max-width: {panels.WIDTH}px"
        self.picture.value = f'<img alt="{escape(alt)}" style="{size}" src="data:image/png;base64,{code}">'
        self.words.value = _paragraph(self.sentence)

    def _save(self, ending: str) -> None:
        """What a button does. Says what came of it: an exception would vanish in the kernel's log."""
        name = self.controls.name.value.strip()
        try:
            if not name:
                raise ValueError("it has no name")
            path = Path(name + ending)
            (self.save_png if ending == ".png" else self.save_json)(path)
            said = f"Wrote {path}, {max(1, round(path.stat().st_size / 1000))} kB."
        except (OSError, ValueError) as error:
            said = f"The {ending[1:].upper()} file was not written: {error}. Choose another file name."
        self.status.value = _paragraph(said)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        """The live widget, and for all that cannot show it the picture and its words."""
        words = f"{view.picture(self.selection, self.view)} {self.sentence}"
        data = super()._repr_mimebundle_(**options) | bundle(self._page.small_png(keep=panels.palette()), words)
        return data, {"image/png": {"alt": words}}


def _paragraph(text: str) -> str:
    """HTML of a text that a screen reader announces when it changes."""
    style = f"margin: 0; max-width: {panels.WIDTH}px; line-height: 1.5"
    return f'<p role="status" style="{style}">{escape(text)}</p>'
