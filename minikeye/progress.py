"""A progress bar for people, and silence for machines."""

import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def wanted() -> bool:
    """Whether somebody is watching.

    MINIKEYE_QUIET=1 silences everything: it is set while notebooks are saved or validated, because a bar in a saved
    output can never be compared. Otherwise the bar shows in a Jupyter kernel and on a terminal, and nowhere else.
    """
    if os.environ.get("MINIKEYE_QUIET", "0") not in ("", "0"):
        return False
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    in_jupyter = get_ipython is not None and hasattr(get_ipython(), "kernel")
    return in_jupyter or sys.stderr.isatty()


def progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Iterate over `iterable` behind a bar labelled `description`, if somebody is watching.

    total: number of items, needed only where `len(iterable)` does not work.
    """
    if not wanted():
        return iterable
    return tqdm(iterable, desc=description, total=total, leave=False)
