"""How the shipped checkpoint is measured: two ways of finding exact answers agree, scores and names by hand."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import mini
from minikeye.evaluation.mini import RUNS, Run, best_constant_iou, exact, measure, needle_hits, score, summarise
from minikeye.inputs.prompt import FrameSpan
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.model.record import LayerRecord, Record
from minikeye.training.losses import answer_loss

pytestmark = pytest.mark.slow  # half a minute together: its model learns answers by heart first

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = KeyeConfig.nano()
QUESTIONS = 6
NEEDLE = Run("N", 4, "masked", "final")


@pytest.fixture(scope="module")
def pupils() -> list[KeyeVL]:
    """One nano model that learns six answers by heart, at five moments from knowing none to knowing all."""
    torch.manual_seed(0)
    model, moments = KeyeVL(CONFIG), []
    model.visual.requires_grad_(False)
    size, videos = Size(4, QUESTIONS), make_videos(mini.SEED, range(QUESTIONS), 4, "test")
    inputs = Lesson(question_prompts(videos, "N", size, CONFIG, answered=True), videos, size).inputs(CONFIG, "cpu")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(131):
        if step in (0, 60, 80, 100, 130):
            moments.append(copy.deepcopy(model).eval())
        optimiser.zero_grad()
        logits = model(inputs, attention=("masked", "dense")[step % 2]).logits
        answer_loss(logits, inputs["input_ids"], inputs["answer"]).backward()
        optimiser.step()
    return moments


def only(monkeypatch, number: int) -> None:
    """Let the report see one video, the one of this number."""
    monkeypatch.setattr(mini, "make_videos", lambda seed, indices, *more: make_videos(seed, [number], *more))


@pytest.mark.parametrize("attention", ["masked", "sparse", "dense"])
def test_exact_and_measure_agree(pupils, attention, monkeypatch):
    """Question by question: one pass over the true answer says yes if and only if greedy decoding writes it."""
    run, seen, decoded = replace(NEEDLE, attention=attention), [], []

    def spy(*args):
        decoded.append(score(*args))
        return decoded[-1]

    monkeypatch.setattr(mini, "score", spy)
    for model in pupils:
        monkeypatch.setattr(mini, "make_videos", make_videos)
        assert measure(model, run, QUESTIONS)["exact"] == exact(model, run, QUESTIONS)["exact"]
        for number in range(QUESTIONS):
            only(monkeypatch, number)
            seen.append(exact(model, run, 1)["exact"] / 100)
    assert seen == [s["exact"] for s in decoded]
    assert 5 < seen.count(1.0) < 25


def test_batches_change_nothing(pupils):
    """Ten questions one by one or all at once; the last batch is not full."""
    for f in (exact, measure):
        a, b, c = (f(pupils[3], NEEDLE, 10, tokens) for tokens in (40, 4 * 40, 10**6))
        for row in (a, b, c):
            row.pop("seconds_taken")
        assert a == b == c and a["n"] == 10


class Wishes(KeyeVL):
    """Would say a pixel wherever it may, and the right answer next."""

    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        out.logits[..., CONFIG.video_token_id] = 1e6
        return out


def test_pixels_cannot_be_said(pupils, monkeypatch):
    """`generate` skips placeholders, so `exact` must, too."""
    model = Wishes(CONFIG).eval()
    model.load_state_dict(pupils[-1].state_dict())
    found = []
    for number in range(QUESTIONS):
        only(monkeypatch, number)
        found.append([f(m, NEEDLE, 1)["exact"] for f in (exact, measure) for m in (model, pupils[-1])])
    assert all(len(set(row)) == 1 for row in found) and [100.0] * 4 in found


class Silent(KeyeVL):
    """Ends every answer before it begins."""

    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        out.logits[..., load_tokenizer(CONFIG).token_id("<|im_end|>")] = 1e6
        return out


def test_a_model_that_says_nothing():
    row = measure(Silent(CONFIG).eval(), Run("N", 4, "sparse", "final"), 3)
    assert row["exact"] == row["digit"] == 0.0 and row["hit_per_layer"] == [0.0, 0.0]


@torch.no_grad()
def test_a_row_of_the_report(pupils):
    """What is in it, and that grey frames are looked at when asked for."""
    run = Run("N", 4, "sparse", "final", blank=True)
    row = measure(pupils[-1], run, 5)
    assert {k: row[k] for k in vars(run)} == vars(run)
    lengths = question_prompts(make_videos(mini.SEED, range(5), 4, "test"), "N", Size(4, 5), CONFIG)[
        "attention_mask"
    ].sum()
    assert row["context"] == round(int(lengths) / 5)
    assert row["selected_share"] == round(CONFIG.indexer.topk / row["context"], 4)
    for name in ("digit", "second", "both", "exact"):
        low, high = row[f"{name}_95"]
        assert 0 <= low <= row[name] <= high <= 100
    assert row["both"] <= min(row["digit"], row["second"]) and len(row["hit_per_layer"]) == 2
    grounding = measure(pupils[-1], Run("G", 4, "sparse", "final"), 5)
    assert {"tiou", "tiou_95", "exact"} <= grounding.keys() and "hit_per_layer" not in grounding


@pytest.mark.parametrize("blank", [False, True])
def test_blank_runs_see_grey(blank, pupils, monkeypatch):
    patches = []
    model = pupils[0]
    monkeypatch.setattr(model, "visual_tokens", lambda p, g: patches.append(p) or KeyeVL.visual_tokens(model, p, g))
    measure(model, Run("N", 4, "sparse", "final", blank=blank), 2)
    assert (len(patches[0].unique()) == 1) == blank


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores():
    """The true answer, one that is near, one that is wrong, and no answer."""
    videos = make_videos(0, range(1), 16, "test")
    problems = {p.task: p for p in reversed(videos.problems[0])}
    digit, second = problems["N"].answer.split(" at ")
    second = float(second.removesuffix(" s"))
    cases = {
        problems["N"].answer: (1, 1, 1, 1),
        f"{digit} at {second + 0.4:.1f} s": (1, 1, 1, 0),
        f"{digit} at {second + 0.7:.1f} s": (1, 0, 0, 0),
        f"{(int(digit) + 1) % 10} at {second:.1f} s": (0, 1, 0, 0),
        "seven": (0, 0, 0, 0),
    }
    for answer, expected in cases.items():
        assert score(problems["N"], answer) == dict(zip(("digit", "second", "both", "exact"), expected, strict=True))
    first = problems["G"]
    ((start, end),) = json.loads(first.answer)
    assert score(first, first.answer) == {"tiou": 1.0, "exact": 1.0}
    assert score(first, "never") == {"tiou": 0.0, "exact": 0.0}
    half = score(first, f"[[{start:.1f}, {start + 2 * (end - start):.1f}]]")
    assert half["exact"] == 0.0 and half["tiou"] == pytest.approx(0.5, abs=0.02)


def test_needle_hits_by_hand():
    """Row 1 is padded by 3: its spans move. Layer 0 reads the card's frame in both rows, layer 1 in neither."""
    videos = make_videos(0, range(2), 4, "test")
    frames = [[FrameSpan(10 * n, 10 * n + 4, 0.0, 0) for n in range(1, 5)] for _ in range(2)]
    at = [10 * (1 + videos.events[row][0].first) + 3 * row for row in range(2)]  # first visual token of the card

    def layer(*keys: list[int]) -> LayerRecord:
        indices = torch.tensor(keys, dtype=torch.int32)[:, None]  # one query a row
        weights = torch.zeros(indices.shape)
        return LayerRecord(indices, weights, torch.zeros(2, 1), torch.zeros(2, 1, 1, dtype=torch.long))

    record = Record([layer([at[0], -1], [5, at[1] + 3]), layer([at[0] - 1, -1], [at[1] - 1, at[1] + 4])])
    assert needle_hits(record, frames, videos, torch.tensor([0, 3])).tolist() == [2.0, 0.0]


def test_the_best_blind_interval():
    """No interval in twentieths of the duration does better; some other does nearly as well as worse."""
    best, n = best_constant_iou(12), 12
    videos = make_videos(mini.SEED, range(n), 64, "test")

    def mean_iou(a: float, b: float) -> float:
        total = 0.0
        for row in range(n):
            end = float(videos.seconds[row][-1])
            start, stop = (
                x / end for x in json.loads(next(p for p in videos.problems[row] if p.task == "G").answer)[0]
            )
            inside = max(0.0, min(b, stop) - max(a, start))
            total += inside / ((b - a) + (stop - start) - inside)
        return total / n

    values = [mean_iou(a / 20, b / 20) for b in range(21) for a in range(b)]
    assert best == pytest.approx(max(values), abs=1e-9) and min(values) < best / 2


# -------------------------------------------------------------------------------------------------------------- summary


def fabricate(run: Run, number: int) -> dict:
    """A row with numbers that tell where they come from."""
    row = {**vars(run), "n": 100, "exact": number + 0.5}
    if run.attention == "sparse" and run.task == "N":
        row |= {"digit": number + 0.1, "second": number + 0.2, "hit_per_layer": [0.0, number + 0.3, 0.1]}
        row["selected_share"] = number / 1000
    elif run.attention == "sparse":
        row["tiou"] = number + 0.4
    return row


def test_summary_of_all_runs():
    """Every name by hand, from rows whose numbers are their place in RUNS."""
    at = {run: n for n, run in enumerate(RUNS, 1)}
    got = summarise([fabricate(run, n) for run, n in at.items()], 0.25)

    def place(*args, **more) -> int:
        return at[Run(*args, **more)]

    expected = {"grounding_miou_64_constant": 25.0}
    for frames in (64, 256, 1024):
        mine = place("N", frames, "sparse", "final")
        expected |= {
            f"needle_digit_{frames}": mine + 0.1,
            f"needle_second_{frames}": mine + 0.2,
            f"needle_frame_hit_{frames}": mine + 0.3,
            f"selected_share_{frames}": mine / 1000,
            f"dense_minus_sparse_{frames}": place("N", frames, "dense", "dense") - mine,
            f"same_weights_dense_minus_sparse_{frames}": place("N", frames, "dense", "final") - mine,
        }
    for h, w in ((56, 84), (84, 56), (56, 112), (28, 112)):
        mine, name = place("N", 64, "sparse", "final", height=h, width=w), f"64_{h}x{w}"
        expected |= {f"needle_digit_{name}": mine + 0.1, f"needle_second_{name}": mine + 0.2}
        expected |= {f"needle_frame_hit_{name}": mine + 0.3, f"selected_share_{name}": mine / 1000}
    blank = place("N", 64, "sparse", "final", blank=True)
    expected |= {"blind_digit_64": blank + 0.1, "blind_second_64": blank + 0.2}
    expected["grounding_miou_64"] = place("G", 64, "sparse", "final") + 0.4
    expected["grounding_miou_64_blank"] = place("G", 64, "sparse", "final", blank=True) + 0.4
    assert got.keys() == expected.keys() and got == pytest.approx(expected)


def test_summary_says_only_what_was_measured():
    """A twin with another number of questions is no twin; without rows, only the constant is known."""
    sparse, dense = fabricate(RUNS[0], 1), fabricate(Run("N", 64, "dense", "dense"), 2) | {"n": 50}
    assert not any("minus" in name for name in summarise([sparse, dense], 0.25))
    assert summarise([sparse, dense | {"n": 100}], 0.25)["dense_minus_sparse_64"] == 1.0
    assert summarise([], 0.25) == {"grounding_miou_64_constant": 25.0}


def test_readme_names_come_from_here():
    """All names that the shipped result holds are those of `summarise` on all runs."""
    known = summarise([fabricate(run, n) for n, run in enumerate(RUNS)], 0.0).keys()
    assert json.loads((ROOT / "assets" / "results" / "mini.json").read_text())["summary"].keys() <= known


# ---------------------------------------------------------------------------------------------------------- the script


def test_the_script_adds_what_is_missing(pupils, tmp_path, monkeypatch, capsys):
    """Each line once, written as soon as it is known; a second call measures nothing that is there."""
    pupils[-1].save_pretrained(tmp_path / "model")
    runs = (Run("N", 4, "sparse", "final"), Run("G", 4, "sparse", "final"), Run("N", 4, "dense", "final"))
    monkeypatch.setattr(mini, "best_constant_iou", lambda n: 0.25)

    def call(*chosen: Run) -> dict:
        monkeypatch.setattr(mini, "RUNS", chosen)
        out = tmp_path / "out.json"
        argv = ["mini", "--checkpoint", tmp_path / "model", "--out", out, "--n", 3, "--frames", 4, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        mini.main()
        return json.loads(out.read_text())

    first = call(*runs[:2], Run("N", 4, "dense", "dense"), Run("N", 8, "sparse", "final"))  # no such folder, length
    assert [row["task"] for row in first["rows"]] == ["N", "G"]
    second = call(*runs)
    assert second["rows"][:2] == first["rows"] and len(second["rows"]) == 3
    assert "same_weights_dense_minus_sparse_4" in second["summary"] and second["seeds"] == [mini.SEED]
    assert capsys.readouterr().out.count("\n") == 3
