"""Batches from their number alone: the same in any process, never too long, learnt where an assistant speaks."""

import random
from collections import Counter
from functools import partial

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.positions import position_ids
from minikeye.inputs.tokenizer import SPECIAL_TOKENS, load_tokenizer
from minikeye.minivid import lessons as lessons_module
from minikeye.minivid.dataset import MAX_HARD_STEP, make_videos
from minikeye.minivid.lessons import Lesson, Lessons, Size, batches, patch_grid, pixels, question_prompts
from minikeye.minivid.scene import Difficulty, render, render_blank
from minikeye.minivid.tasks import NEEDLE_QUESTION, Event, grounding, naming, needle, presence
from minikeye.training.curriculum import KINDS, SIZES, TURNS

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


def turns_of(ids: list[int]) -> list[tuple[str, str]]:
    """Questions and answers of a row, in their order."""
    turns = [part.split("<|im_end|>\n<|im_start|>assistant\n") for part in text(ids).split("<|im_start|>user\n")[1:]]
    return [(question.split("<|vision_end|>")[-1], answer.split("<|im_end|>")[0]) for question, answer in turns]


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


@pytest.mark.parametrize("longest", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size[:3])))
def test_every_batch_has_the_length_of_its_size(size, longest, monkeypatch):
    """One shape a size, so one CUDA graph a size: prompts of every kind of video, none of which is longer."""
    if longest:  # every video at the greatest step: the longest times there can be
        slow = partial(make_videos, dt=MAX_HARD_STEP)
        monkeypatch.setattr(lessons_module, "make_videos", slow)
    frames, height, width, _ = size
    for step, (kind, _) in enumerate(KINDS):
        size = Size(frames, max(1, 32 // frames), height, width, TURNS, kind)
        lesson = Lessons(CONFIG, lambda step, size=size: size, range(step, step + 1), 5)[0]
        assert lesson.tokens["input_ids"].shape == (size.videos, size.tokens(CONFIG))
        assert size.tokens(CONFIG) % 64 == 0


@pytest.mark.parametrize("turns", range(1, TURNS + 1))
def test_the_longest_questions_fit(turns):
    """Any number of turns: the longest that can be asked of each kind, at the last and longest times of a video."""
    lessons = Lessons(CONFIG, small, range(1), 0)
    for frames, height, width, _ in SIZES:
        seconds = [round(n * MAX_HARD_STEP, 1) for n in range(frames + 1)]
        first, second = (
            Event("thing", name, frames - 2, frames - 1, *seconds[-3:-1])
            for name in ("green triangle", "yellow triangle")
        )
        needle_turn = needle(Event("card", "7", frames - 1, frames, *seconds[-2:]))
        naming_turn = naming([first, second], frames - 2, seconds[-3])
        others = [*[grounding(second)] * 6, naming_turn, presence(second, frames - 2, seconds[-3])]
        size = Size(frames, 1, height, width, turns)
        prompt = lessons.conversation([needle_turn, *others][:turns], seconds[:-1], patch_grid(size, CONFIG))
        assert len(prompt.ids) <= size.tokens(CONFIG), size


def test_every_video_is_asked_for_its_card():
    """Once, whatever else is asked, at any place of the row; the others are of its own questions, none twice."""
    places, asked_of = set(), {}
    for turns in (1, 4, TURNS):
        for step, (kind, _) in enumerate(KINDS):
            size = Size(8, 24, turns=turns, difficulty=kind)
            lesson = Lessons(CONFIG, lambda step, size=size: size, range(step, step + 1), 0)[0]
            for row, ids in enumerate(lesson.tokens["input_ids"].tolist()):
                problems, asked = lesson.videos.problems[row], turns_of(ids)
                own = Counter((p.question, p.answer) for p in problems)
                summed = [turn for turn in asked if turn not in own]
                assert all("+" in question for question, _ in summed) and len(summed) <= 1
                assert Counter(asked) - Counter(summed) <= own
                assert [question for question, _ in asked].count(NEEDLE_QUESTION) == 1
                assert len(asked) in {min(turns, len(problems)), min(turns, len(problems) + 1)}
                places.add([question for question, _ in asked].index(NEEDLE_QUESTION))
                asked_of.setdefault(turns, set()).update(question.split()[0] for question, _ in asked)
    assert places == set(range(TURNS))
    assert asked_of[1] == {"Which"} and asked_of[4] == asked_of[TURNS] == {"Which", "From", "What", "Is"}


def test_a_sum_comes_with_a_quarter_of_the_videos():
    """Where all questions are asked: a plain video has five or six."""
    lesson = Lessons(CONFIG, lambda step: Size(4, 400, turns=TURNS), range(1), 0)[0]
    rows = [turns_of(ids) for ids in lesson.tokens["input_ids"].tolist()]
    assert 0.25 - 4 * 0.022 < sum(any("+" in q for q, _ in row) for row in rows) / 400 < 0.25 + 4 * 0.022


def test_a_lesson_is_as_hard_as_its_size_says():
    """The videos of the row are those of that difficulty, and so are the pixels."""
    kind = Difficulty(crowd=True, hard=True, second_card=0.5)
    lesson = Lessons(CONFIG, lambda step: Size(8, 3, 28, 56, TURNS, kind), range(2, 3), 4)[0]
    videos = make_videos(4, range(2 * 4096, 2 * 4096 + 3), 8, "train", difficulty=kind)
    assert lesson.videos.events == videos.events and torch.equal(lesson.videos.seconds, videos.seconds)
    expected = pixels(render(videos.spec, 28, 56).flatten(0, 1), CONFIG)
    assert torch.equal(lesson.inputs(CONFIG, "cpu")["patches"], expected["patches"])


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
        asked = turns_of(ids)
        sums = [turn for turn in asked if turn[0].endswith("?") and "+" in turn[0]]
        assert {turn for turn in asked if turn not in sums} <= known[row] and len(sums) <= 1
        counts.append(len(asked))
    assert counts == [size.turns] * size.videos  # every video has five questions or more
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


@pytest.mark.parametrize("task", ["N", "G", "D", "Y"])
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


def test_a_mask_is_given_where_it_is_needed():
    """Prompts padded on the left need one; those padded on the right are learnt from without."""
    size, videos = Size(8, 5), make_videos(1, range(5), 8, "test")
    for answered in (False, True):
        prompts = question_prompts(videos, "G", size, CONFIG, answered=answered)
        prompts.pop("frames", None)
        inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu")
        assert ("attention_mask" in inputs) == (not answered) and len({*prompts["attention_mask"].sum(1).tolist()}) > 1
