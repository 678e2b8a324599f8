"""How the shipped checkpoint is measured: two ways of finding exact answers agree, scores and names by hand.

What a line is split by is in test_levels.py.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import mini, questions
from minikeye.evaluation.mini import RUNS, summarise
from minikeye.evaluation.questions import SEED, Run, exact, factors, measure, require_levels
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.minivid.tasks import score
from minikeye.training.losses import answer_loss

pytestmark = pytest.mark.slow  # half a minute together: its model learns answers by heart first

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = KeyeConfig.nano()
COUNT = 6
NEEDLE = Run("N", 4, "masked", "final", n=COUNT)


@pytest.fixture(scope="module")
def pupils() -> list[KeyeVL]:
    """One nano model that learns six answers by heart, at five moments from knowing none to knowing all."""
    torch.manual_seed(0)
    model, moments = KeyeVL(CONFIG), []
    model.visual.requires_grad_(False)
    size, videos = Size(4, COUNT), make_videos(SEED, range(COUNT), 4, "test")
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
    monkeypatch.setattr(
        questions, "make_videos", lambda seed, indices, *more, **options: make_videos(seed, [number], *more, **options)
    )


@pytest.mark.parametrize("attention", ["masked", "sparse", "dense"])
def test_exact_and_measure_agree(pupils, attention, monkeypatch):
    """Question by question: one pass over the true answer says yes if and only if greedy decoding writes it."""
    run, seen, decoded = replace(NEEDLE, attention=attention), [], []

    def spy(*args):
        decoded.append(score(*args))
        return decoded[-1]

    monkeypatch.setattr(questions, "score", spy)
    for model in pupils:
        monkeypatch.setattr(questions, "make_videos", make_videos)
        assert measure(model, run)["exact"] == exact(model, run)["exact"]
        for number in range(COUNT):
            only(monkeypatch, number)
            seen.append(exact(model, replace(run, n=1))["exact"] / 100)
    assert seen == [s["exact"] for s in decoded]
    assert 5 < seen.count(1.0) < 25


@pytest.mark.parametrize("f", [exact, measure])
def test_batches_change_nothing(pupils, f):
    """Ten questions one by one or all at once, or with a last batch that is not full: the line, its levels included."""
    a, b, c = (f(pupils[3], replace(NEEDLE, n=10), tokens) for tokens in (40, 4 * 13 * 4, 10**6))
    for row in (a, b, c):
        row.pop("seconds_taken")
    assert a == b == c and a["n"] == 10 and a["levels"]["things"]["one"]["n"] > 0


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
    for number in range(COUNT):
        only(monkeypatch, number)
        found.append([f(m, replace(NEEDLE, n=1))["exact"] for f in (exact, measure) for m in (model, pupils[-1])])
    assert all(len(set(row)) == 1 for row in found) and [100.0] * 4 in found


class Silent(KeyeVL):
    """Ends every answer before it begins; those of the first batches only, if told how many."""

    batches = 1_000

    def generate(self, *args, **more):
        self.batches -= 1
        return super().generate(*args, **more)

    def forward(self, *args, **more):
        out = super().forward(*args, **more)
        if self.batches >= 0:
            out.logits[..., load_tokenizer(CONFIG).token_id("<|im_end|>")] = 1e6
        return out


@pytest.mark.parametrize("task", ["N", "G"])
def test_a_model_that_says_nothing(task):
    """All is wrong, nothing is known of what it selected, and the summary does without."""
    row = measure(Silent(CONFIG).eval(), Run(task, 4, "sparse", "final", n=3))
    assert row["exact"] == 0.0 and row["digit" if task == "N" else "tiou"] == 0.0 and "selected" not in row
    assert "grounding_miou_4" in summarise([row]) if task == "G" else "needle_frame_hit_4" not in summarise([row])


def test_a_model_that_says_nothing_at_first():
    """A silent batch is left out of what was selected, and only there."""
    model = Silent(CONFIG).eval()
    model.batches = 1
    row = measure(model, Run("G", 8, "sparse", "final", n=12), 4 * 13 * 8)
    assert row["n"] == 12
    later = make_videos(SEED, range(4, 12), 8, "test").events
    two = 0  # later videos in which each of two things is alone in some frame
    for _, *things in later:
        if len(things) == 2:
            a, b = (set(range(thing.first, thing.stop)) for thing in things)
            two += bool(a - b) and bool(b - a)
    assert row["selected"]["all"]["n"] == two > 0


def test_a_row_of_the_report(pupils):
    """What is in it."""
    run = Run("N", 4, "sparse", "final", control="blank", n=5)
    row = measure(pupils[-1], run)
    assert {k: row[k] for k in vars(run)} == vars(run)
    prompts = question_prompts(make_videos(SEED, range(5), 4, "test"), "N", Size(4, 5), CONFIG)
    assert row["context"] == round(int(prompts["attention_mask"].sum()) / 5)
    assert row["selected_share"] == round(CONFIG.indexer.topk / row["context"], 4)
    for name in ("digit", "second", "both", "exact"):
        low, high = row[f"{name}_95"]
        assert 0 <= low <= row[name] <= high <= 100
    assert row["both"] <= min(row["digit"], row["second"]) and len(row["selected"]["hit"]) == 2
    assert 25 <= row["chance_second"] <= 100 and 20 <= row["chance_digit"] <= 100  # of four frames, of five digits
    grounding = measure(pupils[-1], Run("G", 4, "sparse", "final", n=5))
    assert {"tiou", "tiou_95", "exact", "chance_tiou"} <= grounding.keys()
    assert grounding["selected"].keys() == {"all", "right", "wrong"}


@pytest.mark.parametrize("f", [exact, measure])
@pytest.mark.parametrize("control", ["", "blank"])
def test_blank_runs_see_grey(control, f, pupils, monkeypatch):
    patches = []
    model = copy.deepcopy(pupils[0])
    monkeypatch.setattr(model, "visual_tokens", lambda p, g: patches.append(p) or KeyeVL.visual_tokens(model, p, g))
    f(model, Run("N", 4, "sparse", "final", control=control, n=2))
    assert (len(patches[0].unique()) == 1) == (control == "blank")


class Says(KeyeVL):
    """Gives these answers, one after the other, whatever it is asked."""

    def generate(self, inputs, **_):
        rows = [load_tokenizer(CONFIG).encode(next(self.answers)) for _ in inputs["input_ids"]]
        return SimpleNamespace(row=lambda n: rows[n], record=None)


def said(run: Run, answers: list[str]) -> dict:
    """The line that these answers make."""
    model = Says(CONFIG)
    model.answers = iter(answers)
    return measure(model, run)


def test_answers_are_scored_against_their_question():
    """Grounding, two of three right, in batches of any size; a wrong word is scored by the true answer."""
    problems = make_videos(SEED, range(9), 8, "test").problems
    answers = [next(p for p in of_video if p.task == "G").answer for of_video in problems]
    answers[::3] = ["never"] * 3
    for control in ("", "wrong word"):
        row = said(Run("G", 8, "sparse", "final", control=control, n=9), answers)
        assert row["tiou"] == row["exact"] == round(100 * 6 / 9, 2)
        for level, number in (("one", 1), ("two", 2)):
            mine = [n for n in range(9) if sum(p.task == "G" for p in problems[n]) == number]
            right = sum(n % 3 > 0 for n in mine)
            assert row["levels"]["things"][level]["exact"] == round(100 * right / len(mine), 2)


def test_two_cards():
    """The first card's digit at the second's time: both parts are cards', but it is no card's answer."""
    run = Run("N", 16, "sparse", "final", footage="two cards", n=8)
    events = make_videos(SEED, range(8), 16, "test", difficulty=questions.FOOTAGE["two cards"]).events
    pairs = [[event for event in of_video if event.kind == "card"] for of_video in events]
    assert all(len(pair) == 2 and abs(pair[0].start - pair[1].start) > 0 for pair in pairs)
    first, second = ([f"{pair[n].name} at {pair[n].start:.1f} s" for pair in pairs] for n in (0, 1))
    mixed = [f"{a.name} at {b.start:.1f} s" for a, b in pairs]
    alike = sum(a.name == b.name or abs(a.start - b.start) <= 0.5 for a, b in pairs) / 8
    assert alike < 0.5
    rows = [said(run, answers) for answers in (first, second, mixed)]
    assert [row["consistent"] for row in rows] == [100.0, 100.0, round(100 * alike, 2)]
    assert [row["digit"] for row in rows][::2] == [100.0, 100.0] and rows[1]["exact"] == 0.0
    assert rows[0]["exact"] == 100.0 and summarise(rows[:1])["two_cards_consistent"] == 100.0


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
    for task in "DY":
        assert score(problems[task], problems[task].answer) == {"exact": 1.0}
        assert score(problems[task], "perhaps") == {"exact": 0.0}


# -------------------------------------------------------------------------------------------------------------- summary


def fabricate(run: Run, number: int) -> dict:
    """A row with numbers that tell where they come from."""
    row = {**vars(run), "exact": number + 0.5, "chance_exact": number + 0.6}
    levels = {f: {level: {"n": 1} for level in levels} for f, levels in factors(run.task, run.footage).items()}
    if run.task == "N":
        row |= {"digit": number + 0.1, "second": number + 0.2, "chance_digit": number + 0.3, "chance_second": 0.0}
        row |= {"selected": {"hit": [0.0, number + 0.4, 0.1]}, "selected_share": number / 1000}
        row |= {"consistent": number + 0.7} if run.footage == "two cards" else {}
    elif run.task == "G":
        row |= {"tiou": number + 0.1, "chance_tiou": number + 0.2}
        for n, level in enumerate(levels["things"]):
            levels["things"][level] |= {"tiou": 1000 * n + number, "chance_tiou": 1000 * n + number + 0.1}
        levels["things"]["two"]["chance_coin"] = number + 0.9
    return row | {"levels": levels}


def test_summary_of_all_runs():
    """Every name by hand, from rows whose numbers are their place in RUNS."""
    at = {run: n for n, run in enumerate(RUNS, 1)}
    assert len(at) == len(RUNS)
    got = summarise([fabricate(run, n) for run, n in at.items()])
    sparse = [run for run in RUNS if run.attention == "sparse"]

    def place(task: str, where: str) -> int:
        """Of the line with this task and this end of its names."""
        frames, *more = where.split("_", 1)
        shape, _, rest = more[0].partition("_") if more else ("", "", "")
        shape, rest = (shape, rest) if "x" in shape else ("56x56", more[0] if more else "")
        height, width = map(int, shape.split("x"))
        wanted = {"task": task, "frames": int(frames), "height": height, "width": width}
        wanted |= {"footage": "plain", "control": ""}
        if rest in ("hard", "crowd", "two_cards"):
            wanted["footage"] = rest.replace("_", " ")
        elif rest:
            wanted["control"] = rest.replace("_", " ")
        found = [run for run in sparse if all(getattr(run, k) == v for k, v in wanted.items())]
        assert len(found) == 1, (task, where)
        return at[found[0]]

    expected = {}
    needles = ["64", "256", "1024", "64_56x84", "64_84x56", "64_56x112", "64_28x112", "64_blank"]
    needles += ["64_56x84_hard", "256_56x84_hard", "1024_56x84_hard", "64_56x84_two_cards"]
    for where in needles:
        n = place("N", where)
        expected |= {f"needle_digit_{where}": n + 0.1, f"needle_digit_{where}_chance": n + 0.3}
        expected |= {f"needle_second_{where}": n + 0.2, f"needle_second_{where}_chance": 0.0}
        expected |= {f"needle_frame_hit_{where}": n + 0.4, f"selected_share_{where}": n / 1000}
    expected["two_cards_consistent"] = place("N", "64_56x84_two_cards") + 0.7
    groundings = ["64", "256", "1024", "64_56x84_hard", "64_blank", "64_wrong_word", "64_crowd"]
    for where in groundings:
        n, crowd = place("G", where), where == "64_crowd"
        name, first, second = f"grounding_miou_{where}", *(("two", "three_to_six") if crowd else ("one", "two"))
        expected |= {name: n + 0.1, f"{name}_chance": n + 0.2}
        expected |= {f"{name}_{first}": n, f"{name}_{first}_constant": n + 0.1}
        expected |= {f"{name}_{second}": 1000 + n, f"{name}_{second}_constant": 1000 + n + 0.1}
        expected[f"{name}_two_chance"] = n + 0.9
    for task, name, wheres in (("D", "naming", ["64", "64_blank"]), ("Y", "presence", ["64", "64_blank"])):
        for where in wheres:
            expected |= {
                f"{name}_{where}": place(task, where) + 0.5,
                f"{name}_{where}_chance": place(task, where) + 0.6,
            }
    for task, frames in (("N", 64), ("N", 256), ("N", 1024), ("G", 64)):
        mine = place(task, str(frames))
        for model, key in (("dense", "dense_minus_sparse"), ("final", "same_weights_dense_minus_sparse")):
            twin = next(r for r in RUNS if (r.task, r.frames, r.attention, r.model) == (task, frames, "dense", model))
            expected[f"{key}_{'G_' if task == 'G' else ''}{frames}"] = at[twin] - mine
    assert len(needles) + len(groundings) + 4 == len(sparse)
    assert got.keys() == expected.keys() and got == pytest.approx(expected)


def test_summary_says_only_what_was_measured():
    """A twin with another number of questions is no twin; without rows, nothing is known."""
    sparse, dense = fabricate(Run("N", 64, "sparse", "final"), 1), fabricate(Run("N", 64, "dense", "dense", n=50), 2)
    assert not any("minus" in name for name in summarise([sparse, dense]))
    assert summarise([sparse, dense | {"n": 1000}])["dense_minus_sparse_64"] == 1.0
    assert summarise([]) == {}


# --------------------------------------------------------------------------------------------------- the shipped result


@pytest.fixture(scope="module")
def shipped() -> dict:
    return json.loads((ROOT / "assets" / "results" / "mini.json").read_text())


def test_the_shipped_result_is_whole(shipped):
    """A line for every run, none without a level, and the summary is that of its lines."""
    found = [{name: row[name] for name in vars(RUNS[0])} for row in shipped["rows"]]
    assert len(found) == len(RUNS) and all(vars(run) in found for run in RUNS)
    for row in shipped["rows"]:
        require_levels(row)
        for parts in row["levels"].values():
            assert sum(part["n"] for part in parts.values()) == row["n"]
    assert summarise(shipped["rows"]) == shipped["summary"]


@pytest.mark.parametrize(("task", "footage"), [("N", "plain"), ("N", "two cards"), ("G", "crowd"), ("D", "plain")])
def test_lines_have_the_shipped_ones_keys(shipped, pupils, task, footage):
    """So that lines of another day can be added to the file."""

    def shape(value: object, depth: int = 3) -> object:
        return {k: shape(v, depth - 1) for k, v in value.items()} if isinstance(value, dict) and depth else type(value)

    row = next(r for r in shipped["rows"] if (r["task"], r["footage"], r["attention"]) == (task, footage, "sparse"))
    mine = measure(pupils[-1], Run(task, 8, "sparse", "final", footage=footage, n=40))
    mine |= {"hardware": "", "torch": ""}
    for one in (mine, row):
        one.pop("selected", None)
        one["levels"] = {factor: next(iter(levels.values())) for factor, levels in one["levels"].items()}
    assert shape(mine) == shape(row)


# ---------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def script(pupils, tmp_path, monkeypatch):
    """Call the script with these lines, which say how many questions they ask."""
    pupils[-1].save_pretrained(tmp_path / "model")

    def call(*chosen: Run) -> dict:
        monkeypatch.setattr(mini, "RUNS", chosen)
        out = tmp_path / "out.json"
        argv = ["mini", "--checkpoint", tmp_path / "model", "--out", out, "--frames", 4, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        mini.main()
        return json.loads(out.read_text())

    call.out = tmp_path / "out.json"
    return call


def test_the_script_adds_what_is_missing(script, capsys):
    """Each line once, written as soon as it is known; a second call measures nothing that is there."""
    needle, naming = Run("N", 4, "sparse", "final", n=50), Run("D", 4, "sparse", "final", n=20)
    others = Run("N", 4, "dense", "dense", n=50), Run("N", 8, "sparse", "final", n=50)  # no such folder, no such length
    first = script(needle, naming, *others)
    assert [row["task"] for row in first["rows"]] == ["N", "D"]
    second = script(needle, naming, *others, Run("N", 4, "dense", "final", n=50))
    assert second["rows"][:2] == first["rows"] and len(second["rows"]) == 3
    assert "same_weights_dense_minus_sparse_4" in second["summary"] and second["seeds"] == [SEED]
    assert second["rows"][2]["levels"]["digit"].keys() == set("0123456789")
    assert capsys.readouterr().out.count("\n") == 3


def test_the_script_refuses_too_few_questions(script):
    """What a line cannot be split by is not written; lines before it stay."""
    naming = Run("D", 4, "sparse", "final", n=20)
    script(naming)
    with pytest.raises(
        ValueError, match=r"expected every level of \w+ in the line N at 4 frames, got none of .*: ask more"
    ):
        script(naming, Run("N", 4, "dense", "final", n=5))
    assert [row["task"] for row in json.loads(script.out.read_text())["rows"]] == ["D"]
