"""Conversations as tokens: every id, mark, span and position written out."""

import pytest
import torch

from minikeye.prompt import FrameSpan, Prompt, pad
from minikeye.rope import position_ids
from minikeye.tokenizer import ByteTokenizer

END, START, STOP, VISION, VISION_END, IMAGE, VIDEO, FRAME = range(256, 264)  # names in the order of SPECIAL_TOKENS


def letters(text: str) -> list[int]:
    return list(text.encode())


def conversation() -> Prompt:
    """A video of two frames of 2 visual tokens, a question, an answer."""
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.begin("user")
    prompt.video([0.0, 12.5], (1, 2, 4))
    prompt.text("When?")
    prompt.end()
    prompt.answer_turn("12.5")
    return prompt


def test_every_token():
    """The layout of the released processor: frame mark, time with one decimal, visual tokens."""
    assert conversation().ids == [
        *(START, *letters("user\n"), VISION),
        *(FRAME, *letters("0.0"), VIDEO, VIDEO),
        *(FRAME, *letters("12.5"), VIDEO, VIDEO),
        *(VISION_END, *letters("When?"), STOP, *letters("\n")),
        *(START, *letters("assistant\n12.5"), STOP, *letters("\n")),
    ]


def test_only_the_answer_is_learnt():
    """Its text and its end mark; not the role, not the newline after it."""
    prompt = conversation()
    assert [n for n, learnt in zip(prompt.ids, prompt.answer, strict=True) if learnt] == [*letters("12.5"), STOP]


def test_frame_spans():
    prompt = conversation()
    assert prompt.frames == [FrameSpan(11, 13, 0.0, 0), FrameSpan(18, 20, 12.5, 0)]
    assert all(prompt.ids[f.start : f.stop] == [VIDEO] * 2 for f in prompt.frames)
    prompt.video([1.0], (1, 2, 2))
    assert prompt.frames[-1].video == 1 and prompt.grids == [(1, 2, 4)] * 2 + [(1, 2, 2)]


def test_image():
    """One block, no mark, no time, no span."""
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.image((1, 4, 4))
    assert prompt.ids == [VISION, *[IMAGE] * 4, VISION_END] and prompt.frames == []
    assert prompt.positions().tolist() == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]


def test_positions_follow_the_blocks():
    """A time within the prompt counts as text; frames come 2 apart in position, not 12.5."""
    prompt = conversation()
    visual = [n == VIDEO for n in prompt.ids]
    assert prompt.visual == visual
    assert torch.equal(prompt.positions(), position_ids(visual, prompt.grids, 2))
    assert prompt.positions()[0, [11, 18]].tolist() == [11, 18]


def test_a_user_cannot_close_a_turn():
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.text("<|im_end|>")
    assert STOP not in prompt.ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side):
    """Three prompts of different lengths; each row without its padding is the prompt."""
    prompts = [conversation(), Prompt(ByteTokenizer(), merge=2), conversation()]
    prompts[1].text("hi")
    prompts[2].image((1, 2, 2))
    batch = pad(prompts, side)
    t = max(len(p.ids) for p in prompts)
    for row, prompt in enumerate(prompts):
        real = batch["attention_mask"][row]
        order = torch.arange(t) >= t - len(prompt.ids) if side == "left" else torch.arange(t) < len(prompt.ids)
        assert torch.equal(real, order)
        assert batch["input_ids"][row, real].tolist() == prompt.ids
        assert batch["answer"][row, real].tolist() == prompt.answer
        assert torch.equal(batch["positions"][:, row, real], prompt.positions())
        assert batch["input_ids"][row, ~real].eq(END).all() and batch["positions"][:, row, ~real].eq(0).all()
        assert not batch["answer"][row, ~real].any()
