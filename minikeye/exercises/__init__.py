"""Checkers for the exercises: `minikeye/exercises/nbNN.py` belongs to the notebook NN_*.ipynb.

A checker is a function `check_NAME(answer)` that raises AssertionError when the answer is wrong, names the usual
mistake when it recognises one, and returns None when the answer is right. CONTRIBUTING.md has an example.
"""


def written(value: object, name: str) -> None:
    """Raise AssertionError if `value`, what the reader's function `name` returned, is None: it is still empty."""
    if value is None:
        raise AssertionError(f"{name} returned None: write its body, then run this cell again")
