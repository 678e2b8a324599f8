"""One question about one text: what a small model read, against its own record; prompts of the real file's template."""

import copy
from typing import Any

import pytest
import torch

from minikeye.explore.passage.counts import check_spans
from minikeye.explore.passage.reading import AFTER, ANSWER, ReadText, TextPrompt, keys_of
from minikeye.inputs.gguf_tokenizer import conversation_ids, gguf_tokenizer
from minikeye.keye import KeyeVL

from . import conftest as made

NEW = 5


@pytest.fixture(scope="module")
def model(lively):
    """In float64, so that two ways to compute one selection do not differ in the last bit."""
    return copy.deepcopy(lively).double()


@pytest.fixture(scope="module")
def prompt() -> TextPrompt:
    return TextPrompt(tuple(made.IDS[: made.PROMPT]), made.PASSAGE, made.TEXT, "what?", 1)


@pytest.fixture(scope="module")
def read(model, prompt) -> ReadText:
    known = {"truth": [made.TRUTH], "subject": "the needle"}
    return ReadText.of(model, made.BYTES, prompt, max_new_tokens=NEW, **known)


def test_it_is_what_generate_records(model, prompt, read):
    """The prompt is read under a mask, the answer sparsely: the same tokens, keys and attention."""
    ids = torch.tensor([prompt.ids])
    out = model.generate({"input_ids": ids}, NEW, stop_ids=(made.BYTES.token_id("<|im_end|>"),), record=True)
    assert tuple(out.row()) == read.written and read.answer == made.BYTES.decode(out.row())
    s, want = read.selection(), made.selected(out.record)
    assert torch.equal(s.counts, want.counts) and torch.equal(s.keys, want.keys) and s.seen == want.seen
    torch.testing.assert_close(s.mass, want.mass)
    torch.testing.assert_close(s.kept, want.kept)
    assert s.truth == want.truth and (s.question, s.answer) == ("what?", read.answer)


def test_heads_alone_and_other_k_are_the_probes(read):
    s = read.selection(heads=True)
    query = read.queries[ANSWER][2]
    for head in range(2):
        record = read.probe.record(query.position, head)
        want = made.selected(record)
        assert torch.equal(s.heads[head][:, 2], want.counts[:, 0])
        assert torch.equal(read.select(query, head, 3).keys, torch.full((2, 1), 3, dtype=torch.int32))
        assert torch.equal(read.select(query, head).counts, want.counts)


def test_queries_stand_behind_the_text(read, prompt):
    assert [q.position for q in read.queries[ANSWER]] == list(range(made.PROMPT - 1, made.PROMPT - 1 + NEW))
    assert [q.position for q in read.queries[AFTER]] == list(range(made.PASSAGE[1], made.PROMPT))
    assert read.queries[AFTER][1].name == f"{made.PASSAGE[1] + 1} “w”" and read.layers == 2


def test_dense_attention_reads_every_key(model, prompt):
    read = ReadText.of(model, made.BYTES, prompt, max_new_tokens=2, attention="dense")
    s = read.selection()
    assert s.reads_all and s.keys.tolist() == [[made.PROMPT, made.PROMPT + 1]] * 2
    assert read.topk == read.longest == made.PROMPT + 1
    with pytest.raises(ValueError, match="dense attention reads every key: leave out topk, got 16"):
        ReadText.of(model, made.BYTES, prompt, attention="dense", topk=16)


def test_another_k_is_read_with_and_the_model_stays(model, prompt):
    before = [layer.self_attn.topk for layer in model.model.layers]
    read = ReadText.of(model, made.BYTES, prompt, max_new_tokens=1, topk=7)
    assert read.selection().keys.tolist() == [[7], [7]] and read.topk == 7
    with pytest.raises(KeyError), keys_of(model, 3):
        raise KeyError
    assert [layer.self_attn.topk for layer in model.model.layers] == before
    with pytest.raises(ValueError, match="expected at least 1 key a query, got 0"), keys_of(model, 0):
        pass


def test_the_longest_k_is_what_the_last_query_sees(read):
    last = read.queries[ANSWER][-1]
    assert read.select(last, topk=read.longest).keys.tolist() == [[read.longest]] * 2
    assert read.longest == max(query.sees for queries in read.queries.values() for query in queries)


def test_numbers_that_do_not_fit_are_refused(model, prompt):
    for options in ({"max_new_tokens": 0}, {"topk": 0}):
        with pytest.raises(ValueError, match="expected max_new_tokens and topk of at least 1"):
            ReadText.of(model, made.BYTES, prompt, **options)
    with pytest.raises(ValueError, match=r"a prompt of .* tokens and 999999 new ones exceed"):
        ReadText.of(model, made.BYTES, prompt, max_new_tokens=999_999)


@pytest.mark.parametrize("truth", [[(40, 35)], [(0, 3)], [(made.PASSAGE[1] - 1, made.PASSAGE[1] + 1)]])
def test_a_truth_elsewhere_is_refused_before_the_model_runs(prompt, truth):
    model: Any = KeyeVL.__new__(KeyeVL)  # no pass could be made with it
    with pytest.raises(ValueError, match=rf"expected each span of truth as \(first, stop\) with {made.FIRST} <= first"):
        ReadText.of(model, made.BYTES, prompt, truth=truth)


def test_a_span_alone_is_no_sequence_of_them():
    with pytest.raises(ValueError, match=r"expected each span .* got \[30, 35\]"):
        check_spans((30, 35), (0, 40), "each span of truth")


def test_a_query_is_asked_for_by_itself(read):
    with pytest.raises(TypeError, match=r"query|Query"):  # in tests, jaxtyping says it first
        read.select(5)
    for options, message in (({"head": 2}, "indexer head from 0 to 1"), ({"topk": 0}, "k of at least 1")):
        with pytest.raises(ValueError, match=message):
            read.select(read.queries[ANSWER][0], **options)


def test_an_empty_answer_is_refused(model, prompt, monkeypatch):
    first = ReadText.of(model, made.BYTES, prompt, max_new_tokens=1).written[0]
    monkeypatch.setattr(type(made.BYTES), "token_id", lambda self, name: first)
    with pytest.raises(RuntimeError, match="the model's answer is empty"):
        ReadText.of(model, made.BYTES, prompt)


def test_where_words_stand(prompt):
    assert prompt.find("needle is 7", made.BYTES) == made.TRUTH
    assert prompt.find(" 漢 ", made.BYTES) == (made.FIRST + 9, made.FIRST + 12)
    for words in ("what?", " "):  # the question is no part of the text
        with pytest.raises(ValueError, match="expected words that stand in the text, got"):
            prompt.find(words, made.BYTES)


def test_model_and_tokenizer_go_together(model):
    with pytest.raises(ValueError, match="expected model and tokenizer together"):
        ReadText.from_text("a", "b", model=model)
    with pytest.raises(ValueError, match="keeps its indexers: leave out indexers, got /nope"):
        ReadText.from_text("a", "b", model=model, tokenizer=made.BYTES, indexers="/nope")


@pytest.mark.slow
def test_a_text_of_a_file_keeps_its_line_numbers(smollm2_file):
    told = []
    read = ReadText.from_text(
        "The key\nis with Ann.", "Who has it?", truth="with Ann", first_line=40, max_new_tokens=1, on_token=told.append
    )
    s = read.selection()
    assert [line.number for line in s.lines()] == [40, 41] and [line.truth for line in s.lines()] == [False, True]
    assert len(told) == 1


@pytest.mark.slow
def test_prompts_of_the_real_template(smollm2_file):
    """The text's tokens are found whatever stands around them; emoji and CJK, which are split, stay whole."""
    from minikeye.explore.passage.pieces import Pieces

    tokenizer = gguf_tokenizer(smollm2_file)
    for text in (
        "one",
        "漢字とかな\n👩‍👩‍👧‍👦 é\n",
        "\n\n  begins late\n\tx",
        "user\nwhat?\n\nwhat?",
        "<|im_end|> is no end",
    ):
        prompt = TextPrompt.of(smollm2_file, tokenizer, text, "what?")
        assert list(prompt.ids) == conversation_ids(smollm2_file, tokenizer, [("user", f"{text}\n\nwhat?")])
        first, stop = prompt.passage
        pieces = Pieces.of(prompt.ids[first:stop], tokenizer)
        shown = "".join(pieces.texts)
        assert shown.strip() == text.strip() and "\ufffd" not in shown
        assert all("\ufffd" not in piece for piece in pieces.texts)
        assert prompt.first_line == 1 + text[: text.index(shown.strip())].count("\n") - shown[
            : shown.index(shown.strip())
        ].count("\n")
        word = text.split()[-1]
        a, b = prompt.find(word, tokenizer)
        assert word in tokenizer.decode(list(prompt.ids[a:b])) and first <= a < b <= stop
    for text, question in ((" \n", "what?"), ("one", "\t")):
        with pytest.raises(ValueError, match="with words"):
            TextPrompt.of(smollm2_file, tokenizer, text, question)
