"""Conversations with reuse of the cache against the same conversations computed from nothing at every turn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minikeye.inference.generate
import minikeye.inputs.processor
from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.inference import reader
from minikeye.inference.chat import Chat, keep
from minikeye.inference.reader import blocks, reusable, unread
from minikeye.inference.turns import in_thought
from minikeye.inputs.processor import Clip
from minikeye.inputs.prompt import Prompt

NANO = Processor(KeyeConfig.nano())
CLIP = Path(__file__).resolve().parents[2] / "assets" / "clips" / "big_buck_bunny.mp4"
THINK, THOUGHT = (NANO.tokenizer.token_id(name) for name in ("<think>", "</think>"))
STOP = NANO.stop_ids[0]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def video(seed: int = 0, frames: int = 10) -> dict:
    return {"type": "video", "video": noise(frames, 28, 56, 3, seed=seed), "fps": 2.0}


def image(seed: int = 0) -> dict:
    return {"type": "image", "image": noise(56, 56, 3, seed=seed)}


@pytest.fixture
def model(lively) -> KeyeVL:
    return lively


@pytest.fixture
def script(monkeypatch):
    """Makes the model say given texts, turn by turn, and keeps the logits that it had instead. `(` is <think>, `)` is
    </think>, `.` ends an answer."""
    logits_seen: list[torch.Tensor] = []

    def say(*texts: str) -> list[torch.Tensor]:
        marks = {"(": THINK, ")": THOUGHT, ".": STOP}
        tokens = iter([marks.get(c, ord(c)) for c in "".join(texts)])

        def sample(logits, *rest):
            logits_seen.append(logits.clone())
            return torch.tensor([next(tokens)])

        monkeypatch.setattr(minikeye.inference.generate, "sample", sample)
        return logits_seen

    return say


def from_nothing(model, messages, n: int, **options):
    """The ids of an answer to a conversation that nobody has read yet."""
    inputs = NANO(messages, thinking=options.pop("thinking", True))
    return tuple(model.generate(inputs, max_new_tokens=n, stop_ids=NANO.stop_ids, **options).row())


TURNS = [
    [video(), text("Which digit?")],
    [text("And "), image(1), text(" this?")],
    "Are you sure?",
    [image(2), video(3, 4), text("Now?")],
]


@pytest.mark.parametrize("attention", ["sparse", "dense"])
@pytest.mark.parametrize("thinking", [True, False])
def test_every_turn_is_the_one_computed_from_nothing(model, attention, thinking):
    """Video, image, text, both: the messages as the user wrote them, and what the model said."""
    chat = Chat(model, NANO, system="Be brief.", attention=attention, thinking=thinking)
    said = [{"role": "system", "content": "Be brief."}]
    for n, content in enumerate(TURNS):
        said.append({"role": "user", "content": content})
        reply = chat.ask(content, max_new_tokens=12)
        assert reply.ids == from_nothing(model, said, 12, attention=attention, thinking=thinking) and len(reply.ids) > 5
        said.append(chat.messages[-1])
        assert (reply.reused > 0) == (n > 0) and reply.read + reply.reused == len(
            NANO.build(said[:-1], thinking)[0].ids
        )
    assert [m["role"] for m in chat.messages] == [m["role"] for m in said]


def test_what_the_model_sees_is_what_it_sees_from_nothing(model, script):
    """Logits, not only the best token: three turns, each read once, the last of all cut to a few new tokens."""
    logits = script("ab.", "cd.", "ef.", "ab.", "cd.", "ef.")
    chat, said = Chat(model, NANO), []
    for content in TURNS[:3]:
        chat.ask(content)
    assert len(logits) == 9
    for content, answer in zip(TURNS[:3], ("ab", "cd", "ef"), strict=True):
        said.append({"role": "user", "content": content})
        from_nothing(model, said, 9)
        said.append({"role": "assistant", "content": answer})
    torch.testing.assert_close(torch.cat(logits[:9]), torch.cat(logits[9:]), atol=1e-4, rtol=1e-4)


def test_only_what_is_new_is_read(model, script):
    """Counted by hand: the second turn reads from the end of the first answer on."""
    script("yes.", "no.")
    chat = Chat(model, NANO)
    first = chat.ask(TURNS[0])
    opening = len("_user\n_") + 10 * (len("_0.0") + 2) + len("_Which digit?_\n_assistant\n")  # a _ is a special token
    assert (first.read, first.reused, first.answer) == (opening, 0, "yes")
    second = chat.ask("Why?")
    assert (second.read, second.reused) == (len("_\n_user\nWhy?_\n_assistant\n"), opening + len("yes"))


def test_the_last_token_of_a_cut_reply_is_read_later(model, script):
    """Nobody reads the last token that is sampled: where it was no stop token, the next turn does."""
    script("yes", "no.")
    chat = Chat(model, NANO)
    first = chat.ask("Hi", max_new_tokens=3)
    assert (first.ids, first.answer) == (tuple(b"yes"), "yes")
    second = chat.ask("Why?")
    assert second.reused == first.read + len("ye") and second.read == len("s_\n_user\nWhy?_\n_assistant\n")


def test_an_answer_that_stops_at_once(model, script):
    script(".", "a.")
    chat = Chat(model, NANO, record=True)
    reply = chat.ask("Hi")
    assert (reply.ids, reply.answer, reply.thought, reply.record) == ((), "", "", None)
    assert chat.ask("Hi").reused == reply.read and chat.messages[1] == {"role": "assistant", "content": ""}


def test_one_conversation_at_a_time(model, monkeypatch):
    """The model gets a batch of one, and of pixels only the new turn's."""
    seen = []
    generate = reader.generate
    monkeypatch.setattr(reader, "generate", lambda *args, **more: seen.append(args[1]) or generate(*args, **more))
    chat = Chat(model, NANO)
    for content in TURNS:
        chat.ask(content, max_new_tokens=2)
    assert [tuple(inputs["input_ids"].shape[:1]) for inputs in seen] == [(1,)] * 4
    assert [tuple(inputs["positions"].shape[:2]) for inputs in seen] == [(3, 1)] * 4
    assert [len(inputs["grids"]) if "grids" in inputs else 0 for inputs in seen] == [10, 1, 0, 5]


# ------------------------------------------------------------------------------------------- what is read once and kept


def test_a_video_file_is_read_once(model, monkeypatch, tmp_path):
    """And an image file: afterwards both may be gone. Later turns change nothing about a video's frames."""
    reads, decode = [], minikeye.inputs.processor.decode_video
    monkeypatch.setattr(minikeye.inputs.processor, "decode_video", lambda plan: reads.append(plan) or decode(plan))
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    Image.fromarray(noise(56, 56, 3)).save(tmp_path / "image.png")
    chat = Chat(model, NANO)
    parts = [{"type": "video", "video": tmp_path / "clip.mp4", "max_frames": 4, "fps": 0.5}]
    chat.ask([*parts, {"type": "image", "image": str(tmp_path / "image.png")}], max_new_tokens=2)
    for path in tmp_path.iterdir():
        path.unlink()
    before = chat.messages[0]["content"][0]["video"]
    reply = chat.ask([video(), text("And this?")], max_new_tokens=2)
    assert len(reads) == 1 and chat.messages[0]["content"][0]["video"] is before and reply.reused > 0
    assert [f.seconds for f in reply.frames][:4] == pytest.approx(before.seconds) and len(reply.frames) == 4 + 10


def test_videos_of_one_question_share_a_budget():
    """Two halve it; one that comes with a later question has its own."""
    long = {"type": "video", "video": noise(600, 56, 56, 3), "fps": 2.0}
    alone, pair = keep([long], NANO), keep([long, text("and"), long], NANO)
    assert torch.equal(alone[0]["video"].frames, NANO.clip(long, 1).frames)
    assert torch.equal(pair[2]["video"].frames, NANO.clip(long, 2).frames)
    assert alone[0]["video"].frames.numel() > pair[0]["video"].frames.numel()


def test_what_the_caller_changes_later_does_not_matter(model):
    """A camera's buffer that is filled anew, a list that grows."""
    buffer, content = noise(56, 56, 3), [text("What is this?")]
    content.append({"type": "image", "image": buffer})
    chat = Chat(model, NANO)
    chat.ask(content, max_new_tokens=2)
    buffer[:] = 0
    content.append(text("more"))
    content[0]["text"] = "other"
    (words, picture) = chat.messages[0]["content"]
    assert words == text("What is this?") and torch.equal(picture["image"], NANO.image(noise(56, 56, 3)))
    chat.messages.clear()
    assert len(chat.messages) == 2


def test_a_kept_image_keeps_its_size():
    """The processor does not size it again, although nano's range of sizes would make it smaller each time."""
    chat_part = keep([{"type": "image", "image": noise(90, 130, 3)}], NANO)[0]
    assert torch.equal(NANO.image(chat_part["image"]), chat_part["image"])


# ------------------------------------------------------------------------------------------------ errors and interrupts


class Stop(BaseException):
    """As Ctrl-C: no Exception."""


def stop_while_answering(chat):
    pieces = []

    def on_text(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise Stop

    chat.ask([image(7), text("Never mind")], max_new_tokens=12, on_text=on_text)


def stop_while_reading(chat):
    hook = chat.model.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(Stop()))
    try:
        chat.ask([image(7), text("Never mind")], max_new_tokens=12)
    finally:
        hook.remove()


@pytest.mark.parametrize("stop", [stop_while_answering, stop_while_reading])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_an_interrupted_question_was_never_asked(model, stop, turns):
    """Next comes a question with another picture of the same size: tokens alike, pixels not."""
    chat, other = Chat(model, NANO), Chat(model, NANO)
    for content in TURNS[:turns]:
        chat.ask(content, max_new_tokens=6)
        other.ask(content, max_new_tokens=6)
    before = chat.messages
    with pytest.raises(Stop):
        stop(chat)
    assert len(before) == len(chat.messages) and all(a is b for a, b in zip(before, chat.messages, strict=True))
    next_question = [image(8), text("And this?")]
    mine, theirs = chat.ask(next_question, max_new_tokens=12), other.ask(next_question, max_new_tokens=12)
    assert (mine.ids, mine.reused) == (theirs.ids, theirs.reused)
    said = [*before, {"role": "user", "content": next_question}]
    assert mine.ids == from_nothing(model, said, 12)


@pytest.mark.parametrize(
    ("content", "options", "complaint"),
    [
        ([text("a"), 3], {}, "content is a string or a list"),
        ([{"type": "sound", "sound": 1}], {}, "content is a string or a list"),
        ([{"type": "image", "image": "no_such_file.png"}], {}, "no_such_file.png is not a readable image"),
        ([{"type": "video", "video": noise(2, 28, 28, 3)}], {}, "frames in memory need their rate"),
        ("Hi", {"temperature": -1.0}, "0 <= temperature < inf"),
        ("Hi", {"max_new_tokens": 0}, "max_new_tokens >= 1"),
        ("Hi", {"max_new_tokens": 5000}, "exceed the context of 4096"),
    ],
)
def test_complaints_change_nothing(model, content, options, complaint):
    chat = Chat(model, NANO)
    first = chat.ask("Hello", max_new_tokens=2)
    with pytest.raises(ValueError, match=complaint):
        chat.ask(content, **options)
    assert len(chat.messages) == 2
    assert chat.ask("Hi", max_new_tokens=2).reused > first.read - 1


def test_context(model, script, monkeypatch):
    """A prompt of 21 tokens and a reply of 4, of which the last is not read, fill 24; room for them is made at once."""
    rooms, new_cache = [], KeyeVL.new_cache
    monkeypatch.setattr(KeyeVL, "new_cache", lambda self, room=0: rooms.append(room) or new_cache(self, room))
    script("abcd", "abcd")
    (prompt, _) = NANO.build([{"role": "user", "content": "Hi"}])
    assert len(prompt.ids) == 21
    assert Chat(model, NANO, context=24).ask("Hi", max_new_tokens=4).answer == "abcd"
    with pytest.raises(ValueError, match=r"21 tokens and a reply of up to 5 exceed the context of 24: .*reset\(\)"):
        Chat(model, NANO, context=24).ask("Hi", max_new_tokens=5)
    Chat(model, NANO).reset()
    assert rooms == [24, 24, 0, 0]
    for context in (0, 4097):
        with pytest.raises(ValueError, match=f"context of 1 to 4096 tokens, got {context}"):
            Chat(model, NANO, context=context)


def test_reset(model):
    chat = Chat(model, NANO, system="Be brief.")
    first = chat.ask("Hi", max_new_tokens=8)
    chat.ask("Why?", max_new_tokens=8)
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    again = chat.ask("Hi", max_new_tokens=8)
    assert again.ids == first.ids and again.reused == 0


# ------------------------------------------------------------------------------------------------- thoughts and text


class DropsThoughts(Processor):
    """As Qwen3's template: the thoughts of earlier turns are left out. Until told otherwise."""

    drops = True

    def build(self, messages, thinking=True):
        past = [
            {**m, "content": m["content"].rpartition("</think>")[2]} if self.drops and m["role"] == "assistant" else m
            for m in messages
        ]
        return super().build(past, thinking)


class OpensThought(Processor):
    """As the templates of models that always think."""

    def build(self, messages, thinking=True):
        prompt, pixels = super().build(messages, thinking)
        prompt.said("<think>\n")
        return prompt, pixels


def test_thoughts_are_told_apart_and_kept(model, script):
    script("(\nhm\n)\n\nyes\n.", "no.")
    chat = Chat(model, NANO)
    reply = chat.ask("Sure?")
    assert (reply.thought, reply.answer) == ("hm", "yes")
    assert reply.ids == (THINK, *b"\nhm\n", THOUGHT, *b"\n\nyes\n")
    assert chat.messages[1]["content"] == "<think>\nhm\n</think>\n\nyes\n"
    assert chat.ask("Why?").reused == reply.read + len(reply.ids)


def test_a_template_that_drops_thoughts(model, script):
    """What was read beyond the dropped thought is read again, and the answer is the one computed from nothing."""
    script("(hm)yes.")
    processor = DropsThoughts(NANO.config)
    chat = Chat(model, processor)
    first = chat.ask([image(), text("Sure?")])
    logits = script("(so)no.", "(so)no.")
    del logits[:]
    second = chat.ask("Why?")
    assert second.reused == first.read and second.read == len("yes_\n_user\nWhy?_\n_assistant\n")
    model.generate(processor(chat.messages[:3]), max_new_tokens=8, stop_ids=NANO.stop_ids)
    torch.testing.assert_close(torch.cat(logits[:7]), torch.cat(logits[7:]), atol=1e-4, rtol=1e-4)


def test_a_past_that_changes_and_changes_back(model, script):
    """A question without the old thought is broken off; the next one has it again, and must read it again."""
    logits = script("(hm)yes.", "no")
    processor = DropsThoughts(NANO.config)
    chat = Chat(model, processor)
    first = chat.ask("Sure?")
    with pytest.raises(Stop):
        chat.ask("Why?", on_text=lambda _: (_ for _ in ()).throw(Stop()))
    processor.drops = False
    script("a.", "a.")
    del logits[:]
    assert chat.ask("Why?").reused == first.read
    model.generate(processor(chat.messages[:3]), max_new_tokens=2, stop_ids=NANO.stop_ids)
    torch.testing.assert_close(torch.cat(logits[:2]), torch.cat(logits[2:]), atol=1e-4, rtol=1e-4)


def test_a_prompt_that_opens_the_thought(model, script):
    script("hm)yes.", "hm", "a.")
    chat = Chat(model, OpensThought(NANO.config))
    reply = chat.ask("Sure?")
    assert (reply.thought, reply.answer) == ("hm", "yes")
    assert chat.messages[1]["content"] == "<think>hm</think>yes"
    cut = chat.ask("Sure?", max_new_tokens=2)
    assert (cut.thought, cut.answer) == ("hm", "") and chat.messages[3]["content"] == "<think>hm</think>"


def test_only_the_last_turn_tells_whether_a_thought_is_open():
    prompt, _ = NANO.build([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b"}])
    assert not in_thought(prompt)
    prompt.said("<think>\n")
    assert in_thought(prompt)
    assert not in_thought(NANO.build([{"role": "user", "content": "a"}], thinking=False)[0])


def test_text_comes_in_whole_characters(model, monkeypatch):
    """Pieces are never empty, and together they are the reply; the last character stays unfinished."""
    tokens = iter([*"é 视!".encode(), "é".encode()[0], STOP])
    monkeypatch.setattr(minikeye.inference.generate, "sample", lambda *_: torch.tensor([next(tokens)]))
    pieces = []
    reply = Chat(model, NANO).ask("Hi", on_text=pieces.append)
    assert pieces == ["é", " ", "视", "!", "\ufffd"] and reply.answer == "é 视!\ufffd"


def test_a_seed_makes_sampling_repeatable(model):
    ids = [Chat(model, NANO).ask("Hi", max_new_tokens=16, temperature=1.0, seed=seed).ids for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_record_of_a_later_turn(model):
    """Its queries and keys are positions of the whole conversation, as in one computed from nothing."""
    chat = Chat(model, NANO, record=True)
    chat.ask(TURNS[0], max_new_tokens=4)
    reply = chat.ask("Which?", max_new_tokens=4)
    whole = model.generate(NANO(chat.messages[:3]), max_new_tokens=4, record=True).record
    assert reply.record.first == whole.first == reply.read + reply.reused - 1
    for mine, theirs in zip(reply.record.layers, whole.layers, strict=True):
        assert torch.equal(mine.indices, theirs.indices)
    assert [(f.start, f.seconds) for f in reply.frames] == [
        (f.start, f.seconds) for f in NANO(chat.messages[:3])["frames"][0]
    ]


# ------------------------------------------------------------------------------------------------------- the way there


def a_prompt() -> Prompt:
    """Text, an image of 2 x 1 visual tokens, two frames of 1, text. v stands for a visual token:
    0 <start>, 1 v, 2 v, 3 <end>, 4 <start>, 5 <frame>, 6-8 0.0, 9 v, 10 <frame>, 11-13 0.5, 14 v, 15 <end>, 16 a
    """
    prompt = Prompt(NANO.tokenizer, NANO.config.vision.merge)
    prompt.image((1, 4, 2))
    prompt.video([0.0, 0.5], (1, 2, 2))
    prompt.text("a")
    return prompt


def test_blocks():
    assert blocks(a_prompt()) == [(1, 3), (9, 10), (14, 15)]
    assert blocks(Prompt(NANO.tokenizer, 2)) == []


@pytest.mark.parametrize(
    ("held", "expected"), [(0, 0), (1, 1), (2, 1), (3, 3), (9, 9), (10, 10), (12, 12), (16, 16), (17, 16)]
)
def test_what_can_be_reused(held, expected):
    """All that is held, but no half picture, and never the last token. What differs ends it."""
    prompt = a_prompt()
    assert reusable(prompt, prompt.ids[:held]) == expected
    assert reusable(prompt, [*prompt.ids[:held], -5, *prompt.ids[held:]]) == expected


@pytest.mark.parametrize(("first", "pictures"), [(0, 3), (1, 3), (3, 2), (9, 2), (10, 1), (15, 0)])
def test_what_is_unread(first, pictures):
    prompt = a_prompt()
    frames = [torch.full((1, 3, 56, 28), 10, dtype=torch.uint8), torch.full((2, 3, 28, 28), 20, dtype=torch.uint8)]
    frames[1][1] = 30
    inputs = unread(prompt, frames, first)
    assert inputs["input_ids"].tolist() == [prompt.ids[first:]]
    assert torch.equal(inputs["positions"][:, 0], prompt.positions()[:, first:])
    patches = {3: [10] * 8 + [20] * 4 + [30] * 4, 2: [20] * 4 + [30] * 4, 1: [30] * 4, 0: []}[pictures]
    got = inputs["patches"][:, 0, 0, 0] if pictures else torch.empty(0)
    assert got.add(1).mul(127.5).round().tolist() == patches
    assert len(inputs.get("grids", [])) == pictures and ("patches" in inputs) == ("grids" in inputs) == (pictures > 0)


def test_content_is_kept_in_order_and_clips_as_they_are():
    clip = Clip(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), [0.0, 0.5])
    kept = keep([text("a"), {"type": "video", "video": clip}, image(), text("b")], NANO)
    assert [part["type"] for part in kept] == ["text", "video", "image", "text"] and kept[1]["video"] is clip
    assert keep("words", NANO) == "words"
