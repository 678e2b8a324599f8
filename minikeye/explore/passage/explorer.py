"""The passage explorer: a widget to play with which tokens of a text DeepSeek Sparse Attention selects.

    PassageExplorer.from_text(Path("notes.txt").read_text(encoding="utf-8"), "Who has the key?", truth="Ann has it")

The frame explorer's sibling for text: its controls are standard widgets, what is seen is also said in a sentence, and
without a kernel a picture of the most-read lines and the sentence stay (GitHub, nbconvert).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import ipywidgets as widgets
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the explorer needs {error.name}: install the extra minikeye[notebooks]") from error

from minikeye.explore.figures import bundle
from minikeye.explore.passage import document, picture
from minikeye.explore.passage.reading import ANSWER, ReadText
from minikeye.explore.passage.selection import PassageSelection
from minikeye.explore.passage.shades import levels
from minikeye.explore.passage.words import alt, asked, place, sentence
from minikeye.explore.widget.controls import ALL_HEADS, wide
from minikeye.explore.widget.explorer import paragraph
from minikeye.explore.widget.view import Query, quoted

ALL = -1  # all layers
FIXED = "k is fixed: this is a record, which holds only what was selected. ReadText.from_text keeps what it takes."
WITHIN = ".minikeye-passage"
STYLE = f"""
{WITHIN} {{ list-style: none; margin: 0; padding: 0; max-height: 26em; overflow-y: auto; font: 13px/1.75 monospace;
  background: white; color: #1a1a1a; }}
{WITHIN} li {{ display: flex; gap: 0.8em; }}
{WITHIN} b {{ flex: 0 0 4ch; font-weight: normal; text-align: right; }}
{WITHIN} code {{ flex: 1; white-space: pre-wrap; font: inherit; color: inherit; background: none; padding: 0; }}
{WITHIN} span {{ padding-bottom: 3px; }}
{WITHIN} mark {{ background: none; color: inherit; outline: 2px solid #d55e00; }}
{WITHIN} .tag {{ background: #b34700; color: white; }}
{document.rules(f"{WITHIN} ")}"""


class Kept:
    """A PassageSelection of one or more queries, as it is: heads alone where it has them, its own k."""

    longest = 0  # no other k can be chosen

    def __init__(self, selection: PassageSelection):
        self.selection = selection
        self.heads = 0 if selection.heads is None else len(selection.heads)
        self.topk = max(1, int(selection.keys.max()))
        labels = selection.labels or ("",) * len(selection.seen)
        names = [f"{n + 1} {quoted(label)}" for n, label in enumerate(labels)]
        queries = [Query(n, name, place(selection, n), selection.seen[n]) for n, name in enumerate(names)]
        self.queries: Mapping[str, Sequence[Query]] = {ANSWER: queries}

    def select(self, query: Query, head: int | None, topk: int) -> tuple[PassageSelection, int, int | None]:
        """The selection, the row of the query in it, and the head to look at there. topk is not used.

        Raises ValueError for a query that is none of `queries`, such as one of a ReadText.
        """
        if query not in self.queries[ANSWER]:
            raise ValueError(f"expected one of the {len(self.queries[ANSWER])} queries of this record, got {query}")
        return self.selection, query.position, head


class Again:
    """A ReadText, whose queries can select again with one head or another k."""

    def __init__(self, read: ReadText):
        self.read, self.queries = read, read.queries
        self.heads, self.topk, self.longest = read.heads, read.topk, read.longest

    def select(self, query: Query, head: int | None, topk: int) -> tuple[PassageSelection, int, int | None]:
        """All layers of one query, as that head alone had selected them."""
        return self.read.select(query, head, topk), 0, None


@dataclass(frozen=True, eq=False)
class Controls:
    """One widget for everything that can be chosen, in the order in which Tab visits them."""

    where: widgets.Dropdown  # which tokens can be the query
    token: widgets.SelectionSlider  # the query; its values are `view.Query`
    layer: widgets.SelectionSlider  # number of the layer, or ALL
    head: widgets.Dropdown  # indexer head, or ALL_HEADS
    topk: widgets.IntSlider

    @classmethod
    def of(cls, source: Kept | Again, shown: PassageSelection | ReadText) -> "Controls":
        """Controls that offer what `source` has. shown: what it was made of."""
        layers = shown.layers if isinstance(shown, PassageSelection) else range(shown.layers)
        where, free = next(iter(source.queries)), source.longest > 0
        heads = [("all heads", ALL_HEADS), *((f"head {n}", n) for n in range(source.heads))]
        keys = {"min": 1, "max": max(source.longest, source.topk), "value": source.topk, "disabled": not free}
        return cls(
            where=wide(widgets.Dropdown, "Query in", "23em", options=list(source.queries), value=where),
            token=wide(widgets.SelectionSlider, "Token", "38em", options=_named(source, where)),
            layer=wide(
                widgets.SelectionSlider, "Layer", "27em", options=[("all", ALL), *((f"{n}", n) for n in layers)]
            ),
            head=wide(
                widgets.Dropdown, "Indexer head", "19em", options=heads, value=ALL_HEADS, disabled=not source.heads
            ),
            topk=wide(widgets.IntSlider, "Keys k", "27em", **keys),
        )


class PassageExplorer(widgets.VBox):
    """Controls, a sentence, the text with each token shaded. `controls` holds the widgets; setting their values is the
    same as moving them: `layer.value` (-1: all layers), `head.value` (-1: all), `topk.value`, `where.value` (a group of
    tokens), `token.index` (a number within the group).

    source: a `ReadText`, or a PassageSelection, of which layer and query can be chosen, a head where it was recorded,
    and no other k: there `topk.value` changes nothing that is shown. Raises TypeError for anything else, such as a
    text: that is for `from_text`.
    """

    def __init__(self, source: PassageSelection | ReadText):
        if not isinstance(source, PassageSelection | ReadText):
            raise TypeError(f"expected a PassageSelection or a ReadText, got {type(source).__name__}; see from_text")
        self.source = Kept(source) if isinstance(source, PassageSelection) else Again(source)
        self.controls = c = Controls.of(self.source, source)
        self.words, self.passage = widgets.HTML(), widgets.HTML()
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        rows = [widgets.HBox(row, layout=wrap) for row in ([c.where, c.token], [c.layer, c.head, c.topk])]
        status = [] if self.source.longest else [widgets.HTML(paragraph(FIXED))]
        super().__init__([*rows, self.words, self.passage, *status])
        c.where.observe(self._offer_tokens, "value")
        for control in (c.token, c.layer, c.head, c.topk):
            control.observe(self._refresh, "value")
        self._chosen: tuple | None = None
        self._refresh()

    @classmethod
    def from_text(cls, text: str, question: str, **options: Any) -> "PassageExplorer":
        """Ask a language model about a text, then look at what it read. options and errors: `ReadText.from_text`."""
        return cls(ReadText.from_text(text, question, **options))

    @property
    def choice(self) -> tuple[int | None, int, int | None]:
        """Layer, query and head within `selection`, as its methods take them."""
        layer = self.controls.layer
        return None if layer.value == ALL else layer.index - 1, self._query, self._head

    @property
    def sentence(self) -> str:
        """What is to be seen, with numbers; where head or k were chosen, as if that had been read."""
        said = sentence(self.selection, *self.choice)
        if not self.source.longest:
            return said
        c = self.controls
        head = "all indexer heads" if c.head.value == ALL_HEADS else f"indexer head {c.head.value} alone"
        return f"{said} Selected by {head}, k = {c.topk.value}."

    @property
    def png(self) -> bytes:
        """The picture of the most-read lines, as a PNG file."""
        return picture.png(self.selection, *self.choice)

    def _offer_tokens(self, _: Any) -> None:
        self.controls.token.options = _named(self.source, self.controls.where.value)

    def _refresh(self, _: Any = None) -> None:
        c = self.controls
        chosen = c.token.value, None if c.head.value == ALL_HEADS else c.head.value, c.topk.value
        if chosen != self._chosen:
            self.selection, self._query, self._head = self.source.select(*chosen)
            self._chosen = chosen
        self.words.value = paragraph(" ".join([*asked(self.selection), self.sentence]))
        shown = document.lines(self.selection, levels(self.selection, *self.choice))
        text = f'<ol class="{WITHIN[1:]}" tabindex="0" aria-label="The text">{shown}</ol>'
        self.passage.value = f"<style>{STYLE}</style>{text}"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        """The live widget, and for all that cannot show it the picture and its words."""
        drawn = picture.draw(self.selection, *self.choice).small_png(keep=picture.palette())
        more = self.sentence.removeprefix(sentence(self.selection, *self.choice))
        words = f"{alt(self.selection, *self.choice)}{more}"
        return super()._repr_mimebundle_(**options) | bundle(drawn, words), {"image/png": {"alt": words}}


def _named(source: Kept | Again, where: str) -> list[tuple]:
    """(name, query) of each token that can be the query there."""
    return [(query.name, query) for query in source.queries[where]]
