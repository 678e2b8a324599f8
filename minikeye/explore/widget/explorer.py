"""The frame explorer: a widget to play with which frames DeepSeek Sparse Attention selects.

    FrameExplorer.from_video("clip.mp4", "Which digit is on the card, and at which second?", insert_card=(7, 13.0))

Every control is a standard widget; what is seen is also said in a sentence; without a kernel the picture and the
sentence stay (GitHub, nbconvert). Nothing is drawn in the browser: callbacks only set traits.
"""

import base64
from html import escape
from pathlib import Path
from typing import Any

try:
    import ipywidgets as widgets
    from ipyevents import Event
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the explorer needs {error.name}: install the extra minikeye[notebooks]") from error

from minikeye.explore.figures import bundle
from minikeye.explore.frames import FrameSelection
from minikeye.explore.widget import panels, saving, view
from minikeye.explore.widget.controls import ALL_HEADS, FIXED, Controls, named
from minikeye.explore.widget.sources import Probed, Recorded
from minikeye.files import write_whole


class FrameExplorer(widgets.VBox):
    """Controls, a picture, a sentence. `controls` holds the widgets; setting their values is the same as moving them:
    `layer.value` and `topk.value` (numbers, kept within their limits), `head.value` (-1: all), `where.value` (a group
    of tokens), `token.index` (a number within the group), `frames.value` (first, last). A click on a frame, in the film
    strip, the heat map or the bars, shows it alone; the next click brings all frames back.

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
        self.about = widgets.HTML(paragraph(" ".join(about)) if (about := _about(self.source)) else "")
        self.status = widgets.HTML("" if self.source.heads else paragraph(FIXED))
        *choices, files = self.controls.rows()
        super().__init__([*choices, self.picture, self.words, self.about, files, self.status])
        self.controls.where.observe(self._offer_tokens, "value")
        for control in self.controls.choices():
            control.observe(self._refresh, "value")
        self.clicks = Event(source=self.picture, watched_events=["click"])
        self.clicks.on_dom_event(self._pick)
        for ending, button in self.controls.buttons().items():
            button.on_click(lambda _, ending=ending: self._save(ending))
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

    def save(self, path: str | Path, thumbnails: bool = False) -> None:
        """Write what is shown, whole or not at all, as the ending of `path` says; a file of that name is replaced.

        .png: the picture. .svg, .pdf: all layers as a drawing without pixels. .json: the selection of the chosen query
        in all layers, and the settings; `FrameSelection.from_json` reads it. .csv: the same as a table. thumbnails: put
        the frames' pictures into the JSON. Raises ValueError for another ending, OSError.
        """
        shown = self.selection, self.view, self.png, self.settings()
        write_whole(path, saving.content(Path(path), *shown, thumbnails))

    def settings(self) -> dict[str, Any]:
        """What the controls are set to, and the sentence, by name."""
        v, (query, head, topk) = self.view, self._chosen
        return {
            "query": query.place,
            "position": query.position,
            "head": head,
            "topk": topk,
            "layer": self.selection.layers[v.layer],
            "frames": [v.first, v.last],
            "sentence": self.sentence,
        }

    def _offer_tokens(self, _: Any) -> None:
        self.controls.token.options = named(self.source, self.controls.where.value)

    def _pick(self, click: dict[str, Any]) -> None:
        """Show the clicked frame alone, or all frames where one is shown. The picture is never wider than WIDTH."""
        units = panels.WIDTH / min(click["boundingRectWidth"], panels.WIDTH)
        frame = self._page.at(click["relativeX"] * units, click["relativeY"] * units)
        if frame is not None:
            first, last = self.controls.frames.index
            self.controls.frames.index = (frame, frame) if last > first else (0, len(self.controls.frames.options) - 1)

    def _refresh(self, _: Any = None) -> None:
        c = self.controls
        chosen = (c.token.value, None if c.head.value == ALL_HEADS else c.head.value, c.topk.value)
        if chosen != self._chosen:
            self.selection, self._chosen = self.source.select(*chosen), chosen
        self._page = panels.draw(self.selection, self.view)
        alt, code = view.picture(self.selection, self.view), base64.b64encode(self.png).decode()
        size = f"width: 100%; max-width: {panels.WIDTH}px"
        self.picture.value = f'<img alt="{escape(alt)}" style="{size}" src="data:image/png;base64,{code}">'
        self.words.value = paragraph(self.sentence)

    def _save(self, ending: str) -> None:
        """What a button does. Says what came of it: an exception would vanish in the kernel's log."""
        try:
            path, taken = saving.free_path(self.controls.name.value.strip(), ending)
            self.save(path)
            size, instead = max(1, round(path.stat().st_size / 1000)), f" {taken} was there already." if taken else ""
            said = f"Wrote {path.name}, {size} kB, into {path.parent}.{instead}"
        except (OSError, ValueError) as error:
            said = f"The {ending[1:].upper()} file was not written: {error}. Choose another file name."
        self.status.value = paragraph(said)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        """The live widget, and for all that cannot show it the picture and its words."""
        words = f"{view.picture(self.selection, self.view)} {self.sentence}"
        data = super()._repr_mimebundle_(**options) | bundle(self._page.small_png(keep=panels.palette()), words)
        return data, {"image/png": {"alt": words}}


def _about(source: Probed | Recorded) -> list[str]:
    """Sentences on what limits the answer: what the model sees of the video, and what it was taught."""
    if isinstance(source, Recorded):
        return []
    seen = [f"{note[0].upper()}{note[1:]}." for note in source.notes]
    return seen + [f"This checkpoint was taught: {source.taught}."] * bool(source.taught)


def paragraph(text: str) -> str:
    """HTML of a text that a screen reader announces when it changes."""
    style = f"margin: 0; max-width: {panels.WIDTH}px; line-height: 1.5"
    return f'<p role="status" style="{style}">{escape(text)}</p>'
