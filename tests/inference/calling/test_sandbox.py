"""Whatever code does, it is told what it did, and nothing else happens."""

import os
import typing
from pathlib import Path

import psutil
import pydantic_monty as monty
import pytest

from minikeye.inference.calling.calls import Call, written
from minikeye.inference.calling.sandbox import (
    SAME_EVERY_TIME,
    UNSHOWN,
    Limits,
    Outcome,
    Sandbox,
    plain,
    resource_limits,
)
from minikeye.rl.agent.environment import Budget, Environment, Episode


@pytest.fixture(scope="module")
def sandbox():
    """Patient: a busy machine fails no code that ends."""
    with Sandbox(Limits(seconds=60.0, printed=200)) as opened:
        yield opened


@pytest.fixture(scope="module")
def quick():
    """For code that does not end."""
    with Sandbox(Limits(printed=200)) as opened:
        yield opened


WORKS = {
    "a value": ("sum(numbers) // 2", Outcome(value=4)),
    "lines": ("big = [n for n in numbers if n > 3]\nprint(big)\nbig[0]", Outcome("[5]\n", 5)),
    "no value": ("total = sum(numbers)", Outcome()),
    "a function": ("def twice(n):\n    return 2 * n\n\n\ntwice(max(numbers))", Outcome(value=10)),
    "an error that is caught": ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    print('no')", Outcome("no\n")),
    "mathematics": ("import math\nmath.sqrt(16)", Outcome(value=4.0)),
    "values in values": ("{'a': [1, (2.5, None)], 'b': True}", Outcome(value={"a": [1, (2.5, None)], "b": True})),
    "text in other letters": ("'é' + '🎬'", Outcome(value="é🎬")),
}


@pytest.mark.parametrize(("code", "outcome"), WORKS.values(), ids=WORKS)
def test_code_that_works(sandbox, code: str, outcome: Outcome):
    assert sandbox.run(code, {"numbers": [3, 5]}) == outcome


MEMORY = "MemoryError: it takes over 16000000 bytes, or prints over 200"
TIME = "TimeoutError: it takes over 0.5 s"
ATTACKS = {
    "syntax": ("1 +", "SyntaxError"),
    "division": ("a = 1\nb = 0\na / b", "ZeroDivisionError: division by zero (line 3)"),
    "a name": ("total", "NameError: name 'total' is not defined (line 1)"),
    "read a file": ("open(path).read()", "PermissionError"),
    "read a file by another way": ("from pathlib import Path\nPath(path).read_text()", "PermissionError"),
    "write a file": ("open(path, 'w').write('mine')", "PermissionError"),
    "write by another way": ("from pathlib import Path\nPath(path).write_text('mine')", "PermissionError"),
    "remove a file": ("import os\nos.remove(path)", "PermissionError"),
    "list a folder": ("import os\nos.listdir('/')", "PermissionError"),
    "read the environment": ("import os\nos.environ['MINIKEYE_SECRET']", "RuntimeError"),
    "socket": ("import socket\nsocket.socket()", "ModuleNotFoundError: No module named 'socket'"),
    "web": ("import urllib.request", "ModuleNotFoundError"),
    "a program": ("import os\nos.system('id')", "AttributeError"),
    "a program by another way": ("import subprocess", "ModuleNotFoundError"),
    "import": ("__import__('os').system('id')", "NameError"),
    "import of this project": ("import minikeye", "ModuleNotFoundError"),
    "import in exec": ("exec('import socket')", "ModuleNotFoundError"),
    "ctypes": ("import ctypes", "ModuleNotFoundError"),
    "dunder walk": ("().__class__.__base__.__subclasses__()", "AttributeError"),
    "dunder walk by name": ("getattr((), '__class__')", "AttributeError"),
    "dunder walk by format": ("'{0.__class__}'.format(1)", "AttributeError"),
    "dunder walk of a function": ("(lambda: 0).__globals__", "AttributeError"),
    "names of the outside": ("globals()", "NameError"),
    "a large list": ("[0] * 10**9", MEMORY),
    "a large text": ("'a' * 10**9", MEMORY),
    "a large number": ("9**9**9", MEMORY),
    "memory bit by bit": ("x = []\nwhile True:\n    x.append('a' * 1000)", MEMORY),
    "memory of a long line": ("x = " + "[" * 4000 + "]" * 4000, "SyntaxError"),
    "a bomb that is caught": ("try:\n    [0] * 10**9\nexcept MemoryError:\n    pass\n[0] * 10**9", MEMORY),
    "a loop": ("while True:\n    pass", TIME),
    "a loop that catches all": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        TIME,
    ),
    "sleep in a loop": ("import time\nwhile True:\n    time.sleep(100)", TIME),
    "a loop that says how far it came": ("n = 0\nprint(n)\nwhile True: n += 1", TIME),
    "a slow pattern": ("import re\nre.match('(a|a?)+$', 'a' * 40 + 'b')\nwhile True: pass", TIME),
    "recursion": ("def f():\n    return f()\n\n\nf()", "RecursionError"),
    "recursion of two": ("def f(n):\n    return g(n)\n\n\ndef g(n):\n    return f(n + 1)\n\n\nf(0)", "RecursionError"),
    "huge output": ("print('x' * 300)", MEMORY),
    "output without end": ("while True:\n    print('x' * 100)", MEMORY),
    "a long error": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "an end": ("raise SystemExit", "SystemExit"),
    "Ctrl-C": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "10 MB of code": ("1" * 10**7, "expected code of at most 10000 characters, got 10000000"),
    "a number without digits": ("10**5000", UNSHOWN),
    "a set": ("{'a', 'b'}", UNSHOWN),
    "deep lists": (
        "a = []\nfor _ in range(5000):\n    a = [a]\na",
        UNSHOWN,
    ),
    "an object": ("class A:\n    pass\n\n\nA()", UNSHOWN),
    "a byte 0": ("\0", "SyntaxError"),
}


@pytest.mark.parametrize(("code", "words"), ATTACKS.values(), ids=ATTACKS)
def test_attacks(sandbox, quick, tmp_path: Path, monkeypatch, code: str, words: str):
    """Each is told why it failed, in few words; the file is what it was; and the next run works."""
    monkeypatch.setenv("MINIKEYE_SECRET", "hidden")
    (path := tmp_path / "secret").write_text("hidden")
    where = quick if words == TIME or code.startswith("while") else sandbox
    outcome = where.run(code, {"path": str(path)})
    assert outcome.error.startswith(words) and outcome.error and outcome.value is None
    assert outcome.printed == ""  # that of a loop would tell how fast the machine is
    assert len(outcome.text) < 500 and "hidden" not in outcome.text
    assert os.listdir(tmp_path) == ["secret"] and path.read_text() == "hidden"
    assert where.run("1 + 1") == Outcome(value=2)


def test_the_same_code_gives_the_same_words(sandbox, quick):
    """Clock, sleep, random numbers, sets, addresses, and what an error says of a limit: also in another process."""
    code = (
        "import datetime, random, time\ntime.sleep(1000)\n"
        "print(datetime.datetime.now(), time.time(), time.perf_counter(), time.process_time(), random.random())\n"
        "print({'a', 'b', 'c'}, hash('a'), id([]))"
    )
    with Sandbox(Limits(seconds=60.0, printed=200)) as other, Sandbox(Limits(printed=200)) as brief:
        first = sandbox.run(code)
        assert first.error == "" and first == sandbox.run(code) == other.run(code)
        for attack in ("while True: pass", "while True: print(1)", "x = []\nwhile True: x.append('a' * 999)"):
            assert quick.run(attack).error and quick.run(attack) == brief.run(attack)


def test_nothing_stays_behind(sandbox):
    sandbox.run("secret = 3\nimport math\nmath.pi = 3")
    assert sandbox.run("secret").error.startswith("NameError")
    assert sandbox.run("import math\nmath.pi > 3.1").value is True


def test_what_is_given_stays_as_it_was(sandbox):
    numbers = [3, 5]
    assert sandbox.run("numbers.append(7)\nlen(numbers)", {"numbers": numbers}).value == 3 and numbers == [3, 5]


def test_every_limit_is_set():
    """Also those that a later version of the library has, which would be no limit. One setting of the clock goes with
    a clock that runs only."""
    limits, policy = resource_limits(Limits()), SAME_EVERY_TIME
    assert set(limits) == set(typing.get_type_hints(monty.ResourceLimits))
    assert all(type(limit) in (int, float) for limit in limits.values())
    assert set(policy) == set(typing.get_type_hints(monty.OSPolicy)) - {"sleep_system_max"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"memory": 1_000_000}, "len([0] * 300_000)"),
        ({"printed": 5}, "print('123456')"),
        ({"code": 5}, "1 + 11"),
        ({"depth": 10}, "def f(n):\n    return 0 if n == 0 else f(n - 1)\n\n\nf(20)"),
    ],
)
def test_limits_are_those_that_were_asked_for(sandbox, change, code):
    """An error under the limit, none under a larger one."""
    with Sandbox(Limits(**{"seconds": 60.0, **change})) as strict:
        assert strict.run(code).error
    assert sandbox.run(code).error == ""


def test_time_is_the_one_that_was_asked_for():
    """A loop ends after it, and says so; the limits above do not depend on it."""
    with Sandbox(Limits(seconds=0.05)) as strict:
        assert strict.run("while True: pass").error == "TimeoutError: it takes over 0.05 s"


def test_what_a_model_reads_by_hand():
    assert Outcome().text == "nothing was printed"
    assert Outcome("3\n", [1, "a"]).text == "3\n[1, 'a']"
    assert Outcome("3\n", error="ValueError: no").text == "3\nValueError: no"


def test_plain_values_by_hand():
    assert all(map(plain, (None, True, 3, 2.5, "a", [1, (2,)], {"a": {1: []}}, 10**3000)))
    assert not any(map(plain, ({1}, b"a", 1j, object(), [{1}], {"a": {1}}, {frozenset(): 1}, 10**4000)))


def test_a_killed_worker_is_replaced():
    """The kernel may end it, where memory is short: the next run does not notice."""
    before = set(psutil.Process().children())
    with Sandbox(Limits(seconds=60.0)) as sandbox:
        (worker,) = set(psutil.Process().children()) - before
        assert sandbox.run("1 + 1").value == 2
        worker.kill()
        worker.wait()
        assert sandbox.run("1 + 1").value == 2
        assert worker not in psutil.Process().children()
    assert set(psutil.Process().children()) <= before


def test_a_fork_has_no_part_in_it(sandbox, monkeypatch):
    """Two processes that speak into one pipe would answer each other."""
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(ValueError, match="of the process that this one was forked from"):
        sandbox.run("1 + 1")
    monkeypatch.undo()
    assert sandbox.run("1 + 1").value == 2


def test_what_is_no_sandbox_is_refused(sandbox):
    closed = Sandbox(Limits(seconds=60.0))
    for _ in range(2):
        with pytest.raises(ValueError, match="with Sandbox"):
            closed.run("1")
        with closed:
            assert closed.run("1") == Outcome(value=1)
    with pytest.raises(ValueError, match="expected plain values for tool"):
        sandbox.run("tool", {"tool": object()})
    for bad in ({"seconds": 0.0}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"memory": 0}, {"printed": -1}):
        with pytest.raises(ValueError, match="limits of at least 1"):
            Limits(**bad)


class Numbers(Environment):
    """Asks for a sum, and lets code be run."""

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox

    def reset(self, number: int) -> str:
        self._numbers = [number, 2 * number]
        return "What is the sum of numbers?"

    def python(self, code: str) -> str:
        """Run Python.

        code: lines of it; numbers is a list
        """
        return self._sandbox.run(code, {"numbers": self._numbers}).text

    def get_reward(self) -> float:
        return float(self.answer == str(sum(self._numbers)))


def test_an_agent_mends_its_code(sandbox):
    """An error is read, the code is mended, the value is read, the answer is right."""
    episode = Episode(Numbers(sandbox), 7, Budget())
    say = lambda code: written(Call("python", {"code": code}))  # noqa: E731
    assert episode.hear(say("sum(number)")) == ["NameError: name 'number' is not defined (line 1)"]
    assert episode.hear(say("sum(numbers)")) == ["21"] and episode.raised == 0
    assert episode.hear("21") == [] and episode.reward() == 1
