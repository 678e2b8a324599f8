"""`minikeye evaluate` from data folder to scores: the shipped clip as TimeLens data, with the nano checkpoint."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from minikeye import KeyeVL
from minikeye.cli.evaluating import evaluate
from minikeye.cli.main import main, parser
from minikeye.evaluation.benchmarks.run import BENCHMARKS

from .conftest import timelens_rows, write

ROOT = Path(__file__).resolve().parents[3]
CLIP = ROOT / "assets" / "clips" / "big_buck_bunny.mp4"
NANO = ROOT / "assets" / "checkpoints" / "nano"
QUERIES = ["a rabbit wakes up.", "the red circle is visible", "a card is shown"]


@pytest.fixture
def data(tmp_path) -> Path:
    """Three queries about the clip."""
    spans = [[1.0, 5.0], [10.0, 20.0], [30.0, 31.5]]
    write(tmp_path / "data" / "charades-timelens.json", {"b": {"duration": 42, "spans": spans, "queries": QUERIES}})
    videos = tmp_path / "data" / "videos" / "charades"
    videos.mkdir(parents=True)
    (videos / "b.mp4").symlink_to(CLIP)  # as those do whose disk is elsewhere
    return tmp_path / "data"


@pytest.fixture
def ask(capsys, tmp_path, data):
    def run(*more, folder="out", name="timelens") -> tuple[int, str, str]:
        options = ["--data", data, "--checkpoint", NANO, "--out", tmp_path / folder, "--max-new-tokens", 12]
        status = main(["evaluate", name, *map(str, [*options, *more])])
        return status, *capsys.readouterr()

    return run


def answers(folder: Path, name: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_from_data_to_scores(ask, tmp_path, monkeypatch):
    """Three lines, a report beside the blind run, the official file; a finished run loads no model."""
    status, out, err = ask()
    assert status == 0, err
    lines = answers(tmp_path / "out")
    assert [one["key"] for one in lines] == ["charades/b/0", "charades/b/1", "charades/b/2"]
    assert {one["error"] for one in lines} == {""} and all(one["frames"] > 100 for one in lines)
    assert re.search(r"^evaluate 3 of 3 answered, [\d.]+ s each, about 0 s left$", err, re.M)
    assert "timelens: 3 of 3 questions, videos: 1; unparsed: " in out and BENCHMARKS["timelens"].rule in out
    assert f"sampling  4 frames/s (the report's setting); seen: {lines[0]['frames']} frames of " in out
    assert re.search(r"^miou +set: charades +3 .* - +\d$", out, re.M)
    assert len(json.loads((tmp_path / "out" / "timelens-charades.json").read_text(encoding="utf-8"))) == 3

    status, out, _ = ask("--blind")
    assert status == 0 and "blind: no video was shown" in out
    blind = answers(tmp_path / "out", "blind-answers.jsonl")
    assert {one["frames"] for one in blind} == {0}
    assert all(b["prompt_tokens"] < a["prompt_tokens"] for a, b in zip(lines, blind, strict=True))

    monkeypatch.setattr(KeyeVL, "from_pretrained", lambda *a, **k: pytest.fail("nothing is left to ask"))
    status, out, err = ask()
    assert status == 0 and "3 of 3 answers are in" in err
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert re.search(r"^miou +set: charades +3 .* \d+\.\d +\d$", out, re.M)
    assert found["scores"][0]["blind"] is not None and found["settings"]["fps"] == 4.0

    status, _, err = ask("--fps", 1)
    assert status == 2 and "fps was 4.0, now 1.0. Take another --out" in err


def test_frames_limit_and_a_broken_video(ask, tmp_path, data):
    """What cannot be read is one wrong answer, with its error; then one that is not there, likewise."""
    rows = json.loads((data / "charades-timelens.json").read_text(encoding="utf-8"))
    write(data / "charades-timelens.json", {"AB12": timelens_rows()["AB12"], "gone": timelens_rows()["CD34"], **rows})
    (data / "videos" / "charades" / "AB12.mp4").write_bytes(CLIP.read_bytes()[:20_000])
    status, out, err = ask("--frames", 8, "--limit", 4)
    assert status == 0, err
    lines = answers(tmp_path / "out")
    assert [one["frames"] for one in lines] == [0, 0, 0, 8]
    assert all("VideoError" in one["error"] and "AB12.mp4" in one["error"] for one in lines[:2])
    assert "gone.mp4" in lines[2]["error"] and f"charades/gone/0: {lines[2]['error']}" in err
    assert "4 of 6 questions" in out and "of these never asked for an error: 3" in out
    assert "8 frames a video (as asked for); seen: 8 frames of" in out


def test_what_does_not_fit_the_context_is_told(ask, tmp_path):
    status, out, _ = ask("--limit", 1, "--max-new-tokens", 4000)
    assert status == 0 and "never asked for an error: 1" in out
    assert re.search(r"4,000 of answer exceed the context of 4,096: lower --fps", answers(tmp_path / "out")[0]["error"])


def test_errors_before_any_work(ask, tmp_path, data, capsys):
    for options, said in {
        ("--limit", "0"): "--limit must be at least 1",
        ("--frames", "0"): "--frames must be at least 1",
        ("--fps", "-1"): "--fps must be a number above 0",
        ("--data", str(tmp_path)): "--data names the folder that TimeLens-Bench unpacks to",
        ("--checkpoint", "nowhere"): "no folder nowhere",
    }.items():
        status, out, err = ask(*options)
        assert (status, out) == (2, "") and said in err
    shutil.rmtree(data / "videos")
    status, _, err = ask()
    assert status == 2 and "none of the videos is there, such as" in err
    with pytest.raises(SystemExit):
        ask(name="imagenet")
    assert "timelens" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ask("--fps", 1, "--frames", 2)
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_help_holds_an_example_that_parses(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0
    [example] = re.findall(r"^example: minikeye (.*)$", capsys.readouterr().out, re.M)
    arguments = parser().parse_args(shlex.split(example))
    assert (arguments.run, arguments.name, arguments.temperature) == (evaluate, "timelens", 0.0)


def test_defaults_are_the_reports():
    """Keye's own: 4 frames a second, 64 frames, 2 frames a second; the last is not said there."""
    found = {name: (one.fps, one.frames) for name, one in BENCHMARKS.items()}
    assert found == {
        "timelens": (4.0, None),
        "video-mme-v2": (None, 64),
        "longvideobench": (2.0, None),
        "mlvu": (2.0, None),
    }
    assert BENCHMARKS["mlvu"].whose.startswith("our choice")
