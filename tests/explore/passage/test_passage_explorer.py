"""The explorer of a text without a browser: its controls are set as a hand would, and words and text are looked at."""

import copy
import io
import re

import pytest
from PIL import Image

from minikeye.explore.passage import PassageSelection
from minikeye.explore.passage.explorer import FIXED, PassageExplorer
from minikeye.explore.passage.picture import chosen_lines
from minikeye.explore.passage.reading import AFTER, ReadText, TextPrompt
from minikeye.explore.passage.shades import levels

from . import conftest as made


@pytest.fixture(scope="module")
def read(lively) -> ReadText:
    prompt = TextPrompt(tuple(made.IDS[: made.PROMPT]), made.PASSAGE, made.TEXT, "what?", 1)
    known = {"truth": [made.TRUTH], "subject": "the needle"}
    return ReadText.of(copy.deepcopy(lively), made.BYTES, prompt, max_new_tokens=5, **known)


@pytest.fixture
def explorer(read) -> PassageExplorer:
    return PassageExplorer(read)


def shades(explorer: PassageExplorer) -> list[int]:
    return [int(n) for n in re.findall(r'<span class="s(\d)" tabindex', explorer.passage.value)]


MOVES = {
    "where": lambda e: setattr(e.controls.where, "value", AFTER),
    "token": lambda e: setattr(e.controls.token, "index", 2),
    "layer": lambda e: setattr(e.controls.layer, "value", 1),
    "head": lambda e: setattr(e.controls.head, "value", 1),
    "topk": lambda e: setattr(e.controls.topk, "value", 3),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_every_control_changes_words_and_text(explorer, move):
    before = explorer.words.value, explorer.passage.value
    move(explorer)
    after = explorer.words.value, explorer.passage.value
    assert before[0] != after[0] and before[1] != after[1]
    move(explorer)  # the same again changes nothing
    assert (explorer.words.value, explorer.passage.value) == after


def test_what_is_shown_is_what_the_probe_gives(explorer, read):
    (
        explorer.controls.where.value,
        explorer.controls.head.value,
        explorer.controls.topk.value,
        explorer.controls.layer.value,
    ) = AFTER, 1, 9, 0
    explorer.controls.token.index = 3
    want = made.selected(read.probe.record(explorer.controls.token.value.position, 1, 9), answer=read.answer)
    assert explorer.sentence == f"{want.sentence(0)} Selected by indexer head 1 alone, k = 9."
    assert explorer.sentence in explorer.words.value.replace("&#x27;", "'") and "Asked “what?”" in explorer.words.value
    assert shades(explorer) == levels(want, 0).tolist()


def test_a_selection_has_no_other_k(passage):
    explorer = PassageExplorer(passage)
    assert (
        explorer.controls.topk.disabled and not explorer.controls.head.disabled and FIXED in explorer.children[-1].value
    )
    explorer.controls.layer.value, explorer.controls.head.value, explorer.controls.token.index = 2, 0, 4
    assert explorer.sentence == passage.sentence(2, 4, 0) and shades(explorer) == levels(passage, 2, 4, 0).tolist()
    assert PassageExplorer(made.selected(made.drawn(0))).controls.head.disabled


def test_a_query_of_a_text_is_none_of_a_record(passage, read):
    with pytest.raises(ValueError, match="expected one of the 7 queries of this record, got Query"):
        PassageExplorer(passage).source.select(read.queries[AFTER][0], None, 1)


def test_every_control_has_a_name(explorer):
    for control in (
        explorer.controls.where,
        explorer.controls.token,
        explorer.controls.layer,
        explorer.controls.head,
        explorer.controls.topk,
    ):
        assert control.description and control.tooltip == control.description
    assert 'aria-label="The text"' in explorer.passage.value and 'role="status"' in explorer.words.value


@pytest.mark.parametrize("which", ["read", "passage", "full"])
def test_without_a_kernel_a_picture_and_its_words_stay(request, which):
    """What the notebook keeps: a PNG with alt text, the same words below it and as plain text."""
    explorer = PassageExplorer(request.getfixturevalue(which))
    data, metadata = explorer._repr_mimebundle_()
    words = data["text/plain"]
    assert words.startswith("Lines of a text, each token the darker") and explorer.sentence in words
    assert metadata["image/png"]["alt"] == words and f"<p>{words[:20]}" in data["text/html"]
    assert 'alt="Lines of a text' in data["text/html"] and "application/vnd.jupyter.widget-view+json" in data
    picture = Image.open(io.BytesIO(data["image/png"]))
    assert picture.size[0] == 1500 and len(data["image/png"]) < 100_000
    assert Image.open(io.BytesIO(explorer.png)).size == picture.size


def test_the_picture_has_the_lines_that_are_read_and_the_truth(passage):
    """Not a line twice; of a long text only some."""
    assert [line.number for line in chosen_lines(passage)] == [1, 2, 4, 5]
    pieces = tuple("x\n" for _ in passage.pieces)
    many = PassageSelection(**{**vars(made.selected(made.drawn(0))), "pieces": pieces})
    shown = chosen_lines(many, 0, 0)
    most = [line.number for line in many.most_read(8, 0, 0)]
    truth = [line.number for line in many.lines() if line.truth][:6]
    assert [line.number for line in shown] == sorted({*most, *truth}) and len(shown) <= 14


def test_a_selection_shows_itself(passage, monkeypatch):
    """In a notebook: the picture with its words, without a widget."""
    told = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda *given: told.append(given))
    passage.show(1, 2)
    [(data, metadata)] = told
    assert data["text/plain"] == metadata["image/png"]["alt"] == passage.alt(1, 2)
    assert data["text/plain"].endswith(passage.sentence(1, 2)) and "layers and queries select it" in data["text/plain"]
    assert Image.open(io.BytesIO(data["image/png"])).size[0] == 1500


@pytest.mark.parametrize("source", ["a text", None])
def test_something_else_is_refused(source):
    with pytest.raises(TypeError, match="PassageSelection"):  # in tests, jaxtyping says it first
        PassageExplorer(source)
