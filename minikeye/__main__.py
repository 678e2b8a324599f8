"""The command `minikeye`, and `python -m minikeye`: the command line, left at once by Ctrl-C.

While modules are imported and while Python leaves, Ctrl-C would show a traceback of whatever runs then. In between,
`cli.main` says what was stopped.
"""

import os
import signal
import sys
from types import FrameType


def run() -> int:
    """Run the command line with the arguments of the process; the exit status."""
    signal.signal(signal.SIGINT, _leave)
    from minikeye.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
