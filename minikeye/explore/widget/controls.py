"""The explorer's controls: standard widgets with names, so that a keyboard and a screen reader can use them."""

from dataclasses import dataclass

import ipywidgets as widgets

from minikeye.explore.selection import FrameCounts
from minikeye.explore.widget.sources import Source

ALL_HEADS = -1
FIXED = (
    "Head and k are fixed: this is a record, which holds only what was selected. "
    "FrameExplorer.from_video and Probed.of keep what is needed to select again."
)
SECONDS_A_LAYER = 1.0  # while playing


@dataclass(frozen=True, eq=False)
class Controls:
    """One widget for everything that can be chosen. Widgets send their values themselves; nothing is drawn here."""

    where: widgets.Dropdown  # which tokens can be the query
    token: widgets.SelectionSlider  # the query; its values are `view.Query`
    layer: widgets.SelectionSlider  # its index is the row of the selection
    play: widgets.Play  # steps through the layers
    head: widgets.Dropdown  # indexer head, or ALL_HEADS
    topk: widgets.IntSlider
    frames: widgets.IntRangeSlider  # first and last frame shown
    name: widgets.Text  # of the files to write, without ending
    save_png: widgets.Button
    save_json: widgets.Button

    @classmethod
    def of(cls, source: Source, selection: FrameCounts) -> "Controls":
        """Controls that offer what `source` has. selection: one of its selections."""
        where = next(iter(source.queries))
        last, free = len(selection.seconds) - 1, source.heads > 0
        heads = [("all heads", ALL_HEADS), *((f"head {n}", n) for n in range(source.heads))]
        fixed = {"disabled": not free}
        made = cls(
            where=_wide(widgets.Dropdown, "Query in", "24em", options=list(source.queries), value=where),
            token=_wide(widgets.SelectionSlider, "Token", "40em", options=named(source, where)),
            layer=_wide(widgets.SelectionSlider, "Layer", "32em", options=list(selection.layers)),
            play=widgets.Play(
                min=0,
                max=len(selection.layers) - 1,
                interval=round(1000 * SECONDS_A_LAYER),
                show_repeat=False,
                description="Play through the layers",
                tooltip="Play through the layers",
            ),
            head=_wide(widgets.Dropdown, "Indexer head", "24em", options=heads, value=ALL_HEADS, **fixed),
            topk=_wide(widgets.IntSlider, "Keys k", "40em", min=1, max=source.longest, value=source.topk, **fixed),
            frames=_wide(widgets.IntRangeSlider, "Frames", "66em", min=0, max=last, value=(0, last)),
            name=_wide(widgets.Text, "File name", "24em", value="frames"),
            save_png=widgets.Button(description="Save PNG", tooltip="Write the picture to the named file"),
            save_json=widgets.Button(description="Save JSON", tooltip="Write the numbers to the named file"),
        )
        widgets.link((made.play, "value"), (made.layer, "index"))
        if not free:
            made.head.tooltip = made.topk.tooltip = FIXED
        return made

    def choices(self) -> list[widgets.Widget]:
        """The controls that change what is shown: `where` and `play` do it by way of `token` and `layer`."""
        return [self.token, self.layer, self.head, self.topk, self.frames]

    def rows(self) -> list[widgets.HBox]:
        """In the order in which Tab visits them, the buttons last."""
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        rows = [
            [self.where, self.token],
            [self.head, self.topk],
            [self.layer, self.play],
            [self.frames],
            [self.name, self.save_png, self.save_json],
        ]
        return [widgets.HBox(row, layout=wrap) for row in rows]


def named(source: Source, where: str) -> list[tuple]:
    """(name, query) of each token that can be the query there."""
    return [(query.name, query) for query in source.queries[where]]


def _wide(kind: type, description: str, width: str, **rest) -> widgets.Widget:
    style = {"description_width": "7em"}
    return kind(description=description, tooltip=description, style=style, layout={"width": width}, **rest)
