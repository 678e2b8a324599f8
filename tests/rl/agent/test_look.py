"""A digit that only a second look shows: what earns, what does not, and that the small frames do not give it away."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from minikeye.config import KeyeConfig
from minikeye.inference.calling.calls import Call, written
from minikeye.inputs.processor import Clip, Processor
from minikeye.minivid.drawing.card import Cards
from minikeye.minivid.drawing.pictures import load_digits
from minikeye.minivid.drawing.small_cards import SCRIBBLED, _handwriting, draw_small_cards
from minikeye.minivid.draws import Draws
from minikeye.minivid.scene import VideoSpec, draw_stills, render
from minikeye.rl.agent.environment import Episode
from minikeye.rl.agent.look import (
    BUDGET,
    COARSE,
    QUESTION,
    Look,
    LookDifficulty,
    closed_reward,
    demonstrated,
    flawed_reward,
    said,
    straight,
)
from minikeye.rl.agent.trajectory import Writer

SMALL = LookDifficulty(frames=8)
DIFFICULTIES = [
    LookDifficulty(frames=4, decoys=2, most=1),
    LookDifficulty(frames=8, decoys=0),
    LookDifficulty(frames=16, tokens=4),
    LookDifficulty(frames=32, decoys=2, scale=1.0),
]


def look(start: float | int, end: float | int | None = None) -> str:
    return written(Call("look", {"start": start, "end": start if end is None else end}))


def begun(difficulty: LookDifficulty = SMALL, number: int = 0, **world) -> tuple[Look, Episode]:
    world = Look(difficulty, **world)
    return world, Episode(world, number, BUDGET, listed=False)


def played(difficulty: LookDifficulty, number: int, **world) -> tuple[Look, Episode]:
    """An expert's episode."""
    world, episode = begun(difficulty, number, **world)
    heard = []
    while not episode.over:
        heard.append(episode.hear(demonstrated(world, heard)))
    return world, episode


def clip_of(episode: Episode) -> Clip:
    return episode.asked[-1]["content"][0]["video"]


def decoy_of(world: Look) -> float:
    return next(second for second in world.cards if second != world.second)


def test_an_episode_by_hand():
    """The decoy, the card, the answer: 1 in the end, and the first look is noted as one that missed."""
    world, episode = begun()
    video, words = episode.asked[0]["content"]
    assert words == {"type": "text", "text": QUESTION}
    assert video["video"].frames.shape == (8, 3, 28, 28) and video["video"].frames.dtype == torch.uint8
    (wrong,) = episode.hear(look(decoy_of(world)))
    assert wrong.frames.shape == (1, 3, 112, 112) and wrong.seconds == [decoy_of(world)]
    assert world.slipped and world.misses == [True] and episode.reward() == 0
    (right,) = episode.hear(look(world.second))
    assert right.seconds == [world.second] and world.misses == [True, False] and world.slipped
    assert episode.hear(f"{world.digit} at {world.second} s") == []
    assert episode.over and episode.reward() == 1
    assert world.looks == [[decoy_of(world)], [world.second]]


def test_frames_larger_are_the_same_frames():
    """Drawn at 112x112 and averaged over 4x4 pixels a frame is more like itself at 28x28 than like any other one."""
    _, episode = begun(LookDifficulty(frames=8, most=8), 3)
    small = clip_of(episode)
    (large,) = episode.hear(look(0, small.seconds[-1]))
    assert large.seconds == small.seconds
    averaged = large.frames.float().unflatten(-1, (28, 4)).unflatten(-3, (28, 4)).mean((-1, -3))
    apart = (averaged[:, None] - small.frames.float()[None]).abs().mean((2, 3, 4))
    assert apart.argmin(1).tolist() == list(range(8))


def test_seconds_as_written():
    """Times have one decimal, and none but a frame's own is within the tolerance of 0.5 s."""
    for number in range(20):
        _, episode = begun(number=number)
        seconds = clip_of(episode).seconds
        assert seconds == [float(f"{second:.1f}") for second in seconds]
        assert np.diff(seconds).min() > 0.55
    (result,) = episode.hear(look(seconds[1], seconds[3]))
    assert result.seconds == seconds[1:4]  # inclusive
    (result,) = episode.hear(look(seconds[1] + 0.1, seconds[3] - 0.1))
    assert result.seconds == seconds[2:3]


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (0, 10**9, "at most 4 frames at once"),
        (3.0, 2.0, "start is after end"),
        (-9.0, -1.0, "no frame there"),
        (0.1, 0.2, "no frame there"),
    ],
)
def test_looks_that_show_nothing(start, end, words):
    """Nothing is left out in silence: the reason is read, the call missed, and no evidence was seen."""
    world, episode = begun()
    assert episode.hear(look(start, end)) == [f"error: ValueError: {words}"]
    assert world.misses == [True] and world.slipped and world.looks == [] and not episode.over


def test_a_second_beyond_all_numbers_is_read_as_an_error():
    world, episode = begun()
    (told,) = episode.hear(look(10**400))
    assert told.startswith("error: ") and world.misses == [True] and not episode.over


def test_the_first_call_counts_as_the_first_look():
    world, episode = begun()
    assert not world.slipped
    episode.hear(written(Call("look", {"start": 1.0})))  # one argument is missing
    episode.hear(look(world.second))
    assert world.misses == [True, False] and world.slipped
    world, episode = begun()
    episode.hear(look(world.second))
    episode.hear(look(decoy_of(world)))
    assert world.misses == [False, True] and not world.slipped


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        ("{d} at {s:.1f} s", 1),
        ("{d} at {near:.1f} s", 1),
        ("<think>hm</think>{d} at {s:.1f} s", 1),
        ("{d} at {far:.1f} s", 0),
        ("{other} at {s:.1f} s", 0),
        ("{d} at {decoy:.1f} s", 0),
        ("", 0),
        ("{d}", 0),
        ("{s:.1f} s", 0),
        ("{d} at {s:.1f} s.", 0),
        ("{d} at {s:.1f} s or {other} at {s:.1f} s", 0),
        ("0123456789 at {s:.1f} s", 0),
        (QUESTION, 0),
    ],
)
def test_answers(answer, earned):
    """Each after a look at the card; and all of them earn nothing without it."""
    world, episode = begun(number=1)
    names = {"d": world.digit, "other": (world.digit + 1) % 10, "s": world.second, "decoy": decoy_of(world)}
    answer = answer.format(near=world.second + 0.5, far=world.second + 0.6, **names)
    episode.hear(look(world.second))
    episode.hear(answer)
    assert episode.reward() == earned and said(world).both == bool(earned)
    for elsewhere in ([], [look(decoy_of(world))]):
        world, episode = begun(number=1)
        for turn in (*elsewhere, answer):
            episode.hear(turn)
        assert episode.reward() == 0 and said(world).both == bool(earned)


def test_an_answer_with_a_call_is_none():
    world, episode = begun()
    episode.hear(straight(world) + look(world.second))
    assert not episode.over and episode.reward() == 0


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_expert_is_always_right(difficulty, split):
    """Within a turn of the budget; a look for each card that it tried, all but the last of which missed."""
    for number in range(12):
        world, episode = played(difficulty, number, split=split)
        tried = 1 + world.cards.index(world.second)
        assert episode.reward() == 1 and said(world).both
        assert world.misses == [True] * (tried - 1) + [False]
        assert episode.turns == tried + 1 < BUDGET.turns


def test_the_expert_on_the_default():
    _, episode = played(LookDifficulty(), 5)
    assert episode.reward() == 1 and clip_of(episode).frames.shape == (256, 3, 28, 28)


def test_the_expert_goes_on_where_a_policy_was():
    """What was seen is read off the results: a card that a policy has tried is not tried again."""
    world, episode = begun()
    results = episode.hear(look(decoy_of(world)))
    assert demonstrated(world, [["error: ..."], results]) == look(world.second)
    assert demonstrated(world, [results, episode.hear(look(world.second))]) == straight(world)


@pytest.fixture(scope="module")
def many() -> dict[int, list[Look]]:
    """Worlds by their decoys."""
    return {decoys: [begun(LookDifficulty(frames=4, decoys=decoys), n)[0] for n in range(250)] for decoys in (1, 2)}


@pytest.mark.parametrize("decoys", [1, 2])
def test_share_of_first_looks_that_miss(many, decoys):
    """decoys of 1 + decoys, within three standard deviations."""
    worlds, share = many[decoys], decoys / (1 + decoys)
    missed = sum(world.cards[0] != world.second for world in worlds)
    assert abs(missed / len(worlds) - share) <= 3 * (share * (1 - share) / len(worlds)) ** 0.5
    assert all(len(set(world.cards)) == 1 + decoys and world.second in world.cards for world in worlds)


def test_a_guess_without_a_look(many):
    """A constant digit at the first card: right one time in 20, and it earns nothing."""
    right = 0
    for world in many[1]:
        world.answer = f"3 at {world.cards[0]} s"
        right += said(world).both
        assert world.get_reward() == 0
    assert abs(right / 250 - 1 / 20) <= 3 * (19 / 400 / 250) ** 0.5


def test_all_digits_are_equally_frequent(many):
    counts = np.bincount([world.digit for worlds in many.values() for world in worlds], minlength=10)
    assert ((counts - 50) ** 2 / 50).sum() < 27.9  # chi-square with 9 degrees of freedom: 0.1 %


def test_an_episode_is_its_number():
    """Whatever came before, and in whichever world."""
    world, episode = begun(number=7)
    truth, shown = straight(world), clip_of(episode).frames
    episode.hear(look(world.second))
    for number in range(6):
        Episode(world, number, BUDGET)
    again = Episode(world, 7, BUDGET)
    assert straight(world) == truth and torch.equal(clip_of(again).frames, shown)
    assert world.looks == [] and world.misses == [] and not world.slipped
    for other in (begun(number=8), begun(number=7, seed=1), begun(number=7, split="validation")):
        assert not torch.equal(clip_of(other[1]).frames, shown)


def test_splits_are_apart():
    """No handwriting of the test is in training; validation has training's, in videos of its own."""
    assert not set(_written("train", range(40))) & set(_written("test", range(40)))
    assert set(_written("validation", range(3))) <= {row.numpy().tobytes() for row in load_digits("train")[0]}
    train, validation = (
        {begun(number=n, split=split)[1].asked[0]["content"][0]["video"].frames.numpy().tobytes() for n in range(40)}
        for split in ("train", "validation")
    )
    assert not train & validation

    for split in ("train", "validation", "test"):
        assert begun(split=split)[0]._scene.spec.pictures == split  # of the backgrounds


def _written(split: str, numbers: range) -> list[bytes]:
    """The handwriting on the cards of these episodes."""
    found = []
    for number in numbers:
        cards = begun(number=number, split=split)[0]._scene.spec.later
        found += [load_digits(split)[0][n].numpy().tobytes() for n in cards.number[cards.shown]]
    return found


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"frames": 3}, "at least 4 frames"),
        ({"decoys": 3}, "0 to 2 decoys"),
        ({"decoys": -1}, "0 to 2 decoys"),
        ({"tokens": 9}, "4 or 16 tokens"),
        ({"most": 0}, "at least 1 frame"),
        ({"scale": 0.0}, "scale"),
        ({"scale": 1.5}, "scale"),
    ],
)
def test_invalid_difficulties(wrong, words):
    with pytest.raises(ValueError, match=words):
        LookDifficulty(**wrong)


def test_the_flaw_by_hand():
    """The old reward of a right answer: below 1 for a wrong look, 1 for none. The closed one pays looking alone."""
    cases = {
        "never looked": ([], 1.0, 0),
        "looked wrongly": ([[9.0]], 0.9, 0),
        "looked rightly": ([[5.0]], 2.0, 1),
        "wrongly, then rightly": ([[9.0], [5.0]], 2.0, 1),
        "rightly, then wrongly": ([[5.0], [9.0]], 0.9, 1),  # the last look is all that it sees
        "two frames, one right": ([[5.0, 6.0]], 1.5, 1),  # IoU 1/2: (0.5 - 0.2) / 0.6
        "four frames, one right": ([[4.0, 5.0, 6.0, 7.0]], 1 + 0.05 / 0.6, 1),
        "six frames, one right": ([[float(n) for n in range(6)]], 1.0, 1),  # IoU 1/6, below 0.2
        "eleven frames, one right": ([[float(n) for n in range(11)]], 0.9, 1),  # IoU 1/11, below 0.1
    }
    for looks, old, closed in cases.values():
        assert flawed_reward(True, looks, 5.0) == pytest.approx(old) and closed_reward(True, looks, 5.0) == closed
        assert flawed_reward(False, looks, 5.0) == closed_reward(False, looks, 5.0) == 0


LOOKS = st.lists(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=4), max_size=4)


@given(right=st.booleans(), looks=LOOKS, more=LOOKS, place=st.integers(0, 4), second=st.integers(0, 9).map(float))
def test_a_look_never_costs(right, looks, more, place, second):
    """At equal answers more looks, put in anywhere, never earn less: what the old reward lacks (above)."""
    longer = looks[:place] + more + looks[place:]
    assert closed_reward(right, longer, second) >= closed_reward(right, looks, second)
    assert closed_reward(right, looks, second) <= right


def test_what_a_budget_shows():
    """Of 256 frames one that looks everywhere sees a few: its tokens are spent."""
    world, writer = Look(), Writer(Processor(KeyeConfig.nano()))
    seconds = world.reset(0)[0]["video"].seconds
    four = len(writer.response([world.look(seconds[0], seconds[3])]).ids)
    one = len(writer.response([world.look(seconds[-1], seconds[-1])]).ids)
    assert 3 * one + 55 <= BUDGET.tokens  # all cards, and a turn with an error's words
    assert (four - 3 * 21) * BUDGET.tokens // four**2 < 3  # less than three looks of four frames
    assert len(QUESTION) <= 250 and len(look(seconds[-1])) <= 95


def test_small_cards_by_hand():
    """A digit in the first frame, two of SCRIBBLED over each other in the others, the second upside down."""
    things = draw_stills(Draws.of_batch(1, "things"), "test").take([0], [0] * 6).things
    frames = torch.tensor([4, 0, 3])
    cards, second = draw_small_cards(Draws.of_samples(0, "cards", range(3)), frames, things, "test", 0.5)
    assert cards.shown.tolist() == [[True, False, False, True, True, False]]
    assert second.shown.tolist() == [[True, False, False, True, False, False]]
    decoys = second.shown
    for half in (cards, second):
        assert torch.isin(half.digit[decoys], torch.tensor(SCRIBBLED)).all()
        assert torch.equal(load_digits("test")[1][half.number[cards.shown]], half.digit[cards.shown])
    assert (cards.warp[decoys][:, [0, 1], [0, 1]] == 2).all()  # as written, of half the size
    assert (second.warp[decoys][:, [0, 1], [0, 1]] == -2).all()
    assert (second.sheet[decoys] == 0).all() and (cards.sheet == 1).all()
    assert ((cards.half >= 0.18) & (cards.half < 0.25)).all()


@pytest.mark.parametrize(("drawn", "which"), [(0.0, 0), (1 - 1e-9, -1)])
def test_the_first_and_the_last_handwriting(drawn, which):
    digits = torch.arange(10)
    numbers = _handwriting(Draws(torch.full((10, 1), drawn, dtype=torch.float64)), digits, "test")
    assert numbers.tolist() == [(load_digits("test")[1] == digit).nonzero()[which].item() for digit in digits]


def _pairs(count: int, split: str) -> VideoSpec:
    """Videos of two frames: one digit card, one decoy, in the same scene."""
    stills = draw_stills(Draws.of_batch(count, "pairs", split), split).take(range(count), [0, 0])
    both = [
        draw_small_cards(
            Draws.of_samples(n, f"pair {split}", range(2)),
            torch.tensor([0, 1]),
            stills.take([n], [0, 1]).things,
            split,
            0.45,
        )
        for n in range(count)
    ]
    cards, scribbles = (
        Cards(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
        for parts in zip(*both, strict=True)
    )
    return replace(stills, later=cards, cards=scribbles)


def _crops(spec: VideoSpec, side: int, reach: int) -> np.ndarray:
    """Grey crops of 2 * reach + 1 pixels around the middle of every writing, [b 2 pixels]: better aligned than any
    model could know."""
    cards = spec.later
    margin = cards.half * (cards.angle.cos().abs() + cards.angle.sin().abs())
    written = -torch.linalg.solve(cards.warp[..., :2], cards.warp[..., 2:])[..., 0] * 0.84 * cards.half[..., None]
    x, y = written.unbind(-1)
    cos, sin = cards.angle.cos(), cards.angle.sin()
    middle = cards.place * (1 - margin)[..., None] + torch.stack((cos * x - sin * y, sin * x + cos * y), -1)
    column, row = ((middle + 1) / 2 * side - 0.5).round().long().clamp(0, side - 1).unbind(-1)
    grey = torch.nn.functional.pad(render(spec, side, side).float().mean(2), (reach,) * 4) / 255
    span = torch.arange(2 * reach + 1)
    video, frame = torch.arange(len(grey))[:, None, None, None], torch.arange(2)[:, None, None]
    crops = grey[video, frame, (row[..., None] + span)[..., None], (column[..., None] + span)[..., None, :]]
    return crops.flatten(2).numpy()


def test_a_digit_is_legible_in_a_look_alone():
    """Logistic regression, taught by 350 cards, of other hands than those of the test, with the place of the writing
    given to the pixel: digits are near chance (0.1) in 28x28 and mostly read in 112x112. Trees tell decoys from digits
    in 112x112 alone.
    """
    taught, asked = _pairs(350, "train"), _pairs(150, "test")
    digit, decoy = taught.later.digit[:, 0].numpy(), np.tile([0, 1], 350)
    right, apart = {}, {}
    for side, reach in ((COARSE, 3), (4 * COARSE, 7)):
        train, test = _crops(taught, side, reach), _crops(asked, side, reach)
        reader = LogisticRegression(C=0.1, max_iter=300).fit(train[:, 0], digit)
        right[side] = reader.score(test[:, 0], asked.later.digit[:, 0].numpy())
        trees = ExtraTreesClassifier(300, random_state=0).fit(train.reshape(700, -1), decoy)
        apart[side] = roc_auc_score(np.tile([0, 1], 150), trees.predict_proba(test.reshape(300, -1))[:, 1])
    assert right[COARSE] < 0.25 and right[4 * COARSE] > 0.55
    assert apart[COARSE] < 0.7 and apart[4 * COARSE] > 0.85
