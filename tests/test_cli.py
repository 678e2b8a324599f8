"""Every command and every error of the command line, in process; and `ask`, which it is built on."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import minikeye
from minikeye import KeyeConfig, KeyeVL, Processor, cli
from minikeye.explore import FrameSelection
from minikeye.explore.ask import ask, read_clip
from minikeye.sampling import VideoError

QUESTION = "Which digit is on the card, and at which second?"
COMMANDS = ("info", "cost", "check", "answer", "frames")


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
    status = cli.main([str(a) for a in argv])
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
    monkeypatch.setattr(cli, "CHECKPOINT", tmp_path / "absent")
    status, out, err = run(capsys, "check")
    assert (status, err) == (0, "")
    assert row(out, "torch")[1] == torch.__version__
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
    assert (status, err) == (0, "")
    assert out == expected_answer(loaded, str(video), 4)[0] + "\n"


def test_answer_uses_the_default_checkpoint(capsys, folder, video, monkeypatch):
    asked = "answer", video, QUESTION, "--max-new-tokens", 3
    monkeypatch.setattr(cli, "CHECKPOINT", folder)
    assert run(capsys, *asked) == run(capsys, *asked, "--checkpoint", folder)


def test_frames(capsys, folder, video, tmp_path):
    out_folder = tmp_path / "new" / "demo"
    card = "--insert-card", "7@1.4", "--out", out_folder, "--max-new-tokens", 3
    status, out, err = run(capsys, "frames", video, QUESTION, "--checkpoint", folder, *card)
    assert (status, err) == (0, "")
    steps = re.findall(r"^(\w+) +\d+\.\d\d s  ", out, re.M)
    assert steps == ["load", "video", "prefill", "decode", "picture"]
    saved = FrameSelection.from_json((out_folder / "selection.json").read_text())
    assert saved.truth == (2,)  # six frames: 0.0, 0.6, 1.2, 1.7, 2.3, 2.9 s; 1.2 is nearest to 1.4
    assert f"card     7 at {saved.seconds[2]:.1f} s: " in out
    assert saved.format_table() in out and saved.sentence() in out and str(out_folder / "selection.png") in out
    assert len(saved.labels) == 3
    with Image.open(out_folder / "selection.png") as picture:
        assert picture.format == "PNG" and picture.width > 400
    assert sorted(p.name for p in out_folder.iterdir()) == ["selection.json", "selection.png"]


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
    assert (status, err) == (2, "minikeye: error: no ink\n")
    assert (tmp_path / "selection.png").read_text() == "old"


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    examples = re.findall(r"^example: minikeye (.*)$", capsys.readouterr().out, re.M)
    assert len(examples) == 1
    assert cli.parser().parse_args(shlex.split(examples[0])).run is getattr(cli, command)


def test_help_and_version(capsys):
    for argument in ("--help", "--version"):
        with pytest.raises(SystemExit) as stop:
            cli.main([argument])
        assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {command} ", out, re.M) for command in COMMANDS)
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
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--max-new-tokens", "0"], "max_new_tokens >= 1"),
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--backend", "triton"], "'triton' cannot run"),
        (["answer", "{video}", "q", "--checkpoint", "{folder}", "--device", "tpu9"], "tpu9"),
        (["frames", "{video}", "q", "--checkpoint", "{folder}", "--out", "{text}/x"], "Not a directory"),
    ],
)
def test_an_error_is_one_message_and_status_2(capsys, monkeypatch, tmp_path, folder, video, argv, message):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty"
    text.write_text("not a video " * 99)
    empty.mkdir()
    monkeypatch.setattr(cli, "CHECKPOINT", tmp_path / "absent")
    places = {"{video}": video, "{folder}": folder, "{empty}": empty, "{text}": text}
    for name, place in places.items():
        argv = [a.replace(name, str(place)) for a in argv]
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.startswith("minikeye: error: ") and message in err and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_gpu(capsys, folder, video):
    status, _, err = run(capsys, "answer", video, "q", "--checkpoint", folder, "--device", "cuda")
    assert status == 2 and "torch sees no CUDA device" in err


@pytest.mark.parametrize("card", ["7", "7@", "@3", "12@3", "-1@3", "7.5@3", "seven@3"])
def test_a_bad_card_is_a_usage_error(capsys, card):
    with pytest.raises(SystemExit) as stop:
        cli.main(["frames", "v.mp4", "q", f"--insert-card={card}"])
    assert stop.value.code == 2
    assert "expected DIGIT@SECONDS such as 7@3.0" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["dance"], ["cost"], ["frames", "v.mp4"], ["answer"]])
def test_usage_errors(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: minikeye" in capsys.readouterr().err


def test_ctrl_c(capsys, monkeypatch, video):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
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
