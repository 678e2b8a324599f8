"""Batches from their number alone: the same in any process, never too long, learnt where an assistant speaks."""

import random

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.positions import position_ids
from minikeye.inputs.tokenizer import SPECIAL_TOKENS, load_tokenizer
from minikeye.minivid import lessons as lessons_module
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Lessons, Size, batches, patch_grid, question_prompts
from minikeye.minivid.scene import render, render_blank
from minikeye.training.curriculum import SIZES

CONFIG = KeyeConfig.mini()
TOKENIZER = load_tokenizer(CONFIG)
SMALL = (Size(8, 3, turns=1), Size(16, 2, 56, 84), Size(0, 5))
START, STOP, VIDEO, FRAME = (TOKENIZER.token_id(f"<|{n}|>") for n in ("im_start", "im_end", "video_pad", "frame"))


def small(step: int) -> Size:
    return SMALL[step % 3]


def make(steps: range = range(6), seed: int = 3) -> Lessons:
    return Lessons(CONFIG, small, steps, seed)


def equal(a: Lesson, b: Lesson) -> bool:
    return (
        a.size == b.size
        and a.tokens.keys() == b.tokens.keys()
        and all(map(torch.equal, a.tokens.values(), b.tokens.values()))
    )


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special=False)


# -------------------------------------------------------------------------------------------------------- determinism


def test_a_step_is_made_from_its_number():
    """Whatever was made before, whatever other generators did; a resumed run starts in the middle."""
    whole = list(make())
    random.seed(7)
    torch.manual_seed(7)
    assert all(equal(a, b) for a, b in zip(list(make(range(4, 6))), whole[4:], strict=True))
    assert not equal(make(seed=4)[0], whole[0]) and not equal(whole[3], whole[0])
    assert torch.equal(*(render(x.videos.spec, 56, 56) for x in (make()[0], whole[0])))


def test_no_two_steps_share_a_video():
    """Step 1 is not step 0 shifted by one; the exposure of a video's frames is a random number of its own."""
    lessons = Lessons(CONFIG, lambda step: Size(4, 6), range(4), 3)
    exposures = [row for n in range(4) for row in lessons[n].videos.spec.light.exposure[:, 0].tolist()]
    assert len(set(exposures)) == 24


def test_workers_change_nothing():
    """One worker process hands over what no worker makes, in order, pixels included."""
    alone, worked = (list(batches(make(), workers)) for workers in (0, 1))
    assert len(alone) == 6 and all(equal(a, b) for a, b in zip(alone, worked, strict=True))
    assert torch.equal(*(x[0].inputs(CONFIG, "cpu")["patches"] for x in (alone, worked)))


# -------------------------------------------------------------------------------------------------------------- lengths


def longest_times(monkeypatch) -> None:
    """Every video at a frame a second: the longest times there can be."""
    monkeypatch.setattr(lessons_module, "make_videos", lambda *args: make_videos(*args, dt=1.0))


@pytest.mark.parametrize("longest", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size[:3])))
def test_every_batch_has_the_length_of_its_size(size, longest, monkeypatch):
    """One shape a size, so one CUDA graph a size: many prompts, none of which is longer."""
    if longest:
        longest_times(monkeypatch)
    frames, height, width, turns, _ = size
    size = Size(frames, max(2, 64 // frames), height, width, turns)
    lengths = {Lessons(CONFIG, lambda step: size, range(n, n + 1), 5)[0].tokens["input_ids"].shape for n in range(6)}
    assert lengths == {(size.videos, size.tokens(CONFIG))}
    assert size.tokens(CONFIG) % 64 == 0


def test_the_longest_questions_fit():
    """Any number of turns: the longest question and answer of each kind, at the longest times."""
    videos = make_videos(0, range(400), 16, "train", 1.0)
    problems = [p for of_video in videos.problems for p in of_video]
    longest = {
        task: max((p for p in problems if p.task == task), key=lambda p: len(p.question + p.answer)) for task in "NG"
    }
    lessons = Lessons(CONFIG, small, range(1), 0)
    sums = max(
        (p for n in range(40) for p in [*lessons_module.text_sums(0, [n], "train")]), key=lambda p: len(p.answer)
    )
    for size in (Size(f, 1, h, w, turns) for f, h, w, turns, _ in SIZES):
        turns = [longest["G"], longest["G"], longest["N"], sums][: size.turns]
        seconds = [float(n) for n in range(size.frames)]
        prompt = lessons.conversation(turns, seconds, patch_grid(size, CONFIG))
        margin = 6 * size.turns  # times of a long video have up to two digits more, twice in an answer
        assert len(prompt.ids) + margin <= size.tokens(CONFIG), size


def test_text_only():
    """Four sums a row, none twice in a batch by construction of its number; no pixels."""
    lesson = make()[2]
    assert lesson.videos is None and lesson.tokens["input_ids"].shape == (5, Size(0, 5).tokens(CONFIG))
    assert "patches" not in lesson.inputs(CONFIG, "cpu")
    for row in lesson.tokens["input_ids"].tolist():
        questions = [part for part in text(row).split("<|im_start|>user\n")[1:]]
        assert len(questions) == 4
        for question in questions:
            a, b = question.removeprefix("What is ").split("?")[0].split("+")
            assert question.split("assistant\n")[1].startswith(f"{int(a) + int(b)}<|im_end|>")


# ------------------------------------------------------------------------------------------------- what stands in a row


@pytest.mark.parametrize("step", range(6))
def test_answers_and_nothing_else_are_learnt(step):
    """Walk through the text: after "assistant" everything up to and with the end mark."""
    tokens = make()[step].tokens
    opening = [START, *b"assistant\n"]
    for ids, learnt, real in zip(*(tokens[n].tolist() for n in ("input_ids", "answer", "attention_mask")), strict=True):
        expected, speaking = [], False
        for n, token in enumerate(ids):
            speaking = speaking or ids[max(0, n - len(opening)) : n] == opening
            expected.append(speaking)
            speaking = speaking and token != STOP
        assert learnt == expected and any(learnt)
        assert real == sorted(real, reverse=True) and not any(a and not r for a, r in zip(learnt, real, strict=True))
        assert all(token == TOKENIZER.token_id(SPECIAL_TOKENS[0]) for token, r in zip(ids, real, strict=True) if not r)


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_a_row_shows_its_video_and_asks_about_it(step):
    """The first frame's time, one mark a frame, the placeholders of its pixels; questions and answers of that video."""
    lesson = make()[step]
    size, inputs = lesson.size, lesson.inputs(CONFIG, "cpu")
    tokens_of_frame = size.height * size.width // 28**2
    known = [{(p.question, p.answer) for p in of_video} for of_video in lesson.videos.problems]
    counts = []
    for row, ids in enumerate(lesson.tokens["input_ids"].tolist()):
        assert ids.count(FRAME) == size.frames and ids.count(VIDEO) == size.frames * tokens_of_frame
        times = [part.split("<|video_pad|>")[0] for part in text(ids).split("<|frame|>")[1:]]
        assert times == [f"{t:.1f}" for t in lesson.videos.seconds[row].tolist()]
        asked = [
            part.split("<|im_end|>\n<|im_start|>assistant\n") for part in text(ids).split("<|im_start|>user\n")[1:]
        ]
        pairs = {(q.split("<|vision_end|>")[-1], a.split("<|im_end|>")[0]) for q, a in asked}
        assert {pair for pair in pairs if not pair[0].startswith("What is")} <= known[row]
        counts.append(len(asked))
    assert max(counts) == 1 if size.turns == 1 else min(counts) >= 2
    assert inputs["grids"].tolist() == [[1, size.height // 14, size.width // 14]] * (size.frames * size.videos)
    assert len(inputs["patches"]) == size.frames * size.videos * 4 * tokens_of_frame
    assert "attention_mask" not in inputs


@pytest.mark.parametrize("step", range(3))
def test_positions_are_those_of_the_prompt(step):
    """Each row by itself, 3D for frames; padding has 0."""
    lesson = make()[step]
    grids = [patch_grid(lesson.size, CONFIG)] * lesson.size.frames
    for row, ids in enumerate(lesson.tokens["input_ids"]):
        n = int(lesson.tokens["attention_mask"][row].sum())
        visual = [token == VIDEO for token in ids[:n].tolist()]
        got = lesson.tokens["positions"][:, row]
        assert torch.equal(got[:, :n], position_ids(visual, grids, 2)) and not got[:, n:].any()


def test_blank_frames():
    """The control: the same prompts, every pixel the same grey."""
    lesson = make()[0]
    seen, blank = lesson.inputs(CONFIG, "cpu"), lesson.inputs(CONFIG, "cpu", blank=True)
    assert all(torch.equal(seen[n], blank[n]) for n in ("input_ids", "positions", "answer", "grids"))
    assert len(blank["patches"].unique()) == 1 and seen["patches"].shape == blank["patches"].shape
    assert int(render_blank(lesson.videos.spec, 56, 56).unique()) == 128


# -------------------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize("task", ["N", "G"])
def test_asking(task):
    """A prompt ends where the answer begins; answered, it goes on with the answer and its end mark, both learnt."""
    size = Size(8, 5)
    videos = make_videos(1, range(5), 8, "test")
    asked, answered = (
        question_prompts(videos, task, size, CONFIG),
        question_prompts(videos, task, size, CONFIG, answered=True),
    )
    for row, problems in enumerate(videos.problems):
        problem = next(p for p in problems if p.task == task)
        prompt = asked["input_ids"][row][asked["attention_mask"][row]].tolist()
        whole = answered["input_ids"][row][answered["attention_mask"][row]].tolist()
        assert whole[: len(prompt)] == prompt and text(prompt).endswith("<|im_start|>assistant\n")
        assert problem.question in text(prompt)
        assert text(whole[len(prompt) :]) == f"{problem.answer}<|im_end|>\n"
        learnt = answered["answer"][row].nonzero().squeeze(-1).tolist()
        assert learnt == list(range(len(prompt), len(whole) - 1)) and not asked["answer"].any()
        n = asked["input_ids"].shape[1] - len(prompt)  # padding on the left
        same = asked["positions"][:, row, n:], answered["positions"][:, row, : len(prompt)]
        assert torch.equal(*same)
        for span, seconds in zip(asked["frames"][row], videos.seconds[row].tolist(), strict=True):
            assert span.seconds == seconds and prompt[span.start : span.stop] == [VIDEO] * 4
