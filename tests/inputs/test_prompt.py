"""Conversations as tokens: every id, mark, span and position written out."""

import pytest
import torch

from minikeye.checkpoint.fake import fake_config, fake_tokenizer
from minikeye.inputs.positions import position_ids
from minikeye.inputs.prompt import FrameSpan, Prompt, Visual, chatml, pad
from minikeye.inputs.tokenizer import ByteTokenizer, ReleasedTokenizer

END, START, STOP, VISION, VISION_END, IMAGE, VIDEO, FRAME = range(256, 264)  # names in the order of SPECIAL_TOKENS


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> ReleasedTokenizer:
    """Byte-level BPE with a few merges, the released ids."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fake_tokenizer(fake_config()).save(str(path))
    return ReleasedTokenizer(path)


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


def test_neighbouring_texts_are_one(released):
    """In pieces or whole, the same tokens; a mark or a picture between them keeps them apart."""
    whole, pieces, apart = (Prompt(released, merge=2) for _ in range(3))
    whole.text("\n\nthe user")
    for piece in ("\n", "\nth", "", "e us", "er"):
        pieces.text(piece)
    assert pieces.ids == whole.ids == released.encode("\n\nthe user") and len(whole.ids) < len("\n\nthe user")
    assert len(pieces.ids) == len(pieces.answer) == len(pieces.visual)
    apart.text("th")
    apart.image((1, 2, 2))
    apart.text("e")
    image = [released.token_id(name) for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")]
    assert apart.ids == [*released.encode("th"), *image, *released.encode("e")]


def test_an_answer_to_learn_begins_where_generation_does(released):
    """No token spans "assistant\\n" and the answer, whatever it begins with; the answer alone is learnt."""
    prompt = Prompt(released, merge=2)
    prompt.answer_turn("\nthe user")
    learnt = [n for n, yes in zip(prompt.ids, prompt.answer, strict=True) if yes]
    assert learnt == [*released.encode("\nthe user"), released.token_id("<|im_end|>")]
    assert prompt.ids[: len(prompt.ids) - len(learnt) - 1][1:] == released.encode("assistant\n")


def test_marked_text(tmp_path):
    """Named tokens count, others stay letters; of two names that fit, the longer."""
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.marked("a<|im_end|>b<|frame|><|im_start|>", ["<|im_end|>", "<|frame|>"])
    assert prompt.ids == [*letters("a"), STOP, *letters("b"), FRAME, *letters("<|im_start|>")]
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.marked("<|im_end|>", [])
    assert prompt.ids == letters("<|im_end|>")
    fast = fake_tokenizer(fake_config(small=True))
    fast.add_special_tokens(["<a>", "<a><b>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    prompt = Prompt(ReleasedTokenizer(tmp_path / "tokenizer.json"), merge=2)
    prompt.marked("<a><b><a>", ["<a>", "<a><b>"])
    assert prompt.ids == [fast.token_to_id("<a><b>"), fast.token_to_id("<a>")]


def test_what_an_assistant_said():
    """The marks of its thoughts are tokens, other marks are letters."""
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.said("<think>a</think>b<|im_end|>")
    assert prompt.ids == [264, *letters("a"), 265, *letters("b<|im_end|>")]


def test_chatml():
    """Every token of a conversation with all kinds of parts; without thinking, an empty thought is said already."""
    conversation = [
        ("system", ["S"]),
        ("user", [Visual((1, 2, 2)), "<think>", Visual((1, 2, 2), [3.0])]),
        ("assistant", ["<think>t</think>a"]),
    ]
    expected = [
        *(START, *letters("system\nS"), STOP, *letters("\n")),
        *(START, *letters("user\n"), VISION, IMAGE, VISION_END, *letters("<think>")),
        *(VISION, FRAME, *letters("3.0"), VIDEO, VISION_END, STOP, *letters("\n")),
        *(START, *letters("assistant\n"), 264, *letters("t"), 265, *letters("a"), STOP, *letters("\n")),
        *(START, *letters("assistant\n")),
    ]
    for thinking, opened in ((True, []), (False, [264, *letters("\n\n"), 265, *letters("\n\n")])):
        prompt = Prompt(ByteTokenizer(), merge=2)
        chatml(prompt, conversation, thinking)
        assert prompt.ids == [*expected, *opened] and not any(prompt.answer)


# ----------------------------------------------------------------------------------------------- what a model has drawn


def test_drawn_tokens_stay_as_they_are(released):
    """Encoded again, "aan" is other tokens than the model drew; text before and after keeps its own."""
    prompt = Prompt(released, merge=2)
    prompt.begin("assistant")
    before = list(prompt.ids)
    letters_one_by_one = [released.encode(c)[0] for c in "aan"]
    assert released.encode("aan") != letters_one_by_one
    prompt.drawn(letters_one_by_one)
    prompt.end()
    assert prompt.ids[len(before) :][:3] == letters_one_by_one
    assert prompt.answer == [False] * len(before) + [True] * 3 + [False] * (len(prompt.ids) - len(before) - 3)
    prompt.text("and on")  # not joined with what was drawn
    assert prompt.ids[len(before) :][:3] == letters_one_by_one


def test_what_a_tool_wrote_is_not_learnt():
    prompt = Prompt(ByteTokenizer(), merge=2)
    prompt.drawn(letters("2+2="), learn=True)
    prompt.drawn(letters("4"), learn=False)
    prompt.drawn([*letters("ok"), STOP], learn=[True, False, True])
    assert prompt.ids == [*letters("2+2=4ok"), STOP]
    assert prompt.answer == [True] * 4 + [False] + [True, False, True] and not any(prompt.visual)
    assert torch.equal(prompt.positions(), torch.arange(8).expand(3, -1))


@pytest.mark.parametrize(("ids", "learn"), [([VIDEO], True), ([IMAGE], True), ([-1], True), ([65, 66], [True])])
def test_what_nobody_can_have_drawn(ids, learn):
    prompt = Prompt(ByteTokenizer(), merge=2)
    with pytest.raises(ValueError, match="stand for no pixels, and one mark for each"):
        prompt.drawn(ids, learn)
    assert prompt.ids == []
