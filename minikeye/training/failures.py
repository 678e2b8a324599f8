"""When a rank is gone: the others end, saying which one it was and from which checkpoint to go on.

A process group tells little: gloo says that a connection was closed, NCCL says nothing until its timeout and then ends
the process, torchrun ends the others by SIGTERM. So each rank keeps a file `FOLDER/.rank-RANK`, locked while its
process lives, touched while it runs, with a word in it where it ended by an error. Who is in trouble looks there.

    with surviving(ranks, out):                  # every rank
        ...                                      # everything that the ranks do together
"""

import _thread
import fcntl
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from minikeye.training.parallel.checkpoints import each, newest
from minikeye.training.parallel.mesh import Ranks

GRACE = 5.0  # seconds: for others to say what happened to them, and for this process to end by itself


class RankLost(RuntimeError):
    """Another rank is gone; the message says which one, why as far as known, and where to go on from."""


@contextmanager
def surviving(ranks: Ranks, folder: str | Path) -> Iterator[None]:
    """While this holds, the loss of a rank ends the others by `RankLost` within the process group's timeout.

    folder: of the run's states, which all ranks see. A rank's own errors pass as they are, and are what the others are
    told. One that waits inside a library, where no error can reach it, says the same on stderr and exits with status 1.
    SIGTERM, too, is answered with that error where a rank is gone; after it, SIGTERM is ignored, so that the last words
    of a process are heard. Alone, and inside another one: nothing.
    Raises ValueError where another run, still alive, has the folder.
    """
    if ranks.everyone is None or _watching:
        yield
        return
    signs = Signs(Path(folder), ranks)
    each(ranks, signs.begin)
    signs.watch()
    _watching.append(signs)
    try:
        yield
    except BaseException as error:
        signs.over.set()
        if isinstance(error, RankLost):
            signs.say("left")
            signs.ending = True
            raise
        others = isinstance(error, (RuntimeError, CheckpointException, OSError))  # what the loss of a rank may raise
        lost = signs.trouble(error) if others and not isinstance(error, torch.OutOfMemoryError) else {}
        signs.say("left" if lost else f"{type(error).__name__}: {error}")
        if lost:
            signs.ending = True
            raise RankLost(signs.message(lost)) from error
        raise
    else:
        signs.over.set()
        signs.own.unlink(missing_ok=True)
    finally:
        _watching.clear()
        signs.end()


class Signs:
    """What the ranks of a run tell each other by files, and the thread that keeps this one's and reads the others'."""

    def __init__(self, folder: Path, ranks: Ranks):
        self.folder, self.rank, self.size, self.timeout = folder, ranks.rank, ranks.size, ranks.timeout
        self.own = self._file(ranks.rank)
        self.over = threading.Event()  # this rank is leaving, for whatever reason
        self.ending = False  # because of another rank
        self._moved: dict[int, tuple[int, float]] = {}  # of each rank: its file's time, and when that was new to us

    def begin(self) -> None:
        """Take this rank's file, before any rank looks at it."""
        self.own.parent.mkdir(parents=True, exist_ok=True)
        self._held = self.own.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._held.close()
            raise ValueError(f"{self.folder} is in use by a run that still lives: end it, or name another") from error
        except OSError:  # a disk without locks: what is left is whether the file is touched
            pass
        self._held.truncate(0)

    def watch(self) -> None:
        """Look after the others, now that each has its file."""
        main = threading.current_thread() is threading.main_thread()
        self._before = signal.signal(signal.SIGTERM, self._terminated) if main else None
        self._watcher = threading.Thread(target=self._keep_watch, daemon=True)
        self._watcher.start()

    def end(self) -> None:
        """Give the file back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.ending else self._before)
        self._watcher.join(GRACE)
        self._held.close()

    def say(self, word: str) -> None:
        """Why this rank leaves, for the others: "left" where it does so because of another one."""
        self._held.seek(0)
        self._held.truncate(0)
        self._held.write(word)
        self._held.flush()

    def lost(self, silent: float) -> dict[int, str]:
        """The ranks that are gone, and how; of those that left because of others nothing is said.

        silent: seconds without a sign of life after which a rank counts as gone.
        """
        found = {}
        for rank in range(self.size):
            if rank == self.rank or not (file := self._file(rank)).is_file():
                continue
            with suppress(OSError):
                dead, word, touched = _ended(file), self._word(rank), file.stat().st_mtime_ns
                now = time.monotonic()
                if self._moved.get(rank, (0, 0.0))[0] != touched:
                    self._moved[rank] = touched, now
                quiet = now - self._moved[rank][1]
                if word in ("left", "waits"):
                    continue
                if word:
                    found[rank] = f"ended by {word}"
                elif dead:
                    found[rank] = "was killed"
                elif quiet > silent:
                    found[rank] = f"has given no sign of life for {quiet:.0f} seconds"
        return found

    def trouble(self, error: BaseException) -> dict[int, str]:
        """The ranks whose loss this error may come from. Empty: it is this rank's own."""
        self.say("waits")
        until = time.monotonic() + GRACE  # a rank that is dying closes its connections and its files one by one
        while not (lost := self.lost(silent=self.timeout / 2)) and time.monotonic() < until:
            time.sleep(0.05)
        if not lost and re.search(r"time[d ]*out", str(error), re.IGNORECASE):
            silent = [rank for rank in self._moved if self._word(rank) == ""]
            lost = {rank: f"did not answer within {self.timeout:g} seconds" for rank in silent}
        return lost

    def message(self, lost: dict[int, str]) -> str:
        """The one error: who, why, and where to go on."""
        who = "; ".join(f"rank {rank} {how}" for rank, how in sorted(lost.items()))
        if (last := newest(self.folder)) is None:
            return f"{who}: rank {self.rank} ends too. {self.folder} holds no whole checkpoint yet: begin anew"
        return f"{who}: rank {self.rank} ends too. The last whole checkpoint is {last}: start the same command again"

    def _file(self, rank: int) -> Path:
        return self.folder / f".rank-{rank}"

    def _word(self, rank: int) -> str | None:
        """What that rank said; None of one that came to its end, and needs no file."""
        try:
            return self._file(rank).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _keep_watch(self) -> None:
        """Touch the own file; where a rank is gone, interrupt this process, and end it if it does not react."""
        while not self.over.wait(min(1.0, self.timeout / 20)):
            with suppress(OSError):
                os.utime(self.own)
            if not (lost := self.lost(silent=0.9 * self.timeout)):  # before the process group acts
                continue
            if not self.over.wait(GRACE / 2):  # most often it notices by itself
                _thread.interrupt_main(signal.SIGTERM)
            if not self.over.wait(GRACE):
                self.say("left")
                print(f"RankLost: {self.message(lost)}", file=sys.stderr, flush=True)
                os._exit(1)

    def _terminated(self, number: int, frame: object) -> None:
        """SIGTERM: from torchrun, because a rank is gone, or from somebody who wants this process to end."""
        if self.over.is_set():
            return
        until = time.monotonic() + 1.0
        while not (lost := self.lost(silent=self.timeout / 2)) and time.monotonic() < until:
            time.sleep(0.05)
        if lost:
            self.ending = True
            raise RankLost(self.message(lost))
        signal.signal(number, self._before)
        signal.raise_signal(number)


_watching: list[Signs] = []  # one a process, which has one file to lock


def _ended(file: Path) -> bool:
    """Whether the process that locked the file is gone. (This lock goes with its process, not with its children.)"""
    with file.open("rb") as other:
        try:
            fcntl.lockf(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
