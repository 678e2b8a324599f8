"""What workers of the tests do instead of decoding, found by name in their processes; and one that is no process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minikeye.inputs.service.request import Clip, TookTooLong, WorkerDied
from minikeye.inputs.service.worker import Answer, Job, answer
from minikeye.inputs.video import VideoInfo

INFO = VideoInfo(frames=100, fps=10.0, seconds=10.0, width=8, height=8, rotation=0, start=0.0)


def drawn(job: Job) -> list[Answer]:
    """Clips without a file: every byte of a frame is its number."""
    clips = []
    for request in job.requests:
        width, height = request.size
        numbers = np.array(request.indices, np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 3, height, width)).copy()
        clips.append(Clip(request.source, frames, numbers / 10, tuple(request.indices), INFO))
    return clips


def by_name(job: Job) -> list[Answer]:
    """`answer`, but the name of a file says what goes wrong. A file NAME.once beside it: only the first time."""
    path = Path(job.requests[0].source)
    done = path.with_suffix(".once")
    if path.stem.startswith("dies") and not (done.exists() and done.read_text(encoding="utf-8")):
        if done.exists():
            done.write_text("done", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    if path.stem.startswith("stops"):
        while True:
            time.sleep(60)
    if path.stem.startswith("spins"):  # and holds Python's lock but for short moments
        while True:
            pass
    return answer(job)


class Local:
    """A worker in this process, for what the service does around workers: `work` may wait for events of the test.

    deaths: how many of the next runs end with the death of the worker; slow: that end at the limit.
    """

    def __init__(self, work: Callable[[Job], list[Answer]] = drawn):
        self.work, self.jobs, self.starts = work, [], 0
        self.deaths, self.slow, self.running = 0, 0, False
        self._lock = threading.Lock()

    def start(self) -> None:
        self.starts += not self.running
        self.running = True

    def run(self, job: Job) -> list[Answer]:
        with self._lock:
            self.jobs.append(job)
            dies, late = self.deaths > 0, self.slow > 0
            self.deaths, self.slow = self.deaths - dies, self.slow - (late and not dies)
        source = job.requests[0].source
        if dies or late:
            self.running = False
            raise WorkerDied(source, "SIGKILL") if dies else TookTooLong(source, "limit")
        return self.work(job)

    def kill(self) -> None:
        self.running = False

    def close(self) -> None:
        self.running = False
