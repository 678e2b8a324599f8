"""Code: one to three lines over a list of numbers, hidden tests, and one repair after what a run has told.

    Numbers xs. Code for the sum of those above 4; 0 if none.
    run("sum([x for x in xs if x>4])")     16 expected, got 12
    run("sum([x for x in xs if x>=4])")    right
    sum([x for x in xs if x>=4])

The report gives coding its pass rate under hidden tests. What is our choice is the catch: one thing that the question
does not say, drawn anew in each episode, so that a first try fails as often as chance says although nothing was done
wrong. One run on an example, which nobody is shown, tells it. A task has exactly one:

- above k, below k: whether k itself counts. The numbers are whole.
- all, even, odd: whether the numbers are texts such as "7". Else some have halves: int() of all is no safe habit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import get_args

from minikeye.inference.calling.calls import Call, Result, written
from minikeye.inference.calling.sandbox import Sandbox
from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.draws import generator
from minikeye.rl.agent.environment import Budget, Environment

Number = int | float
Numbers = tuple[Number, ...]

BUDGET = Budget(turns=4, tokens=400, observation=120)
# Where the catch would be none: k is never the largest of those above it, and a length is that of texts, too.
IDLE = (("largest", "above"), ("smallest", "below"), ("count", "all"))
ENDS = {
    "sum": "sum({})",
    "count": "len({})",
    "largest": "max({}or[0])",
    "smallest": "min({}or[0])",
    "sum of squares": "sum({})",
    "range": "y={}or[0]\nmax(y)-min(y)",
}
OPERATIONS, FILTERS = tuple(ENDS), ("all", "above", "below", "even", "odd")


@dataclass(frozen=True)
class CodeDifficulty:
    """What is asked. A task is a pair of an operation and a filter, but for those in `IDLE`; all are equally likely."""

    operations: tuple[str, ...] = OPERATIONS  # with the numbers that the filter lets through
    filters: tuple[str, ...] = FILTERS
    shortest: int = 3  # numbers in a list that is not empty
    longest: int = 6  # the same
    reach: int = 9  # numbers lie in -reach..reach
    texts: float = 0.5  # share of the episodes without above and below whose lists hold texts, 0..1

    def __post_init__(self) -> None:
        known = set(self.operations) <= set(OPERATIONS) and set(self.filters) <= set(FILTERS)
        if not known or not self.tasks:
            raise ValueError(
                f"expected operations among {OPERATIONS} and filters among {FILTERS} with a pair of them outside of "
                f"{IDLE}, got {self.operations} and {self.filters}"
            )
        if not (3 <= self.shortest <= self.longest <= 10 and 5 <= self.reach <= 99 and 0 <= self.texts <= 1):
            raise ValueError(f"expected 3 <= shortest <= longest <= 10, reach in 5..99, texts in 0..1, got {self}")

    @property
    def tasks(self) -> list[tuple[str, str]]:
        return [pair for pair in product(self.operations, self.filters) if pair not in IDLE]


@dataclass(frozen=True)
class Task:
    """What is asked. catch: what is not said: whether k itself counts, or, without a k, whether numbers are texts."""

    operation: str
    filter: str
    k: int
    catch: bool

    @property
    def bounded(self) -> bool:
        return self.filter in ("above", "below")

    @property
    def texts(self) -> bool:
        return self.catch and not self.bounded

    @property
    def words(self) -> str:
        """The question."""
        which = {"all": "all", "even": "the even ones", "odd": "the odd ones"}
        ones = which.get(self.filter, f"those {self.filter} {self.k}")
        return f"Numbers xs. Code for the {self.operation} of {ones}; 0 if none."

    def code(self, catch: bool) -> str:
        """The expert's code where the catch is this one: at most 60 characters."""
        numbers = "map(int,xs)" if catch and not self.bounded else "xs"
        where = {
            "all": "",
            "above": f" if x>{'=' * catch}{self.k}",
            "below": f" if x<{'=' * catch}{self.k}",
            "even": " if x%2==0",
            "odd": " if x%2==1",
        }[self.filter]
        each = "x*x" if self.operation == "sum of squares" else "x"
        return ENDS[self.operation].format(f"[{each} for x in {numbers}{where}]")

    def chosen(self, numbers: Sequence[Number], catch: bool) -> list[Number]:
        """Those that the filter lets through. catch: only of k, for texts are numbers here."""
        lets: dict[str, Callable[[Number], bool]] = {
            "all": lambda x: True,
            "above": lambda x: x > self.k or (catch and x == self.k),
            "below": lambda x: x < self.k or (catch and x == self.k),
            "even": lambda x: x % 2 == 0,
            "odd": lambda x: x % 2 == 1,
        }
        return [x for x in numbers if lets[self.filter](x)]

    def value(self, numbers: Sequence[Number]) -> Number:
        """The truth, by Python itself."""
        return end(self.operation, self.chosen(numbers, self.catch))

    def tells(self, numbers: Sequence[Number]) -> bool:
        """Whether code for the other catch gives another value, or an error."""
        if self.texts:
            return bool(numbers)
        other = numbers if self.bounded else [int(x) for x in numbers]
        return end(self.operation, self.chosen(other, not self.catch)) != self.value(numbers)


def end(operation: str, numbers: Sequence[Number]) -> Number:
    """What an operation makes of the numbers that were let through."""
    match operation:
        case "sum":
            return sum(numbers)
        case "count":
            return len(numbers)
        case "largest":
            return max(numbers, default=0)
        case "smallest":
            return min(numbers, default=0)
        case "sum of squares":
            return sum(x * x for x in numbers)
    return max(numbers, default=0) - min(numbers, default=0)


class Code(Environment):
    """Writes code for a list of numbers. The reward is the share of the 8 hidden tests that the answer passes.

    The answer is code, of which the last line is the value, a number of the right type (16.0 is not 16). Each test is a
    run of its own in a new session of the sandbox, so nothing is left of those before. Among the lists are the empty
    one, one without a number that the filter lets through, one of negative numbers, one with a number twice, and two on
    which the other catch fails. So 1.0 is for all of it. A constant never earns 1, and the value that `run` told at
    most 3 of 8. Code that runs out of time earns nothing at all.

    sandbox: an open one, which many worlds may share. slipped: bool, whether the first code that was run was not right
    (calls that never reach the tool do not count); False before.
    """

    slipped = False

    def __init__(
        self, difficulty: CodeDifficulty = CodeDifficulty(), split: str = "train", seed: int = 0, *, sandbox: Sandbox
    ):
        if split not in get_args(Split):
            raise ValueError(f"expected a split of {get_args(Split)}, got {split!r}")
        self.difficulty, self.split, self.seed, self.sandbox = difficulty, split, seed, sandbox
        self.slipped = False

    def reset(self, number: int) -> str:
        random = Random(generator("code", self.seed, self.split, number).initial_seed())
        self.slipped, self._ran, self._judged = False, False, dict[str, float]()
        self.task = drawn_task(self.difficulty, random)
        self._guess = random.random() < 0.5  # of whether k itself counts
        self._example, self._hidden = drawn_lists(self.task, self.difficulty, random)
        return self.task.words

    def run(self, code: str) -> str:
        """Run code on an example.

        code: its last line is the value
        """
        value, told = self._value(code, self._example)
        truth = self.task.value(self._example)
        right = _same(value, truth)
        self.slipped, self._ran = self.slipped or not (right or self._ran), True
        self.misses.append(not right)
        return "right" if right else told or f"{truth!r} expected, got {value!r}"

    def get_reward(self) -> float:
        if self.answer not in self._judged:
            self._judged[self.answer] = self._share(self.answer)
        return self._judged[self.answer]

    def _share(self, code: str) -> float:
        """Of hidden tests that the code passes. It is 0 without code, and where time runs out (report: a failure)."""
        passed = 0
        for numbers in self._hidden if code else ():
            value, error = self._value(code, numbers)
            if error.startswith("TimeoutError"):
                return 0.0
            passed += _same(value, self.task.value(numbers))
        return passed / len(self._hidden)

    def _value(self, code: str, numbers: Sequence[Number]) -> tuple[object, str]:
        """(value of the code's last line, error)."""
        outcome = self.sandbox.run(code, {"xs": [str(x) if self.task.texts else x for x in numbers]})
        return outcome.value, outcome.error


def demonstrated(world: Code, heard: Sequence[Sequence[Result]]) -> str:
    """The expert: runs what it would guess, changes the one thing that can be wrong, and answers what was right.

    Its guess whether k itself counts is a coin's; that numbers are numbers, it takes for granted.
    """
    guess = world.task.bounded and world._guess
    code = world.task.code(guess ^ bool(heard and heard[0][0] != "right"))
    return code if heard and heard[-1][0] == "right" else written(Call("run", {"code": code}))


def straight(world: Code) -> str:
    """The right code at once. Nothing in the question tells the catch, so who must guess it passes all hidden tests in
    half of the episodes: 1/2 with above and below, max(texts, 1 - texts) without. There code that asks for the type of
    what it is given passes always: where chance is to be a bound, leave `filters` to above and below."""
    return world.task.code(world.task.catch)


def drawn_task(difficulty: CodeDifficulty, random: Random) -> Task:
    """A task and its catch. k is not 0, which no sum would miss."""
    operation, kind = random.choice(difficulty.tasks)
    k = random.randint(1, difficulty.reach // 2) * random.choice((-1, 1))
    likely = 0.5 if kind in ("above", "below") else difficulty.texts
    return Task(operation, kind, k, random.random() < likely)


def drawn_lists(task: Task, difficulty: CodeDifficulty, random: Random) -> tuple[Numbers, list[Numbers]]:
    """The example of `run`, which tells the catch and has not the value 0, and the lists of the 8 hidden tests."""

    def drawn(fits: Callable[[Numbers], bool], twice: bool = False) -> Numbers:
        while True:
            numbers = drawn_numbers(task, difficulty, random)
            numbers = (*numbers[:-1], numbers[0]) if twice else numbers
            if fits(numbers):
                return numbers

    def tells(numbers: Numbers) -> bool:
        return task.tells(numbers) and task.value(numbers) != 0

    def news(numbers: Numbers) -> bool:
        return task.value(numbers) not in (0, task.value(example))

    example = drawn(tells)
    negative = tuple(-abs(x) or -1 for x in drawn(news))
    unlike = drawn(lambda numbers: task.filter == "all" or len(task.chosen(numbers, task.catch)) < len(numbers))
    none = tuple(x for x in unlike if not task.chosen([x], task.catch))
    hidden = [(), negative, none or drawn(news), drawn(news, twice=True)]
    return example, [*hidden, drawn(tells), drawn(tells), drawn(news), drawn(news)]


def drawn_numbers(task: Task, difficulty: CodeDifficulty, random: Random) -> Numbers:
    """A list. With above and below a fourth of it is k; otherwise half of it has a half, unless it is texts."""
    numbers, reach = list[Number](), difficulty.reach
    for _ in range(random.randint(difficulty.shortest, difficulty.longest)):
        whole, halves = random.randint(-reach, reach), random.randint(-2 * reach, 2 * reach)
        if task.bounded:
            numbers.append(task.k if random.random() < 0.25 else whole)
        else:
            numbers.append(whole if task.texts or halves % 2 == 0 else halves / 2)
    return tuple(numbers)


def _same(value: object, truth: Number) -> bool:
    return type(value) is type(truth) and value == truth
