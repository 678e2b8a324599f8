"""Where code that a model wrote is run: a Python of its own, `pydantic-monty`, that can do nothing but count.

    with Sandbox() as sandbox:
        sandbox.run("sum(numbers) // 2", {"numbers": [3, 5]}).text  # "4"

Never `eval`, whose builtins can be reached from any object, and never Python in another process, which reads every
file. Monty is an interpreter of a subset of Python, in worker processes: there are no files, no network, no other
programs, no import beyond a few modules (math, re, json, ...), and no way from an object to its class.

Its limits are off unless they are set, so all are set here, the clock and the random numbers as well: the same code
gives the same words, which a model reads and a reward judges. What code does wrong is an `Outcome`, not an exception.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pydantic_monty as monty

GRACE = 0.3  # seconds after which a worker that does not stop by itself is killed
DEEPEST = 20  # lists in lists of a value that is shown
LONGEST_ERROR = 400  # characters
UNSHOWN = "the last line is not made of numbers, texts, lists, tuples and dicts, or too large to show: print less"


@dataclass(frozen=True)
class Limits:
    """What code may take."""

    seconds: float = 0.5
    memory: int = 16_000_000  # bytes
    printed: int = 4_000  # bytes
    code: int = 10_000  # characters
    depth: int = 100  # functions that wait for each other
    lookups: int = 100  # names that the code does not define

    def __post_init__(self) -> None:
        if not (0 < self.seconds <= 60 and min(self.memory, self.printed, self.code, self.depth, self.lookups) >= 1):
            raise ValueError(f"expected seconds in 0..60 (not 0) and all other limits of at least 1, got {self}")


@dataclass(frozen=True)
class Outcome:
    """What came of some code."""

    printed: str = ""
    value: Any = None  # of its last line, where that is an expression: None, bool, number, text, or list, tuple, dict
    error: str = ""  # what went wrong; "" where nothing did

    @property
    def text(self) -> str:
        """What a model is told: what was printed, then the error or the value."""
        last = self.error or ("" if self.value is None else repr(self.value))
        return "\n".join(part for part in (self.printed.rstrip("\n"), last) if part) or "nothing was printed"


class Sandbox:
    """Runs code in a worker process, which starts with `with` and ends with it. Every run begins with nothing."""

    def __init__(self, limits: Limits = Limits()):
        self.limits = limits
        self._pool: monty.Monty | None = None
        self._owner = 0  # a forked process would speak into the pipe of this one

    def __enter__(self) -> "Sandbox":
        seconds = self.limits.seconds + GRACE
        pool = monty.Monty(
            min_processes=1, max_processes=1, request_timeout=seconds,
            feed_duration_limit_grace=GRACE, turn_duration_limit_grace=GRACE,
        )  # fmt: skip
        self._pool, self._owner = pool.__enter__(), os.getpid()
        return self

    def __exit__(self, *error: object) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(*error)

    def run(self, code: str, given: Mapping[str, Any] | None = None) -> Outcome:
        """What the code prints, and the value of its last line.

        given: names that it may use, with plain values. Raises ValueError for values that have no place there, and for
        a sandbox that was not opened by `with` in this very process; nothing for any code.
        """
        if self._pool is None or self._owner != os.getpid():
            where = "outside of its `with`" if self._pool is None else "of the process that this one was forked from"
            raise ValueError(f"expected an open sandbox, got one {where}: with Sandbox() as sandbox: ...")
        if len(code) > self.limits.code:
            return Outcome(error=f"expected code of at most {self.limits.code} characters, got {len(code)}")
        return self._outcome(self._pool, code, dict(given or {}))

    def _outcome(self, pool: monty.Monty, code: str, given: dict[str, Any], again: bool = True) -> Outcome:
        """again: where a worker was ended from outside, which is not the code's fault, another one runs it."""
        printed = monty.CollectString(max_bytes=self.limits.printed)
        try:
            with pool.checkout(limits=resource_limits(self.limits), os_policy=SAME_EVERY_TIME) as session:
                value = session.feed_run(code, inputs=given, print_callback=printed)
        except monty.MontyConversionError as error:
            raise ValueError(f"expected plain values for {', '.join(given)}, got others: {error}") from error
        except monty.MontyCrashedError as error:
            if again and not error.timed_out:
                return self._outcome(pool, code, given, again=False)
            return Outcome(error=self._slow if error.timed_out else "the interpreter crashed")
        except monty.MontyError as error:
            why = self._why(error)  # until the time is up, a fast machine prints more than a slow one
            return Outcome("" if why == self._slow else printed.output, error=why)
        return Outcome(printed.output, value) if plain(value) else Outcome(printed.output, error=UNSHOWN)

    @property
    def _slow(self) -> str:
        return f"TimeoutError: it takes over {self.limits.seconds} s"

    def _why(self, error: monty.MontyError) -> str:
        """An error in words that do not tell how fast the machine is."""
        inner = error.exception()
        if isinstance(inner, TimeoutError):
            return self._slow
        if isinstance(inner, MemoryError):
            return f"MemoryError: it takes over {self.limits.memory} bytes, or prints over {self.limits.printed}"
        words = error.display("type-msg") if hasattr(error, "display") else str(error)
        line = f" (line {frames[-1].line})" if (frames := getattr(error, "traceback", list)()) else ""
        return words[:LONGEST_ERROR] + line


# Clock, sleep and random numbers: `sleep_system_max` is for a clock that goes.
SAME_EVERY_TIME: monty.OSPolicy = {
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "timezone": "utc",
    "sleep": "zero",
    "process_time": "zero",
    "random_start": {"seed": 0},
}


def resource_limits(limits: Limits) -> monty.ResourceLimits:
    """Every limit that the library has; it takes what is left out for no limit."""
    return {
        "max_feed_duration_secs": limits.seconds,
        "max_turn_duration_secs": limits.seconds,
        "max_memory": limits.memory,
        "gc_interval": 1000,  # allocations between two collections
        "max_recursion_depth": limits.depth,
        "max_suspensions": limits.lookups,
        "max_total_sleep_secs": 0.0,
    }


def plain(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value always looks the same and can be written down: a set has no order, a huge integer no digits."""
    if isinstance(value, list | tuple | dict):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return depth > 0 and all(plain(part, depth - 1) for part in inside)
    return (
        value is None
        or isinstance(value, bool | float | str)
        or (isinstance(value, int) and value.bit_length() < 10_000)
    )
