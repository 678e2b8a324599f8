"""Two searches, of which the first says what the second is for: one answer, and nothing else earns."""

import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.inference.calling.calls import Call, response, written
from minikeye.minivid.drawing.things import KINDS
from minikeye.rl.agent.environment import Episode
from minikeye.rl.agent.search import (
    BUDGET,
    NOTHING,
    QUESTION,
    Search,
    SearchDifficulty,
    demonstrated,
    ranked,
    straight,
)

DIFFICULTIES = [SearchDifficulty(), SearchDifficulty(2), SearchDifficulty(67), SearchDifficulty(221, 3)]
CAPTION = re.compile(r"([a-z]{4}): ((?:[a-z]+ [a-z]+, ){1,2}[a-z]+ [a-z]+); card ([0-9])")


def search(words: str) -> str:
    return written(Call("search", {"words": words}))


def begun(difficulty: SearchDifficulty = DIFFICULTIES[0], number: int = 0, **world) -> tuple[Search, Episode]:
    world = Search(difficulty, **world)
    return world, Episode(world, number, BUDGET, listed=False)


def played(difficulty: SearchDifficulty, number: int, **world) -> tuple[Search, Episode, list[str]]:
    """An expert's episode, and all that was said in it."""
    world, episode = begun(difficulty, number, **world)
    heard, words = [], [episode.asked[0]["content"]]
    while not episode.over:
        turn = demonstrated(world, heard)
        heard.append(episode.hear(turn))
        words += [turn, *([response(heard[-1])] if heard[-1] else [])]
    return world, episode, words


def solved(question: str, captions: list[str]) -> list[str]:
    """Every answer that a reader of the whole library could give."""
    clips = {match[1]: match for match in map(CAPTION.fullmatch, captions)}
    named = re.search(r"clip ([a-z]{4})\.", question)[1]
    return [clip[3] for name, clip in clips.items() if clip[2] == clips[named][2] and name != named]


def test_ranking_by_hand():
    """Words and pairs of neighbours that are shared, each once; of equals the earlier."""
    library = [
        "tavi: red square, blue circle; card 4",  # four words, no pair of the first query
        "runo: red circle, blue square; card 7",  # four words, red circle, circle blue, blue square
        "bola: red circle, green square; card 7",  # three words, red circle
        "miku: yellow circle, yellow triangle; card 1",
    ]
    assert ranked("red circle blue square", library) == [1, 0, 2, 3]
    assert ranked("RED circle, red circle!", library) == [1, 2, 0, 3]
    assert ranked("bola", library) == [2]
    assert ranked("card", library) == [0, 1, 2, 3]
    assert ranked("card 7", library) == [1, 2, 0, 3]
    assert ranked("tav", library) == ranked("", library) == ranked("?!", library) == []


def test_an_episode_by_hand():
    world, episode = begun()
    name, things, digit = CAPTION.fullmatch(world.captions[world.named]).groups()
    assert episode.asked == [{"role": "user", "content": QUESTION.format(name=name)}]
    assert episode.hear(search("nowhere")) == [NOTHING]
    assert episode.hear(search(f"clip {name}")) == [world.captions[world.named]] and not world.found
    (both,) = episode.hear(search(things))
    assert both == "\n".join(world.captions[n] for n in sorted((world.named, world.other))) and world.found
    assert world.misses == [True, False, False] and world.slipped
    assert episode.hear(str(world.digit)) == [] and episode.reward() == 1
    assert world.digit != int(digit)


def test_a_search_for_one_thing_misses():
    """Many clips show it, and two of them are told: the two in question are among them in few episodes."""
    missed = 0
    for number in range(50):
        world, episode = begun(number=number)
        thing = CAPTION.fullmatch(world.captions[world.named])[2].split(", ")[0]
        episode.hear(search(thing))
        missed += world.slipped
    assert missed > 25


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_expert_is_always_right(difficulty, split):
    """And the answer is the only one that the library allows; a turn and a third of the tokens are to spare."""
    for number in range(40):
        world, episode, words = played(difficulty, number, split=split)
        assert solved(words[0], world.captions) == [str(world.digit)]
        assert episode.reward() == 1 and world.misses == [False, False] and not world.slipped
        assert episode.turns == 3 < BUDGET.turns
        results = [text for text in words if "<tool_response>" in text]
        assert max(map(len, world.captions)) <= 60 and sum(map(len, results)) + 2 * 60 <= BUDGET.tokens * 2 / 3
        assert len(words[0]) <= 250 and sum(map(len, words)) <= 700


def test_libraries():
    """As many clips as asked for, all of different names; no two but those in question show the same."""
    for difficulty in DIFFICULTIES:
        world, _ = begun(difficulty)
        clips = [CAPTION.fullmatch(caption).groups() for caption in world.captions]
        assert len({name for name, _, _ in clips}) == len(clips) == difficulty.clips
        shown = Counter(things for _, things, _ in clips)
        assert sorted(shown.values()) == [1] * (difficulty.clips - 2) + [2]
        possible = {", ".join(kinds) for kinds in combinations(KINDS, difficulty.things)}
        assert set(shown) <= possible


def test_the_expert_goes_on_where_a_policy_was():
    """What is known is read off the results, whatever else was searched for."""
    world, episode = begun()
    first = demonstrated(world, [[NOTHING], ["error: ..."]])
    assert first == search(CAPTION.fullmatch(world.captions[world.named])[1])
    heard = [[world.captions[world.other]]]
    assert demonstrated(world, heard) == first  # a digit alone does not say that it is the one
    second = demonstrated(world, [episode.hear(first)])
    assert demonstrated(world, [[world.captions[world.named]], episode.hear(second)]) == straight(world)


@pytest.mark.parametrize(
    "answer", ["{other}", "", "card {d}", "{d}.", "0123456789", "{d} {d}", "0{d}", "{caption}", "²"]
)
def test_wrong_answers(answer):
    """Earn nothing after all searches; and the light reward, if it was asked for, no more than itself."""
    for light in (0, 0.2):
        world, episode = begun(number=2, light=light)
        names = {"d": world.digit, "other": (world.digit + 1) % 10, "caption": world.captions[world.other]}
        heard = [episode.hear(demonstrated(world, []))]
        assert episode.reward() == 0
        episode.hear(demonstrated(world, heard) + search("nowhere"))  # what was found stays found
        episode.hear(answer.format(**names))
        assert world.found and episode.reward() == light


def test_the_card_of_the_clip_in_the_question_is_a_trap():
    for number in range(50):
        world, episode = begun(number=number)
        (caption,) = episode.hear(demonstrated(world, []))
        episode.hear(caption[-1])
        assert episode.reward() == 0


def test_chance():
    """All digits are equally frequent (chi-square with 9 degrees of freedom: 0.1 %): a guess is right in one of 10."""
    counts = Counter(begun(SearchDifficulty(4), number)[0].digit for number in range(500))
    assert sum((counts[digit] - 50) ** 2 / 50 for digit in range(10)) < 27.9
    order = sum(world.named < world.other for world in (begun(number=n)[0] for n in range(200)))
    assert abs(order - 100) <= 3 * 50**0.5


def test_who_goes_on_searching_ends_without_a_word():
    world, episode = begun()
    while not episode.over:
        episode.hear(search("red") + str(world.digit))
    assert episode.turns == BUDGET.turns and episode.reward() == 0


@given(words=st.text(st.sampled_from("redcibluqa 47:,;?é\n\x00"), max_size=60), number=st.integers(0, 20))
def test_any_words(words, number):
    """At most two whole captions, the best first, within 120 characters; else that there is nothing."""
    world, episode = begun(DIFFICULTIES[3], number)
    (result,) = episode.hear(search(words))
    lines = result.split("\n")
    assert result == NOTHING or (len(lines) <= 2 and set(lines) <= set(world.captions))
    assert len(result) <= 120 and world.misses == [not {world.named, world.other} & set(map(_number(world), lines))]


def _number(world: Search):
    return lambda line: world.captions.index(line) if line != NOTHING else -1


def test_an_episode_is_its_number():
    world, _ = begun(number=7)
    captions, truth = world.captions, straight(world)
    world.search("red")
    for number in range(5):
        Episode(world, number, BUDGET)
    Episode(world, 7, BUDGET)
    assert world.captions == captions and straight(world) == truth and world.misses == [] and not world.found
    for other in (begun(number=8), begun(number=7, seed=1), begun(number=7, split="validation")):
        assert other[0].captions != captions


def test_splits_are_apart():
    """No name of the test is in training; validation has training's names, and no episode of it."""
    names = {
        split: [{c[:4] for c in begun(number=n, split=split)[0].captions} for n in range(60)]
        for split in ("train", "validation", "test")
    }
    assert not set().union(*names["train"], *names["validation"]) & set().union(*names["test"])
    assert not {frozenset(n) for n in names["train"]} & {frozenset(n) for n in names["validation"]}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"clips": 1}, "2 to 67 clips of 2 things"),
        ({"clips": 68}, "2 to 67 clips of 2 things"),
        ({"clips": 222, "things": 3}, "2 to 221 clips of 3 things"),
        ({"things": 1}, "2 or 3 things"),
    ],
)
def test_invalid_difficulties(wrong, words):
    with pytest.raises(ValueError, match=words):
        SearchDifficulty(**wrong)


@pytest.mark.parametrize("light", [-0.1, 1])
def test_invalid_rewards(light):
    with pytest.raises(ValueError, match="light"):
        Search(light=light)
