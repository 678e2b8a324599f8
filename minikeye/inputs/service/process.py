"""A worker in a process of its own, as the service sees it: it can be started, given a job, and killed at any time."""

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Protocol

import torch

from minikeye.inputs.service.child import READY
from minikeye.inputs.service.request import Clip, OutOfMemory, ServiceConfig, TookTooLong, WorkerDied
from minikeye.inputs.service.worker import Answer, Job, answer

GRACE = 2.0  # seconds to end in, for a worker that has hung up
START = 120.0  # seconds in which Python and its libraries must have been loaded. Our choice, for a busy machine


class Worker(Protocol):
    """What the service asks of a worker. `start` and `run` block: the service calls them in threads."""

    def start(self) -> None:
        """Get it ready for a job, if it is not. Raises WorkerDied where that fails."""

    def run(self, job: Job) -> list[Answer]:
        """Raises WorkerDied where it dies on the job, TookTooLong where it had to be killed after `limit` seconds."""

    def kill(self) -> None:
        """End it, whatever it does. `run` in another thread then raises WorkerDied."""

    def close(self) -> None:
        """End it and give back what this side holds, when no thread is in `start` or `run` any more."""


class ProcessWorker:
    """A fresh Python (not a fork: a decoder or a lock that came along in a fork is broken) that runs `work` on jobs.

    Not by `multiprocessing`, whose processes import the user's script again and must not be started by the workers of
    a DataLoader. Dead or killed, it is replaced at the next `start`.
    """

    def __init__(self, config: ServiceConfig, work: Callable[[Job], list[Answer]] = answer):
        self._config, self._work = config, work
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._lifeline = -1  # the end of a pipe that closes when this process ends, however it ends

    @property
    def pid(self) -> int | None:
        """Number of the process, None where there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """As `Worker.start`."""
        if self._process is not None and self._process.poll() is None:
            return
        self._forget()
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        numbers = (theirs.fileno(), lifeline)
        program = f"import sys; sys.path[:] = {sys.path!r}\nfrom minikeye.inputs.service.child import serve\n"
        program += f"serve({numbers[0]}, {numbers[1]})"
        # -P: not the current folder before everything else. Modules are found where this process finds them.
        command = [sys.executable, "-P", "-c", program]
        try:
            self._process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL)
        finally:
            theirs.close()
            os.close(lifeline)
            self._connection = Connection(ours.detach())
        try:
            self._connection.send((self._work, self._config.worker_bytes))
            if self._connection.poll(START) and self._connection.recv() == READY:
                return
        except (EOFError, OSError):
            pass
        raise WorkerDied("", f"a worker does not start: {self._end()}; what it printed says why")

    def run(self, job: Job) -> list[Answer]:
        """As `Worker.run`."""
        source = job.requests[0].source
        try:
            self._connection.send(job)
            if not self._connection.poll(self._config.limit):
                self.kill()
                raise TookTooLong(source, f"no answer within {self._config.limit:g} s (limit), the worker was killed")
            answers = [self._mapped(a) if isinstance(a, Clip) else a for a in self._connection.recv()]
        except (EOFError, OSError) as error:
            raise WorkerDied(source, f"the worker died: {self._end()}") from error
        if any(isinstance(a, OutOfMemory) for a in answers):
            self.kill()  # nobody knows what a library has left half done
        return answers

    def kill(self) -> None:
        """As `Worker.kill`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """As `Worker.close`."""
        self.kill()
        self._forget()

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            os.close(self._lifeline)
        self._process = self._connection = None

    def _end(self) -> str:
        """Have the process end, and say how it did. Its socket closes a moment before it ends by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self.kill()
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def _mapped(self, clip: Clip) -> Clip:
        """The clip with the frames that lie in the file whose number comes next. They cannot be written to."""
        number = recv_handle(self._connection)
        shape = (len(clip.indices), *clip.frames.shape[1:])
        try:  # not `mmap.mmap`, which keeps a file open for each clip
            memory = torch.from_file(f"/dev/fd/{number}", size=math.prod(shape), dtype=torch.uint8)
        finally:
            os.close(number)
        frames = memory.numpy().reshape(shape)
        frames.flags.writeable = False
        return replace(clip, frames=frames)
