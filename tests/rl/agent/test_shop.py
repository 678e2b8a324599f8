"""What the database holds at the end is what counts, and a refused payment is mended by what the refusal tells."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import expert_plays

from minikeye.inference.calling.calls import Call, read_calls, written
from minikeye.rl.agent.environment import Episode, tools_of
from minikeye.rl.agent.shop import BUDGET, Good, Order, Shop, ShopDifficulty, Wish, demonstrated, split_of, straight

SPLITS = ("train", "validation", "test")
TWO = ShopDifficulty(kinds=2)
EVERY = [
    ShopDifficulty(),
    TWO,
    ShopDifficulty(goods=1, ways=2),
    ShopDifficulty(goods=2, ways=5, kinds=2),
    ShopDifficulty(goods=9, ways=5),
]
PERFECT = (("find", "tavi"), ("order", 41, 2), ("pay", 18, "rosk"), ("pay", 18, "blum"))
TOOLS = {"find": ("name",), "order": ("id", "count"), "pay": ("order", "way")}


class Tavi(Shop):
    """The shop of the module's docstring, with two more goods."""

    def reset(self, number: int) -> str:
        super().reset(number)
        self.goods = {41: Good("tavi", 7, 5, "blum"), 42: Good("moru", 3, 1, "nel"), 43: Good("tavo", 7, 5, "blum")}
        self.ways, self.wishes, self._numbers = ["rosk", "blum", "nel"], [Wish("tavi", 2, "rosk")], [18, 23, 35, 57, 11]
        self.wishes += [Wish("moru", 1, "nel")] * (self.difficulty.kinds - 1)
        self._before = dict(self.goods)
        return "Buy 2 of tavi. You may pay by rosk, blum or nel."


def call(tool: str, *values: object) -> str:
    return written(Call(tool, dict(zip(TOOLS[tool], values, strict=True))))


def visited(*calls: tuple, answer: str = "18", kinds: int = 1) -> tuple[float, Episode]:
    """An episode in the shop of the docstring: its reward, and itself."""
    episode = Episode(Tavi(ShopDifficulty(kinds=kinds)), 0, BUDGET)
    for one in calls:
        episode.hear(call(*one))
    episode.hear(answer)
    return episode.reward(), episode


def played(world: Shop, number: int) -> tuple[Episode, list[str]]:
    """An episode of the expert, and all that was said and told."""
    return expert_plays(world, number, demonstrated, BUDGET)


def test_an_episode_by_hand():
    """That of the module's docstring: the first payment is refused, the second is not."""
    world = Tavi()
    episode = Episode(world, 0, BUDGET)
    assert episode.hear(call("find", "tavi")) == ['{"id": 41, "price": 7, "stock": 5}']
    assert episode.hear(call("order", 41, 2)) == ["order 18, 14 to pay"]
    assert episode.hear(call("find", "tavi")) == ['{"id": 41, "price": 7, "stock": 3}'] and not world.slipped
    told = "error: ValueError: order 18 cannot be paid by rosk, only by blum"
    assert episode.hear(call("pay", 18, "rosk")) == [told] and world.slipped
    assert episode.hear(call("pay", 18, "blum")) == ["paid"]
    assert world.misses == [False, False, False, True, False] and world.slipped
    assert world.orders == {18: Order(41, 2, 14, "blum")} and episode.reward() == 0
    assert episode.hear(" 18\n") == [] and episode.reward() == 1
    world.reset(0)
    assert not world.slipped and world.orders == {}


def test_the_expert_says_these_words():
    _, said = played(Tavi(), 0)
    assert said[1::2] == [*(call(*one) for one in PERFECT), "18"]


def test_two_kinds_by_hand():
    """Each is paid by its own way; `slipped` is of the first payment alone."""
    world = Tavi(TWO)
    episode, said = played(world, 0)
    rest = (("find", "moru"), ("order", 42, 1), ("pay", 23, "nel"))
    assert said[1::2] == [*(call(*one) for one in (*PERFECT, *rest)), "18, 23"]
    assert episode.reward() == 1 and world.slipped
    turned = (*rest[:2], ("pay", 18, "nel"), *PERFECT[:2], *PERFECT[3:])  # moru is 18 here, tavi 23
    assert visited(*turned[:-1], ("pay", 23, "rosk"), ("pay", 23, "blum"), answer="23, 18", kinds=2)[0] == 1
    reward, other = visited(*turned[:-1], ("pay", 23, "rosk"), ("pay", 23, "blum"), answer="18, 23", kinds=2)
    assert reward == 0 and not other.environment.slipped and any(other.environment.misses)
    assert visited(*PERFECT, answer="18", kinds=2)[0] == 0


WRONG_ENDS = {
    "nothing": ((), "18"),
    "an empty answer": (PERFECT, ""),
    "the wrong number": (PERFECT, "23"),
    "all numbers": (PERFECT, ", ".join(map(str, range(10, 100)))),
    "words": (PERFECT, "done"),
    "only found": (PERFECT[:1], "18"),
    "not paid": (PERFECT[:2], "18"),
    "refused": (PERFECT[:3], "18"),
    "another good": ((("order", 42, 1), ("pay", 18, "nel")), "18"),
    "another good of that price and way": ((("order", 43, 2), ("pay", 18, "blum")), "18"),
    "too few": ((("order", 41, 1), ("pay", 18, "blum")), "18"),
    "too many": ((("order", 41, 3), ("pay", 18, "blum")), "18"),
    "one by one": ((("order", 41, 1), ("order", 41, 1), ("pay", 18, "blum"), ("pay", 23, "blum")), "18, 23"),
    "ordered twice": ((("order", 41, 2), ("order", 41, 2), ("pay", 18, "blum")), "18"),
    "paid twice": ((("order", 41, 2), ("order", 41, 2), ("pay", 18, "blum"), ("pay", 23, "blum")), "18"),
    "something more": ((*PERFECT, ("order", 43, 1)), "18"),
    "all goods": ((*PERFECT, ("order", 42, 1), ("pay", 23, "nel")), "18, 23"),
    "another order is paid": ((("order", 43, 2), ("order", 41, 2), ("pay", 18, "blum")), "23"),
    "ways until one fits": ((*PERFECT[:3], ("pay", 18, "nel"), ("pay", 18, "blum")), "18"),
}


@pytest.mark.parametrize(("calls", "answer"), WRONG_ENDS.values(), ids=WRONG_ENDS)
def test_wrong_ends_earn_nothing(calls, answer: str):
    assert visited(*PERFECT)[0] == 1
    assert visited(*calls, answer=answer)[0] == 0


@pytest.mark.parametrize("id", [41, 43])
def test_the_stock_is_looked_at(id: int):
    """Though no tool can change it alone."""
    reward, episode = visited(*PERFECT)
    goods = episode.environment.goods
    goods[id] = replace(goods[id], stock=goods[id].stock - 1)
    assert reward == 1 and episode.reward() == 0


RAISES = {
    "no such good": ([("find", "tav")], "there is no tav"),
    "a long name": ([("find", "tavi" * 9)], "there is no tavitavitavitavitavi"),
    "no such id": ([("order", 7, 2)], "there is no good 7"),
    "too many": ([("order", 41, 6)], "expected a count in 1..5"),
    "out of stock": ([("order", 42, 1), ("order", 42, 1)], "expected a count in 1..0"),
    "none": ([("order", 41, 0)], "expected a count in 1..5"),
    "fewer than none": ([("order", 41, -2)], "expected a count in 1..5"),
    "no such order": ([("pay", 18, "blum")], "there is no order 18"),
    "an id for an order": ([("order", 41, 2), ("pay", 41, "blum")], "there is no order 41"),
    "paid": ([("order", 41, 2), ("pay", 18, "blum"), ("pay", 18, "blum")], "order 18 is paid"),
    "no way": ([("order", 41, 2), ("pay", 18, "b" * 99)], f"order 18 cannot be paid by {'b' * 20}, only by blum"),
    "void": ([("order", 41, 2), ("pay", 18, "nel"), ("pay", 18, "rosk")], "order 18 is void"),
    "void for good": ([*PERFECT[1:3], ("pay", 18, "nel"), ("pay", 18, "blum")], "order 18 is void"),
}


@pytest.mark.parametrize(("calls", "why"), RAISES.values(), ids=RAISES)
def test_what_cannot_be_is_told_and_changes_nothing(calls, why: str):
    episode = Episode(Tavi(), 0, BUDGET)
    for one in calls[:-1]:
        episode.hear(call(*one))
    before = dict(episode.environment.goods), dict(episode.environment.orders)
    (told,) = episode.hear(call(*calls[-1]))
    assert told == f"error: ValueError: {why}" and len(told) <= 120
    assert before == (episode.environment.goods, episode.environment.orders) and episode.environment.misses[-1]


def test_a_first_payment_that_is_right_is_no_slip():
    """Nor is what fails before it, or after it, a payment of no order among these."""
    _, episode = visited(("find", "x"), ("order", 41, 2), ("pay", 18, "blum"), ("pay", 18, "blum"))
    assert episode.environment.misses == [True, False, False, True] and not episode.environment.slipped
    _, episode = visited(("pay", 18, "blum"), ("order", 41, 2), ("pay", 18, "blum"))
    assert not episode.environment.slipped and episode.reward() == 1  # no fair guess of a way
    episode = Episode(Tavi(), 0, BUDGET)
    assert episode.hear(written(Call("pay", {"order": "18"}))) == ["error: pay needs way"]
    assert not episode.environment.slipped


@pytest.mark.parametrize("difficulty", EVERY, ids=str)
def test_the_expert_is_always_right(difficulty: ShopDifficulty):
    """In every split. Every turn is one valid call, or none at the end; a turn is to spare; one good fits 700 bytes."""
    for split in SPLITS:
        world = Shop(difficulty, split)
        for number in range(60):
            episode, said = played(world, number)
            assert episode.reward() == 1, (number, said)
            assert episode.invalid == 0 and episode.raised == sum(world.misses) <= difficulty.kinds
            assert episode.turns == 3 * difficulty.kinds + sum(world.misses) + 1 < BUDGET.turns
            assert world.slipped == world.misses[2]
            *calls, answer = said[1::2]
            assert read_calls(answer) == [] and all(len(read_calls(turn)) == 1 for turn in calls)
            assert all(type(read_calls(turn)[0]) is Call for turn in calls)
            assert len(said[0].encode()) <= 250 and all(len(told.encode()) <= 150 for told in said[2::2])
            assert sum(len(words.encode()) for words in said) <= 700 * difficulty.kinds
            assert sum(len(told.encode()) + 40 for told in said[2::2]) <= BUDGET.tokens


@pytest.mark.parametrize("ways", [2, 3, 5])
def test_the_first_payment_fails_as_often_as_chance_says(ways: int):
    """(ways - 1) / ways, whichever way is taken first: the expert's guess, or the first that the question names."""
    world, guessed, first = Shop(ShopDifficulty(ways=ways)), 0, 0
    for number in range(1000):
        world.reset(number)
        (right,) = {good.way for good in world.goods.values() if good.name == world.wishes[0].name}
        guessed += world.wishes[0].guess != right
        first += world.ways[0] != right
    assert guessed / 1000 == pytest.approx(1 - 1 / ways, abs=0.05)
    assert first / 1000 == pytest.approx(1 - 1 / ways, abs=0.05)


def test_who_tries_all_ways_and_reads_nothing():
    """Is right where the first or the second fits: 2 of 3, and void after that."""
    right = 0
    for number in range(300):
        world = Shop()
        episode = Episode(world, number, BUDGET)
        (found,) = episode.hear(call("find", world.wishes[0].name))
        (placed,) = episode.hear(call("order", json.loads(found)["id"], world.wishes[0].count))
        order = re.findall(r"\d+", placed)[0]
        episode.hear("".join(call("pay", int(order), way) for way in world.ways))
        episode.hear(order)
        right += episode.reward() == 1
    assert right / 300 == pytest.approx(2 / 3, abs=0.08)


def test_without_a_tool_nothing_is_earned():
    """The number itself is right, and nobody has ordered anything."""
    for difficulty in EVERY:
        world = Shop(difficulty)
        for number in range(30):
            said = played(world, number)[1]
            episode = Episode(world, number, BUDGET)
            assert straight(world) == said[-1]
            episode.hear(straight(world))
            assert episode.reward() == 0


def test_ordering_and_asking_forever_earn_nothing():
    for turn in (call("order", 41, 1), call("find", "tavi"), "".join([call("order", 41, 1)] * 9)):
        episode = Episode(Tavi(), 0, BUDGET)
        while not episode.over:
            episode.hear(turn)
        assert episode.reward() == 0 and episode.turns == BUDGET.turns


@given(st.integers(0, 10**6), st.sampled_from(EVERY))
def test_any_shop(number: int, difficulty: ShopDifficulty):
    """All that is asked for is there; all numbers and names differ; and they suffice for all that can be ordered."""
    world = Shop(difficulty)
    world.reset(number)
    names = [*(good.name for good in world.goods.values()), *world.ways]
    assert len(set(names)) == len(names) == difficulty.goods + difficulty.ways
    assert all(re.fullmatch("([b-z][aeiou]){1,2}[b-z]?", name) and 3 <= len(name) <= 5 for name in names)
    stocks = {good.name: good.stock for good in world.goods.values()}
    assert all(1 <= wish.count <= stocks[wish.name] for wish in world.wishes)
    assert len({wish.name for wish in world.wishes}) == difficulty.kinds
    placed = [world.order(id, 1) for id, good in list(world.goods.items()) for _ in range(good.stock)]
    numbers = {int(re.findall(r"\d+", told)[0]) for told in placed}
    assert len(numbers) == len(placed) and numbers.isdisjoint(world.goods)
    assert all(10 <= n <= 99 for n in (*numbers, *world.goods))


def test_an_episode_is_a_function_of_its_number():
    """Whatever came before; and of seed and split."""
    world = Shop()
    for number in (5, 2, 9, 2):
        assert played(world, number)[1] == played(Shop(), number)[1]
    assert played(Shop(seed=1), 2)[1] != played(world, 2)[1]


def test_splits_are_apart():
    """No name of one split is in another; and within a split, names seldom come again."""
    names: dict[str, set] = {split: set() for split in SPLITS}
    for split in SPLITS:
        world = Shop(split=split)
        for number in range(300):
            world.reset(number)
            names[split] |= {*(good.name for good in world.goods.values()), *world.ways}
        assert {split_of(name) for name in names[split]} == {split}
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    assert len(names["train"]) > 1000 and min(map(len, names.values())) > 300


def test_three_tools():
    assert list(tools_of(Shop())) == ["find", "order", "pay"]


@pytest.mark.parametrize(
    "bad", [{"kinds": 0}, {"kinds": 3}, {"goods": 1, "kinds": 2}, {"goods": 10}, {"goods": 0}, {"ways": 1}, {"ways": 6}]
)
def test_difficulty_is_checked(bad):
    with pytest.raises(ValueError, match="expected kinds of 1 or 2, goods in"):
        ShopDifficulty(**bad)


def test_splits_are_checked():
    with pytest.raises(ValueError, match=r"expected a split of .*, got 'tests'"):
        Shop(split="tests")


def test_junk_is_no_guess():
    """Who pays by what the question does not name, to be told the right way, is paid off but has not corrected."""
    _, episode = visited(("order", 41, 2), ("pay", 18, "?"), ("pay", 18, "blum"))
    assert episode.environment.misses == [False, True, False] and not episode.environment.slipped
    assert episode.reward() == 1
