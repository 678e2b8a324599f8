"""A run writes a line an answer, goes on where it was killed, and mixes no two settings; its report and its exports."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minikeye.evaluation.benchmarks import long_video_bench, mlvu, timelens, video_mme
from minikeye.evaluation.benchmarks.report import export, report
from minikeye.evaluation.benchmarks.run import Answer, answers_in, ask_all, digest, pace, weights_digest

from .conftest import long_video_bench_rows, mlvu_rows, timelens_rows, video_mme_rows, write

SETTINGS = {"benchmark": "timelens", "rule": "a rule", "fps": 4.0, "frames": None, "blind": False}
SAYS = {
    "charades/AB12/0": "<think>1 - 2</think>The event happens in 0.0 - 5.0 seconds",  # of 0 to 10: IoU 0.5
    "charades/AB12/1": "I cannot say.",
    "charades/CD34/0": "from 1.0 to 4.0",  # IoU 1
}


@pytest.fixture
def questions(tmp_path):
    write(tmp_path / "data" / "charades-timelens.json", timelens_rows())
    return timelens.read(tmp_path / "data")


def answer(question) -> Answer:
    return Answer(question.key, SAYS.get(question.key, "A"), frames=40, frame_tokens=6, prompt_tokens=300)


def lines(folder: Path, name: str = "answers.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------- the lines


def test_a_line_an_answer_as_it_comes(tmp_path, questions):
    seen = []

    def ask(question):
        seen.append(len(lines(tmp_path)))
        return answer(question)

    answers = ask_all(questions, ask, tmp_path, SETTINGS, print)
    assert seen == [0, 1, 2] and [one["key"] for one in lines(tmp_path)] == list(SAYS)
    assert [one.text for one in answers] == list(SAYS.values())
    assert answers_in(tmp_path, SETTINGS) == {one.key: one for one in answers}
    assert answers_in(tmp_path, {**SETTINGS, "fps": 2.0}) == {} == answers_in(tmp_path / "no", SETTINGS)


def test_nothing_is_asked_twice(tmp_path, questions):
    asked = []

    def ask(question):
        asked.append(question.key)
        return answer(question)

    told = []
    ask_all(questions[:2], ask, tmp_path, SETTINGS, told.append)
    answers = ask_all(questions, ask, tmp_path, SETTINGS, told.append)
    assert asked == list(SAYS) and [one.key for one in answers] == list(SAYS)
    assert any(re.match(r"2 of 3 answers are in .*answers.jsonl already", line) for line in told)


KILLED = """
import sys, time
from pathlib import Path
from minikeye.evaluation.benchmarks import timelens
from minikeye.evaluation.benchmarks.run import Answer, ask_all
folder = Path(sys.argv[1])
def ask(question):
    time.sleep(float(sys.argv[2]) if question.key.endswith("CD34/0") else 0)
    return Answer(question.key, "1.0 - 2.0")
settings = {"benchmark": "timelens", "blind": False}
ask_all(timelens.read(folder / "data"), ask, folder, settings, print)
"""


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(tmp_path, questions):
    """Killed while the third question is asked; half a line more, as a kill within a write leaves it."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen([*command, "600"], stdout=subprocess.PIPE)
    file = tmp_path / "answers.jsonl"
    while process.poll() is None and not (file.is_file() and file.read_bytes().count(b"\n") == 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    with open(file, "ab") as half:
        half.write(b'{"key": "charades/CD34/0", "te')
    assert subprocess.run([*command, "0"], capture_output=True).returncode == 0
    assert [one["key"] for one in lines(tmp_path)] == list(SAYS)


def test_half_a_line_is_dropped(tmp_path, questions):
    ask_all(questions[:1], answer, tmp_path, SETTINGS, print)
    with open(tmp_path / "answers.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"key": list(SAYS)[1], "text": "not whole"}))
    ask_all(questions, answer, tmp_path, SETTINGS, print)
    assert [one["text"] for one in lines(tmp_path)] == list(SAYS.values())


@pytest.mark.parametrize("line", ["no JSON", '{"key": "a"}', '["a"]', "the first again", "no text"])
def test_a_broken_line_is_named(tmp_path, questions, line):
    ask_all(questions[:1], answer, tmp_path, SETTINGS, print)
    file = tmp_path / "answers.jsonl"
    first = json.loads(file.read_text(encoding="utf-8"))
    said = {"the first again": first, "no text": {**first, "key": "b", "text": 5}}
    line = json.dumps(said[line]) if line in said else line
    with open(file, "a", encoding="utf-8") as more:
        more.write(f"{line}\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}, line 2: expected one answer"):
        ask_all(questions, answer, tmp_path, SETTINGS, print)


def test_other_settings_are_refused(tmp_path, questions):
    ask_all(questions[:1], answer, tmp_path, SETTINGS, print)
    before = (tmp_path / "answers.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"fps was 4.0, now 2.0; extra was None, now 1. Take another --out"):
        ask_all(questions, answer, tmp_path, {**SETTINGS, "fps": 2.0, "extra": 1}, print)
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"answers without settings\.json"):
        ask_all(questions, answer, tmp_path, SETTINGS, print)
    for damaged in ("{", "[]", ""):
        (tmp_path / "settings.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match=r"settings\.json is damaged: expected the settings of a run"):
            ask_all(questions, answer, tmp_path, SETTINGS, print)


def test_two_runs_do_not_share_a_folder(tmp_path, questions):
    def ask(question):
        with pytest.raises(BlockingIOError, match="another run writes to"):
            ask_all(questions, answer, tmp_path, SETTINGS, print)
        return answer(question)

    assert len(ask_all(questions, ask, tmp_path, SETTINGS, print)) == 3


def test_progress_and_errors_are_told(tmp_path, questions):
    """The clock: 8 s an answer; lines after the first, when ten seconds have passed, and after the last."""
    told, now = [], iter([0.0, 8.0, 16.0, 24.0])

    def ask(question):
        return Answer(question.key, "", error="VideoError: no video") if "AB12/1" in question.key else answer(question)

    ask_all(questions, ask, tmp_path, SETTINGS, told.append, clock=lambda: next(now))
    assert told[0].startswith("1 of 3 answered, 8.0 s each") and told[-1].startswith("3 of 3 answered")
    assert "charades/AB12/1: VideoError: no video" in told
    assert pace(10, 100, 5, 10.0) == "10 of 100 answered, 2.0 s each, about 3 min left"
    assert pace(1, 3, 1, 8.0) == "1 of 3 answered, 8.0 s each, about 16 s left"
    assert pace(1, 1001, 1, 36.0).endswith("about 10.0 h left")


def test_digests_tell_data_and_weights_apart(tmp_path, questions):
    assert digest(questions) == digest(list(questions)) != digest(questions[:2])
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    first = weights_digest(folder)
    (folder / "model.safetensors").write_bytes(bytes(299_999) + b"1")
    assert weights_digest(folder) != first


# --------------------------------------------------------------------------------------------------------- the report


def scores(found: dict) -> dict[tuple[str, str], dict]:
    return {(one["name"], one["split"]): one for one in found["scores"]}


def test_report_of_timelens(questions):
    """IoU 0.5, none, 1: mean 50, two of three from 0.3 and 0.5 on, one of three at 0.7."""
    blind = {one.key: Answer(one.key, "0 - 10") for one in questions}
    found = report(questions, [answer(one) for one in questions], SETTINGS, blind)
    by = scores(found)
    assert {name: round(one["value"], 1) for (name, _), one in by.items()} == {
        "miou": 50.0,
        "r1@0.3": 66.7,
        "r1@0.5": 66.7,
        "r1@0.7": 33.3,
    }
    assert {split for _, split in by} == {"set: charades"} and found["rule"] == "a rule"
    assert (found["unparsed"], found["errors"], found["videos"]) == (1, 0, 2)
    assert found["frames"] == [40, 40.0, 40]
    mean = by["miou", "set: charades"]
    assert mean["n"] == 3 and mean["unparsed"] == 1 and mean["low"] <= 50 <= mean["high"]
    # blind: 0 to 10 has IoU 1 with 0 to 10, 4.8 / 20 with 5.2 to 20, and 3 / 10 with 1 to 4
    assert mean["blind"] == pytest.approx(100 * (1 + 0.24 + 0.3) / 3)
    # the constant of tenths that is best for 0 to 10 and 5.2 to 20 of 30.5 s and 1 to 4 of 12 s, by a plain loop
    best = 0.0
    for a in range(10):
        for b in range(a + 1, 11):
            ious = []
            for seconds, (start, end) in ((30.5, (0, 10)), (30.5, (5.2, 20)), (12, (1, 4))):
                low, high = a * seconds / 10, b * seconds / 10
                ious.append(max(0, min(high, end) - max(low, start)) / (max(high, end) - min(low, start)))
            best = max(best, sum(ious) / 3)
    assert mean["chance"] == pytest.approx(100 * best)


def test_report_of_mlvu_is_a_mean_over_tasks(tmp_path):
    """One of one right, one of three: the mean over tasks is 66.7, over questions 50."""
    write(tmp_path / "1_plotQA.json", mlvu_rows("plotQA", 1))
    write(tmp_path / "3_ego.json", mlvu_rows("ego"))
    questions = mlvu.read(tmp_path)
    answers = [Answer(one.key, text) for one, text in zip(questions, ("B", "B", "C", "who knows"), strict=True)]
    found = report(questions, answers, {**SETTINGS, "benchmark": "mlvu"})
    by = scores(found)
    assert by["M-Avg", "all"]["value"] == pytest.approx(200 / 3) and by["accuracy", "all"]["value"] == 50
    assert by["accuracy", "task: ego"]["value"] == pytest.approx(100 / 3)
    assert by["M-Avg", "all"]["chance"] == 25 and by["accuracy", "task: ego"]["unparsed"] == 1
    assert by["M-Avg", "all"]["blind"] is None


def test_intervals_are_of_the_scores_and_by_video(tmp_path, questions, monkeypatch):
    """What is drawn has the score as its mean, and is named after its video."""
    from minikeye.evaluation.benchmarks import report as reporting

    drawn = []
    monkeypatch.setattr(reporting, "bootstrap", lambda values, clips, seed: drawn.append((values, clips)) or (0.0, 0.0))
    write(tmp_path / "1_plotQA.json", mlvu_rows("plotQA", 1))
    write(tmp_path / "3_ego.json", mlvu_rows("ego"))
    write(tmp_path / "test.json", video_mme_rows())
    for name, asked in {"timelens": questions, "mlvu": mlvu.read(tmp_path), "v": video_mme.read(tmp_path)}.items():
        drawn.clear()
        answers = [Answer(one.key, SAYS.get(one.key, "BC"[n % 2])) for n, one in enumerate(asked)]
        found = report(asked, answers, {**SETTINGS, "benchmark": name})["scores"]
        assert len(found) == len(drawn) >= 4
        for one, (values, clips) in zip(found, drawn, strict=True):
            assert sum(values) / len(values) == pytest.approx(one["value"]), one
            assert len(clips) == len(values) == one["n"] and set(clips) <= {str(q.video) for q in asked}


def test_what_the_interval_of_a_mean_over_tasks_draws(tmp_path, monkeypatch):
    """Tasks of one and three questions, one right in each: the mean is 66.7. A question of the three moves it
    by a sixth, times four as it is one of four values: 66.7 + 66.7 * (1 - 1/3) where it is right."""
    from minikeye.evaluation.benchmarks import report as reporting

    drawn = []
    monkeypatch.setattr(reporting, "bootstrap", lambda values, clips, seed: drawn.append(values) or (0.0, 0.0))
    write(tmp_path / "1_plotQA.json", mlvu_rows("plotQA", 1))
    write(tmp_path / "3_ego.json", mlvu_rows("ego"))
    asked = mlvu.read(tmp_path)
    answers = [Answer(one.key, letter) for one, letter in zip(asked, "BBCC", strict=True)]
    report(asked, answers, {**SETTINGS, "benchmark": "mlvu"})
    assert drawn[0] == pytest.approx([200 / 3, 1000 / 9, 400 / 9, 400 / 9])


def test_chance_of_an_interval_is_in_tenths(tmp_path):
    write(tmp_path / "charades-timelens.json", {"v": {"duration": 10.0, "spans": [[1.0, 2.0]], "queries": ["it"]}})
    [one] = timelens.read(tmp_path)
    assert {score["chance"] for score in report([one], [Answer(one.key, "")], SETTINGS)["scores"]} == {100.0}


def test_report_of_video_mme(tmp_path):
    """Three of four right in a group of relevance: 56.25; all of a group of logic: 100."""
    write(tmp_path / "test.json", video_mme_rows())
    questions = video_mme.read(tmp_path)
    answers = [Answer(one.key, "D" if one.key == "001-2" else "C") for one in questions]
    by = scores(report(questions, answers, {**SETTINGS, "benchmark": "video-mme-v2"}))
    assert by["accuracy", "all"]["value"] == 87.5 and by["accuracy", "all"]["chance"] == 12.5
    assert by["non-linear", "all"]["value"] == (56.25 + 100) / 2 and by["non-linear", "all"]["n"] == 2
    assert by["non-linear", "level: 2"]["value"] == 56.25 and by["accuracy", "level: 1"]["value"] == 50
    part = report(questions[:6], answers[:6], {**SETTINGS, "benchmark": "video-mme-v2"})
    assert scores(part)["non-linear", "all"]["n"] == 1  # half a group is none
    assert ("non-linear", "all") not in scores(report(questions[:3], answers[:3], {**SETTINGS, "benchmark": "x"}))


def test_report_of_long_video_bench(tmp_path):
    write(tmp_path / "lvb_val.json", long_video_bench_rows())
    questions = long_video_bench.read(tmp_path)
    answers = [Answer(one.key, text) for one, text in zip(questions, ("B", "<think>A</think>C", ""), strict=True)]
    by = scores(report(questions, answers, {**SETTINGS, "benchmark": "longvideobench"}))
    assert by["accuracy", "all"]["value"] == pytest.approx(100 / 3) == by["accuracy", "all"]["chance"]
    assert by["accuracy", "duration: 15"]["value"] == 50 and by["accuracy", "category: T3O"]["unparsed"] == 1


def test_secret_truths_have_no_score(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "correct_choice"} for row in long_video_bench_rows()]
    write(tmp_path / "lvb_test_wo_gt.json", rows)
    questions = long_video_bench.read(tmp_path)
    found = report(questions, [Answer(one.key, "A") for one in questions], {**SETTINGS, "benchmark": "longvideobench"})
    assert found["scores"] == [] and found["secret"] == 3


# -------------------------------------------------------------------------------------------------- the official files


def test_official_file_of_timelens(tmp_path, questions):
    [file] = export(questions, [answer(one) for one in questions], tmp_path)
    assert file.name == "timelens-charades.json" and json.loads(file.read_text(encoding="utf-8")) == {
        "AB12>>>a person opens a door>>>[0.0, 10]": {
            "timestamps": [[0.0, 5.0]],
            "answers": "The event happens in 0.0 - 5.0 seconds",
        },
        "AB12>>>he sits down>>>[5.2, 20.0]": {"answers": "I cannot say."},
        "CD34>>>the dog barks>>>[1.0, 4.0]": {"timestamps": [[1.0, 4.0]], "answers": "from 1.0 to 4.0"},
    }


def test_equal_queries_collapse_to_the_first(tmp_path):
    """The official form has one place for them; the report counts both."""
    record = {"duration": 9.0, "spans": [[1.0, 2.0], [1.0, 2.0]], "queries": ["it", "it."]}
    write(tmp_path / "charades-timelens.json", {"v": record})
    questions = timelens.read(tmp_path)
    answers = [Answer(one.key, text) for one, text in zip(questions, ("1 to 2", "5 to 6"), strict=True)]
    [file] = export(questions, answers, tmp_path)
    held = json.loads(file.read_text(encoding="utf-8"))
    assert held == {"v>>>it>>>[1.0, 2.0]": {"timestamps": [[1.0, 2.0]], "answers": "1 to 2"}}
    assert report(questions, answers, SETTINGS)["scores"][0]["n"] == 2


def test_official_files_of_choices(tmp_path):
    write(tmp_path / "lvb_val.json", long_video_bench_rows())
    questions = long_video_bench.read(tmp_path)
    [file] = export(questions, [Answer(one.key, text) for one, text in zip(questions, "BA-", strict=True)], tmp_path)
    assert json.loads(file.read_text(encoding="utf-8")) == {"v1_0": "B", "v1_1": "A", "v2_0": ""}
    write(tmp_path / "3_ego.json", mlvu_rows("ego", 1))
    questions = mlvu.read(tmp_path)
    [file] = export(questions, [Answer(one.key, "(D)") for one in questions], tmp_path)
    assert file.name == "test_res.json" and json.loads(file.read_text(encoding="utf-8")) == [
        {"question_id": "3_ego/0", "question_type": "ego", "option": "D"}
    ]
    write(tmp_path / "test.json", video_mme_rows())
    questions = video_mme.read(tmp_path)
    assert export(questions, [Answer(one.key, "A") for one in questions], tmp_path) == []
