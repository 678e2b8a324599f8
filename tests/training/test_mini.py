"""The recipe of the shipped checkpoint: which stage trains what, which lengths it sees, and that it can be resumed."""

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import Lessons, Size
from minikeye.minivid.scene import Difficulty
from minikeye.training import tower
from minikeye.training.curriculum import DENSE_CAPS, KINDS, NAMING_CAPS, NAMING_KINDS, Curriculum
from minikeye.training.dsa import draw_rows
from minikeye.training.loop import LoopConfig
from minikeye.training.recipes import mini
from minikeye.training.recipes.mini import Recipe
from minikeye.training.stage import STAGES as TAUGHT
from minikeye.training.stage import LossWeights, Stage, teach, trainable
from minikeye.training.tower import teach_tower

STAGES = ("tower", "naming", "dense", "warmup", "sparse")
CONFIG = KeyeConfig.nano()


def batch(size: Size, rows: int = 12) -> dict[str, torch.Tensor]:
    lesson = Lessons(CONFIG, lambda step: size, range(1), 0)[0]
    return lesson.inputs(CONFIG, "cpu") | {
        "rows": draw_rows(lesson.tokens["answer"], rows, torch.Generator().manual_seed(0))
    }


def gradients(model: KeyeVL) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


# ---------------------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_trains_what_it_should(stage):
    """naming, dense: all but the indexer; warmup: the indexer; sparse: all. Each of them really gets a gradient."""
    model = KeyeVL(CONFIG)
    parameters = trainable(model, TAUGHT[stage].learns)
    loss, numbers = TAUGHT[stage].loss(model, batch(Size(4, 2)))
    loss.backward()
    indexer = {n for n, _ in model.named_parameters() if "sa_indexer" in n}
    table = {"visual.vision_model.embeddings.packing_position_embedding.weight"}  # ships, is never read
    others = {n for n, _ in model.named_parameters()} - indexer - table
    expected = {"naming": others, "dense": others, "warmup": indexer, "sparse": others | indexer}[stage]
    assert set(parameters) == expected and gradients(model) == expected
    assert numbers.keys() == (set() if stage == "warmup" else {"answer", "kl", "balance", "right"})


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_loss_is_the_sum_of_its_parts(stage):
    """Answers + 0.01 balance + lambda KL; the KL alone in the warm-up; no KL in the dense stages."""
    model, inputs = KeyeVL(CONFIG), batch(Size(4, 2))
    with torch.no_grad():
        loss, numbers = TAUGHT[stage].loss(model, inputs, LossWeights(indexer=0.5))
    if stage == "warmup":
        assert float(loss) > 0
    else:
        parts = {k: float(v) for k, v in numbers.items()}
        assert float(loss) == pytest.approx(parts["answer"] + 0.01 * parts["balance"] + 0.5 * parts["kl"], rel=1e-5)
        assert (parts["kl"] > 0) == (stage == "sparse") and 4.0 < parts["answer"] < 9.0 and 0.0 <= parts["right"] < 0.2


def test_the_sparse_stage_is_masked_where_no_kernel_runs():
    """On a CPU: to the bit what the mask gives, and but for rounding what the gather gives."""
    model, inputs, found = KeyeVL(CONFIG), batch(Size(4, 2)), {}
    with torch.no_grad():
        for mode in (None, "masked", "sparse"):
            found[mode] = TAUGHT["sparse"].loss(model, inputs, mode=mode)[0]
    assert found[None].equal(found["masked"])
    torch.testing.assert_close(found["sparse"], found["masked"], rtol=1e-5, atol=0)


def test_the_losses_do_not_mix():
    """In the sparse stage a tenfold lambda gives the indexer tenfold gradients and leaves all others bit for bit."""
    model, inputs = KeyeVL(CONFIG), batch(Size(4, 2))
    trainable(model, TAUGHT["sparse"].learns)
    seen = []
    for weight in (1.0, 16.0):
        model.zero_grad()
        TAUGHT["sparse"].loss(model, inputs, LossWeights(indexer=weight))[0].backward()
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, once in seen[0].items():
        assert torch.equal(seen[1][name], 16.0 * once if "sa_indexer" in name else once), name


def test_text_only():
    """Batches without pixels train the decoder alone."""
    model = KeyeVL(CONFIG)
    trainable(model, TAUGHT["dense"].learns)
    TAUGHT["dense"].loss(model, batch(Size(0, 2)))[0].backward()
    assert gradients(model) and not any(n.startswith(("visual.", "mlp_AR.")) for n in gradients(model))


def test_labels_are_read_in_float32(monkeypatch):
    """Under autocast the tower's products are bfloat16, those of the head are not."""
    heads, loss = [], tower.LabelHead.loss

    def seen(self, features, *labels):
        heads.append((features.dtype, self.digit(features[:, 0].repeat(1, 2)).dtype))
        return loss(self, features, *labels)

    monkeypatch.setattr(tower, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(tower.LabelHead, "loss", seen)
    teach_tower(KeyeVL(CONFIG), LoopConfig(steps=1, lr=1e-3), 2, None)
    assert heads == [(torch.float32, torch.float32)]


def test_stills_change_shape_and_kind(monkeypatch):
    """Step by step the next shape, round by round the next kind; no two steps show the same stills."""
    drawn, make_stills = [], tower.make_stills
    monkeypatch.setattr(tower, "make_stills", lambda *args: drawn.append(args) or make_stills(*args))
    sides, kinds = ((28, 28), (28, 56)), (Difficulty(), Difficulty(hard=True))  # two and two: in step, half were missed
    teach_tower(KeyeVL(CONFIG), LoopConfig(steps=5, lr=1e-3), 2, None, sides, kinds)
    a, b = kinds
    assert [(args[4:6], args[7]) for args in drawn] == [
        ((28, 28), a),
        ((28, 56), a),
        ((28, 28), b),
        ((28, 56), b),
        ((28, 28), a),
    ]
    assert [args[1] for args in drawn] == list(range(5)) and {args[3] for args in drawn} == {"train"}


def test_the_tower_stage(tmp_path):
    """Only the tower moves, and the loss on stills falls."""
    model = KeyeVL(CONFIG)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    lines = teach_tower(model, LoopConfig(steps=25, lr=3e-3, warmup=3, log_every=1), 16, tmp_path)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("visual.") and "packing_position" not in n}
    assert sum(x["loss"] for x in lines[-5:]) < 0.9 * sum(x["loss"] for x in lines[:5])


# ----------------------------------------------------------------------------------------------------------- the recipe


def test_the_smoke_recipe_is_the_recipe_in_small():
    smoke = Recipe().scaled(0.0012, frames=32, longest=16, stills=16)
    assert [getattr(smoke, s).steps for s in STAGES] == [2, 2, 7, 2, 2]
    for stage in STAGES:
        mine, full = getattr(smoke, stage), getattr(Recipe(), stage)
        assert replace(mine, steps=full.steps, log_every=full.log_every, save_every=full.save_every) == full
    assert (smoke.lengths.frames, smoke.lengths.longest, smoke.stills) == (32, 16, 16)


def test_what_the_stages_see():
    """Naming: at most 16 frames, crowds above all; its cap and that of the dense stage grow; sparse: fewer at once."""
    lengths = {stage: Recipe().lengths_of(stage) for stage in STAGES[1:]}
    assert [(seen.longest, seen.frames, seen.caps) for seen in lengths.values()] == [
        (16, 4096, NAMING_CAPS),
        (1024, 4096, DENSE_CAPS),
        (1024, 4096, ()),
        (1024, 3072, ()),
    ]
    assert lengths["naming"].kinds == NAMING_KINDS and all(lengths[stage].kinds == KINDS for stage in STAGES[2:])
    small = Recipe().scaled(0.1, frames=32, longest=8, stills=4).lengths_of("naming")
    assert small.longest == 8 and small.frames == 32


def test_every_stage_sees_videos_of_its_own():
    """A lesson's seed is its stage's number."""
    assert [TAUGHT[stage].number for stage in STAGES[1:]] == [1, 2, 3, 4]


# ----------------------------------------------------------------------------------------------------------- the script


class Killed(Exception):
    """Stands in for a kill."""


@pytest.fixture
def photographs(tmp_path):
    """A folder with one photograph."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.new("RGB", (300, 200), (200, 0, 200)).save(folder / "one.jpg")
    return str(folder)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The script on a model of nano's size, with `--smoke`; returns what it printed, one dict a stage."""
    monkeypatch.setattr(KeyeConfig, "mini", classmethod(lambda cls: CONFIG))
    monkeypatch.setattr(Curriculum, "size_at", lambda self, step, steps: Size(4, 2))

    def call(*more: str) -> list[dict]:
        argv = ["mini", "--smoke", "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out"), *more]
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()  # what a killed call printed
        mini.main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    call.out = tmp_path / "out"
    return call


def test_every_stage_once(run):
    """Five stages, a checkpoint after each that loads; a second call finds nothing to do and writes nothing."""
    printed = run()
    assert [p["stage"] for p in printed] == list(STAGES)
    assert [len(p["recall"].get("16", [])) for p in printed] == [0, 0, 2, 2, 2]
    assert all(0 < x <= 1 for p in printed for x in p["recall"].get("16", []))
    assert [list(p["known"]) for p in printed] == [[], *[["4"]] * 4]
    assert all(0 <= share <= 1 for p in printed[1:] for share in p["known"]["4"].values())
    models = [KeyeVL.from_pretrained(run.out / f"checkpoint-{stage}").state_dict() for stage in STAGES]
    for before, after, stage in zip(models, models[1:], STAGES[1:], strict=False):
        moved = {n for n, t in after.items() if not torch.equal(t, before[n])}
        assert moved and moved <= {n for n in after if TAUGHT[stage].learns(n)}
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*")}
    assert run() == [] and {path: path.stat().st_mtime_ns for path in run.out.rglob("*")} == before


def test_a_stage_can_begin_with_a_checkpoint(run, monkeypatch):
    """The tower of an earlier run is where a stage that does not teach it begins, and ends."""
    run("--stages", "tower")
    begun = run.out.rename(run.out.with_name("begun")) / "checkpoint-tower"
    run("--stages", "warmup", "--begin", str(begun))
    old, new = (KeyeVL.from_pretrained(f).state_dict() for f in (begun, run.out / "checkpoint-warmup"))
    moved = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert moved and all("sa_indexer" in name for name in moved)


def test_photographs_reach_every_stage(run, photographs, monkeypatch):
    """Stills, plain and hard in turn, and lessons are drawn from the folder that the script was given."""
    stills, seen = [], []
    one_shape = partial(teach_tower, sides=((56, 56),))  # so that two steps see both kinds
    monkeypatch.setattr(mini, "teach_tower", one_shape)
    make_stills, learn = tower.make_stills, mini.learn
    monkeypatch.setattr(tower, "make_stills", lambda *args: stills.append(args[-1]) or make_stills(*args))
    monkeypatch.setattr(
        mini, "learn", lambda model, recipe, *more: seen.append(recipe.lengths) or learn(model, recipe, *more)
    )
    run("--photographs", photographs)
    assert [(kind.hard, kind.photographs) for kind in stills] == [(False, photographs), (True, photographs)]
    assert len(seen) == 5 and {lengths.photographs for lengths in seen} == {photographs}


def test_killed_in_a_stage(run, monkeypatch):
    """Finished stages are skipped, the killed one goes on; weights and log are those of a run that nobody killed."""
    run("--stages", "tower", "dense")
    whole = torch.load(run.out / "done.pt", weights_only=True)["model"]
    log = (run.out / "mini_training.jsonl").read_text()
    run.out.rename(run.out.with_name("whole"))

    scaled = Recipe.scaled

    def saving(self, *args, **more):
        recipe = scaled(self, *args, **more)
        return replace(recipe, dense=replace(recipe.dense, save_every=2))

    monkeypatch.setattr(Recipe, "scaled", saving)
    calls, loss = [], Stage.loss

    def killed(*args):
        calls.append(args)
        if len(calls) == 6:
            raise Killed
        return loss(*args)

    monkeypatch.setattr(Stage, "loss", killed)
    with pytest.raises(Killed):
        run("--stages", "tower", "dense")
    printed = run("--stages", "tower", "dense")
    assert [p["stage"] for p in printed] == ["dense"] and len(calls) == 6 + 3  # steps 4, 5 and 6 of seven
    resumed = torch.load(run.out / "done.pt", weights_only=True)["model"]
    assert all(torch.equal(t, resumed[n]) for n, t in whole.items())

    def numbers(text: str) -> list[dict]:
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]

    assert numbers((run.out / "mini_training.jsonl").read_text()) == numbers(log)


@pytest.mark.parametrize("where", ["save_pretrained", "save_model"])
def test_killed_when_a_stage_is_over(run, monkeypatch, where):
    """Before its checkpoint or before the word that it is done: the next run leaves what a whole run leaves."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(KeyeVL if where == "save_pretrained" else mini, where, lambda *_, **__: raise_killed())
        run("--stages", "tower")
    assert [p["stage"] for p in run("--stages", "tower")] == ["tower"]
    saved = KeyeVL.from_pretrained(run.out / "checkpoint-tower").state_dict()
    done = torch.load(run.out / "done.pt", weights_only=True)
    assert done["stages"] == ["tower"]
    assert all(torch.equal(saved[n], t.bfloat16().float()) for n, t in done["model"].items())
    steps = [json.loads(line)["step"] for line in (run.out / "mini_training.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and run("--stages", "tower") == []


def raise_killed():
    raise Killed


GROUNDING = {"G one", "G two", "G crowd two", "G crowd three to six"}


@pytest.mark.parametrize(
    ("task", "crowd", "counts", "wrong"),
    [
        ("N", False, {1, 2}, {"N"}),
        ("D", False, {1, 2}, {"D"}),
        ("Y", False, {1, 2}, {"Y"}),
        ("G", False, {1}, {"G one"}),
        ("G", False, {2}, {"G two"}),
        ("G", True, {2}, {"G crowd two"}),
        ("G", True, {3, 4, 5, 6}, {"G crowd three to six"}),
    ],
)
def test_known_tells_tasks_and_numbers_of_things_apart(task, crowd, counts, wrong, monkeypatch):
    """A model that is wrong about one kind of question alone: one number shows it. Two things in a crowd are not two
    things in a plain video."""
    asked, prompts = [], mini.question_prompts

    def recorded(videos, task, *more, **options):
        crowd = videos.spec.things.shown.shape[2] > 2
        asked.append((task, crowd, [sum(e.kind == "thing" for e in events) for events in videos.events]))
        return prompts(videos, task, *more, **options)

    def forward(inputs, attention):
        ids, (of, in_crowd, things) = inputs["input_ids"], asked[-1]
        assert attention == "dense" and len(ids) == len(things)
        said = torch.nn.functional.one_hot(ids.roll(-1, 1), CONFIG.text.vocab).float()
        said[torch.tensor([(of, in_crowd) == (task, crowd) and n in counts for n in things])] = 0
        return SimpleNamespace(logits=said)

    model = KeyeVL(CONFIG)
    monkeypatch.setattr(model, "forward", forward)
    monkeypatch.setattr(mini, "question_prompts", recorded)
    names = {"N", "D", "Y"} | GROUNDING
    assert mini.known(model, 4, 24) == {name: float(name not in wrong) for name in names}


def test_recall_looks_at_real_tokens(monkeypatch):
    """Not at padding: the last queries are the end of the question and the mark of the assistant's turn."""
    seen = []

    class Spy:
        def __init__(self, topk: int):
            self.kept = []

        def attention(self, layer, trace):
            seen.append((trace.q.shape[1], trace.start))
            self.kept.append(torch.ones(1, 1))

        def routing(self, layer, probabilities, chosen):
            pass

    monkeypatch.setattr(mini, "RecallMeter", Spy)
    model = KeyeVL(CONFIG)
    forward, ids = model.forward, []
    monkeypatch.setattr(
        model, "forward", lambda inputs, **more: ids.append(inputs["input_ids"]) or forward(inputs, **more)
    )
    assert mini.recall(model, 4, "dense") == [1.0, 1.0] and len(seen) == 2
    assert all(bytes(row[-len("assistant\n") :].tolist()) == b"assistant\n" for row in ids[0])


def test_the_module_needs_a_folder(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mini"])
    with pytest.raises(SystemExit):
        mini.main()
    assert "--out" in capsys.readouterr().err


def test_lessons_that_run_out():
    lessons = Curriculum(frames=8, longest=4).lessons_from(CONFIG, 1, 0, 0)
    with pytest.raises(ValueError, match="expected lessons up to step 2, got none for step 1"):
        teach(KeyeVL(CONFIG), TAUGHT["dense"], LoopConfig(steps=3, lr=1e-3, warmup=1), lessons, None)


def test_a_smoke_run_is_not_gone_on_with(run, monkeypatch):
    """What --smoke left is of another recipe: to take it for the full run would train nothing, without a word."""
    run()
    monkeypatch.setattr(sys, "argv", ["mini", "--device", "cpu", "--workers", "0", "--out", str(run.out)])
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        mini.main()
