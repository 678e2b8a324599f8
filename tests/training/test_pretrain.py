"""The stages in order: documents, mixtures by share, what each stage moves, the forgetting probe, the script."""

import json
import random
import sys

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.scene import render
from minikeye.training.loop import LoopConfig
from minikeye.training.pretrain import abilities
from minikeye.training.pretrain.documents import SIDE, Kind, documents
from minikeye.training.pretrain.mixture import Mixture, packed, usual_length
from minikeye.training.pretrain.order import ABILITIES, COURSES, LONG, ORDER, SHORT, Course
from minikeye.training.recipes import stages as recipe
from minikeye.training.stage import STAGES, teach

CONFIG = KeyeConfig.nano()
SUM, WHEN, WORDS = Kind("sum"), Kind("when", 4), Kind("when", 4, pixels=False)


def texts(kind: Kind, count: int = 40) -> list[tuple[str, str]]:
    """Question, with what stands before it, and answer of some documents."""
    decode, out = load_tokenizer(CONFIG).decode, []
    for prompt in documents(kind, CONFIG, 5, range(count), "train").prompts:
        at = prompt.answer.index(True)
        answer = [token for token, learnt in zip(prompt.ids, prompt.answer, strict=True) if learnt]
        out.append((decode(prompt.ids[:at]), decode(answer)))
    return out


# ---------------------------------------------------------------------------------------------------------- documents


def test_answers_are_true():
    """Read off the events of the videos, by other means than those that wrote them."""
    for question, answer in texts(SUM):
        assert eval(question.split("\n")[1].rstrip("?")) == int(answer)
    videos = make_videos(5, range(40), 4, "train")
    for row, ((_, when), (_, half), (asked, choice)) in enumerate(
        zip(*(texts(Kind(task, 4)) for task in ("when", "half", "choice")), strict=True)
    ):
        shown = int(videos.spec.cards.shown[row].int().argmax())
        second = f"{videos.seconds[row][shown]:.1f}"
        assert when == f"{second} s" and half == f"{'first' if shown < 2 else 'second'}: {second} s"
        time, letter = choice.split(" s, ")
        assert time == second and f"{letter} {second}" in asked
    assert {answer[-1] for _, answer in texts(Kind("choice", 4))} == set("ABC")


def test_a_video_in_words():
    """Each frame's time and letters; the question and the answer are those of the video in pixels."""
    told, shown = texts(WORDS, 8), texts(WHEN, 8)
    assert [answer for _, answer in told] == [answer for _, answer in shown]
    for question, answer in told:
        assert question.count("C") == 1 and f"{answer.removesuffix(' s')}C" in question
    colours = texts(Kind("colour", 4, pixels=False))
    for question, answer in colours:
        time = question.split("Colour at ")[1].split(" s?")[0]
        letters = question.split(time)[1][:2]
        assert letters[1] == ("-" if answer == "none" else answer[0])
    assert len({answer for _, answer in colours}) > 3


def test_a_document_is_the_same_in_every_batch():
    for kind in (SUM, WHEN, Kind("colour", 4), Kind("choice", 4)):
        few, many = (documents(kind, CONFIG, 5, numbers, "train").prompts for numbers in (range(7, 9), range(12)))
        assert [p.ids for p in few] == [p.ids for p in many[7:9]]


@pytest.mark.parametrize("wrong", [("sum", 4), ("when", 0), ("when", 3)])
def test_kinds_that_do_not_exist(wrong):
    with pytest.raises(ValueError, match="expected a sum without frames, or a video of at least 4"):
        Kind(*wrong)


# ----------------------------------------------------------------------------------------------------------- mixtures


def test_shares_are_shares_of_the_tokens():
    """Counted over forty batches, against what was asked for; a sum is a third as long as a video."""
    mixture = Mixture(((SUM, 0.3), (WORDS, 0.1), (Kind("when", 8), 0.6)))
    lengths = {kind: usual_length(kind, CONFIG) for kind, _ in mixture.parts}
    seen = dict.fromkeys(lengths, 0)
    for step in range(40):
        for part in packed(mixture, CONFIG, 0, step, 600, 128).parts:
            seen[part.kind] += sum(len(prompt.ids) for prompt in part.prompts)
    total = sum(seen.values())
    assert total == pytest.approx(40 * 600, rel=0.05)
    assert [seen[kind] / total for kind, _ in mixture.parts] == pytest.approx([0.3, 0.1, 0.6], abs=0.03)
    assert mixture.text_only == pytest.approx(0.4) and mixture.without_text().parts == ((Kind("when", 8), 1.0),)


def test_counts_by_hand():
    """600 tokens: 180 of them are six sums of 30, 420 are four videos of 100 and a fifth of another."""
    mixture = Mixture(((SUM, 0.3), (WHEN, 0.7)))
    drawn = [mixture.counts(600, {SUM: 30, WHEN: 100}, random.Random(n)) for n in range(500)]
    assert {counts[SUM] for counts in drawn} == {6} and {counts[WHEN] for counts in drawn} == {4, 5}
    assert sum(counts[WHEN] for counts in drawn) / 500 == pytest.approx(4.2, abs=0.06)
    assert mixture.counts(1, {SUM: 30, WHEN: 100}, random.Random(0)) == {SUM: 0, WHEN: 1}  # never an empty batch


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "sum to 1"),
        (((SUM, 0.5),), "sum to 1"),
        (((SUM, 1.5), (WHEN, -0.5)), "positive"),
        (((SUM, 0.5),) * 2, "once"),
    ],
)
def test_mixtures_that_are_none(parts, message):
    with pytest.raises(ValueError, match=message):
        Mixture(parts)


def test_pixels_lie_in_the_order_of_the_rows():
    """The first four patches' rows of the batch are those of the first packed video, and so on."""
    batch = packed(Mixture(((SUM, 0.2), (WHEN, 0.4), (Kind("when", 8), 0.4))), CONFIG, 0, 0, 900, 160)
    clips = [c for part in batch.parts for c in (render(part.videos.spec, SIDE, SIDE) if part.videos else part.prompts)]
    expected = torch.cat([clips[n] for n in batch.order if isinstance(clips[n], torch.Tensor)])
    inputs = batch.inputs(CONFIG, "cpu")
    corners = inputs["patches"].unflatten(0, (len(inputs["grids"]), -1))[:, 0]  # the upper left patch of every frame
    assert torch.allclose(corners, expected[:, :, :14, :14].float() / 127.5 - 1, atol=1e-5)
    assert batch.order != sorted(batch.order) and batch.size.frames == 8
    assert int((inputs["input_ids"] == CONFIG.video_token_id).sum()) == 4 * len(expected)


# -------------------------------------------------------------------------------------------------------- the stages


def moved_by(course: Course) -> set[str]:
    """The parameters that two steps of a stage change."""
    torch.manual_seed(0)
    model = KeyeVL(CONFIG)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loop = LoopConfig(steps=2, lr=1e-2, warmup=0, log_every=1)
    log = teach(model, course.stage, loop, course.lessons_from(CONFIG, 2, 600), None)
    assert len(log) == 2
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("name", ORDER)
def test_a_stage_moves_what_it_should(name):
    """And leaves everything else bit for bit as it was."""
    names = {n for n, _ in KeyeVL(CONFIG).named_parameters() if "packing_position" not in n}
    indexer = {n for n in names if "sa_indexer" in n}
    projector = {n for n in names if n.startswith("mlp_AR.")}
    tower = {n for n in names if n.startswith("visual.")}
    expected = {
        "language": names - indexer - projector - tower,
        "projector": projector,
        "general": names - indexer,
        "multitask": names - indexer,
        "switch": indexer,
        "long": names,
        "sft": names,
    }
    assert moved_by(ORDER[name]) == expected[name]


def test_what_the_report_says_of_its_stages():
    """Projector alone first; text in the mix from stage 1 on; long to short 1:1; 40 % text only in SFT; rows grow."""
    assert [course.report for course in COURSES] == ["before", "0", "1", "2", "3", "3", "SFT"]
    for name in ("switch", "long"):
        for _, mixture in ORDER[name].phases:
            assert mixture.share(lambda kind: kind.frames > SHORT) == pytest.approx(0.5)
    assert ORDER["sft"].phases[-1][1].text_only == pytest.approx(0.4)
    assert all(ORDER[name].phases[0][1].text_only > 0 for name in ("general", "multitask", "long"))
    rooms = [ORDER[name].room for name in ("projector", "general", "multitask", "long")]
    assert rooms == sorted(set(rooms))
    assert [course.stage.attention for course in COURSES] == ["dense"] * 5 + ["sparse"] * 2
    numbers = [course.stage.number for course in COURSES] + [stage.number for stage in STAGES.values()]
    assert len(set(numbers)) == len(numbers)  # each stage sees videos of its own


def test_lengths_grow_within_the_long_stage():
    longest = [max(kind.frames for kind, _ in ORDER["long"].mixture_at(step, 10).parts) for step in range(10)]
    assert longest == [6] * 4 + [LONG] * 6


def test_phases_that_do_not_end():
    with pytest.raises(ValueError, match=r"the last at 1.0; got \[0.5\]"):
        Course(ORDER["sft"].stage, "SFT", ((0.5, ORDER["sft"].phases[0][1]),), 256)


# ----------------------------------------------------------------------------------------------------------- the probe


def test_chance_by_hand():
    """The most frequent answer of the probe's own questions."""
    found = abilities.asked(SUM, CONFIG, 50).prompts
    answers = [bytes(t for t, a in zip(p.ids, p.answer, strict=True) if a and t < 256).decode() for p in found]
    assert abilities.chance(SUM, CONFIG, 50) == max(map(answers.count, answers)) / 50


def test_the_probe_sees_what_is_known():
    """A model as it was drawn knows nothing; one that always says "none" knows as much as chance."""
    model = KeyeVL(CONFIG)
    assert abilities.known(model, WHEN, "dense", 8) == 0.0
    none = [*b"none", load_tokenizer(CONFIG).token_id("<|im_end|>")]

    class Parrot(KeyeVL):
        """Says "none" to everything."""

        def forward(self, batch, attention):
            logits = torch.zeros(*batch["input_ids"].shape, CONFIG.text.vocab)
            for row, answer in enumerate(batch["answer"]):
                first = int(answer.int().argmax())
                for n, token in enumerate(none):
                    logits[row, first - 1 + n, token] = 1.0
            return type("Output", (), {"logits": logits})

    share = abilities.known(Parrot(CONFIG), Kind("colour", 4), "dense", 60)
    assert share == pytest.approx(abilities.chance(Kind("colour", 4), CONFIG, 60)) and share > 0.2


# ---------------------------------------------------------------------------------------------------------- the script


class Killed(Exception):
    """Stands in for a kill."""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The script with `--smoke`; returns what it printed, one dict a stage."""

    def call() -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["stages", "--smoke", "--out", str(tmp_path / "out")])
        capsys.readouterr()
        recipe.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    call.out = tmp_path / "out"
    return call


def test_the_script_runs_all_stages_and_goes_on_where_it_was_killed(run, monkeypatch):
    """Every ability after every stage; a second call does nothing; a killed run ends as one that nobody killed."""
    printed = run()
    assert [row["stage"] for row in printed] == list(ORDER)
    assert all(row["known"].keys() == ABILITIES.keys() for row in printed)
    whole = json.loads((run.out / "stages.json").read_text())
    weights = torch.load(run.out / "done.pt", weights_only=True)["model"]
    assert len(whole["summary"]) == len(ABILITIES) * (1 + len(ORDER)) and run() == []
    assert 0 < whole["summary"]["stages_chance_second_in_words"] < 1
    run.out.rename(run.out.with_name("whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        taught = recipe.teach

        def killed(model, stage, *rest, **more):
            if stage.name == "long":
                raise Killed
            return taught(model, stage, *rest, **more)

        patch.setattr(recipe, "teach", killed)
        run()
    assert [row["stage"] for row in run()] == ["long", "sft"]
    assert json.loads((run.out / "stages.json").read_text()) == whole
    resumed = torch.load(run.out / "done.pt", weights_only=True)["model"]
    assert all(torch.equal(t, resumed[n]) for n, t in weights.items())


def test_another_recipe_in_the_same_folder(run, monkeypatch):
    monkeypatch.setattr(recipe, "COURSES", recipe.COURSES[:1])
    run()
    monkeypatch.setattr(recipe, "TOKENS", 1)
    monkeypatch.setattr(sys, "argv", ["stages", "--out", str(run.out)])
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        recipe.main()
