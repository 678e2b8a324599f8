"""Checkers for the exercises: `minikeye/exercises/nbNN.py` belongs to the notebook NN_*.ipynb.

A checker is a function `check_NAME(answer)` that raises AssertionError when the answer is wrong, names the usual
mistake when it recognises one, and says so when the answer is right. CONTRIBUTING.md has an example.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any


def checker(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Decorates `check_NAME`: an answer that was not refused is called right, aloud."""

    @wraps(check)
    def told(answer: Any) -> None:
        check(answer)
        print(f"{check.__name__.removeprefix('check_')}: right")

    return told


def written(value: object, name: str) -> None:
    """Raise AssertionError if `value`, what the reader's function `name` returned, is None: it is still empty."""
    if value is None:
        raise AssertionError(f"{name} returned None: write its body, then run this cell again")
