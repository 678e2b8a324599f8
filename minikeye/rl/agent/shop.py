"""Tool use: a small shop with a database, judged by what the database holds at the end.

    Buy 2 of tavi. You may pay by rosk, blum or nel.
    find("tavi")        {"id": 41, "price": 7, "stock": 5}
    order(41, 2)        order 18, 14 to pay
    pay(18, "rosk")     error: ValueError: order 18 cannot be paid by rosk, only by blum
    pay(18, "blum")     paid
    18

The one self-correction that the report shows (case VI) in miniature: an order was paid, the way did not fit, another
was taken. Which way fits belongs to the good and is told by nothing but a refusal: so the first payment fails as often
as chance says. A second refusal makes the order void (our choice), or trying all ways would do in the place of reading.
All names are invented anew in each episode, and a name belongs to one split: none can be learnt by heart.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import get_args

from minikeye.inference.calling.calls import Call, Result, written
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.draws import generator
from minikeye.rl.agent.environment import Budget, Environment

BUDGET = Budget(turns=10, tokens=1024, observation=120)
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
REFUSALS = 2  # after which an order is void
MOST = 9  # goods of a shop, and of each in stock: 81 orders of one, and 90 ids and order numbers of two digits


@dataclass(frozen=True)
class ShopDifficulty:
    """What is to be bought, and where. Two kinds make an episode twice as long."""

    goods: int = 4  # in the shop
    ways: int = 3  # to pay, named in the question; one of them is right for a good
    kinds: int = 1  # different goods that are to be bought, 1 or 2

    def __post_init__(self) -> None:
        if not (1 <= self.kinds <= 2 and self.kinds <= self.goods <= MOST and 2 <= self.ways <= 5):
            raise ValueError(f"expected kinds of 1 or 2, goods in kinds..{MOST} and ways in 2..5, got {self}")


@dataclass(frozen=True)
class Good:
    """A row of the database."""

    name: str
    price: int
    stock: int
    way: str  # the only one that it can be paid by


@dataclass(frozen=True, order=True)
class Order:
    """Another, of the other table."""

    id: int  # of the good
    count: int
    paid: int = 0  # money
    way: str = ""


@dataclass(frozen=True)
class Wish:
    """What is to be bought. guess: the way that the expert tries first, drawn apart from all else."""

    name: str
    count: int
    guess: str


class Shop(Environment):
    """A shop. The reward is 1 where its database is as the user wishes and the answer names the orders; else 0.

    As the user wishes: one order for each good that is to be bought, of that count, paid in full by its way; nothing
    else ordered or paid, and the stock lowered by just that. An order cannot be taken back. The answer is the orders'
    numbers as the question has the goods, "18" or "18, 23". What is half done earns nothing: the report judges by the
    state that is left behind. `misses` are the calls that failed, refused payments among them.

    slipped: bool, whether the first payment was a fair guess that failed: of an order that is there, by a way that the
    question names. Whoever pays by something else to be told the right way has not slipped. False before.
    """

    slipped = False

    def __init__(self, difficulty: ShopDifficulty = ShopDifficulty(), split: str = "train", seed: int = 0):
        if split not in get_args(Split):
            raise ValueError(f"expected a split of {get_args(Split)}, got {split!r}")
        self.difficulty, self.split, self.seed = difficulty, split, seed

    def reset(self, number: int) -> str:
        random, asked = Random(generator("shop", self.seed, self.split, number).initial_seed()), self.difficulty
        names = drawn_names(asked.goods + asked.ways, self.split, random)
        goods, self.ways = names[: asked.goods], names[asked.goods :]
        numbers = random.sample(range(10, 100), 90)
        self.goods = {
            id: Good(name, random.randint(1, 9), random.randint(3, MOST), random.choice(self.ways))
            for id, name in zip(numbers, goods, strict=False)
        }
        self.wishes = [Wish(name, random.randint(1, 3), random.choice(self.ways)) for name in goods[: asked.kinds]]
        self.orders, self._numbers = dict[int, Order](), numbers[asked.goods :]  # of orders, one after another
        self._before = dict(self.goods)
        self.slipped, self._tried, self._refusals = False, False, Counter[int]()
        wished = " and ".join(f"{wish.count} of {wish.name}" for wish in self.wishes)
        return f"Buy {wished}. You may pay by {', '.join(self.ways[:-1])} or {self.ways[-1]}."

    def find(self, name: str) -> dict[str, int]:
        """Look for a good.

        name: its name
        """
        for id, good in self.goods.items():
            if good.name == name:
                return {"id": id, "price": good.price, "stock": good.stock}
        raise ValueError(f"there is no {name:.20}")

    def order(self, id: int, count: int) -> str:
        """Order a good.

        id: of the good
        count: how many
        """
        if id not in self.goods:
            raise ValueError(f"there is no good {id}")
        good = self.goods[id]
        if not 1 <= count <= good.stock:
            raise ValueError(f"expected a count in 1..{good.stock}")
        number = self._numbers[len(self.orders)]
        self.orders[number] = Order(id, count)
        self.goods[id] = replace(good, stock=good.stock - count)
        return f"order {number}, {good.price * count} to pay"

    def pay(self, order: int, way: str) -> str:
        """Pay an order.

        order: its number
        way: by what
        """
        first, self._tried = not self._tried, True
        if why := self._refused(order, way):
            self.slipped = self.slipped or (first and order in self.orders and way in self.ways)
            raise ValueError(why)
        placed = self.orders[order]
        self.orders[order] = replace(placed, paid=self.goods[placed.id].price * placed.count, way=way)
        return "paid"

    def get_reward(self) -> float:
        ids = {good.name: id for id, good in self._before.items()}
        goods, orders = dict(self._before), list[Order]()
        for wish in self.wishes:
            id, good = ids[wish.name], self._before[ids[wish.name]]
            goods[id] = replace(good, stock=good.stock - wish.count)
            orders.append(Order(id, wish.count, good.price * wish.count, good.way))
        if goods != self.goods or sorted(orders) != sorted(self.orders.values()):
            return 0.0
        numbers = {order.id: number for number, order in self.orders.items()}
        return float(self.answer == ", ".join(str(numbers[order.id]) for order in orders))

    def _refused(self, number: int, way: str) -> str:
        """Why an order cannot be paid by this way, which is counted; "" where it can."""
        if number not in self.orders:
            return f"there is no order {number}"
        if self.orders[number].paid:
            return f"order {number} is paid"
        right = self.goods[self.orders[number].id].way
        self._refusals[number] += way != right
        if self._refusals[number] >= REFUSALS:
            return f"order {number} is void"
        return "" if way == right else f"order {number} cannot be paid by {way:.20}, only by {right}"


def demonstrated(world: Shop, heard: Sequence[Sequence[Result]]) -> str:
    """The expert: finds, orders, pays by the way that it guesses, else by the one that it is told; one good after
    another. Then it answers the orders' numbers."""
    told, numbers = iter([str(results[0]) for results in heard]), list[str]()
    for wish in world.wishes:
        if not (found := next(told, "")):
            return called("find", name=wish.name)
        if not (placed := next(told, "")):
            return called("order", id=json.loads(found)["id"], count=wish.count)
        number = int(placed.split(",")[0].split()[1])  # order 18, 14 to pay
        if not (paid := next(told, "")):
            return called("pay", order=number, way=wish.guess)
        if paid != "paid" and not next(told, ""):
            return called("pay", order=number, way=paid.split()[-1])
        numbers.append(str(number))
    return ", ".join(numbers)


def straight(world: Shop) -> str:
    """The numbers that the orders would get. Chance is 0: without a call nothing is ordered, whatever is answered."""
    return ", ".join(map(str, world._numbers[: len(world.wishes)]))


def called(tool: str, **arguments: int | str) -> str:
    return written(Call(tool, arguments))


def drawn_names(count: int, split: str, random: Random) -> list[str]:
    """Different names of a split, of three to five letters: consonants and vowels by turns."""
    names = dict[str, None]()
    while len(names) < count:
        letters = [random.choice((CONSONANTS, VOWELS)[n % 2]) for n in range(random.randint(3, 5))]
        if split_of(name := "".join(letters)) == split:
            names[name] = None
    return list(names)


def split_of(name: str) -> Split:
    """The only split that has this name: 80 % of all names are for training, 10 % each for validation and test."""
    tenth = generator("name of a shop", name).initial_seed() % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
