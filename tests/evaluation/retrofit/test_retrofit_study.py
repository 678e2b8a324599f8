"""The retrofit study in small: each way to choose keys against a loop, what is asked, what is counted, the script."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from minikeye.checkpoint.indexers import read_indexer, taught_length
from minikeye.evaluation.retrofit import study
from minikeye.evaluation.retrofit.measures import measure, predict
from minikeye.evaluation.retrofit.passages import Asked, antecedents, copies, needles, windows
from minikeye.evaluation.retrofit.selections import SELECTIONS, blocks, window
from minikeye.evaluation.retrofit.summary import joined, report, summarise
from minikeye.evaluation.rules import selecting
from minikeye.inputs.tokenizer import ByteTokenizer
from minikeye.model.step import AttentionTrace
from minikeye.ops import index_scores, slab_rows

ROOT = Path(__file__).resolve().parents[3]
STREAM = torch.randint(97, 123, (4000,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trace() -> AttentionTrace:
    """Two rows of 37 queries at the end of 41 keys."""
    b, t, s = 2, 37, 41
    q, k = torch.randn(b, t, 4, 16), torch.randn(b, s, 2, 16)
    return AttentionTrace(q, k, torch.randn(b, t, 3, 8), torch.randn(b, s, 8), torch.randn(b, t, 3), None, s - t, None)


def sets(indices) -> list[list[list[int]]]:
    """The keys of each query; they must be ascending, with -1 behind them."""
    out = [[[n for n in query if n >= 0] for query in row] for row in indices.tolist()]
    for row, raw in zip(out, indices.tolist(), strict=True):
        for query, padded in zip(row, raw, strict=True):
            assert query == sorted(set(query)) and padded == query + [-1] * (len(padded) - len(query))
    return out


@pytest.fixture(params=[None, 2], ids=["one slab", "slabs of two"])
def slabs(request, monkeypatch):
    """Also where the queries come in several slabs."""
    if request.param:
        monkeypatch.setattr("minikeye.ops.slab_rows", lambda device, elements: request.param)
    assert slab_rows(torch.device("cpu"), 10) > 100


def test_window(trace, slabs):
    for row in sets(window(trace, 9)):
        for t, query in enumerate(row):
            seen = range(t + 4 + 1)
            assert query == sorted({*seen[:4], *seen[-5:]})
    with pytest.raises(ValueError, match="expected topk > 4"):
        window(trace, 4)


@pytest.mark.parametrize(("size", "pool"), [(4, "mean"), (8, "max")])
def test_blocks(size, pool, trace, slabs):
    """Block by block, as the words say: the own block, and the best of the complete ones before it."""
    budget, found = 3 * size, sets(blocks(size, pool)(trace, 3 * size))
    scores = index_scores(trace.index_q, trace.index_k, trace.index_w, 41)  # of all keys, future ones too
    for b in range(2):
        for t in range(37):
            at = t + 4
            own = at // size
            if pool == "max":
                value = [float(scores[b, t, c * size : (c + 1) * size].max()) for c in range(own)]
            else:
                keys = [trace.index_k[b, c * size : (c + 1) * size].mean(dim=0) for c in range(own)]
                heads = [(trace.index_q[b, t] @ key).relu() @ trace.index_w[b, t] for key in keys]
                value = [float(one) for one in heads]
            best = sorted(range(own), key=lambda c: -value[c])[: budget // size - 1]
            expected = sorted(n for c in [*best, own] for n in range(c * size, (c + 1) * size) if n <= at)
            assert found[b][t] == expected
    with pytest.raises(ValueError, match=f"expected at least {2 * size} keys"):
        blocks(size, pool)(trace, 2 * size - 1)


def test_rules_refuse_what_they_would_read_wrongly(trace):
    """A padded row's first keys are none that it sees: a window would have no sinks there, and say nothing."""
    padded = replace(trace, start=torch.tensor([0, 5]))
    for rule in (window, blocks(4, "mean")):
        with pytest.raises(ValueError, match="no padding; got 16 keys"):
            rule(padded, 16)
    for size, pool in ((0, "max"), (4, "median")):
        with pytest.raises(ValueError, match=f"pool 'mean' or 'max', got {size} and '{pool}'"):
            blocks(size, pool)


@pytest.mark.parametrize(("keys", "budget"), [(1, 1), (3, 3), (5, 8), (8, 8), (41, 9), (41, 11)])
def test_blocks_spend_the_budget(keys, budget):
    """Own block up to the query, and whole blocks before it: as many as there are and the budget pays."""
    trace = AttentionTrace(
        *(torch.randn(1, keys, 4, 16), torch.randn(1, keys, 2, 16)),
        *(torch.randn(1, keys, 3, 8), torch.randn(1, keys, 8), torch.randn(1, keys, 3), None, 0, None),
    )
    for at, query in enumerate(sets(blocks(4, "max")(trace, budget))[0]):
        before = at // 4 if budget >= keys else min(at // 4, budget // 4 - 1)
        assert len(query) == 4 * before + at % 4 + 1 and query[-1] == at


def test_all_keys_where_there_are_no_more(trace):
    """As of every selection: k from the number of keys on is dense attention."""
    assert sets(blocks(4, "mean")(trace, 41))[0] == [list(range(t + 5)) for t in range(37)]
    assert sets(blocks(128, "max")(trace, 41))[1][-1] == list(range(41))


def test_windows():
    asked = windows(STREAM, 5, 300, seed=3)
    assert asked.ids.shape == (5, 300) and asked.last == 151
    starts = [n for row in asked.ids for n in range(0, 4000 - 299, 300) if torch.equal(STREAM[n : n + 300], row)]
    assert len(set(starts)) == 5
    assert bool(asked.wanted[:, 150:].all()) and not bool(asked.wanted[:, :150].any())
    assert len(windows(STREAM, 50, 300, seed=3).ids) == 13  # all there are
    with pytest.raises(ValueError, match="expected a text of at least 5000 tokens, got 4000"):
        windows(STREAM, 1, 5000, seed=0)


@pytest.mark.parametrize(("count", "length"), [(0, 300), (-1, 300), (3, 0), (3, 1)])
def test_nothing_to_ask(count, length):
    for ask in (windows, copies, lambda stream, *sizes: needles(stream, ByteTokenizer(), *sizes)):
        with pytest.raises(ValueError, match=rf"at least one sequence of at least 4 tokens, got {count} of {length}"):
            ask(STREAM, count, length, 0)


def test_antecedents():
    """By looking back from every token."""
    ids = torch.randint(3, (200,), generator=torch.Generator().manual_seed(2)).tolist()
    for n, found in enumerate(antecedents(ids, 20)):
        places = [m for m in range(3, n) if ids[m - 3 : m] == ids[n - 3 : n]]
        assert found == (n >= 3 and bool(places) and n - places[-1] >= 20 and ids[places[-1]] == ids[n])
    assert any(antecedents(ids, 20)) and antecedents([1, 2, 3, 4, 9, 9, 1, 2, 3, 4], 6)[-1]
    with pytest.raises(TypeError, match="ids"):  # in tests, jaxtyping says it first
        antecedents(torch.tensor(ids), 20)


def test_what_can_be_asked():
    """Marks of another shape, nothing wanted, and a first token, which nothing could be predicted from."""
    ids, marks = torch.zeros(2, 6, dtype=torch.long), torch.arange(6)[None].expand(2, -1)
    for given in ((marks[:, 1:] > 2,), (marks > 2, marks[:1] > 2), (marks > 9,), (marks < 1,)):
        with pytest.raises((ValueError, TypeError), match=r"wanted|far"):  # shapes: in tests, jaxtyping says it first
            Asked(ids, *given)


def test_needles():
    asked = needles(STREAM, ByteTokenizer(), 10, 400, seed=0)
    places = []
    for ids, wanted in zip(asked.ids, asked.wanted, strict=True):
        text = bytes(ids.tolist()).decode()
        said, question = text.index("\nThe secret number of the "), text.rindex("\nThe secret number of the ")
        owner, code = text[said:].split("\n")[1][len("The secret number of the ") : -1].split(" is ")
        assert text[question:] == f"\nThe secret number of the {owner} is {code}" and len(code) == 4
        assert bytes(ids[wanted].tolist()).decode() == code
        places.append(said / 400)
    assert places[0] < places[1] < places[2] < places[3] < places[4] and places[0] < 0.3 and places[4] > 0.6
    assert asked.last == 5
    blind = needles(STREAM, ByteTokenizer(), 10, 400, seed=0, blind=True)
    assert all(bytes(ids.tolist()).decode().count("secret") == 1 for ids in blind.ids) and blind.ids.shape == (10, 400)
    with pytest.raises(ValueError, match="expected room for text around a needle"):
        needles(STREAM, ByteTokenizer(), 1, 50, seed=0)


@pytest.mark.slow
def test_digits_of_a_needle_are_tokens_of_their_own(smollm2_file):
    """The question and the number are encoded apart; together they would be the same tokens."""
    from minikeye.inputs.gguf_tokenizer import gguf_tokenizer

    tokenizer = gguf_tokenizer(smollm2_file)
    question = "\nThe secret number of the violin is "
    assert tokenizer.encode(f"{question}4096") == tokenizer.encode(question) + tokenizer.encode("4096")
    assert len(tokenizer.encode("4096")) == 4


def test_copies():
    asked = copies(STREAM, 6, 200, seed=0)
    for ids in asked.ids.tolist():
        assert any(ids[n : n + 32] == ids[-32:] for n in range(100))
    assert asked.last == 25 and int(asked.wanted[0].sum()) == 24
    with pytest.raises(ValueError, match=r"a length of 128 tokens or more, .*; got a length of 64 and a text of 4000"):
        copies(STREAM, 1, 64, seed=0)


@pytest.mark.parametrize("selection", ["dense", *SELECTIONS])
def test_predictions_are_those_of_a_pass(selection, lively):
    """Each sequence alone, all logits."""
    asked = Asked(STREAM[:320].view(4, 80) % 256, torch.arange(80)[None].expand(4, -1) >= 60)
    loss, right, kept = predict(lively, asked, selection, 256 if selection == "block128" else 16, seed=4, mass=True)
    assert loss.shape == right.shape == (4, 20) and len(kept) == (0 if selection == "dense" else 2)
    if selection == "random":
        return
    for n, ids in enumerate(asked.ids):
        with selecting(lively, SELECTIONS.get(selection), 256 if selection == "block128" else 16), torch.no_grad():
            mode = "dense" if selection == "dense" else "sparse"
            logits = lively({"input_ids": ids[None]}, attention=mode).logits[0, 59:-1]
        assert_close(loss[n], -logits.log_softmax(-1)[torch.arange(20), ids[60:]], atol=1e-4, rtol=1e-4)
        assert torch.equal(right[n], logits.argmax(-1) == ids[60:])
    with pytest.raises(ValueError, match="expected 'dense' or one of indexer, oracle"):
        predict(lively, asked, "best", 4)


def test_what_is_counted(lively, monkeypatch):
    """From made-up predictions: two of the three needles whole, half the copied tokens, the loss of wanted tokens."""
    asked = Asked(torch.zeros(3, 8, dtype=torch.long), torch.arange(8)[None].expand(3, -1) >= 6)
    real = replace(asked, far=asked.wanted & torch.tensor([[True], [False], [False]]))
    right = torch.tensor([[True, True], [True, False], [True, True]])
    monkeypatch.setattr(
        "minikeye.evaluation.retrofit.measures.predict",
        lambda *args, **kwargs: (torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]]), right, [0.5, 1.0]),
    )
    needle = measure(lively, "needle", asked, "dense", 1)
    assert needle["each"] == "101" and needle["right"] == 66.667 and needle["by_depth"] == [100.0, 0.0, 100.0]
    assert measure(lively, "copy", asked, "dense", 1)["right"] == 83.333
    text = measure(lively, "text", real, "dense", 1)
    assert text["nll"] == 1.0 and text["ppl"] == round(math.e, 4)
    assert text["far_n"] == 2 and text["far_right"] == 100.0 and text["kept"] == [0.5, 1.0]
    with pytest.raises(ValueError, match="expected text, needle, blind or copy"):
        measure(lively, "else", asked, "dense", 1)
    for test, other, made in (
        ("text", asked, r"as windows\(\)"),
        ("needle", real, "of needles"),
        ("copy", real, "or copies"),
    ):
        with pytest.raises(ValueError, match=f"expected sequences .*{made}.* for the test {test}"):
            measure(lively, test, other, "dense", 1)


def row(method: str, test: str, seed: int = 0, k: int = 512, length: int = 4096, heads: int = 4, **values) -> dict:
    return {"seed": seed, "heads": heads, "method": method, "k": k, "length": length, "test": test, **values}


def test_summary():
    text = {"far_right": 50.0, "kept": [0.9, 1.0]}
    rows = [row("dense", "text", s, 0, nll=1.0, ppl=math.e, far_right=60.0, kept=[]) for s in (0, 1)]
    rows += [row("dsa", "text", s, nll=1 + math.log(1.01 + 0.02 * s), ppl=2.75, **text) for s in (0, 1)]
    rows += [row("dsa", "needle", s, each="1110") for s in (0, 1)] + [row("warmup", "copy", heads=16, right=7.0)]
    rows += [row("dsa", "copy", length=8192, right=5.0)]
    rows += [row("dense", "needle", s, 0, each="1111") for s in (0, 1)] + [row("tuned", "needle", 1, 0, each="0001")]
    rows += [row("tuned", "text", s, 0, nll=1 + math.log(1.02), ppl=2.77, far_right=1.0, kept=[]) for s in (0, 1)]
    found = summarise(rows)
    assert found["needle_dsa_512_cost"] == 25.0 and found["needle_tuned_cost"] == 75.0
    assert found["needle_dsa_512_cost_tuned"] == -50.0  # 1110 beside 0001: two found more
    assert found["needle_dsa_512_cost_low"] < 0 < found["needle_dsa_512_cost_high"] and "needle_dense_cost" not in found
    assert found["ppl_dsa_512_cost_tuned"] == 0.0 and "ppl_tuned_cost_tuned" not in found
    assert found["ppl_dense"] == round(math.e, 4) and found["kept_dsa_512"] == 0.95 and "kept_dense" not in found
    assert found["ppl_dsa_512_cost"] == 2.0 and found["ppl_dsa_512_cost_low"] < 1 < 3 < found["ppl_dsa_512_cost_high"]
    assert found["needle_dsa_512"] == 75.0 and found["needle_dsa_512_n"] == 8 and found["needle_dsa_512_low"] < 50
    assert found["copy_warmup_512_heads16"] == 7.0 and found["copy_dsa_512_at_8192"] == 5.0
    assert found["far_dense"] == 60.0 and "copy_dsa_512_at_8192_low" not in found and summarise([]) == {}


def test_rows_that_cannot_be_summed_up():
    for wrong, message in (
        (row("dense", "copy", k=512, right=1.0), "expected k 0 of dense, which reads every key, got 512"),
        (row("dsa", "needle", right=1.0), "expected a row with each, got"),
        (row("dsa", "else", right=1.0), "expected a row with a known test, got"),
    ):
        with pytest.raises(ValueError, match=message):
            summarise([row("dense", "copy", k=0, right=1.0), wrong])


def test_a_cell_counts_once():
    """A part that is given twice is no second seed."""
    rows = [row("dense", "needle", seed, 0, each="10", texts="a") for seed in (0, 1)]
    assert joined([*rows, rows[0] | {"taught": {"warmup": 3.0}}, rows[1]]) == rows
    assert summarise(joined([*rows, *rows]))["needle_dense_n"] == 4
    other = row("dense", "needle", 1, 0, each="11", texts="a")
    with pytest.raises(ValueError, match="1, 4, dense, 0, 4096, needle was measured twice"):
        joined([*rows, other])


@pytest.mark.parametrize("name", ["texts", "recipe"])
def test_what_was_not_measured_alike_is_not_averaged(name, tmp_path):
    """Another Python has other texts; a row of before `recipe` was written down goes with any."""
    rows = [row("dense", "copy", seed, 0, right=1.0, texts="t", hardware="H") for seed in (0, 1, 2)]
    report(tmp_path / "all.json", [rows[0], rows[1] | {"recipe": "r"}, rows[2] | {"recipe": "r"}], [])
    before = (tmp_path / "all.json").read_bytes()
    with pytest.raises(ValueError, match=f"expected rows of the same {name}, got digests (t|r) and x"):
        report(tmp_path / "all.json", [rows[0] | {"recipe": "r"}, rows[1] | {name: "x"}], [])
    assert (tmp_path / "all.json").read_bytes() == before


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{"seed": 0, "heads": 4}]}', "\xff"]
)
def test_another_file_is_not_gone_on_with(content, tmp_path, monkeypatch):
    """Nor written over, and nobody waits for a model to be taught before hearing so."""
    (path := tmp_path / "other.json").write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(study, "Arms", None)
    for command in (["--smoke", "--device", "cpu", "--out", str(path)], ["--out", "x.json", "--merge", str(path)]):
        monkeypatch.setattr(sys, "argv", ["study", *command])
        with pytest.raises(ValueError, match=r"other\.json is no part of this study"):
            study.main()
    assert path.read_bytes() == content.encode("latin-1")


def test_the_committed_result_is_what_its_rows_say():
    path = ROOT / "assets" / "results" / "retrofit.json"
    assert summarise(study.rows_of(path)) == json.loads(path.read_text(encoding="utf-8"))["summary"]
    assert study.rows_of(path.with_name("retrofit_short.json"))


def test_the_plan_says_what_matters_first():
    cells = list(study.Plan().cells(0, 4, main=True))
    assert len(cells) == len(set(cells)) and {cell.method for cell in cells} == {*study.METHODS}
    first = cells[: 3 * (len(study.METHODS) - 2) + 2]
    assert all(cell.length == 4096 and cell.k in (0, 512) for cell in first)
    assert {cell.k for cell in cells} == {0, 64, 128, 256, 512, 1024}
    assert {cell.length for cell in cells} == {1024, 2048, 4096, 8192}
    assert {(c.method, c.k) for c in cells if c.method == "block128"} == {("block128", k) for k in (256, 512, 1024)}
    others = [(method, length, test) for method in ("long", "more") for length in (4096, 8192) for test in study.TESTS]
    assert [(cell.method, cell.length, cell.test) for cell in cells[-12:]] == others
    taught = {name: study.Plan().recipe_of(name) for name in ("warmup", "sparse", "long", "more")}
    assert [recipe.length for recipe in taught.values()] == [4096, 4096, 8192, 4096]
    assert [recipe.warmup.steps for recipe in taught.values()] == [1600, 1600, 1600, 3200]
    assert {cell.method for cell in study.Plan().cells(0, 16, main=False)} == {"warmup"}


@pytest.mark.slow
def test_script_goes_on_and_merges(tmp_path, monkeypatch, capsys):
    """Stopped at once, then all of it, then nothing more to do; two parts become one result."""
    command = ["study", "--smoke", "--device", "cpu", "--work", str(tmp_path / "work")]
    saved = ["--save", str(tmp_path / "four")]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "a.json"), "--seed", "1", *saved])
    study.main()
    lengths = {name: taught_length(tmp_path / "four" / name) for name in ("warmup", "indexers", "long")}
    assert lengths == {"warmup": 256, "indexers": 256, "long": 512}
    monkeypatch.setattr(
        sys, "argv", [*command, "--out", str(tmp_path / "b.json"), "--heads", "2", "--save", str(tmp_path / "ix")]
    )
    study.main()
    assert read_indexer(tmp_path / "ix" / "warmup").heads == 2 and not (tmp_path / "ix" / "indexers").exists()
    part = json.loads((tmp_path / "a.json").read_text())
    assert {row["method"] for row in part["rows"]} == {*study.METHODS} - {"block128"}
    assert part["summary"]["ppl_dense"] > 1 and part["seeds"] == [1] and "ppl_warmup_32_at_320" in part["summary"]
    assert (tmp_path / "work" / "seed1-heads4" / "sparse.pt").is_file()
    for name in ("long", "more"):
        assert (tmp_path / "work" / "seed1-heads4" / name / "warmup.pt").is_file()  # beside warmup.pt
    before = capsys.readouterr().out
    assert "dsa 32 256 text" in before
    measured = (tmp_path / "a.json").read_bytes()
    monkeypatch.setattr("minikeye.results.commit", lambda: "another")  # which measured nothing of it
    again = ["--out", str(tmp_path / "a.json"), "--seed", "1", "--save", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", [*command, *again])
    study.main()
    said = capsys.readouterr().out
    assert "dsa" not in said and "warmup: not taught in this call, so not saved" in said
    assert (tmp_path / "a.json").read_bytes() == measured
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "c.json"), "--seconds", "0"])
    with pytest.raises(ValueError, match="no cell was measured"):
        study.main()
    parts = [str(tmp_path / name) for name in ("a.json", "b.json")]
    monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "all.json"), "--merge", *parts])
    study.main()
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["seeds"] == [0, 1] and "kept_warmup_32_heads2" in whole["summary"]
