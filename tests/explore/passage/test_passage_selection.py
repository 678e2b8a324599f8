"""Counts, shares, lines and words against plain loops over the record's indices."""

import itertools
import re
from dataclasses import replace

import pytest
import torch

from minikeye.explore.passage import PassageSelection
from minikeye.explore.passage.counts import PassageCounts
from minikeye.explore.passage.shades import BOUNDS, levels
from minikeye.explore.words import percent
from minikeye.model.record import Record

from . import conftest as made

CHOICES = [(None, None), (0, None), (None, 2), (1, 0), ([0, 2], [1, 3, 4])]
LINES = ["one line", "漢字 and 😀", "", "the needle is 7", "the last"]


def rows(choice, total: int) -> list[int]:
    return list(range(total)) if choice is None else [choice] if isinstance(choice, int) else choice


def places(s: PassageSelection) -> list[range]:
    """The tokens of each piece, by their numbers in the row."""
    ends = [s.first, *(s.first + end for end in itertools.accumulate(s.tokens))]
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def loop(record: Record, tokens: range, layer, query) -> tuple[float, float, float]:
    """Over the chosen layers and queries, the means of: how often a token of `tokens` is selected; the share of the
    keys that they are; the attention they get."""
    times, of_keys, mass, choices = 0, 0.0, 0.0, 0
    for n in rows(layer, made.LAYERS):
        for t in rows(query, record.queries):
            at = record.layers[n].indices[0, t].tolist()
            inside = [key in tokens for key in at]
            times += sum(inside)
            of_keys += sum(inside) / sum(key >= 0 for key in at)
            mass += sum(w for w, there in zip(record.layers[n].weights[0, t].tolist(), inside, strict=True) if there)
            choices += 1
    return times / choices / len(tokens), of_keys / choices, mass / choices


def test_pieces_are_the_passage(passage):
    assert "".join(passage.pieces) == made.TEXT
    assert passage.pieces[9:11] == ("漢", "字") and passage.tokens[9:11] == (3, 3)
    assert "".join(passage.pieces[slice(*passage.truth[0])]) == made.NEEDLE
    assert passage.labels == tuple(made.ANSWER) and passage.seen == tuple(range(made.PROMPT, made.PROMPT + 7))


@pytest.mark.parametrize(("layer", "query"), CHOICES)
def test_shares_and_attention_are_those_of_a_loop(passage, record, layer, query):
    want = [loop(record, tokens, layer, query) for tokens in places(passage)]
    assert passage.shares(layer, query).tolist() == pytest.approx([share for share, _, _ in want])
    assert passage.attention(layer, query).tolist() == pytest.approx([mass for _, _, mass in want])


@pytest.mark.parametrize("head", range(made.HEADS))
@pytest.mark.parametrize(("layer", "query"), CHOICES)
def test_a_head_alone(passage, alone, layer, query, head):
    want = [loop(alone[head], tokens, layer, query)[0] for tokens in places(passage)]
    assert passage.shares(layer, query, head).tolist() == pytest.approx(want)
    keys = [loop(alone[head], lines, layer, query)[1] for lines in places(passage)]
    found = passage.lines(layer, query, head)
    assert sum(line.keys for line in found) == pytest.approx(sum(keys)) and found[0].attention is None


@pytest.mark.parametrize(("layer", "query"), CHOICES)
def test_lines_are_those_of_a_loop(passage, record, layer, query):
    at, found = places(passage), passage.lines(layer, query)
    assert [line.text for line in found] == LINES
    assert [line.number for line in found] == [1, 2, 3, 4, 5] and [line.truth for line in found] == [0, 0, 0, 1, 0]
    for line in found:
        tokens = range(at[line.first].start, at[line.stop - 1].stop)
        _, keys, mass = loop(record, tokens, layer, query)
        assert (line.keys, line.attention) == pytest.approx((keys, mass))
        seen = [made.PROMPT + t for t in rows(query, record.queries)]
        assert line.chance == pytest.approx(sum(len(tokens) / n for n in seen) / len(seen))


@pytest.mark.parametrize(("layer", "query"), CHOICES)
def test_how_often_the_truth_is_selected(passage, record, layer, query):
    share, chance = passage.truth_share(layer, query)
    assert share == pytest.approx(loop(record, range(*made.TRUTH), layer, query)[0])
    drawn = [
        (record.layers[n].indices[0, t] >= 0).sum().item() / (made.PROMPT + t)
        for n in rows(layer, made.LAYERS)
        for t in rows(query, record.queries)
    ]
    assert chance == pytest.approx(sum(drawn) / len(drawn))
    said = passage.sentence(layer, query)
    assert f"The needle (line 4): {percent(share)} of its tokens are selected, {percent(chance)} by chance" in said


def test_a_query_within_the_text_sees_what_stands_before_it():
    """Chance and truth count no token behind it."""
    early = made.drawn(5, queries=2, k=4, first=made.FIRST + 10)
    s = made.selected(early)
    assert s.seen == (made.FIRST + 11, made.FIRST + 12)
    first, second, *rest = s.lines(query=0)
    assert first.chance == pytest.approx(9 / s.seen[0]) and second.chance == pytest.approx(2 / s.seen[0])
    assert [line.chance for line in rest] == [0, 0, 0] and s.truth_share() == (0, 0)
    assert s.labels == s.labels[:1] * 2  # bytes of 漢, none of which can be read alone


def test_the_sentence_says_what_the_numbers_say(passage):
    said = passage.sentence(1, 2)
    assert said.startswith(f"Layer 1, the query that writes “{made.ANSWER[2]}”, 3 of 7. ".replace("“ ”", "“␣”"))
    assert f"{percent(13 / (made.PROMPT + 2))} of the keys in sight are read" in said
    assert said.endswith(f"The keys hold {percent(passage.kept[1, 2].item())} of what dense attention would spend.")
    assert passage.sentence().startswith("All 3 layers, mean over 7 queries.")
    assert passage.sentence([0, 2], 0, 1).startswith("Layers 0 and 2, indexer head 1 alone, the query that writes “7”")
    best = max(passage.lines(), key=lambda line: line.attention)
    assert f"Most attention goes to line {best.number} with {percent(best.attention)}" in passage.sentence()
    assert passage.most_read(2)[0] == best and len(passage.most_read(9)) == 4  # the empty line is not read


def test_where_every_key_is_read_the_words_say_so(full):
    assert full.reads_all and "Every key in sight is read and nothing is selected" in full.sentence()
    assert " by chance" not in full.sentence() and "it gets" in full.sentence()
    mass = full.attention().double()
    assert levels(full).tolist() == [sum(share >= bound for bound in BOUNDS) for share in (mass / mass.max()).tolist()]


def test_levels_rise_with_the_share(passage):
    shares = passage.shares(None, 0).tolist()
    assert levels(passage, None, 0).tolist() == [sum(share >= bound for bound in BOUNDS) for share in shares]


def same(a: PassageCounts, b: PassageCounts) -> None:
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            close = {"rtol": 0, "atol": 5.1e-7 if name in ("mass", "kept") else 0}
            torch.testing.assert_close(getattr(b, name), value, **close)
        else:
            assert getattr(b, name) == value, name


@pytest.mark.parametrize("which", ["passage", "full"])
def test_json_brings_everything_back(which, request, tmp_path):
    s = request.getfixturevalue(which)
    back = PassageSelection.from_json(s.to_json())
    same(s, back)
    s.save(tmp_path / "passage.json")
    same(PassageSelection.from_json((tmp_path / "passage.json").read_text(encoding="utf-8")), s)
    assert [p.name for p in tmp_path.iterdir()] == ["passage.json"]


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"format": "minikeye.passage_selection", "version": 9}'])
def test_other_json_is_refused(text):
    message = r"expected (JSON written by PassageSelection|\('minikeye.passage_selection', 1)"
    with pytest.raises(ValueError, match=message):
        PassageSelection.from_json(text)


WRONG = [
    ({"truth": [(0, 3)]}, "expected each span of truth as (first, stop) with 6 <= first"),  # before the passage
    ({"truth": [(8, 8)]}, "expected each span of truth"),
    ({"truth": [(12, 9)]}, "expected each span of truth"),
    ({"truth": [(10, 999)]}, "expected each span of truth"),
    ({"passage": (4, 999)}, "expected passage as"),
    ({"labels": ["a"]}, "expected one label for each of 7 queries, got 1"),
    ({"layers": [3]}, "expected at least one of the recorded layers 0 to 2, got [3]"),
    ({"queries": []}, "expected at least one of the recorded queries"),
    ({"row": 1}, "expected a row from 0 to 0"),
    ({"heads": [made.drawn(1, queries=2)]}, "the same layers and queries for each head"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_does_not_fit_is_refused(record, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        made.selected(record, **options)


def test_ids_of_another_prompt_are_refused(record):
    with pytest.raises(ValueError, match="expected the tokens of the recorded row, whose query 0 stands at"):
        PassageSelection.from_record(record, made.IDS[:20], made.BYTES)
    with pytest.raises(ValueError, match="run the model with record=True"):
        PassageSelection.from_record(Record(), made.IDS, made.BYTES)


@pytest.mark.parametrize(
    ("choice", "message"), [((3,), "layers 0 to 2"), ((None, [7]), "queries 0 to 6"), ((0, 0, 2), "0 to 1, got 2")]
)
def test_a_choice_that_is_not_there_is_refused(passage, choice, message):
    for view in (passage.shares, passage.sentence, passage.lines, passage.png):
        with pytest.raises(ValueError, match=message):
            view(*choice)


def test_a_number_that_is_none_is_refused(passage):
    for query in (-1, 7):
        with pytest.raises(ValueError, match=rf"recorded queries 0 to 6, got \[{query}\]"):
            passage.visible(query)
    with pytest.raises(ValueError, match="expected a number of lines, got -1"):
        passage.most_read(-1)
    assert passage.most_read(0) == []


def test_no_head_alone_and_no_truth(record):
    s = made.selected(record, truth=())
    with pytest.raises(ValueError, match="of which there are none alone"):
        s.shares(head=0)
    with pytest.raises(ValueError, match="expected to know where the answer stands"):
        s.truth_share()
    assert "needle" not in s.sentence()


def test_line_numbers_go_on_from_the_file(passage):
    assert [line.number for line in replace(passage, first_line=41).lines()] == [41, 42, 43, 44, 45]
    assert "The needle (line 44)" in replace(passage, first_line=41).sentence()


def test_a_record_of_the_model_itself(lively):
    """Without options: every token is shown, and each query's label is the token behind it."""
    ids = made.IDS[:60]
    with torch.no_grad():
        out = lively({"input_ids": torch.tensor([ids])}, record=3)
    s = PassageSelection.from_record(out.record, ids, made.BYTES)
    assert sum(s.tokens) == 60 and s.seen == (58, 59, 60) and s.labels[-1] == ""
    assert torch.equal(s.counts.sum(dim=-1, dtype=torch.int32), s.keys)
    assert "the query at token 59, 3 of 3" in s.sentence(0, 2)
