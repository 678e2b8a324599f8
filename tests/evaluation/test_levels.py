"""The levels of a report, and chance beside them, by loops; the questions of its controls; where keys are counted."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation.mini import RUNS, report
from minikeye.evaluation.questions import (
    FOOTAGE,
    SEED,
    Run,
    _selected_by_layer,
    batches,
    chance,
    consistent,
    factors,
    percent,
    questions,
    require_levels,
    selected_keys,
    split,
)
from minikeye.inputs.prompt import FrameSpan
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.lessons import question_prompts
from minikeye.minivid.tasks import Event, score
from minikeye.model.record import LayerRecord, Record
from minikeye.scores import wilson

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES, COUNT = 16, 60
CASES = [*((task, "plain") for task in "NGDY"), ("N", "hard"), ("G", "hard"), ("N", "two cards"), ("G", "crowd")]
CASES += [("D", "crowd")]


def videos_of(footage: str, count: int = COUNT) -> MiniVideos:
    return make_videos(SEED, range(count), FRAMES, "test", difficulty=FOOTAGE[footage])


# ----------------------------------------------------------------------------------------------------------- the levels


def first_problem(problems, task: str):
    for problem in problems:
        if problem.task == task:
            return problem


def level_by_hand(factor: str, problems, task: str) -> str:
    """Read off the words of a video's questions and solutions: the events are not looked at."""
    problem = first_problem(problems, task)
    numbers = [int(n) for n in re.findall(r"frame (\d+)", problem.solution)]
    if factor == "things":
        count = sum(p.task == "G" for p in problems)
        return "one" if count == 1 else "two" if count == 2 else "three to six"
    if factor == "place":
        first = [frame < FRAMES / 3 for frame in numbers[:1]] + [frame < 2 * FRAMES / 3 for frame in numbers[:1]]
        return {2: "first third", 1: "middle third", 0: "last third"}[sum(first)]
    if factor == "digit":
        return problem.answer[0]
    if factor == "duration":
        return "up to a quarter" if numbers[1] - numbers[0] <= FRAMES / 4 else "longer"
    if factor == "visible":
        if problem.answer == "nothing":
            return "none"
        return "two" if len(problem.answer.split(" and ")) == 2 else "one"
    assert factor == "there"
    return problem.answer


@pytest.mark.parametrize(("task", "footage"), CASES)
def test_every_question_is_in_one_level_of_each_factor(task, footage):
    """In the one that its video says; the levels of a factor share all questions out."""
    videos = videos_of(footage)
    asked = questions(videos, task)
    assert [q.problem for q in asked] == [first_problem(problems, task) for problems in videos.problems]
    rows = split(Run(task, FRAMES, "sparse", "final", footage=footage), asked, [{"exact": 1.0}] * COUNT)
    assert rows.keys() == factors(task, footage).keys()
    for factor, levels in factors(task, footage).items():
        found = [q.levels[factor] for q in asked]
        assert found == [level_by_hand(factor, problems, task) for problems in videos.problems]
        assert set(found) <= set(levels) and len(set(levels)) == len(levels)
        assert sum(part["n"] for part in rows[factor].values()) == COUNT
        assert {level: part["n"] for level, part in rows[factor].items()} == {v: found.count(v) for v in set(found)}


def test_all_that_the_generator_draws_comes():
    """Every level of every factor of every line of the report, in 150 videos of 64 frames."""
    for task, footage in {(run.task, run.footage) for run in RUNS}:
        seen: dict[str, set[str]] = {}
        for _, asked, _ in batches(Run(task, 64, "sparse", "final", footage=footage, n=150), 10**6):
            for question in asked:
                for factor in factors(task, footage):
                    seen.setdefault(factor, set()).add(question.levels[factor])
        assert seen == {factor: set(levels) for factor, levels in factors(task, footage).items()}, (task, footage)


@pytest.mark.parametrize(("task", "footage"), [("N", "plain"), ("D", "crowd"), ("Y", "plain")])
def test_scores_of_a_level_are_of_its_questions(task, footage):
    """Every seventh answer right: the percentage of each level, counted one by one."""
    asked = questions(videos_of(footage), task)
    scores = [{"exact": float(n % 7 == 0)} for n in range(COUNT)]
    for factor, parts in split(Run(task, FRAMES, "sparse", "final", footage=footage), asked, scores).items():
        for level, part in parts.items():
            right = members = 0
            for n, question in enumerate(asked):
                if question.levels[factor] == level:
                    members += 1
                    right += n % 7 == 0
            assert part["n"] == members and part["exact"] == round(100 * right / members, 2)
            assert part["exact_95"][0] <= part["exact"] <= part["exact_95"][1]
            mine = [q for q in asked if q.levels[factor] == level]
            assert {k: v for k, v in part.items() if k.startswith("chance")} == {
                f"chance_{k}": round(100 * v, 2) for k, v in chance(task, mine).items()
            }


def test_percent_by_hand():
    """Three of four right, Wilson's interval; an IoU has that of its bootstrapped mean."""
    got = percent([{"exact": float(x), "tiou": x / 2} for x in (1, 1, 0, 1)])
    low, high = wilson(3, 4).low, wilson(3, 4).high
    assert got["n"] == 4 and got["exact"] == 75.0 and got["exact_95"] == [round(100 * low, 2), round(100 * high, 2)]
    assert got["tiou"] == 37.5 and 0 <= got["tiou_95"][0] < 37.5 < got["tiou_95"][1] <= 50.0


# ----------------------------------------------------------------------------------------------------------- and chance


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two intervals."""
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def interval(problem) -> tuple[float, float]:
    return tuple(json.loads(problem.answer)[0])


def test_chance_of_needles():
    """The best of ten answers that always say one digit; the second of every frame in turn, of every video."""
    videos = videos_of("plain")
    asked = questions(videos, "N")
    digits, seconds = [], []
    for digit in range(10):
        digits.append(sum(score(q.problem, f"{digit} at 0.0 s")["digit"] for q in asked) / COUNT)
    for question, clock in zip(asked, videos.seconds.tolist(), strict=True):
        seconds.append(sum(score(question.problem, f"3 at {t:.1f} s")["second"] for t in clock) / FRAMES)
    assert chance("N", asked) == pytest.approx({"digit": max(digits), "second": sum(seconds) / COUNT})
    assert 0.1 <= max(digits) < 0.3 and 1 / FRAMES <= sum(seconds) / COUNT < 0.3


@pytest.mark.parametrize("footage", ["plain", "crowd"])
def test_chance_of_grounding(footage):
    """No interval in twentieths of the duration does better than the constant; and some other does nearly as badly as
    can be."""
    videos = videos_of(footage)
    asked, ends = questions(videos, "G"), [clock[-1] for clock in videos.seconds.tolist()]
    values = []
    for b in range(21):
        for a in range(b):
            values.append(0.0)
            for question, end in zip(asked, ends, strict=True):
                values[-1] += overlap((a / 20 * end, b / 20 * end), interval(question.problem)) / COUNT
    found = chance("G", asked)
    assert found.keys() == {"tiou"} and found["tiou"] == pytest.approx(max(values)) and min(values) < max(values) / 2


def test_chance_of_a_coin():
    """Where all videos have two things: one of the two true intervals, either as often as the other."""
    videos = videos_of("plain", 120)
    asked = questions(videos, "G")
    two = [(q, p) for q, p in zip(asked, videos.problems, strict=True) if sum(x.task == "G" for x in p) == 2]
    total = 0.0
    for question, problems in two:
        for thing in [p for p in problems if p.task == "G"]:
            total += overlap(interval(thing), interval(question.problem)) / 2
    assert 40 < len(two) < 110
    assert chance("G", [q for q, _ in two])["coin"] == pytest.approx(total / len(two)) and total / len(two) > 0.5
    assert "coin" not in chance("G", asked)  # some have one thing


@pytest.mark.parametrize("task", ["D", "Y"])
def test_chance_of_names(task):
    """The best of all answers that are ever right, given every time."""
    asked, best = questions(videos_of("plain"), task), 0.0
    for answer in {q.problem.answer for q in asked}:
        best = max(best, sum(score(q.problem, answer)["exact"] for q in asked) / COUNT)
    assert chance(task, asked) == {"exact": best}


# ---------------------------------------------------------------------------------------------------- the refused line


def full_row(run: Run) -> dict:
    """A line with every level, as short as can be."""
    levels = {f: {level: {"n": 1} for level in levels} for f, levels in factors(run.task, run.footage).items()}
    return {**vars(run), "hardware": "none", "levels": levels}


@pytest.mark.parametrize(("task", "footage"), CASES)
def test_a_line_with_a_level_missing_is_refused(task, footage):
    """Each level of each factor, left out, empty, or with its whole factor: named in the message."""
    run = Run(task, 64, "sparse", "final", footage=footage)
    require_levels(full_row(run))
    for factor, levels in factors(task, footage).items():
        for level in levels:
            for empty in (None, {"n": 0}):
                row = full_row(run)
                row["levels"][factor].pop(level)
                row["levels"][factor] |= {level: empty} if empty else {}
                with pytest.raises(ValueError, match=rf"level of {factor} in the line {task} at 64.* of {level}: ask"):
                    require_levels(row)
        row = full_row(run)
        del row["levels"][factor]
        with pytest.raises(ValueError, match=f"level of {factor} .* got none of {', '.join(levels)}: ask more"):
            require_levels(row)


def test_a_refused_report_is_not_written(tmp_path):
    """Neither a new one, nor over an old one, whichever of its lines it is."""
    good, bad = full_row(Run("Y", 64, "dense", "final")), full_row(Run("Y", 4, "dense", "final"))
    bad["levels"]["there"]["no"]["n"] = 0
    for rows in ([bad, good], [good, bad]):
        with pytest.raises(ValueError, match="level of there in the line Y at 4 frames, got none of no"):
            report(tmp_path / "out.json", rows)
    assert list(tmp_path.iterdir()) == []
    report(tmp_path / "out.json", [good])
    before = (tmp_path / "out.json").read_bytes()
    with pytest.raises(ValueError, match="ask more questions"):
        report(tmp_path / "out.json", [good, bad])
    assert (tmp_path / "out.json").read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "T"}, "a task of 'N', 'G', 'D', 'Y', got 'T'"),
        ({"footage": "real"}, "a footage of 'plain', 'hard', 'crowd', 'two cards', got 'real'"),
        ({"control": "grey"}, "a control of '', 'blank', 'wrong word', got 'grey'"),
        ({"control": "wrong word"}, "expected task G.* got N"),
    ],
)
def test_a_line_that_nobody_can_measure(wrong, message):
    with pytest.raises(ValueError, match=message):
        Run(**{"task": "N", "frames": 4, "attention": "sparse", "model": "final"} | wrong)


# --------------------------------------------------------------------------------------------------------- the controls


def batches_of(run: Run, videos_at_once: int = 4) -> tuple[list, list, list]:
    """Problems, events and questions of all videos of a run."""
    problems, events, asked = [], [], []
    for videos, some, size in batches(run, videos_at_once * 13 * run.frames):
        assert len(some) == size.videos <= videos_at_once and size.frames == run.frames
        problems, events, asked = [*problems, *videos.problems], [*events, *videos.events], asked + some
    assert len(asked) == run.n
    return problems, events, asked


def test_wrong_words_are_of_nothing_in_the_video():
    """The answer stays that to the true question, which is what is scored; other tasks stay as they are."""
    run = Run("G", FRAMES, "sparse", "final", n=30)
    truth, _, true = batches_of(run)
    problems, events, asked = batches_of(replace(run, control="wrong word"))
    words = set()
    for before, after, of_video in zip(truth, problems, events, strict=True):
        for a, b in zip(before, after, strict=True):
            if a.task != "G":
                assert a == b
                continue
            word = re.fullmatch("From when to when is the (.*) visible[?]", b.question)[1]
            assert word not in {event.name for event in of_video} and b.answer == a.answer
            words.add(word)
    assert [q.problem for q in asked] == [q.problem for q in true] and len(words) > 5


def test_the_wrong_word_is_what_the_model_reads():
    config = KeyeConfig.nano()
    for videos, some, size in batches(Run("G", 4, "sparse", "final", control="wrong word", n=3), 10**6):
        ids = question_prompts(videos, "G", size, config)["input_ids"]
        for row, problems, question in zip(ids.tolist(), videos.problems, some, strict=True):
            text = load_tokenizer(config).decode(row)
            assert first_problem(problems, "G").question in text and question.problem.question not in text


def test_presence_asks_for_what_is_there_and_for_what_is_not():
    problems, _, asked = batches_of(Run("Y", FRAMES, "sparse", "final", n=41), 5)
    for of_video, question in zip(problems, asked, strict=True):
        assert question.problem == first_problem(of_video, "Y")
        assert question.levels["there"] == question.problem.answer
    assert 10 <= sum(q.problem.answer == "yes" for q in asked) <= 31  # 20.5, and three standard deviations


def test_batches_are_the_same_videos():
    """However many at once, and the numbers go on from batch to batch."""
    for run in (Run("N", 4, "sparse", "final", n=11), Run("Y", 4, "sparse", "final", n=11)):
        assert batches_of(run, 1) == batches_of(run, 4) == batches_of(run, 100)


def card(digit: str, frame: int, second: float) -> Event:
    return Event("card", digit, frame, frame + 1, second, second + 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7 at 3.0 s", True),  # the first
        ("2 at 8.4 s", True),  # the second, within half a second
        ("7 at 8.0 s", False),  # the digit of one, the second of the other
        ("2 at 3.0 s", False),
        ("5 at 3.0 s", False),
        ("7 at 5.5 s", False),
        ("seven", False),
        ("", False),
    ],
)
def test_consistent_answers_are_about_one_card(answer, expected):
    thing = Event("thing", "red circle", 1, 3, 1.0, 3.0)
    assert consistent((card("7", 3, 3.0), thing, card("2", 8, 8.0)), answer) is expected


# ---------------------------------------------------------------------------------------------------- the keys selected


def layer(*keys: list[int]) -> LayerRecord:
    """A layer that selected these keys, one query for each row."""
    indices = torch.tensor(keys, dtype=torch.int32)[:, None]
    rows = len(keys)
    return LayerRecord(indices, torch.zeros(indices.shape), torch.zeros(rows, 1), torch.zeros(rows, 1, 1).long())


def spans(count: int) -> list[FrameSpan]:
    """Frame n stands at 10 n + 10 to 10 n + 13."""
    return [FrameSpan(10 * n + 10, 10 * n + 14, 0.0, 0) for n in range(count)]


def with_events(*rows: tuple[Event, ...]) -> MiniVideos:
    return replace(make_videos(0, range(len(rows)), 8, "test"), events=rows)


def test_keys_of_a_card_by_hand():
    """Row 1 is padded by 3, so its frames stand 3 further on. -1 is no key. Others' frames do not count."""
    videos = with_events((card("7", 2, 2.0),), (card("1", 5, 5.0),))  # frames 2 and 5: 30..33 and 63..66
    record = Record([layer([9, 30, 33, -1], [59, 63, 64, 66]), layer([29, 34, -1, -1], [60, 62, 67, 70])])
    got = selected_keys(record, [spans(8), spans(8)], videos, [0, 3], "N")
    assert {name: table.tolist() for name, table in got.items()} == {
        "card": [[2, 3], [0, 0]],
        "card_there": [[4, 4], [4, 4]],
        "keys": [[3, 4], [2, 4]],
    }


def test_keys_of_two_things_by_hand():
    """Frames that show both are left out, and cards are no things; a video with one thing has no other."""
    a, b = Event("thing", "red circle", 1, 4, 1.0, 4.0), Event("thing", "blue square", 3, 6, 3.0, 6.0)
    videos = with_events((card("7", 4, 4.0), a, b, card("2", 6, 6.0)), (card("1", 5, 5.0), b))
    # Row 0: asked in frames 1, 2 (20..23, 30..33), both in 3 (40..43), other in 4, 5 (50..53, 60..63). Row 1, padded by
    # 2: asked in frames 3, 4, 5 (42..45, 52..55, 62..65).
    keys = [20, 33, 40, 43, 50, 70], [42, 45, 46, 52, 65, 66]
    got = selected_keys(Record([layer(*keys)]), [spans(8), spans(8)], videos, [0, 2], "G")
    assert {name: table.tolist() for name, table in got.items()} == {
        "asked": [[2, 4]],
        "other": [[1, 0]],
        "asked_there": [[8, 12]],
        "other_there": [[8, 0]],
        "keys": [[6, 6]],
    }


def table(*layers: list[int]) -> torch.Tensor:
    return torch.tensor(layers)


def test_hits_by_layer():
    """Share of the videos of which a layer selected a key of the card, however many."""
    got = _selected_by_layer({"card": table([1, 0, 4, 2], [0, 0, 0, 0])}, [{"digit": 1.0}] * 4)
    assert got == {"hit": [75.0, 0.0]}


def test_shares_by_layer():
    """Two layers, four videos; the last has no other thing and is left out. Right: a tIoU of a half or more."""
    selected = {
        "asked": table([2, 1, 0, 9], [0, 0, 4, 9]),
        "other": table([1, 3, 0, 0], [2, 2, 2, 0]),
        "keys": table([10, 10, 20, 10], [10, 10, 20, 10]),
        "asked_there": table([4, 8, 4, 8], [4, 8, 4, 8]),
        "other_there": table([8, 8, 4, 0], [8, 8, 4, 0]),
    }
    got = _selected_by_layer(selected, [{"tiou": x} for x in (0.5, 0.49, 1.0, 1.0)])
    assert got == {
        "all": {
            "n": 3,
            "asked_share": [10.0, 6.67],  # (2/10 + 1/10 + 0/20) / 3, (0 + 0 + 4/20) / 3
            "asked_density": [18.75, 25.0],  # 3 and 4 of 16
            "other_share": [13.33, 16.67],  # (1/10 + 3/10 + 0) / 3, (2/10 + 2/10 + 2/20) / 3
            "other_density": [20.0, 30.0],  # 4 and 6 of 20
        },
        "right": {
            "n": 2,
            "asked_share": [10.0, 10.0],
            "asked_density": [25.0, 50.0],
            "other_share": [5.0, 15.0],
            "other_density": [8.33, 33.33],
        },
        "wrong": {
            "n": 1,
            "asked_share": [10.0, 0.0],
            "asked_density": [12.5, 0.0],
            "other_share": [30.0, 20.0],
            "other_density": [37.5, 25.0],
        },
    }


def test_no_share_of_no_video():
    """A group without videos says so, and no more: none is wrong, then none has two things."""
    selected = {"asked": table([1]), "other": table([1]), "keys": table([4])}
    there = {"asked_there": table([4]), "other_there": table([4])}
    got = _selected_by_layer(selected | there, [{"tiou": 1.0}])
    assert got["wrong"] == {"n": 0} and got["right"] == got["all"] and got["all"]["n"] == 1
    alone = _selected_by_layer(selected | there | {"other_there": table([0])}, [{"tiou": 1.0}])
    assert alone == {"all": {"n": 0}, "right": {"n": 0}, "wrong": {"n": 0}}
