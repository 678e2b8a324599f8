"""Needles in a film: what is asked, what is shown, what answers score; then from the command line, with nano."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from minikeye.cli import needles
from minikeye.cli.main import main
from minikeye.evaluation.benchmarks.run import Answer
from minikeye.evaluation.niah.both_ways import Answered
from minikeye.evaluation.niah.film import FORM, Picture, fitted, found, hide, maps, questions, read_pictures, report
from minikeye.keye import KeyeVL

ROOT = Path(__file__).resolve().parents[3]
NANO = ROOT / "assets" / "checkpoints" / "nano"
FILM = Path("film.mp4")
CLOCKS = {4: [0.0, 1.0, 2.0, 3.0], 11: [0.3 * n for n in range(11)]}


def picture_file(folder: Path, name: str, size: tuple[int, int], colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", size, colour).save(folder / name)
    return folder / name


def cards(count: int = 3) -> list:
    return questions(FILM, CLOCKS, [0.0, 0.5, 1.0], count, [], FORM)


# ---------------------------------------------------------------------------------------------------------- the asking


def test_a_card_for_each_length_and_depth():
    """Three a cell, digits in turn, the true second that of the frame, within the jitter of the depth."""
    asked = cards()
    assert len(asked) == len({one.key for one in asked}) == 2 * 3 * 3
    for one in asked:
        where = one.details
        last = where["frames"] - 1
        assert abs(where["frame"] - where["depth"] * last) <= 0.05 * last + 0.5
        second = CLOCKS[where["frames"]][where["frame"]]
        assert one.truth == f"{where['digit']} at {second:.1f} s"
        assert one.prompt == 'Which digit is on the card, and at which second? Answer in the form "3 at 12.5 s".'
        near = sum(abs(t - second) <= 0.5 + 1e-9 for t in CLOCKS[where["frames"]])
        assert where["chance"] == near / where["frames"] / 10
    assert [one.details["digit"] for one in asked[:4]] == [0, 1, 2, 0]
    assert cards() == asked


def test_the_needle_is_in_its_frame_alone(tmp_path):
    frames = torch.full((4, 3, 56, 84), 90, dtype=torch.uint8)
    pictures = [Picture(picture_file(tmp_path, "a.png", (10, 10), (255, 0, 0)), "Colour?", "red")]
    for one in [*cards()[:9], *questions(FILM, {4: CLOCKS[4]}, [0.0, 1.0], 1, pictures, FORM)]:
        shown = hide(one, frames)
        assert (shown != frames).flatten(1).any(1).nonzero().flatten().tolist() == [one.details["frame"]]


def test_a_picture_is_fitted_whole(tmp_path):
    """20x10 pixels into 28 rows of 56: all of it; 10x20: 14 columns in the middle, black beside them."""
    wide = fitted(picture_file(tmp_path, "wide.png", (20, 10), (255, 0, 0)), 28, 56)
    assert wide[0].unique().tolist() == [255] and wide[1:].unique().tolist() == [0]
    tall = fitted(picture_file(tmp_path, "tall.png", (10, 20), (0, 255, 0)), 28, 56)
    assert tall[1].gt(0).any(0).nonzero().flatten().tolist() == list(range(21, 35)) and tall[1].gt(0).any(1).all()


def test_pictures_in_longvas_form(tmp_path):
    picture_file(tmp_path, "a.png", (8, 8), (9, 9, 9))
    row = {"path": "a.png", "prompt": "Who is it? A. a cat B. a dog", "answer": " B "}
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps([row, row]), encoding="utf-8")
    [one, other] = read_pictures(file)
    assert one == other == Picture(tmp_path / "a.png", row["prompt"], "B")
    asked = questions(FILM, {4: CLOCKS[4]}, [0.5], 3, [one], FORM)
    assert [(q.prompt, q.truth, q.splits) for q in asked] == [(row["prompt"], "B", {"needle": "a.png"})] * 3
    for content, kind, said in (
        ([{**row, "path": "b.png"}], FileNotFoundError, "row 0: no picture"),
        ([{**row, "answer": ""}], ValueError, "row 0, field 'answer' must be a text"),
        ([row, {"path": "a.png", "prompt": "x"}], ValueError, "row 1, field 'answer' is missing"),
        ([{**row, "more": 1}], ValueError, "field 'more' is unknown"),
        ([{**row, "path": "../a.png"}], ValueError, "must name a file in"),
        ([row, {**row, "path": "torn.png"}], ValueError, "row 1, field 'path' names no picture: .*torn.png is not"),
        ([{**row, "answer": "?!"}], ValueError, "row 0, field 'answer' must hold a letter or digit"),
        ([], ValueError, "at least one row"),
    ):
        (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
        file.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(kind, match=said):
            read_pictures(file)


# ---------------------------------------------------------------------------------------------------------- the scores


def test_what_is_found():
    """The card at 1.0 s that shows 1: digit, second within half a second, after its thought; else wrong or not read."""
    [_, one] = questions(FILM, {4: [0.0, 0.0, 1.0, 1.0]}, [1.0], 2, [], "")
    for text, right in {
        "1 at 1.0 s": True,
        "The digit is 1 at 1.5 s.": True,
        "<think>2 at 9.0 s</think>1 at 0.5 s": True,
        "1 at 1.6 s": False,
        "2 at 1.0 s": False,
        "11 at 1.0 s": None,
        "one, at the beginning": None,
        "": None,
    }.items():
        assert found(one, Answer(one.key, text)) is right, text
    [one] = questions(FILM, {4: CLOCKS[4]}, [0.5], 1, [Picture(Path("a.png"), "Who?", "Guitar")], "")
    for text, right in {"guitar.": True, "(Guitar)": True, "a guitar": False, "": None, "...": None}.items():
        assert found(one, Answer(one.key, text)) is right, text


def test_the_report_by_hand():
    """All is found at depth 0, nothing elsewhere; forced everywhere in 4 frames, nowhere in 11."""
    asked = cards(4)
    answers = [
        Answer(one.key, str(one.truth) if one.details["depth"] == 0 else "", forced=one.details["frames"] == 4)
        for one in asked
    ]
    written, forced = maps(asked, answers)
    assert {cell: share.mean for cell, share in written.cells.items()} == {
        (frames, depth): float(depth == 0) for frames in (4, 11) for depth in (0.0, 0.5, 1.0)
    }
    assert {frames: share.mean for (frames, _), share in forced.cells.items()} == {4: 1.0, 11: 0.0}
    found = report(asked, answers, {"rule": "r", "blind": False}, {})
    assert found["means"] == {"written": 33.33, "teacher forcing": 50.0}
    assert (found["unparsed"], found["errors"], found["blind"], found["questions"]) == (16, 0, None, 24)
    assert found["chance"] == pytest.approx(100 * sum(one.details["chance"] for one in asked) / 24, abs=1e-3)
    assert [sum(column) for column in zip(*found["levels"]["digit"].values(), strict=True)] == [24, 8, 12]
    blind = {one.key: Answer(one.key, "0 at 0.0 s", forced=False) for one in asked}
    assert report(asked, answers, {"rule": "r", "blind": False}, blind)["blind"]["teacher forcing"] == 0.0


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def ask(capsys, tmp_path):
    def run(*more, folder: str = "out") -> tuple[int, str, str]:
        options = ["--checkpoint", NANO, "--out", tmp_path / folder, "--max-new-tokens", 12]
        options += ["--lengths", 4, 6, "--depths", 0, 1, "--needles", 2]
        return main(["evaluate", "niah", *map(str, [*options, *more])]), *capsys.readouterr()

    return run


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_from_film_to_heat_map(ask, tmp_path, monkeypatch):
    """Killed after three needles, gone on, then beside the blind run; a finished run loads no model."""
    both_ways, asked = needles.ask_both_ways, []

    def three(*a, **k):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(1)
        return both_ways(*a, **k)

    monkeypatch.setattr(needles, "ask_both_ways", three)
    assert ask()[0] == 130 and len(lines(tmp_path / "out" / "answers.jsonl")) == 3
    monkeypatch.setattr(needles, "ask_both_ways", both_ways)
    status, out, err = ask()
    assert status == 0 and re.search("3 of 8 answers are in .*answers.jsonl already", err)
    held = lines(tmp_path / "out" / "answers.jsonl")
    assert [one["key"] for one in held] == [f"{n}/{depth}/{k}" for n in (4, 6) for depth in (0, 1) for k in (0, 1)]
    assert [one["frames"] for one in held] == [4] * 4 + [6] * 4 and {type(one["forced"]) for one in held} == {bool}
    assert "8 needles in big_buck_bunny.mp4" in out and re.search(r"^written, % +4 +6$", out, re.M)
    assert (tmp_path / "out" / "niah.png").read_bytes().startswith(
        b"\x89PNG"
    ) and "Heat maps of needles found, 2" in out
    assert ask(folder="whole")[0] == 0 and lines(tmp_path / "whole" / "answers.jsonl") == held

    status, out, _ = ask("--blind")
    assert status == 0 and "the film was not shown" in out
    assert {one["frames"] for one in lines(tmp_path / "out" / "blind-answers.jsonl")} == {0}
    monkeypatch.setattr(KeyeVL, "from_pretrained", lambda *a, **k: pytest.fail("nothing is left to ask"))
    status, out, _ = ask()
    assert status == 0 and re.search(r"^mean over the cells .*, chance .* %, blind \d", out, re.M)
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert len(found["cells"]) == 4 and found["settings"]["lengths"] == [4, 6] and found["blind"] is not None
    status, _, err = ask("--needles", 3)
    assert status == 2 and "needles was 2, now 3" in err and "Take another --out" in err


def test_pictures_instead_of_cards(ask, tmp_path):
    picture_file(tmp_path, "a.png", (8, 8), (255, 0, 0))
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps([{"path": "a.png", "prompt": "Colour?", "answer": "red"}]), encoding="utf-8")
    status, out, _ = ask("--needles-json", file)
    assert status == 0 and "8 needles" in out
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["levels"]["needle"]["a.png"][0] == 8
    )
    picture_file(tmp_path, "a.png", (8, 8), (0, 0, 255))  # another picture, whose answer those were not
    status, _, err = ask("--needles-json", file)
    assert status == 2 and "pictures was" in err and "Take another --out" in err


def test_a_damaged_film_is_no_map_of_zeros(ask, tmp_path):
    """Its index says 132 frames, most cannot be decoded: an error, and nothing that a repaired film inherits."""
    data, film = bytearray(needles.FILM.read_bytes()), tmp_path / "damaged.mp4"
    for place in range(data.find(b"mdat") + 1000, len(data) - 9000, 70):  # the first frame stays, and the index
        data[place] ^= 255
    film.write_bytes(data)
    status, out, err = ask("--video", film)
    assert (status, out) == (2, "") and "damaged.mp4 is not a video that can be read, or it is damaged" in err
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == b""


def test_a_perfect_model_has_a_full_map(ask, tmp_path, monkeypatch):
    """Whoever writes the truth finds all; whoever says nothing finds nothing, and cannot be read."""
    monkeypatch.setattr(needles, "ask_both_ways", lambda m, i, truths, *a, **k: [Answered(list(truths[0]), True)])
    status, out, _ = ask()
    assert status == 0 and len(re.findall(r"mean over the cells 100.0 %", out)) == 2
    monkeypatch.setattr(needles, "ask_both_ways", lambda m, i, truths, *a, **k: [Answered([], False)])
    status, out, _ = ask(folder="other")
    assert status == 0 and len(re.findall(r"mean over the cells 0.0 %", out)) == 2 and "unparsed: 8" in out


def test_errors_before_any_work(ask, tmp_path, capsys):
    for options, said in {
        ("--lengths", "1"): "--lengths must be different numbers of at least 2",
        ("--lengths", "4", "4"): "--lengths must be different",
        ("--depths", "1.5"): "--depths must be different numbers from 0 to 1",
        ("--needles", "0"): "--needles must be at least 1",
        ("--data", "x"): "--data is for other benchmarks",
        ("--frames", "8"): "--frames is for other benchmarks",
        ("--limit", "8"): "--limit is for other benchmarks",
        ("--temperature", "1"): "answered greedily",
        ("--max-new-tokens", "0"): "--max-new-tokens must be at least 1",
        ("--video", "nowhere.mp4"): "no video nowhere.mp4",
        ("--lengths", "200"): "expected 200 frames, got 132",
        ("--needles-json", "nowhere.json"): "no file nowhere.json: --needles-json names",
    }.items():
        status, out, err = ask(*options)
        assert (status, out) == (2, "") and said in err, (options, err)
    assert main(["evaluate", "timelens", "--data", "x", "--needles", "3"]) == 2
    assert "--needles is for niah alone" in capsys.readouterr().err
    assert main(["evaluate", "mlvu"]) == 2
    assert "mlvu needs --data FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out" / "answers.jsonl").exists()
