"""Every command and every error of the command line, in process; and `ask`, which it is built on."""

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import minikeye
import minikeye.inference.generate
from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.checkpoint.taught import taught
from minikeye.cli import commands, opening
from minikeye.cli.main import main, parser
from minikeye.explore import FrameSelection
from minikeye.explore.ask import ask, read_clip
from minikeye.inference.calling import shipped
from minikeye.inference.chat import Chat
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.tokenizer import ByteTokenizer
from minikeye.inputs.video import decode_video
from minikeye.minivid import needle
from minikeye.minivid.tasks import NEEDLE_QUESTION

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Which digit is on the card, and at which second?"
COMMANDS = ("info", "cost", "check", "fake-checkpoint", "answer", "frames", "chat")
MEMORY = re.compile(
    r"memory   [\d.]+ MB for [\d,]+ tokens: weights [\d.]+ MB, cache [\d.]+ .B, activations [\d.]+ MB.*\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of an untrained nano model."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "nano"
    KeyeVL(KeyeConfig.nano()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """3 s at 10 frames/s, 64x64 pixels, each frame of one grey."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for n in range(30):
            picture = np.full((64, 64, 3), 40 + 6 * n, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def loaded(folder) -> tuple[KeyeVL, Processor]:
    return KeyeVL.from_pretrained(folder), Processor(folder)


def run(capsys, *argv) -> tuple[int, str, str]:
    status = main([str(a) for a in argv])
    return status, *capsys.readouterr()


def row(text: str, name: str) -> list[str]:
    """The cells of the first line that begins with `name`."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())


# ------------------------------------------------------------------------------------------------- info, cost, check


def test_info_of_the_released_model(capsys):
    status, out, err = run(capsys, "info")
    assert (status, err) == (0, "")
    assert row(out, "total")[1] == "31,122,082,160"
    assert "8 of 128 per token" in out and "selects 2,048 keys" in out


def test_info_of_a_folder_equals_its_preset(capsys, folder):
    assert run(capsys, "info", "--config", folder) == run(capsys, "info", "--config", "nano")


def test_cost(capsys):
    status, out, err = run(capsys, "cost", "--seconds", 3600)
    assert (status, err) == (0, "")
    assert "2,880 frames of 280x168 pixels, 60 visual tokens each" in out
    scores = row(out, "indexer scores")
    assert scores[1] == "0 FLOP" and scores[2].endswith("PFLOP")
    assert len(re.findall(r"^total .*x$", out, re.M)) == 3
    assert "refuses" not in out


def test_cost_takes_size_rate_and_config(capsys):
    _, out, _ = run(capsys, "cost", "--seconds", 10, "--config", "mini", "--width", 84, "--height", 56, "--fps", 1)
    assert "10 frames of 84x56 pixels, 6 visual tokens each" in out


def test_cost_warns_beyond_the_context(capsys, tmp_path):
    config = KeyeConfig.nano()
    small = dataclasses.replace(config, text=dataclasses.replace(config.text, max_positions=64))
    (tmp_path / "config.json").write_text(json.dumps(small.to_dict()))
    _, out, _ = run(capsys, "cost", "--seconds", 60, "--config", tmp_path)
    assert "more than the context of 64 tokens" in out


def test_check_needs_no_checkpoint(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "CHECKPOINT", tmp_path / "absent")
    status, out, err = run(capsys, "check")
    assert (status, err) == (0, "")
    assert row(out, "torch")[1].split("+")[0] == torch.__version__.split("+")[0]  # which may name a build, too
    assert "backend auto takes torch: " in out
    assert f"none at {tmp_path / 'absent'}" in out


# ------------------------------------------------------------------------------------------------------- answer, frames


def expected_answer(loaded, clip, tokens: int) -> tuple[str, list[int]]:
    model, processor = loaded
    content = [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]
    out = model.generate(
        processor([{"role": "user", "content": content}]), max_new_tokens=tokens, stop_ids=processor.stop_ids
    )
    return processor.tokenizer.decode(out.row()), out.row()


def test_answer(capsys, folder, video, loaded):
    status, out, err = run(capsys, "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 4)
    assert status == 0 and MEMORY.fullmatch(err)
    assert out == expected_answer(loaded, str(video), 4)[0] + "\n"


def test_answer_uses_the_default_checkpoint(capsys, folder, video, monkeypatch):
    asked = "answer", video, QUESTION, "--max-new-tokens", 3
    monkeypatch.setattr(opening, "CHECKPOINT", folder)
    assert run(capsys, *asked) == run(capsys, *asked, "--checkpoint", folder)


def test_frames(capsys, folder, video, tmp_path):
    out_folder = tmp_path / "new" / "demo"
    card = "--insert-card", "7@1.4", "--out", out_folder, "--max-new-tokens", 3
    status, out, err = run(capsys, "frames", video, QUESTION, "--checkpoint", folder, *card)
    assert status == 0 and MEMORY.fullmatch(err)
    steps = re.findall(r"^(\w+) +\d+\.\d\d s  ", out, re.M)
    assert steps == ["load", "video", "prefill", "decode", "picture"]
    assert out.index("\nanswer   ") < out.index("\npicture  ")
    saved = FrameSelection.from_json((out_folder / "selection.json").read_text())
    assert saved.truth == (2,)  # six frames: 0.0, 0.6, 1.2, 1.7, 2.3, 2.9 s; 1.2 is nearest to 1.4
    assert f"card     7 at {saved.seconds[2]:.1f} s, the sampled frame nearest to 1.4 s: " in out
    assert saved.format_table() in out and saved.sentence() in out and str(out_folder / "selection.png") in out
    assert len(saved.labels) == 3
    with Image.open(out_folder / "selection.png") as picture:
        assert picture.format == "PNG" and picture.width > 400
    assert sorted(p.name for p in out_folder.iterdir()) == ["selection.json", "selection.png"]


def test_frames_says_where_a_card_between_two_frames_went(capsys, folder, video, tmp_path):
    """Only sampled frames are seen: 0.0, 0.6, 1.2, 1.7, 2.3 and 2.9 s."""
    asked = "frames", video, QUESTION, "--checkpoint", folder, "--out", tmp_path, "--max-new-tokens", 2, "--insert-card"
    said = {card: re.search("^card     (.*?): ", run(capsys, *asked, card)[1], re.M)[1] for card in ("7@1.4", "7@2.3")}
    assert said == {"7@1.4": "7 at 1.2 s, the sampled frame nearest to 1.4 s", "7@2.3": "7 at 2.3 s"}


def test_seed_draws_another_card(capsys, folder, video, tmp_path, monkeypatch):
    """Of the same digit in the same frame: as `insert_card` draws it for that seed; 0 where no seed is given."""
    drawn, insert_card = [], needle.insert_card
    monkeypatch.setattr(needle, "insert_card", lambda *args: drawn.append(args[1:]) or insert_card(*args))
    asked = "frames", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 2, "--insert-card", "7@1.2"
    for n, seed in enumerate(([], ["--seed", 0], ["--seed", 5])):
        status, out, _ = run(capsys, *asked, "--out", tmp_path / str(n), *seed)
        assert status == 0 and "card     7 at 1.2 s: " in out
    assert drawn == [(2, 7, 0), (2, 7, 0), (2, 7, 5)]
    first, same, other = ((tmp_path / str(n) / "selection.json").read_text() for n in range(3))
    assert first == same != other


def test_help_says_what_a_seed_draws(capsys):
    texts = {}
    for command in ("answer", "frames", "chat"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        texts[command] = " ".join(capsys.readouterr().out.split())
    assert "--seed SEED draw the same answer again" in texts["answer"] and "card" not in texts["chat"]
    assert "the same card again: its handwriting, size, place and colours (card's default: 0)" in texts["frames"]


@pytest.mark.parametrize("fails", ["figure", "to_json"])
def test_the_answer_is_printed_before_anything_is_written(capsys, folder, video, tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrameSelection, fails, full)
    asked = "frames", video, QUESTION, "--checkpoint", folder, "--out", tmp_path, "--max-new-tokens", 2
    status, out, err = run(capsys, *asked)
    assert status == 2 and err.endswith("No space left on device\n")
    assert re.search(r"^answer   ", out, re.M) and "layers " in out and "Traceback" not in err


@pytest.mark.parametrize("kind", ["file", "below a file", "picture is a folder", "read-only"])
def test_the_folder_is_tried_before_the_work(capsys, folder, video, tmp_path, monkeypatch, kind):
    """--out that cannot be written is refused, by its name, before the model is loaded."""
    out = tmp_path / "out"
    if kind == "picture is a folder":
        (out / "selection.png").mkdir(parents=True)
    elif kind == "read-only":  # root may write everywhere: the error of everybody else is raised instead
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "no")))
    else:
        out.write_text("mine")
    place = out / "deeper" if kind == "below a file" else out
    monkeypatch.setattr(KeyeVL, "from_pretrained", None)
    status, printed, err = run(capsys, "frames", video, QUESTION, "--checkpoint", folder, "--out", place)
    assert (status, printed) == (2, "") and f"error: --out {place}: expected a folder to write into: " in err
    assert kind not in ("file", "below a file") or out.read_text() == "mine"


def test_frames_writes_a_page_too(capsys, folder, video, tmp_path):
    """--html beside --out: the page, and it alone, where it was asked for; what was there is replaced."""
    page, out_folder = tmp_path / "page.html", tmp_path / "out"
    page.write_text("old")
    asked = (
        "frames",
        video,
        QUESTION,
        "--checkpoint",
        folder,
        "--max-new-tokens",
        2,
        "--out",
        out_folder,
        "--html",
        page,
    )
    status, out, _ = run(capsys, *asked)
    assert status == 0 and re.search(rf"^page +\d+\.\d\d s  {re.escape(str(page))}$", out, re.M)
    selection = FrameSelection.from_json((out_folder / "selection.json").read_text())
    assert html.escape(selection.sentence()) in page.read_text() and page.read_text().startswith("<!doctype html>")
    assert {path.name for path in tmp_path.iterdir()} >= {"page.html", "out"}
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("page.txt", "expected the name of a web page, which ends in .html, got"),
        ("none/page.html", "expected a file in an existing folder, got"),
        ("folder.html", "expected the name of a file, got the folder"),
    ],
)
def test_the_page_is_tried_before_the_work(capsys, folder, video, tmp_path, monkeypatch, name, told):
    (tmp_path / "folder.html").mkdir()
    page = tmp_path / name
    monkeypatch.setattr(KeyeVL, "from_pretrained", None)
    asked = "frames", video, QUESTION, "--checkpoint", folder, "--out", tmp_path / "out", "--html", page
    status, printed, err = run(capsys, *asked)
    assert (status, printed) == (2, "") and f"error: --html {page}: {told} " in err


@pytest.mark.parametrize("killed_at", [0, 1])
def test_a_kill_never_leaves_new_numbers_beside_an_old_picture(loaded, video, tmp_path, monkeypatch, killed_at):
    """Killed at the first or the second of the two renames."""
    asked = ask(*loaded, video, QUESTION, max_new_tokens=1)
    asked.save(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    renames, rename = [], os.replace

    def kill(source, target):
        renames.append(target)
        if len(renames) > killed_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.replace", kill)
    other = dataclasses.replace(asked, selection=dataclasses.replace(asked.selection, subject="another"))
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    left = {path.name for path in tmp_path.iterdir() if old.get(path.name) == path.read_bytes()}
    new = {path.name for path in tmp_path.iterdir()} - left
    assert not (left and new)


def test_frames_without_a_card(capsys, folder, video, tmp_path):
    arguments = "--checkpoint", folder, "--out", tmp_path, "--max-new-tokens", 2, "--attention", "dense"
    status, out, _ = run(capsys, "frames", video, QUESTION, *arguments)
    assert status == 0 and "\ncard " not in out and "dense attention" in out
    assert json.loads((tmp_path / "selection.json").read_text())["truth"] == []


def test_a_picture_that_fails_leaves_the_old_one(capsys, folder, video, tmp_path, monkeypatch):
    def figure(self):
        raise RuntimeError("no ink")

    (tmp_path / "selection.png").write_text("old")
    monkeypatch.setattr(FrameSelection, "figure", figure)
    arguments = "--checkpoint", folder, "--out", tmp_path, "--max-new-tokens", 2
    status, _, err = run(capsys, "frames", video, QUESTION, *arguments)
    assert status == 2 and err.endswith("minikeye: error: no ink\n")
    assert (tmp_path / "selection.png").read_text() == "old"


@pytest.mark.parametrize(("name", "ending"), [("photo", "jpg"), ("photo", "png"), ("scan", "tiff"), ("video", "mp4")])
def test_answer_takes_a_picture(capsys, folder, loaded, tmp_path, name, ending):
    """As an image without a time; the content counts, not the name."""
    path = tmp_path / f"{name}.{ending}"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    picture.save(path, format="PNG" if ending == "mp4" else None)
    status, out, _ = run(capsys, "answer", path, "What is it?", "--checkpoint", folder, "--max-new-tokens", 4)
    content = [{"type": "image", "image": str(path)}, {"type": "text", "text": "What is it?"}]
    inputs = loaded[1]([{"role": "user", "content": content}])
    expected = loaded[0].generate(inputs, max_new_tokens=4, stop_ids=loaded[1].stop_ids)
    assert (status, out) == (0, loaded[1].tokenizer.decode(expected.row()) + "\n")


def test_what_a_reading_says_of_the_video_is_told_once(capsys, folder, video, tmp_path, monkeypatch):
    """Beside what the plan said: sparser frames, and then what only decoding finds."""
    own = small_budget(folder, tmp_path, video_tokens=4, min_frame_tokens=1, max_frame_tokens=4)

    def noted(plan):
        found = decode_video(plan)
        return dataclasses.replace(found, notes=(*found.notes, "damage at 1.0 s is concealed"))

    for place in ("inputs.processor", "explore.ask"):
        monkeypatch.setattr(f"minikeye.{place}.decode_video", noted)
    asked = video, QUESTION, "--max-new-tokens", 2, "--checkpoint", own
    for command in (["answer"], ["frames", "--out", tmp_path / "out"]):
        err = run(capsys, *command, *asked)[2]
        assert err.count("the model sees 4 frames instead of 6") == err.count("damage at 1.0 s is concealed") == 1


def test_what_the_checkpoint_was_taught_is_told(capsys, folder, video, tmp_path):
    """From a file in its folder, on one line; nothing where there is none."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "taught.json").write_text('{"taught": "one\\nquestion\\u001b[31m"}')
    asked = video, QUESTION, "--max-new-tokens", 2, "--checkpoint"
    for command in (["answer"], ["frames", "--out", tmp_path / "out"]):
        assert "\ntaught   one question [31m\n" in run(capsys, *command, *asked, own)[2]
        assert "taught" not in run(capsys, *command, *asked, folder)[2]
    for bad in ('{"taught": 3}', '{"learned": ""}', json.dumps({"taught": "x" * 401})):
        (own / "taught.json").write_text(bad)
        assert "taught.json must hold {'taught': text" in run(capsys, "answer", *asked, own)[2]


@pytest.mark.parametrize("name", ["mini", "nano"])
def test_the_shipped_checkpoints_say_what_they_were_taught(name):
    said = taught(opening.CHECKPOINT.parent / name)
    assert NEEDLE_QUESTION in said and "it makes an answer up" in said


# ---------------------------------------------------------------------------------------------------- what will be seen


@pytest.fixture(scope="module")
def hour(tmp_path_factory) -> Path:
    """An hour in 7,200 frames of 64x36 pixels."""
    path = tmp_path_factory.mktemp("hour") / "hour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((36, 64, 3), 99, dtype=np.uint8), "rgb24")
        for n in range(7200):
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def small_budget(folder: Path, tmp_path: Path, **video) -> Path:
    """The checkpoint with another video budget."""
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    config = KeyeConfig.from_folder(own)
    changed = dataclasses.replace(config, video=dataclasses.replace(config.video, **video))
    (own / "config.json").write_text(json.dumps(changed.to_dict()))
    return own


def test_a_long_video_is_refused_before_it_is_decoded(capsys, folder, hour, monkeypatch, tmp_path):
    own = small_budget(folder, tmp_path, video_tokens=7200)
    for place in ("inputs.processor", "explore.ask"):
        monkeypatch.setattr(f"minikeye.{place}.decode_video", None)
    monkeypatch.setattr(KeyeVL, "from_pretrained", None)
    for command in (["answer", hour, "q"], ["frames", hour, "q", "--out", tmp_path / "out"], ["chat", hour]):
        status, out, err = run(capsys, *command, "--checkpoint", own)
        assert (status, out) == (2, "") and "--max-context 4096 shows fewer frames" in err
        assert re.search(r"hour\.mp4 \(3,600 s\): 7,200 frames of 56x28 pixels make a prompt of [\d,]+ tokens", err)
    assert not (tmp_path / "out").exists()


def test_with_max_context_the_same_video_fits(capsys, folder, hour, tmp_path):
    own = small_budget(folder, tmp_path, video_tokens=7200)
    counts = []
    for question in ("q", "q" * 600):  # more than the 256 tokens that are set aside for it
        asked = ["answer", str(hour), question, "--checkpoint", str(own), "--max-context", "1024"]
        opened_ = opening.Opened.of(parser().parse_args(asked), [str(hour)])
        [plan] = opened_.foresee(question)
        counts.append(len(plan.seconds))
        assert f"the model sees {counts[-1]:,} frames instead of 7,200" in capsys.readouterr().err
        parts = [{"type": "video", "video": str(hour)}, {"type": "text", "text": question}]
        inputs = opened_.processor([{"role": "user", "content": parts}])
        assert [f.seconds for f in inputs["frames"][0]] == plan.seconds and 500 < inputs["input_ids"].shape[
            1
        ] + 32 - 1 <= 1024
    assert counts[0] > counts[1] > 30


@pytest.mark.parametrize("budget", [4, 12, 10_000])
def test_what_is_lost_is_told_as_it_is_then_seen(capsys, folder, video, tmp_path, budget):
    """Against what the processor gives: sparser, smaller, neither."""
    own = small_budget(folder, tmp_path, video_tokens=budget, min_frame_tokens=1, max_frame_tokens=4)
    arguments = parser().parse_args(["answer", str(video), "q", "--checkpoint", str(own)])
    opened_ = opening.Opened.of(arguments, [str(video)])
    opened_.foresee("q")
    err, clip = capsys.readouterr().err, opened_.processor.clip({"video": str(video)})
    height, width = clip.frames.shape[-2:]
    sparser, smaller = len(clip.seconds) < 6, width * height < 56 * 56
    assert (f"the model sees {len(clip.seconds)} frames instead of 6" in err) == sparser
    assert (f"frames of {width}x{height} pixels instead of 56x56" in err) == smaller
    assert (sparser, smaller) == {4: (True, True), 12: (False, True), 10_000: (False, False)}[budget]


# --------------------------------------------------------------------------------------- how it is held, how it speaks


def test_a_streamed_answer_is_the_same(capsys, folder, video, monkeypatch):
    held = []
    generate = KeyeVL.generate
    monkeypatch.setattr(KeyeVL, "generate", lambda self, *a, **o: held.append(self) or generate(self, *a, **o))
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 4
    assert run(capsys, *asked, "--streaming")[:2] == run(capsys, *asked)[:2]
    assert [isinstance(model.model.layers, torch.nn.ModuleList) for model in held] == [False, True]


def test_bfloat16_halves_the_weights(capsys, folder, video):
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 2
    said = {dtype: run(capsys, *asked, "--dtype", dtype)[2] for dtype in ("float32", "bfloat16")}
    assert "weights 1.15 MB" in said["float32"] and "weights 575 kB" in said["bfloat16"]


def test_a_seed_draws_the_same_answer_again(capsys, folder, video):
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 8, "--temperature", 2, "--seed"
    first, again, other = (run(capsys, *asked, seed)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_top_k_of_one_is_greedy(capsys, folder, video):
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 4
    assert run(capsys, *asked, "--temperature", 2, "--top-k", 1)[1] == run(capsys, *asked)[1]


def test_the_checkpoint_says_how_to_sample_unless_told(folder, tmp_path, video):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.9, "eos_token_id": 258}
    (own / "generation_config.json").write_text(json.dumps(settings))
    arguments = parser().parse_args(
        ["answer", str(video), "q", "--checkpoint", str(own), "--top-k", "5", "--seed", "3"]
    )
    opened_ = opening.Opened.of(arguments, [])
    assert opened_.sampling() == {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": 3}
    assert opened_.given() == {"top_k": 5, "seed": 3}


def test_no_thinking_ends_the_prompt_differently(capsys, folder, video, loaded):
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 6
    _, without, _ = run(capsys, *asked, "--no-thinking")
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": QUESTION}]
    inputs = loaded[1]([{"role": "user", "content": content}], thinking=False)
    expected = loaded[0].generate(inputs, max_new_tokens=6, stop_ids=loaded[1].stop_ids)
    assert without == loaded[1].tokenizer.decode(expected.row()) + "\n"


def test_max_context_gives_a_video_fewer_frames(capsys, folder, video):
    asked = "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 2
    tokens = lambda err: int(re.search(r"for ([\d,]+) tokens", err)[1])  # noqa: E731
    free, bound = run(capsys, *asked), run(capsys, *asked, "--max-context", 290)
    assert free[0] == bound[0] == 0
    assert tokens(bound[2]) < tokens(free[2])


def test_limited_leaves_room_for_text():
    config = opening.limited(KeyeConfig.keye_vl_2_30b_a3b(), 32_768, 1024)
    assert config.text.max_positions == 32_768
    frames = config.video.video_tokens // 64
    assert 32_768 - 74 < frames * (64 + 10) + 256 + 1024 <= 32_768


def test_too_little_memory_is_refused_before_anything_is_read(capsys, folder, video, monkeypatch):
    monkeypatch.setattr(opening, "free_bytes", lambda device: 10_000)
    monkeypatch.setattr(KeyeVL, "from_pretrained", None)
    status, out, err = run(capsys, "answer", video, QUESTION, "--checkpoint", folder)
    assert (status, out) == (2, "")
    assert "does not fit" in err and "error: cpu has 10.0 kB free" in err.splitlines()[-1]


def test_much_of_the_memory_is_told_in_a_table(capsys, folder, video, monkeypatch):
    monkeypatch.setattr(opening, "free_bytes", lambda device: 300_000_000)
    status, _, err = run(capsys, "answer", video, QUESTION, "--checkpoint", folder, "--max-new-tokens", 2)
    assert status == 0 and re.search(r"^cpu .* 300 MB  fits$", err, re.M)


@pytest.mark.parametrize(
    ("gpus", "name", "streaming", "devices"),
    [
        (0, "auto", False, ("cpu",)),
        (1, "auto", False, ("cuda:0",)),
        (2, "auto", False, ("cuda:0", "cuda:1")),
        (2, "auto", True, ("cuda:0",)),
        (2, "cuda:1", False, ("cuda:1",)),
        (2, "cpu", False, ("cpu",)),
    ],
)
def test_devices(monkeypatch, gpus, name, streaming, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert opening.choose_devices(name, streaming) == devices


def test_info_names_the_keys_that_are_not_read(capsys, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({**KeyeConfig.nano().to_dict(), "tie_word_embeddings": False, "x": 1})
    )
    _, out, _ = run(capsys, "info", "--config", tmp_path)
    assert re.findall("^not read .*", out, re.M) == ["not read  config.json: x"]


def test_check_refuses_before_it_prints(capsys):
    for argv in (["--context", "9"], ["--checkpoint", "nano", "--context", "0"], ["--checkpoint", "huge"]):
        status, out, _ = run(capsys, "check", *argv)
        assert (status, out) == (2, "")


def test_check_remarks_on_a_context_that_the_model_does_not_have(capsys):
    for context, remark in ((99_999_999, "; the model refuses more than its context of 262,144"), (262_144, "")):
        _, out, _ = run(capsys, "check", "--checkpoint", "keye_vl_2_30b_a3b", "--context", context)
        assert f"memory for {context:,} tokens, with as much video as they hold{remark}\n" in out


def test_check_counts_memory(capsys):
    status, out, err = run(capsys, "check", "--checkpoint", "keye_vl_2_30b_a3b", "--context", 8192)
    assert (status, err) == (0, "") and "memory for 8,192 tokens" in out
    assert row(out, "cpu, bfloat16  ")[1] == "62.2 GB" and row(out, "cpu, float32  ")[1] == "124 GB"
    assert float(row(out, "cpu, bfloat16, streaming")[1].split()[0]) < 6


def test_a_fake_checkpoint_answers(capsys, tmp_path, video):
    status, out, _ = run(capsys, "fake-checkpoint", tmp_path / "fake", "--small", "--layers", 1, "--seed", 3)
    assert status == 0 and "random weights" in out
    assert run(capsys, "answer", video, "hello", "--checkpoint", tmp_path / "fake", "--max-new-tokens", 2)[0] == 0
    _, again, _ = run(capsys, "info", "--config", tmp_path / "fake")
    assert "decoder    1 layers" in again


# ---------------------------------------------------------------------------------------------------------------- chat


def typed(monkeypatch, *lines: str | type[BaseException]) -> None:
    """What the user types; an exception instead of a line is raised."""
    left = list(lines)

    def read(prompt: str) -> str:
        line = left.pop(0) if left else EOFError
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)


def test_chat_answers_in_turns(capsys, monkeypatch, folder, video, loaded):
    typed(monkeypatch, "What is it?", "And then?")
    arguments = "chat", video, "--checkpoint", folder, "--max-new-tokens", 4
    status, out, err = run(capsys, *arguments)
    assert status == 0 and MEMORY.match(err)
    assert err.endswith("chat     an empty line or Ctrl-D ends it, /reset starts again, Ctrl-C breaks off an answer\n")
    talk = Chat(*loaded)
    first = [{"type": "video", "video": str(video)}, {"type": "text", "text": "What is it?"}]
    pieces: list[str] = []
    for content in (first, "And then?"):
        talk.ask(content, max_new_tokens=4, on_text=pieces.append)
        pieces.append("\n\n")
    assert out == "".join(pieces) + "\n"


def test_chat_shows_the_videos_once_and_again_after_a_reset(capsys, monkeypatch, folder, video):
    kinds, ask = [], Chat.ask

    def spy(self, content, **options):
        kinds.append(([part["type"] for part in content], len(self.messages)))
        return ask(self, content, **options)

    monkeypatch.setattr(Chat, "ask", spy)
    typed(monkeypatch, "What is it?", "And then?", "/reset", "What is it?", "")
    assert run(capsys, "chat", video, "--checkpoint", folder, "--max-new-tokens", 2)[0] == 0
    assert kinds == [(["video", "text"], 0), (["text"], 2), (["video", "text"], 0)]


def test_chat_survives_a_question_that_is_too_long(capsys, monkeypatch, folder):
    typed(monkeypatch, "x" * 5000, "hello")
    status, out, _ = run(capsys, "chat", "--checkpoint", folder, "--max-new-tokens", 2)
    assert status == 0 and out.startswith("error: ") and out.count("\n\n") == 2


def test_chat_survives_ctrl_c_in_an_answer_and_ends_by_it_at_the_prompt(capsys, monkeypatch, folder):
    def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "ask", interrupted)
    typed(monkeypatch, "hello", KeyboardInterrupt)
    status, out, err = run(capsys, "chat", "--checkpoint", folder)
    assert (status, out) == (130, " (stopped)\n\n") and err.endswith("minikeye: stopped\n")


@pytest.fixture
def script(monkeypatch):
    """Makes the model say given texts, each of which ends a turn; by the tokenizer of bytes."""

    def say(*texts: str) -> None:
        left = iter([token for words in texts for token in [*words.encode(), ByteTokenizer().token_id("<|im_end|>")]])
        monkeypatch.setattr(minikeye.inference.generate, "sample", lambda *_: torch.tensor([next(left)]))

    return say


LOOK = '<tool_call>{"name": "look", "arguments": {"start": 1, "end": 1.5}}</tool_call>'
PYTHON = '<tool_call>{"name": "python", "arguments": {"code": "print(1)\\n\'-\' * 200"}}</tool_call>'


@pytest.mark.parametrize("template", [None, "without tools", "with tools"])
def test_chat_shows_what_is_called_and_what_came_back(capsys, monkeypatch, tmp_path, folder, video, script, template):
    """With ChatML, and with folders of the released layout whose template has words for tools, or none. The frames that
    a look shows stand in the prompt behind the video's own."""
    if template is not None:
        folder = tmp_path / "fake"
        run(capsys, "fake-checkpoint", folder, "--small")
    if template == "with tools":
        shutil.copy(ROOT / "tests" / "inputs" / "qwen3.jinja", folder / "chat_template.jinja")
    script(LOOK, f"{PYTHON}<tool_call>", "A circle.", "Yes.")
    typed(monkeypatch, "What is it?", "Sure?")
    seen, by_template, build = [], set(), Processor.build

    def spy(self, messages, **layout):
        if len(messages) > 1:
            by_template.add("tools" in layout)
            seen.append(build(self, messages, **layout))
        return build(self, messages, **layout)

    monkeypatch.setattr(Processor, "build", spy)
    status, out, err = run(capsys, "chat", video, "--checkpoint", folder, "--tools", "look, python")
    assert status == 0 and err.endswith("Ctrl-C breaks off an answer\n")
    result = "1 '" + "-" * 157 + "... (the first 160 of 204 characters)"
    error = 'error: expected </tool_call> after <tool_call>{"name": ..., "arguments": {...}}'
    assert out == (
        f"{LOOK}\ncall     look(start=1, end=1.5)\nresult   4 frames, 1.0 to 1.5 s\n"
        f"{PYTHON}<tool_call>\n"
        f"call     python(code=\"print(1)\\n'-' * 200\")\nresult   {result}\n\n"
        f"call     none that can be read\nresult   {error}\nA circle.\n\nYes.\n\n\n"
    )
    last = seen[-1][0]
    assert [frame.seconds for frame in last.frames[6:]] == [1.0, 1.2, 1.3, 1.5] and last.videos == 2
    words = last.tokenizer.decode(last.ids)
    assert words.startswith("system\n# Tools\n\nYou may call") and words.count('"name": "look", "description"') == 1
    assert by_template == {template == "with tools"}
    assert words.count("<tool_response>") == words.count("</tool_response>") == 3


def test_chat_survives_ctrl_c_in_a_tool(capsys, monkeypatch, folder, video, script):
    """The question was never asked, so the next one shows the video again."""
    real, fails = shipped.decoded, [KeyboardInterrupt, OSError("the disk is gone")]

    def decoded(plan):
        if fails:
            raise fails.pop(0)
        return real(plan)

    monkeypatch.setattr(shipped, "decoded", decoded)
    script(LOOK, LOOK, LOOK, "A circle.")
    typed(monkeypatch, "What is it?", "What is it?")
    status, out, _ = run(capsys, "chat", video, "--checkpoint", folder, "--tools", "look")
    call = f"{LOOK}\ncall     look(start=1, end=1.5)"
    stopped, told = f"{call} (stopped)\n\n", f"{call}\nresult   error: OSError: the disk is gone\n"
    assert status == 0 and out == f"{stopped}{told}{call}\nresult   4 frames, 1.0 to 1.5 s\nA circle.\n\n\n"


def test_chat_says_when_the_turns_are_used_up(capsys, monkeypatch, folder, script):
    call = '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>'
    script(*[call] * 8, "Yes.")
    typed(monkeypatch, "Well?", "Go on")
    _, out, _ = run(capsys, "chat", "--checkpoint", folder, "--tools", "python")
    used = "(8 turns are used up, the calls of the last not carried out: ask again to go on)"
    assert out.count("result   1\n") == 7 and out.endswith(f"{call}\n{used}\n\nYes.\n\n\n")


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    examples = re.findall(r"^example: minikeye (.*)$", capsys.readouterr().out, re.M)
    assert len(examples) == 1
    assert parser().parse_args(shlex.split(examples[0])).run is getattr(commands, command.replace("-", "_"))


def test_help_and_version(capsys):
    for argument in ("--help", "--version"):
        with pytest.raises(SystemExit) as stop:
            main([argument])
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {command}(\s|$)", out, re.M) for command in COMMANDS)
    assert out.endswith(f"minikeye {minikeye.__version__}\n")


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "--config", "huge"], "no preset and no folder 'huge': give a folder or one of keye_vl_2_30b_a3b,"),
        (["info", "--config", "{empty}"], "expected a config.json in"),
        (["cost", "--seconds", "-1"], "expected a positive duration"),
        (["cost", "--seconds", "9", "--fps", "0"], "fps must be a positive number"),
        (["cost", "--seconds", "9", "--width", "0"], "at least 1 pixel"),
        (["answer", "none.mp4", "q"], "no video file none.mp4"),
        (["frames", "none.mp4", "q"], "no video file none.mp4"),
        (["frames", "{video}", "q"], "it comes with the repository, not with the installed package"),
        (["frames", "{video}", "q", "--checkpoint", "{empty}"], "expected a config.json in"),
        (["frames", "{video}", "q", "--checkpoint", "no/such/folder"], "no folder no/such/folder"),
        (["frames", "{text}", "q", "--checkpoint", "{folder}"], "not a video that can be read"),
        (["frames", "{video}", "q", "--checkpoint", "{folder}", "--insert-card", "7@99"], "between 0 and 3.0 s"),
        (
            ["answer", "{video}", "q", "--checkpoint", "{folder}", "--max-new-tokens", "0"],
            "--max-new-tokens >= 1",
        ),
        (
            ["answer", "{video}", "q", "--checkpoint", "{folder}", "--backend", "triton"],
            "Use --backend torch, or 'auto'",
        ),
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--device", "tpu9"], "tpu9"),
        (
            ["answer", "{video}", "q", "--checkpoint", "{folder}", "--max-context", "99"],
            "--max-context must lie in 299..",
        ),
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--max-context", "9999"], "..4096, got 9999"),
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--top-p", "2"], "lie above 0 and up to 1, got 2.0"),
        (["chat", "none.mp4"], "no video file none.mp4"),
        (["chat", "{video}", "--checkpoint", "{folder}", "--tools", "see"], "--tools among look, python, got 'see'"),
        (["chat", "--checkpoint", "{folder}", "--tools", "look"], "expected one video for --tools look, got 0"),
        (["chat", "{picture}", "--checkpoint", "{folder}", "--tools", "look"], "one video for --tools look, got 0"),
        (["chat"], "it comes with the repository, not with the installed package"),
        (["check", "--checkpoint", "huge"], "no preset and no folder 'huge'"),
        (["check", "--checkpoint", "nano", "--context", "0"], "--context must be at least 1 token, got 0"),
        (["check", "--context", "9"], "--context counts for a model: name one with --checkpoint"),
        (["fake-checkpoint", "{folder}", "--small"], "not empty"),
        (["fake-checkpoint", "{empty}", "--small", "--layers", "0"], "at least one layer"),
        (
            ["frames", "{picture}", "q", "--checkpoint", "{folder}"],
            "has no frames to choose from: use `minikeye answer`",
        ),
    ],
)
def test_an_error_is_one_message_and_status_2(capsys, monkeypatch, tmp_path, folder, video, argv, message):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty"
    text.write_text("not a video " * 99)
    empty.mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.jpg")
    monkeypatch.setattr(opening, "CHECKPOINT", tmp_path / "absent")
    places = {
        "{video}": video,
        "{folder}": folder,
        "{empty}": empty,
        "{text}": text,
        "{picture}": tmp_path / "picture.jpg",
    }
    for name, place in places.items():
        argv = [a.replace(name, str(place)) for a in argv]
    status, _, err = run(capsys, *argv)
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("minikeye: error: ") and message in err and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu(capsys, folder, video):
    status, _, err = run(capsys, "answer", video, "q", "--checkpoint", folder, "--device", "cuda")
    assert status == 2 and "torch sees no GPU: use --device cpu" in err


@pytest.mark.parametrize("card", ["7", "7@", "@3", "12@3", "-1@3", "7.5@3", "seven@3"])
def test_a_bad_card_is_a_usage_error(capsys, card):
    with pytest.raises(SystemExit) as stop:
        main(["frames", "v.mp4", "q", f"--insert-card={card}"])
    assert stop.value.code == 2
    assert "expected DIGIT@SECONDS such as 7@3.0" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["dance"], ["cost"], ["frames", "v.mp4"], ["answer"], ["fake-checkpoint"]])
def test_usage_errors(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: minikeye" in capsys.readouterr().err


def test_ctrl_c(capsys, monkeypatch, video):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(opening.Opened, "of", interrupted)
    assert run(capsys, "answer", video, "q") == (130, "", "minikeye: stopped\n")


# ----------------------------------------------------------------------------------------------------------------- ask


def test_ask_records_the_answer_it_gives(loaded, video):
    told = []
    asked = ask(*loaded, video, QUESTION, insert_card=(7, 1.2), max_new_tokens=5, on_step=lambda *a: told.append(a))
    answer, ids = expected_answer(loaded, asked.clip, 5)
    decode = loaded[1].tokenizer.decode
    assert asked.answer == answer
    assert asked.selection.labels == tuple(decode([n], skip_special=False) for n in ids)
    assert asked.record.queries == len(ids)
    assert asked.record.layers[0].indices[0, 0].max() <= asked.record.first  # the last token of the prompt
    assert list(asked.seconds) == ["video", "prefill", "decode"] == [step for step, _, _ in told]
    assert [seconds for _, seconds, _ in told] == list(asked.seconds.values())
    assert [f.seconds for f in asked.frames] == asked.clip.seconds
    assert asked.selection.truth == asked.truth == (2,)
    assert asked.card == (7, asked.clip.seconds[2])


@pytest.mark.parametrize(("seconds", "frame"), [(0.0, 0), (0.29, 0), (0.31, 1), (1.2, 2), (2.9, 5), (3.0, 5)])
def test_the_card_goes_into_the_nearest_frame(loaded, video, seconds, frame):
    plain, nothing = read_clip(loaded[1], video)
    clip, truth = read_clip(loaded[1], video, (3, seconds))
    assert (nothing, truth) == ((), (frame,))
    changed = (plain.frames != clip.frames).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [frame]
    assert clip.seconds == plain.seconds


def test_a_seed_changes_the_card_only(loaded, video):
    """Every seed another card in the same frame, the same seed the same card; `ask` tells it from that of sampling."""
    cards = [read_clip(loaded[1], video, (3, 1.2), seed)[0].frames for seed in (0, 1, 2, 1)]
    assert torch.equal(cards[1], cards[3]) and not torch.equal(cards[1], cards[2])
    for other in cards[1:]:
        changed = (other != cards[0]).flatten(1).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [2]
    options = {"insert_card": (3, 1.2), "max_new_tokens": 6, "temperature": 5.0}
    runs = [ask(*loaded, video, QUESTION, **options, card_seed=card, seed=seed) for card, seed in ((1, 0), (1, 1))]
    assert all(torch.equal(asked.clip.frames, cards[1]) for asked in runs) and runs[0].answer != runs[1].answer


@pytest.mark.parametrize("seconds", [-0.1, 3.01, float("nan")])
def test_no_card_outside_the_video(loaded, video, seconds):
    with pytest.raises(VideoError, match=r"between 0 and 3\.0 s"):
        read_clip(loaded[1], video, (3, seconds))


def test_no_card_without_a_digit(loaded, video):
    with pytest.raises(ValueError, match="one digit"):
        read_clip(loaded[1], video, (10, 1.0))


def test_an_empty_answer_is_an_error(loaded, folder, video):
    class Stops(Processor):
        stop_ids = tuple(range(320))  # every token ends the answer

    with pytest.raises(RuntimeError, match="answer is empty"):
        ask(loaded[0], Stops(folder), video, QUESTION)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("7 at 1.2 s", "the answer is right"),
        ("7 at 1.7 s", "the answer is right"),
        ("7 at 1.8 s", "the answer is wrong in the second"),
        ("1 at 1.2 s", "the answer is wrong in the digit"),
        ("1 at 2.9 s", "the answer is wrong in the digit and the second"),
        ("seven", "the answer is not of the form '7 at 3.0 s'"),
    ],
)
def test_verdict(loaded, video, answer, verdict):
    asked = ask(*loaded, video, QUESTION, insert_card=(7, 1.2), max_new_tokens=1)
    assert dataclasses.replace(asked, answer=answer).verdict() == verdict
    with pytest.raises(ValueError, match="no card was inserted"):
        dataclasses.replace(asked, card=None).verdict()


def test_idle_threads_sleep_unless_told_otherwise(monkeypatch, capsys):
    for before, after in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if before is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", before)
        assert main(["info", "--config", "nano"]) == 0
        assert os.environ["OMP_WAIT_POLICY"] == after
