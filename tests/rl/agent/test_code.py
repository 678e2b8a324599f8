"""A first try fails by chance, its result tells what to mend, and only right code passes the hidden tests."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import expert_plays

from minikeye.inference.calling.calls import Call, read_calls, written
from minikeye.inference.calling.sandbox import Limits, Sandbox
from minikeye.rl.agent.code import (
    BUDGET,
    ENDS,
    IDLE,
    Code,
    CodeDifficulty,
    Task,
    demonstrated,
    drawn_lists,
    drawn_task,
    end,
    straight,
)
from minikeye.rl.agent.environment import Episode, tools_of

SPLITS = ("train", "validation", "test")
HARDER = CodeDifficulty(longest=10, reach=99)
EVERY = [
    CodeDifficulty(),
    HARDER,
    CodeDifficulty(shortest=3, longest=3, reach=5),
    CodeDifficulty(shortest=10, longest=10),
    *(CodeDifficulty(operations=(name,)) for name in ENDS),
    *(CodeDifficulty(filters=(name,), texts=texts) for name in ("all", "even", "odd") for texts in (0.0, 1.0)),
    *(CodeDifficulty(filters=(name,)) for name in ("above", "below")),
]


@pytest.fixture(scope="module")
def sandbox():
    """Patient: a busy machine fails no code that ends."""
    with Sandbox(Limits(seconds=60.0)) as opened:
        yield opened


def run(code: str) -> str:
    return written(Call("run", {"code": code}))


def number_of(world: Code, **wished) -> int:
    """The first episode whose task is like this."""
    for number in range(10_000):
        world.reset(number)
        if all(getattr(world.task, name) == value for name, value in wished.items()):
            return number
    raise AssertionError(wished)


def played(world: Code, number: int) -> tuple[Episode, list[str]]:
    """An episode of the expert, and all that was said and told."""
    return expert_plays(world, number, demonstrated, BUDGET)


def answered(world: Code, number: int, code: str) -> float:
    episode = Episode(world, number, BUDGET)
    episode.hear(code)
    return episode.reward()


SUM_ABOVE = Task("sum", "above", 4, catch=True)
TASKS = {  # (task, list, value, code of the catch), all by hand
    "k counts": (SUM_ABOVE, (3, 4, 9, 4), 17, "sum([x for x in xs if x>=4])"),
    "k does not": (replace(SUM_ABOVE, catch=False), (3, 4, 9, 4), 9, "sum([x for x in xs if x>4])"),
    "below, none": (Task("largest", "below", -3, False), (-3, 0), 0, "max([x for x in xs if x<-3]or[0])"),
    "below, k counts": (Task("largest", "below", -3, True), (-3, 0, -8), -3, "max([x for x in xs if x<=-3]or[0])"),
    "even texts": (Task("count", "even", 1, True), (0, -2, 3), 2, "len([x for x in map(int,xs) if x%2==0])"),
    "odd halves": (Task("smallest", "odd", 1, False), (3, 1.5, 7, 2), 3, "min([x for x in xs if x%2==1]or[0])"),
    "negative odd": (Task("smallest", "odd", 1, False), (3, -5), -5, "min([x for x in xs if x%2==1]or[0])"),
    "squares": (Task("sum of squares", "all", 1, False), (2.5, -2), 10.25, "sum([x*x for x in xs])"),
    "range": (Task("range", "all", 1, True), (2, -2, 9), 11, "y=[x for x in map(int,xs)]or[0]\nmax(y)-min(y)"),
    "range of one": (Task("range", "above", 4, False), (4, 9), 0, "y=[x for x in xs if x>4]or[0]\nmax(y)-min(y)"),
}


@pytest.mark.parametrize(("task", "numbers", "value", "code"), TASKS.values(), ids=TASKS)
def test_tasks_by_hand(sandbox, task: Task, numbers, value, code: str):
    """The truth of plain Python, the code of the expert, and what the sandbox makes of it."""
    assert task.value(numbers) == value and task.code(task.catch) == code
    assert sandbox.run(code, {"xs": [str(x) if task.texts else x for x in numbers]}).value == value


def test_questions():
    assert SUM_ABOVE.words == "Numbers xs. Code for the sum of those above 4; 0 if none."
    assert Task("range", "even", 1, True).words == "Numbers xs. Code for the range of the even ones; 0 if none."
    assert Task("largest", "all", 1, True).words == "Numbers xs. Code for the largest of all; 0 if none."


def test_an_episode_by_hand(sandbox):
    """Wrong, wrong in another way, right; then the answer. The first run is what `slipped` tells of."""
    world = Code(sandbox=sandbox)
    number = number_of(world, operation="sum", filter="above", catch=True)
    episode = Episode(world, number, replace(BUDGET, turns=9))
    k, example = world.task.k, world._example
    truth, strict = sum(x for x in example if x >= k), sum(x for x in example if x > k)
    assert truth != strict and not world.slipped
    assert episode.hear(run(f"sum([x for x in xs if x>{k}])")) == [f"{truth} expected, got {strict}"]
    assert world.slipped
    assert episode.hear(run("sum(x)")) == ["NameError: name 'x' is not defined (line 1)"]
    assert episode.hear(run(f"t=sum([x for x in xs if x>={k}])\nt")) == ["right"]
    assert world.misses == [True, True, False] and world.slipped and episode.reward() == 0
    assert episode.hear(f"sum(x for x in xs if x>={k})") == []
    assert episode.over and episode.reward() == 1


def test_a_right_first_run_is_no_slip(sandbox):
    world = Code(sandbox=sandbox)
    episode = Episode(world, 3, BUDGET)
    assert episode.hear(run(straight(world))) == ["right"] and not world.slipped
    assert episode.hear(run("1/0")) == ["ZeroDivisionError: division by zero (line 1)"]
    assert world.misses == [False, True] and not world.slipped
    world.reset(3)
    assert not world.slipped


def test_texts_raise_until_they_are_numbers(sandbox):
    world = Code(sandbox=sandbox)
    episode = Episode(world, number_of(world, operation="sum", filter="even", catch=True), BUDGET)
    (told,) = episode.hear(run("sum([x for x in xs if x%2==0])"))
    assert told.startswith("TypeError: ") and world.slipped
    assert episode.hear(run("sum([int(x) for x in xs if int(x)%2==0])")) == ["right"]
    episode.hear("sum([int(x) for x in xs if int(x)%2==0])")
    assert episode.reward() == 1


def test_int_is_no_safe_habit(sandbox):
    """Where numbers are numbers, some have halves, and who cuts them off is told so."""
    world = Code(sandbox=sandbox)
    for operation in ("sum", "largest", "sum of squares", "range"):
        episode = Episode(world, number_of(world, operation=operation, filter="all", catch=False), BUDGET)
        (told,) = episode.hear(run(world.task.code(True)))
        assert " expected, got " in told and answered(world, 0, "") == 0


@pytest.mark.parametrize("difficulty", EVERY, ids=str)
def test_the_expert_is_always_right(sandbox, difficulty: CodeDifficulty):
    """In every split. One failed run tells all: the second is right. Every turn is one valid call, or none at the end;
    nothing is longer than it may be."""
    for split in SPLITS:
        world = Code(difficulty, split, sandbox=sandbox)
        for number in range(15):
            episode, said = played(world, number)
            assert episode.reward() == 1, (number, said)
            assert world.misses in ([False], [True, False]) and world.slipped == world.misses[0]
            assert episode.turns == len(world.misses) + 1 < BUDGET.turns
            assert episode.invalid == episode.raised == 0
            *calls, answer = said[1::2]
            assert read_calls(answer) == [] and len(answer) <= 60
            assert all([type(call) for call in read_calls(turn)] == [Call] for turn in calls)
            assert len(said[0].encode()) <= 250 and all(len(told.encode()) <= 150 for told in said[2::2])
            assert sum(len(words.encode()) for words in said) <= 700


def test_the_first_try_fails_as_often_as_chance_says(sandbox):
    """In half of the episodes, with k and without; where no list holds texts, only with k."""
    for difficulty, share in (
        (CodeDifficulty(), 0.5),
        (CodeDifficulty(texts=0.0), 0.0),
        (CodeDifficulty(texts=1.0), 1.0),
    ):
        world, bounded, rest = Code(difficulty, sandbox=sandbox), [], []
        for number in range(400):
            world.reset(number)
            (call,) = read_calls(demonstrated(world, []))
            wrong = call.arguments["code"] != straight(world)
            (bounded if world.task.bounded else rest).append(wrong)
        assert len(bounded) > 12 and len(rest) > 25
        assert sum(bounded) / len(bounded) == pytest.approx(0.5, abs=0.12 if share == 0.5 else 0.3)
        assert sum(rest) / len(rest) == pytest.approx(share, abs=0.1 * (share == 0.5))


def test_without_a_tool_it_is_a_coin(sandbox):
    """Either catch, always guessed, passes all hidden tests in half of the episodes; the truth in all of them."""
    world, right = Code(sandbox=sandbox), {False: 0, True: 0}
    for number in range(100):
        for catch in right:
            world.reset(number)
            code = world.task.code(catch)
            passed = answered(world, number, code)
            assert (passed == 1) == (code == straight(world)) == (catch == world.task.catch)
            right[catch] += passed == 1
    assert right[False] + right[True] == 100 and 35 <= right[True] <= 65


def test_what_passes_the_run_alone_earns_little(sandbox):
    """The value that the run told, and other constants, for all lists and for those alone that are not empty."""
    for difficulty in (CodeDifficulty(), HARDER, CodeDifficulty(shortest=3, longest=3, reach=5)):
        world = Code(difficulty, sandbox=sandbox)
        for number in range(12):
            episode = Episode(world, number, BUDGET)
            told = repr(world.task.value(world._example))
            assert episode.hear(run(told)) == ["right"]
            episode.hear(told)
            assert episode.reward() <= 3 / 8
            assert answered(world, number, f"{told} if xs else 0") <= 4 / 8
            assert answered(world, number, "0") <= 3 / 8
            assert all(answered(world, number, str(constant)) < 1 for constant in range(-3, 4))


OTHER_ENDS = {
    "nothing": ("", 0),
    "words": ("done", 0),
    "right code in a fence": ("```python\n{}\n```", 0),
    "the right code twice": ("{}\n{}", None),  # its last line is the value all the same
    "printed": ("print({})", 0),
    "a text": ("str({})", 0),
    "another type": ("float({})", 0),
    "a name that nobody gave": ("truth", 0),
    "a list of all values": ("[0, 1, 2, 3]", 0),
    "what was seen before": ("try:\n    seen = seen + 1\nexcept NameError:\n    seen = 0\nseen and {}", None),
}


@pytest.mark.parametrize(("code", "reward"), OTHER_ENDS.values(), ids=OTHER_ENDS)
def test_other_ends(sandbox, code: str, reward: float | None):
    world = Code(sandbox=sandbox)
    number = number_of(world, operation="sum", filter="above")
    answer = code.replace("{}", straight(world))
    if code == "{}\n{}":
        assert answered(world, number, answer) == 1
    elif reward is None:  # `seen` is 0 in every run, since every run begins with nothing; so are three values at most
        assert answered(world, number, answer) == answered(world, number, "0") <= 3 / 8
    else:
        assert answered(world, number, answer) == reward


def test_a_share_by_hand(sandbox):
    """Code that is wrong about k fails where k is in the list, and only there."""
    world = Code(sandbox=sandbox)
    number = number_of(world, operation="sum", filter="above")
    other = world.task.code(not world.task.catch)
    fine = [world.task.k not in numbers for numbers in world._hidden]
    assert answered(world, number, other) == sum(fine) / 8 and 0 < sum(fine) < 7
    assert answered(world, number, f"{straight(world)} if xs else 1") == 7 / 8


def test_time_runs_out():
    """Code that does not end fails all, and is not waited for eight times."""
    with Sandbox(Limits(seconds=0.1)) as quick:
        world = Code(sandbox=quick)
        assert answered(world, 0, f"while xs:\n    pass\n{straight_of(world, 0)}") == 0
        ran = []
        world.sandbox = type("Counted", (), {"run": lambda _, *given: ran.append(given) or quick.run(*given)})()
        assert answered(world, 0, "while True:\n    pass") == 0 and len(ran) == 1


def straight_of(world: Code, number: int) -> str:
    world.reset(number)
    return straight(world)


def test_calling_forever_earns_nothing(sandbox):
    world = Code(sandbox=sandbox)
    episode = Episode(world, 3, BUDGET)
    while not episode.over:
        episode.hear(run(straight(world)))
    assert episode.reward() == 0 and len(world.misses) == BUDGET.turns - 1


def test_a_reward_is_counted_once(sandbox):
    world = Code(sandbox=sandbox)
    answered(world, 3, straight_of(world, 3))
    world.sandbox = None
    assert world.get_reward() == 1


def test_an_episode_is_a_function_of_its_number(sandbox):
    """Whatever came before; and of seed and split."""
    one, other = Code(sandbox=sandbox), Code(sandbox=sandbox)
    for number in (5, 2, 9, 2):
        said = played(one, number)[1]
        other.reset(number)
        assert (one.task, one._example, one._hidden) == (other.task, other._example, other._hidden)
        assert played(Code(sandbox=sandbox), number)[1] == said
    assert lists(Code(seed=1, sandbox=sandbox)).isdisjoint(lists(one))


def lists(world: Code) -> set:
    """The lists of a hundred episodes, all those of one together."""
    found = set()
    for number in range(100):
        world.reset(number)
        found.add((world._example, *world._hidden))
    return found


def test_splits_are_apart(sandbox):
    """Other lists, and another catch: the same question may have it in one split, and not in the other."""
    found = [lists(Code(split=split, sandbox=sandbox)) for split in SPLITS]
    assert [len(found) for found in found] == [100, 100, 100] and len(set().union(*found)) == 300
    catches: dict[str, set] = {}
    for split in SPLITS:
        world = Code(split=split, sandbox=sandbox)
        for number in range(200):
            catches.setdefault(world.reset(number), set()).add(world.task.catch)
    assert sum(len(both) == 2 for both in catches.values()) > 0.6 * len(catches)


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6), shortest=st.integers(3, 10), more=st.integers(0, 7), reach=st.integers(5, 99))
def test_what_lists_are_drawn(seed: int, shortest: int, more: int, reach: int):
    """Each kind that the docstring names, whatever the difficulty; and a truth that a loop can check."""
    from random import Random

    random, difficulty = Random(seed), CodeDifficulty(shortest=shortest, longest=min(shortest + more, 10), reach=reach)
    task = drawn_task(difficulty, random)
    assert (task.operation, task.filter) not in IDLE and 1 <= abs(task.k) < reach
    example, hidden = drawn_lists(task, difficulty, random)
    empty, negative, unlike, twice, *rest = hidden
    assert len(hidden) == 8 and empty == () and max(negative) < 0 and len(set(twice)) < len(twice)
    assert task.filter == "all" or (unlike and end("count", task.chosen(unlike, task.catch)) == 0)
    assert all(task.tells(numbers) for numbers in (example, *rest[:2])) and task.value(example) != 0
    assert all(abs(x) <= reach for numbers in hidden for x in numbers)
    assert all(len(numbers) <= difficulty.longest for numbers in hidden)
    whole = task.bounded or task.texts
    assert all(isinstance(x, int) for numbers in hidden for x in numbers) or not whole
    assert whole or any(isinstance(x, float) for x in example)


def test_one_tool(sandbox):
    assert list(tools_of(Code(sandbox=sandbox))) == ["run"]


BAD = {
    "an operation": {"operations": ("mean",)},
    "a filter": {"filters": ("prime",)},
    "no task": {"operations": ("largest",), "filters": ("above",)},
    "none": {"operations": ()},
    "too short": {"shortest": 2},
    "upside down": {"shortest": 6, "longest": 5},
    "too long": {"longest": 11},
    "reach": {"reach": 4},
    "share": {"texts": 1.5},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_difficulty_is_checked(bad):
    with pytest.raises(ValueError, match="expected "):
        CodeDifficulty(**bad)


def test_splits_are_checked(sandbox):
    with pytest.raises(ValueError, match=r"expected a split of .*, got 'tests'"):
        Code(split="tests", sandbox=sandbox)
