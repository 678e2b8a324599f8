"""The explorer's controls: standard widgets with names, so that a keyboard and a screen reader can use them."""

from dataclasses import dataclass

import ipywidgets as widgets

from minikeye.explore.selection import FrameCounts
from minikeye.explore.widget.sources import Source
from minikeye.explore.words import when

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
    frames: widgets.SelectionRangeSlider  # first and last frame shown: their numbers, read out as times
    name: widgets.Text  # of the files to write, with or without ending
    save_png: widgets.Button
    save_svg: widgets.Button
    save_pdf: widgets.Button
    save_json: widgets.Button
    save_csv: widgets.Button

    @classmethod
    def of(cls, source: Source, selection: FrameCounts) -> "Controls":
        """Controls that offer what `source` has. selection: one of its selections."""
        where = next(iter(source.queries))
        times = [(when(selection, n), n) for n in range(len(selection.seconds))]
        free = source.heads > 0
        heads = [("all heads", ALL_HEADS), *((f"head {n}", n) for n in range(source.heads))]
        fixed = {"disabled": not free}
        made = cls(
            where=wide(widgets.Dropdown, "Query in", "23em", options=list(source.queries), value=where),
            token=wide(widgets.SelectionSlider, "Token", "38em", options=named(source, where)),
            layer=wide(widgets.SelectionSlider, "Layer", "27em", options=list(selection.layers)),
            play=widgets.Play(
                min=0,
                max=len(selection.layers) - 1,
                interval=round(1000 * SECONDS_A_LAYER),
                show_repeat=False,
                description="Play through the layers",
                tooltip="Play through the layers",
            ),
            head=wide(widgets.Dropdown, "Indexer head", "19em", options=heads, value=ALL_HEADS, **fixed),
            topk=wide(widgets.IntSlider, "Keys k", "27em", min=1, max=source.longest, value=source.topk, **fixed),
            frames=wide(widgets.SelectionRangeSlider, "Frames", "36em", options=times, index=(0, len(times) - 1)),
            name=wide(widgets.Text, "File name", "23em", value="frames"),
            save_png=_button("Save PNG", "Write the picture"),
            save_svg=_button("Save SVG", "Write all layers as a drawing that stays sharp at any size, for a talk"),
            save_pdf=_button("Save PDF", "Write all layers as a drawing that stays sharp at any size, for a paper"),
            save_json=_button("Save JSON", "Write the numbers, for minikeye to read again"),
            save_csv=_button("Save CSV", "Write the numbers as a table, a line for each layer and frame"),
        )
        widgets.link((made.play, "value"), (made.layer, "index"))
        if not free:
            made.head.tooltip = made.topk.tooltip = FIXED
        return made

    def choices(self) -> list[widgets.Widget]:
        """The controls that change what is shown: `where` and `play` do it by way of `token` and `layer`."""
        return [self.token, self.layer, self.head, self.topk, self.frames]

    def buttons(self) -> dict[str, widgets.Button]:
        """By the ending of the file that each of them writes."""
        return {f".{name.removeprefix('save_')}": one for name, one in vars(self).items() if name.startswith("save_")}

    def rows(self) -> list[widgets.HBox]:
        """In the order in which Tab visits them, the buttons last.

        The others take three rows, so that a screen of 1280x720 shows the heat map below them while a slider moves.
        """
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        rows = [
            [self.where, self.token],
            [self.layer, self.play, self.head],
            [self.topk, self.frames],
            [self.name, *self.buttons().values()],
        ]
        return [widgets.HBox(row, layout=wrap) for row in rows]


def named(source: Source, where: str) -> list[tuple]:
    """(name, query) of each token that can be the query there."""
    return [(query.name, query) for query in source.queries[where]]


def _button(description: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=description, tooltip=tooltip, layout={"width": "7em"})


def wide(kind: type, description: str, width: str, **rest) -> widgets.Widget:
    style = {"description_width": "7.5em"}
    return kind(description=description, tooltip=description, style=style, layout={"width": width}, **rest)
