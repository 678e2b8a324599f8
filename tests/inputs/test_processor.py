"""Messages in, model inputs out: every kind of content, both padding and pixels, and each message of complaint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.checkpoint.fake import write_fake_checkpoint
from minikeye.inputs.pixels import patchify, resize
from minikeye.inputs.processor import Clip
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import read_video

CLIP = Path(__file__).resolve().parents[2] / "assets" / "clips" / "big_buck_bunny.mp4"
NANO, MINI = Processor(KeyeConfig.nano()), Processor(KeyeConfig.mini())


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(inputs: dict, row: int = 0) -> str:
    """The prompt as text, padding left out."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row]]
    return NANO.tokenizer.decode(ids.tolist(), skip_special=False)


def test_words_only():
    """The whole prompt, letter by letter; a string is a list of one text."""
    inputs = NANO(user(text("What is 1+2?")))
    expected = "<|im_start|>user\nWhat is 1+2?<|im_end|>\n<|im_start|>assistant\n"
    assert plain(inputs) == expected == plain(NANO([{"role": "user", "content": "What is 1+2?"}]))
    assert inputs.keys() == {"input_ids", "positions", "attention_mask", "frames"} and inputs["frames"] == [[]]
    n = inputs["input_ids"].shape[1]
    assert torch.equal(inputs["positions"], torch.arange(n).expand(3, 1, n))


def test_turns_in_order():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    inputs = NANO([{"role": role, "content": words} for role, words in turns])
    said = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns)
    assert plain(inputs) == said + "<|im_start|>assistant\n"


def test_a_video_file_is_read_video():
    """Same frames, same times, one span each, the time in words before it, patches of the frames and no others."""
    inputs = MINI(user({"type": "video", "video": str(CLIP), "fps": 0.5, "max_frames": 12}, text("Well?")))
    video = read_video(CLIP, MINI.config.video, MINI.config.token_pixels, 1, fps=0.5, max_frames=12)
    assert torch.equal(inputs["patches"], patchify(video.frames, 14)) and len(inputs["grids"]) == len(video.frames)
    spans = inputs["frames"][0]
    assert [s.seconds for s in spans] == pytest.approx(video.seconds.tolist()) and 1 < len(spans) <= 12
    ids = inputs["input_ids"][0]
    for span, grid in zip(spans, inputs["grids"], strict=True):
        assert bool((ids[span.start : span.stop] == MINI.config.video_token_id).all())
        assert span.stop - span.start == int(grid.prod()) // 4
        before = MINI.tokenizer.decode(ids[: span.start].tolist(), skip_special=False)
        assert before.endswith(f"<|frame|>{span.seconds:.1f}")
    assert int((ids == MINI.config.video_token_id).sum()) == sum(s.stop - s.start for s in spans)


def test_frames_in_memory_need_their_rate():
    """30 frames at 10 a second are three seconds: at 2 frames a second, six frames, from the first on."""
    frames = noise(30, 28, 28, 3)
    inputs = NANO(user({"type": "video", "video": frames, "fps": 10.0}))
    seconds = [s.seconds for s in inputs["frames"][0]]
    at = [round(10 * s) for s in seconds]
    assert len(at) == 6 and at[0] == 0 and at == sorted(set(at)) and at[-1] <= 29
    assert torch.equal(inputs["patches"], patchify(torch.from_numpy(frames[at]).permute(0, 3, 1, 2), 14))
    with pytest.raises(VideoError, match="add 'fps'"):
        NANO(user({"type": "video", "video": frames}))
    with pytest.raises(VideoError, match="got -1"):
        NANO(user({"type": "video", "video": frames, "fps": -1}))


def test_a_clip_is_taken_as_it_is():
    clip = Clip(torch.from_numpy(noise(3, 3, 28, 56)), [0.0, 1.5, 9.0])
    inputs = NANO(user({"type": "video", "video": clip}))
    assert [s.seconds for s in inputs["frames"][0]] == clip.seconds
    assert torch.equal(inputs["patches"], patchify(clip.frames, 14))
    assert inputs["grids"].tolist() == [[1, 2, 4]] * 3
    with pytest.raises(ValueError, match="one time per frame, got 2 for 3"):
        NANO(user({"type": "video", "video": Clip(clip.frames, [0.0, 1.0])}))
    with pytest.raises(ValueError, match="multiples of 28 pixels, got 3 of 56x27"):
        NANO(user({"type": "video", "video": Clip(clip.frames[:, :, :27], clip.seconds)}))


def test_an_image_three_ways(tmp_path):
    """A file, a PIL image and an array give the same patches; the placeholder is the image's."""
    array = noise(60, 100, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    sources = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array)
    all_inputs = [NANO(user({"type": "image", "image": source}, text("?"))) for source in sources]
    for inputs in all_inputs[1:]:
        assert torch.equal(inputs["patches"], all_inputs[0]["patches"])
        assert torch.equal(inputs["input_ids"], all_inputs[0]["input_ids"])
    inputs = all_inputs[0]
    tokens = int((inputs["input_ids"] == NANO.config.image_token_id).sum())
    assert 1 <= tokens <= NANO.config.video.max_image_tokens and 4 * tokens == len(inputs["patches"])
    assert inputs["frames"] == [[]]  # an image is no frame of a video


def test_resize_is_pillows():
    """Bilinear with antialias: within rounding of Pillow's, which nobody here wrote."""
    array = noise(60, 100, 3)
    mine = resize(torch.from_numpy(array).permute(2, 0, 1)[None], 28, 56)[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(array).resize((56, 28), Image.Resampling.BILINEAR))
    assert int(np.abs(mine.astype(int) - theirs.astype(int)).max()) <= 1
    same = torch.from_numpy(noise(1, 3, 28, 56))
    assert resize(same, 28, 56) is same


def test_content_keeps_its_order():
    """Pixels come in the order of their placeholders: image, video, image."""
    colours = [np.full((28, 28, 3), value, np.uint8) for value in (10, 120, 250)]
    video = Clip(torch.from_numpy(colours[1]).permute(2, 0, 1)[None], [0.5])
    image = lambda n: {"type": "image", "image": colours[n]}  # noqa: E731
    inputs = NANO(user(image(0), text("then"), {"type": "video", "video": video}, image(2)))
    means = [float(p.mean()) for p in inputs["patches"].split([int(g.prod()) for g in inputs["grids"]])]
    assert means == pytest.approx([(v / 255 - 0.5) / 0.5 for v in (10, 120, 250)], abs=1e-6)
    kinds = [
        int(i) for i in inputs["input_ids"][0] if int(i) in (NANO.config.image_token_id, NANO.config.video_token_id)
    ]
    runs = [a for a, b in zip(kinds, [*kinds[1:], None], strict=True) if a != b]
    assert runs == [NANO.config.image_token_id, NANO.config.video_token_id, NANO.config.image_token_id]


def test_two_videos_share_the_budget_and_are_told_apart():
    frames = noise(400, 56, 56, 3)
    video = {"type": "video", "video": frames, "fps": 2.0}
    one, two = MINI(user(video)), MINI(user(video, text("and"), video))
    spans = two["frames"][0]
    assert [s.video for s in spans] == sorted(s.video for s in spans) and {s.video for s in spans} == {0, 1}
    count = lambda inputs: int((inputs["input_ids"] == MINI.config.video_token_id).sum())  # noqa: E731
    assert count(two) <= MINI.config.video.video_tokens and count(one) <= MINI.config.video.video_tokens
    assert len(spans) == 2 * len(one["frames"][0])  # 400 frames of 4 tokens: room for both


def test_batches_are_padded_on_the_left():
    """Each row of a batch gives the logits that it gives alone, video rows beside text rows."""
    conversations = [
        user({"type": "video", "video": noise(8, 28, 28, 3), "fps": 2.0}, text("Which digit?")),
        user(text("Hi")),
        user({"type": "image", "image": noise(28, 56, 3, seed=1)}, text("What is this?")),
    ]
    torch.manual_seed(0)
    model = KeyeVL(NANO.config).eval()
    batch = NANO.batch(conversations)
    mask = batch["attention_mask"]
    assert bool((mask[:, 1:] >= mask[:, :-1]).all()) and bool(mask[:, -1].all())
    with torch.no_grad():
        together = model(batch).logits[:, -1]
        alone = torch.cat([model(NANO(c)).logits[:, -1] for c in conversations])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert [len(f) for f in batch["frames"]] == [8, 0, 0]
    patches = torch.cat([NANO(c)["patches"] for c in (conversations[0], conversations[2])])
    assert torch.equal(batch["patches"], patches)


def test_spans_count_the_padding():
    """Frames of a padded row lie where its placeholders do."""
    video = {"type": "video", "video": noise(8, 28, 28, 3), "fps": 2.0}
    batch = NANO.batch([user(video, text("?")), user(video, text("Which digit is it, then?")), user(text("Hi"))])
    padding = (~batch["attention_mask"]).sum(dim=1).tolist()
    assert padding[0] > 0 == padding[1]
    for row, spans in enumerate(batch["frames"]):
        inside = torch.zeros_like(batch["input_ids"][row], dtype=torch.bool)
        for span in spans:
            inside[span.start : span.stop] = True
        assert torch.equal(inside, batch["input_ids"][row] == NANO.config.video_token_id)
    alone = NANO(user(video, text("?")))["frames"][0]
    assert [s.start - a.start for s, a in zip(batch["frames"][0], alone, strict=True)] == padding[:1] * 8


def test_a_video_too_long_is_refused_before_it_is_decoded(monkeypatch):
    """From the file's index alone, with what to do; the same for frames in memory."""
    short = replace(MINI.config, text=replace(MINI.config.text, max_positions=400))
    processor = Processor(short)
    monkeypatch.setattr("minikeye.inputs.processor.decode_video", lambda plan: pytest.fail("decoded"))
    named = r"takes 9\d\d tokens \(84 frames of 6 and their times\), the context holds 400: lower fps or set max_frames"
    with pytest.raises(VideoError, match=named) as error:
        processor(user({"type": "video", "video": CLIP}))
    assert "--max-context 400" in str(error.value)
    with pytest.raises(VideoError, match="the video takes"):
        processor(user({"type": "video", "video": noise(100, 56, 84, 3), "fps": 2}))


def test_notes_reach_the_caller():
    """What `sample` has to say about a video comes with the inputs, in a batch and on another device too."""
    tight = Processor(replace(MINI.config, video=replace(MINI.config.video, video_tokens=40)))
    video = {"type": "video", "video": CLIP}
    inputs = tight.batch([user(video), user(text("Hi"))])
    assert len(inputs.notes) == 1 and inputs.notes[0].startswith("the model sees 10 frames instead of 84")
    assert inputs.to("cpu").notes == inputs.notes and MINI(user(video)).notes == ()
    assert tight.clip(video).notes == inputs.notes
    assert tight(user({"type": "video", "video": tight.clip(video)})).notes == inputs.notes


def test_without_thinking():
    """The prompt goes on with an empty thought; in a batch too."""
    with_, without = NANO(user(text("Hi"))), NANO(user(text("Hi")), thinking=False)
    assert plain(without) == plain(with_) + "<think>\n\n</think>\n\n"
    both = NANO.batch([user(text("Hi")), user(text("Hello"))], thinking=False)
    assert plain(both) == plain(without) and plain(both, 1).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_changes_nothing_but_the_layout(tmp_path, thinking):
    """A folder with a template that says what ChatML says: the same inputs, pixels, spans and positions."""
    write_fake_checkpoint(tmp_path / "x", NANO.config)
    image = {"type": "image", "image": noise(30, 60, 3)}
    video = {"type": "video", "video": noise(6, 28, 56, 3), "fps": 2.0}
    messages = [*user(video, text("then"), image, video), {"role": "assistant", "content": "<think>a</think>b"}]
    messages += user(image, text("<|im_end|>"))
    shipped = Processor(tmp_path / "x")
    ours, theirs = NANO(messages, thinking), shipped(messages, thinking)
    assert shipped.template is not None and ours.keys() == theirs.keys() and ours["frames"] == theirs["frames"]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != "frames")


def test_stop_ids_end_an_answer():
    assert [NANO.tokenizer.decode([n], skip_special=False) for n in NANO.stop_ids] == ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "at least one message"),
        ([{"role": "robot", "content": "hi"}], "'system' | 'user' | 'assistant'"),
        ([{"role": "user"}], "content is a string or a list"),
        (user({"type": "sound", "sound": 1}), "content is a string or a list"),
        (user({"type": "text"}), "content is a string or a list"),
        (user({"type": "text", "text": 3}), "content is a string or a list"),
        (user({"type": "image", "image": "no_such_file.png"}), "no_such_file.png is not a readable image"),
        (user({"type": "image", "image": np.zeros((4, 4, 3))}), "uint8 array [height width 3], got float64"),
        (user({"type": "image", "image": np.zeros((4, 4), np.uint8)}), "uint8 array [height width 3]"),
        (
            user({"type": "video", "video": np.zeros((0, 4, 4, 3), np.uint8), "fps": 1}),
            "uint8 array [f height width 3]",
        ),
        (user({"type": "video", "video": np.zeros((2, 4, 900, 3), np.uint8), "fps": 1}), "aspect ratio of up to 200"),
    ],
)
def test_complaints(messages, complaint):
    """One error that says what was expected and what came."""
    with pytest.raises(ValueError) as error:
        NANO(messages)
    assert complaint in str(error.value)


def test_no_conversation():
    with pytest.raises(ValueError, match="at least one conversation"):
        NANO.batch([])


def test_pixels_are_normalised_as_released():
    """(x / 255 - 0.5) / 0.5, channel by channel, cut into patches by torch's own unfold."""
    array = noise(56, 56, 3)  # four tokens, no resizing
    patches = NANO(user({"type": "image", "image": array}))["patches"]
    pixels = (torch.from_numpy(array).permute(2, 0, 1)[None].double() / 255 - 0.5) / 0.5
    blocks = F.unfold(pixels, 14, stride=14)[0].T.reshape(-1, 3, 14, 14)
    torch.testing.assert_close(patches.double(), blocks, atol=1e-6, rtol=0)
