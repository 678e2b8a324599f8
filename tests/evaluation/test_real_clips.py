"""Cards in real footage: how clips are slowed, packed and asked about, with videos and models made here."""

import json
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import real_clips
from minikeye.evaluation.real_clips import (
    QUESTIONS,
    STEP,
    Footage,
    cards,
    decode,
    measure,
    pack,
    prompt_of,
    summarise,
    unpack,
)
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.inputs.video import read_video
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import pixels
from minikeye.minivid.needle import insert_card
from minikeye.scores import wilson

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = KeyeConfig.nano()


def clip_of(count: int, name: str = "clip.mp4", height: int = 28, width: int = 56) -> Footage:
    """Frame n is grey, a bit brighter than the one before."""
    greys = (40 + torch.arange(count)).to(torch.uint8)
    return Footage(name, greys[:, None, None, None].repeat(1, 3, height, width), tuple(0.4 * n for n in range(count)))


def numbers(clip: Footage) -> list[int]:
    """Which frame of `clip_of` each is."""
    return [int(frame[0, 0, 0]) - 40 for frame in clip.frames]


def write_video(path: Path, frames: int, width: int = 112, height: int = 64) -> None:
    """10 frames/s, each frame of one grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            picture = np.full((height, width, 3), 40 + 5 * n, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


# ----------------------------------------------------------------------------------------------------- the slowed clips


@pytest.mark.parametrize(
    ("count", "length", "chosen"),
    [
        (4, 10, [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]),  # back and forth, the ends once
        (3, 7, [0, 1, 2, 1, 0, 1, 2]),
        (2, 5, [0, 1, 0, 1, 0]),
        (1, 4, [0, 0, 0, 0]),
        (9, 5, [0, 2, 4, 6, 8]),  # evenly spaced, both ends
        (9, 4, [0, 3, 5, 8]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 1, [0]),
    ],
)
def test_slowed(count, length, chosen):
    clip = clip_of(count)
    slowed = clip.slowed(length)
    assert numbers(slowed) == chosen and slowed.name == clip.name
    assert slowed.seconds == tuple(0.5 * n for n in range(length))


def test_neighbours_stay_neighbours():
    """However long, a slowed clip never jumps: it goes on by one frame, also where it turns round."""
    frames = numbers(clip_of(60).slowed(1024))
    assert {abs(a - b) for a, b in pairwise(frames)} == {1}
    assert set(frames) == set(range(60))


# ------------------------------------------------------------------------------------------------------------ the cards


@pytest.mark.parametrize(("length", "count"), [(64, 24), (256, 16), (1024, 8), (17, 16), (16, 16)])
def test_cards(length, count):
    """One in each of as many equal parts, with digits in turn and a handwriting of its own."""
    asked = cards("a.mp4", length, count)
    for n, card in enumerate(asked):
        assert n * length / count - 1 < card.frame < (n + 1) * length / count and card.digit == n % 10
    assert len(asked) == count == len({card.seed for card in asked})
    assert {card.digit for card in asked} == set(range(min(10, count)))


def test_cards_are_the_same_in_every_run():
    """Whatever was drawn before; other clips and lengths have others."""
    first = cards("a.mp4", 64, 24)
    torch.rand(5)
    assert cards("a.mp4", 64, 24) == first != cards("b.mp4", 64, 24)
    assert [card.frame for card in cards("a.mp4", 128, 24)] != [2 * card.frame for card in first]


def test_cards_of_a_clip_shorter_than_its_questions():
    """Several in a frame, and none beyond the last."""
    assert {card.frame for card in cards("a.mp4", 3, 16)} == {0, 1, 2}


# --------------------------------------------------------------------------------------------------- the packed archive


def test_packed_and_unpacked(tmp_path):
    """Names, order and shapes come back; colours within what JPEG loses; times are STEP apart."""
    height, width = 56, 84
    slope = torch.linspace(0, 200, width).to(torch.uint8).repeat(3, height, 1)
    frames = torch.stack([slope + 4 * n for n in range(12)])  # more than ten: 2 must not come after 10
    footage = [Footage("b.mp4", frames, tuple(map(float, range(12)))), clip_of(3, "a.webm")]
    pack(tmp_path / "frames.zip", footage)
    back = {clip.name: clip for clip in unpack(tmp_path / "frames.zip")}
    assert list(back) == ["a.webm", "b.mp4"]
    for clip in footage:
        got = back[clip.name]
        assert got.frames.shape == clip.frames.shape and got.frames.dtype == torch.uint8
        assert (got.frames.int() - clip.frames.int()).abs().max() <= 3  # less than from one frame to the next
        assert got.seconds == tuple(STEP * n for n in range(len(clip.frames)))
    assert numbers(back["a.webm"]) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["frames.zip"]


@pytest.mark.parametrize("what", ["text", "empty", "other files"])
def test_what_was_not_packed_is_refused(tmp_path, what):
    path = tmp_path / "frames.zip"
    if what == "text":
        path.write_text("frames")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            if what == "other files":
                archive.writestr("a/0000.jpg", "no picture")
    with pytest.raises(ValueError, match=r"what --pack wrote, an archive of JPEG frames; .*frames.zip is none"):
        unpack(path)


# ---------------------------------------------------------------------------------------------------------- real videos


def test_decoded(tmp_path):
    """Every video of the folder, by name, as `read_video` reads it: the model's own rate, or every frame."""
    write_video(tmp_path / "b.mp4", 30)
    write_video(tmp_path / "a.mp4", 12, 64, 112)
    (tmp_path / "folder").mkdir()
    own = decode(tmp_path, CONFIG)
    assert [clip.name for clip in own] == ["a.mp4", "b.mp4"]
    for clip in own:
        video = read_video(tmp_path / clip.name, CONFIG.video, CONFIG.token_pixels)
        assert torch.equal(clip.frames, video.frames) and clip.seconds == tuple(video.seconds.tolist())
    assert own[0].frames.shape[2] > own[0].frames.shape[3] and own[1].frames.shape[2] < own[1].frames.shape[3]
    whole = decode(tmp_path, CONFIG, fps=1000, max_frames=20)
    assert [len(clip.frames) for clip in whole] == [12, 20]
    greys = [float(frame.float().mean()) for frame in whole[1].frames]
    assert greys == sorted(greys) and greys[0] == pytest.approx(40, abs=3) and greys[-1] == pytest.approx(185, abs=3)


def test_no_clips(tmp_path):
    with pytest.raises(ValueError, match=r"expected video files in .* found none: assets/footage/fetch.py fetches"):
        decode(tmp_path, CONFIG)
    (tmp_path / "notes.txt").write_text("no video " * 99)
    with pytest.raises(VideoError, match=r"notes\.txt"):
        decode(tmp_path, CONFIG)


# ---------------------------------------------------------------------------------------------------------- the answers


class Says(KeyeVL):
    """Gives these answers, one after the other, and keeps what it was asked."""

    def generate(self, inputs, **options):
        self.seen.append((inputs, options))
        rows = [load_tokenizer(CONFIG).encode(next(self.answers)) for _ in inputs["input_ids"]]
        out = torch.full((len(rows), max(map(len, rows)) + 1), -1)
        for n, row in enumerate(rows):
            out[n, : len(row)] = torch.tensor(row)
        return type("Out", (), {"row": lambda self, n: [token for token in out[n].tolist() if token >= 0]})()


def model_that_says(answers: list[str]) -> Says:
    model = Says(CONFIG).eval()
    model.answers, model.seen = iter(answers), []
    return model


@pytest.mark.parametrize("tokens", [1, 700, 10**6])
def test_right_and_wrong_answers_are_counted(tokens):
    """All questions of the view are asked, in batches of any size; wrong is shown beside right."""
    clip = clip_of(20).slowed(64)
    asked = cards(clip.name, 64, 24)
    truths = [f"{card.digit} at {0.5 * card.frame:.1f} s" for card in asked]
    answers = list(truths)
    answers[3] = f"{asked[3].digit} at {0.5 * asked[3].frame + 0.5:.1f} s"  # near enough
    answers[5] = f"{asked[5].digit} at {0.5 * asked[5].frame + 0.6:.1f} s"  # digit only
    answers[6] = f"{(asked[6].digit + 1) % 10} at {0.5 * asked[6].frame:.1f} s"  # second only
    answers[20] = "seven"
    model = model_that_says(answers)
    row = measure(model, clip, "64", "dense", tokens)
    assert (row["digit"], row["second"], row["n"]) == (22, 22, 24)
    assert row["wrong"] == [[truths[n], answers[n]] for n in (5, 6, 20)]
    interval = wilson(22, 24)
    expected = [round(100 * interval.low, 1), round(100 * interval.high, 1)]
    assert row["digit_95"] == row["second_95"] == expected
    where = {"clip": "clip.mp4", "view": "64", "frames": 64, "height": 28, "width": 56, "attention": "dense"}
    assert {name: row[name] for name in where} == where
    assert sum(len(inputs["input_ids"]) for inputs, _ in model.seen) == 24
    assert {options["attention"] for _, options in model.seen} == {"dense"}


def test_every_prompt_has_its_own_card():
    """The pixels differ from the clip's in one frame, the card's, and are those that `insert_card` makes."""
    clip = clip_of(20).slowed(64)
    model = model_that_says(["no"] * 24)
    measure(model, clip, "64", tokens=10**6)
    ((inputs, _),) = model.seen
    plain = pixels(clip.frames, CONFIG)["patches"]
    rows = inputs["patches"].unflatten(0, (24, 64, -1))
    for row, card in zip(rows, cards(clip.name, 64, 24), strict=True):
        changed = (row != plain.unflatten(0, (64, -1))).flatten(1).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [card.frame]
        frames = insert_card(clip.frames, card.frame, card.digit, card.seed)
        assert torch.equal(row.flatten(0, 1), pixels(frames, CONFIG)["patches"])
    assert len({tuple(ids) for ids in inputs["input_ids"].tolist()}) == 1  # and ask the same about the same times


def test_times_of_the_clips_own():
    """A time is what the prompt says, to one decimal, also between the tenths."""
    clip = Footage("own.mp4", clip_of(20).frames, tuple(0.437 * n for n in range(20)))
    truths = [f"{card.digit} at {0.437 * card.frame:.1f} s" for card in cards("own.mp4", 20, 16)]
    row = measure(model_that_says(truths), clip, "own")
    assert (row["n"], row["digit"], row["second"], row["wrong"]) == (16, 16, 16, [])
    text = load_tokenizer(CONFIG).decode(prompt_of(CONFIG, clip).ids, skip_special=False)
    assert "<|frame|>0.4" in text and "<|frame|>8.3" in text and "Which digit is on the card" in text


def test_a_model_is_asked(lively):
    """A real one, of random weights: it answers, and all that it says is wrong."""
    row = measure(lively, clip_of(4, width=28).slowed(64), "64")
    assert row["n"] == 24 == len(row["wrong"]) and row["digit"] == row["second"] == 0


# ---------------------------------------------------------------------------------------------------------- the summary


def line(clip: str, view: str, digit: int, second: int, n: int, shape: tuple[int, int] = (56, 84)) -> dict:
    row = {"clip": clip, "view": view, "n": n, "digit": digit, "second": second, "hardware": "none"}
    return row | {"height": shape[0], "width": shape[1]}


def test_summary_by_hand():
    rows = [
        line("a", "64", 24, 24, 24),
        line("b", "64", 20, 22, 24, (84, 56)),
        line("a", "256", 12, 16, 16),
        line("b", "256", 16, 8, 16, (84, 56)),
    ]
    assert summarise(rows) == {
        "real_clips_digit": 90.0,  # 72 of 80
        "real_clips_second": 87.5,  # 70 of 80
        "real_clips_digit_64": 91.67,  # 44 of 48
        "real_clips_second_64": 95.83,  # 46 of 48
        "real_clips_digit_256": 87.5,  # 28 of 32
        "real_clips_second_256": 75.0,  # 24 of 32
        "real_clips_digit_56x84": 90.0,  # 36 of 40
        "real_clips_second_56x84": 100.0,
        "real_clips_digit_84x56": 90.0,
        "real_clips_second_84x56": 75.0,  # 30 of 40
        "real_clips_second_worst_clip": 75.0,
    }


@pytest.mark.parametrize(("name", "folder"), [("real_clips", "held_out/"), ("other_clips", "other/")])
def test_the_shipped_results(name, folder):
    """The summary is that of the lines; every clip is one of its list, and was asked all questions in every view."""
    result = json.loads((ROOT / "assets" / "results" / f"{name}.json").read_text())
    index = json.loads((ROOT / "assets" / "footage" / "index.json").read_text())
    assert summarise(result["rows"], name) == result["summary"]
    listed = {Path(clip["file"]).name for clip in index["clips"] if clip["file"].startswith(folder)}
    views = {row["view"] for row in result["rows"]}
    assert {row["clip"] for row in result["rows"]} == listed
    assert len(result["rows"]) == len(listed) * len(views)
    for row in result["rows"]:
        assert row["n"] == QUESTIONS[row["view"]] and len(row["wrong"]) <= row["n"]
        assert row["n"] - len(row["wrong"]) <= min(row["digit"], row["second"])


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Call the script; what it printed."""
    torch.manual_seed(0)
    KeyeVL(CONFIG).save_pretrained(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    for name, frames in (("a.mp4", 8), ("b.mp4", 5)):
        write_video(tmp_path / "clips" / name, frames)
    monkeypatch.setattr(real_clips, "QUESTIONS", {"own": 2, "64": 2, "256": 1, "1024": 1})

    def call(*argv: object) -> str:
        words = ["real_clips", "--checkpoint", tmp_path / "model", "--device", "cpu", *argv]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        capsys.readouterr()
        real_clips.main()
        return capsys.readouterr().out

    return call


def test_the_script(script, tmp_path):
    """Both ways of seeing, every clip; a second call adds what is missing; packed frames give the same lines."""
    clips, out = tmp_path / "clips", tmp_path / "out.json"
    script("--clips", clips, "--out", out, "--views", "own", "64")
    first = json.loads(out.read_text())
    assert [(row["clip"], row["view"]) for row in first["rows"]] == [
        ("a.mp4", "own"),
        ("b.mp4", "own"),
        ("a.mp4", "64"),
        ("b.mp4", "64"),
    ]
    assert [row["frames"] for row in first["rows"]][2:] == [64, 64]
    assert first["summary"] == summarise(first["rows"], "out")
    assert script("--clips", clips, "--out", out, "--views", "own", "64") == ""
    assert script("--clips", clips, "--pack", tmp_path / "frames.zip") == ""
    packed = tmp_path / "frames.zip"
    assert script("--clips", packed, "--out", tmp_path / "packed.json", "--views", "64").count("\n") == 2
    again = json.loads((tmp_path / "packed.json").read_text())["rows"]
    assert [{k: row[k] for k in ("clip", "frames", "height", "n")} for row in again] == [
        {k: row[k] for k in ("clip", "frames", "height", "n")} for row in first["rows"][2:]
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--clips", "{clips}"], "expected either --out or --pack"),
        (["--clips", "{clips}", "--out", "o", "--pack", "p"], "expected either --out or --pack"),
        (["--clips", "nowhere", "--out", "o"], "got nowhere, which is not there"),
        (["--clips", "{packed}", "--out", "o"], "lost their own times: expected a folder of clips, or --views 64"),
        (["--clips", "{packed}", "--out", "o", "--views", "64", "own"], "packed frames have lost their own times"),
        (["--clips", "{packed}", "--pack", "p"], "is packed: expected a folder of clips to pack"),
        (["--clips", "{clips}", "--out", "o", "--views", "65"], "invalid choice: '65'"),
    ],
)
def test_what_the_script_refuses(script, tmp_path, capsys, monkeypatch, argv, message):
    """In one line, before anything is decoded or loaded."""
    pack(tmp_path / "packed.zip", [clip_of(2)])
    monkeypatch.setattr(real_clips, "decode", None)
    monkeypatch.setattr(real_clips, "unpack", None)
    places = {"{clips}": tmp_path / "clips", "{packed}": tmp_path / "packed.zip"}
    with pytest.raises(SystemExit) as stop:
        script(*(places.get(word, word) for word in argv))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not Path("o").exists() and not Path("p").exists()
