"""The inside of a worker process: it takes jobs from a socket and sends back clips, whose frames lie in shared memory.

Frames do not go through the socket. Each clip is written to a file that has no name and lies in memory, and the number
of the open file is sent. So nothing is left behind, whoever is killed and when: the memory goes with the last process
that has it open. (`multiprocessing.shared_memory` gives names. Before Python 3.13 its tracker removes them when a child
ends, too early, and after a SIGKILL of the tracker's owner they stay.)
"""

import fcntl
import os
import resource
import signal
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

import numpy as np
from jaxtyping import UInt8

from minikeye.inputs.service.request import Clip

READY = "ready"


def serve(channel: int, lifeline: int) -> None:
    """Answer jobs until the parent hangs up. Numbers: a socket, a pipe that the parent never writes to.

    First message in: (what answers a job, bytes it may take beyond what this process has now). First message out:
    READY. Then jobs in and lists of answers out, each followed by the open files with the frames of its clips.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; the parent decides
    die_with_parent(lifeline)
    with Connection(channel) as connection:
        try:
            answer, room = connection.recv()
            limit_memory(room)
            connection.send(READY)
            while True:
                answers = answer(connection.recv())
                files = [_in_memory(each.frames) for each in answers if isinstance(each, Clip)]
                connection.send([replace(a, frames=a.frames[:0]) if isinstance(a, Clip) else a for a in answers])
                for file in files:
                    send_handle(connection, file, os.getppid())
                    os.close(file)
        except (EOFError, ConnectionError):
            return


def die_with_parent(lifeline: int) -> None:
    """Have the kernel end this process when the other end of a pipe is closed, which SIGKILL of its owner does too.

    A signal, not a thread that reads: a decoder that hangs may hold Python's lock, and then no thread runs. (Linux.
    Where pipes send no signals, a worker sees that the parent is gone after its job.)
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO, which ends it


def limit_memory(room: int) -> None:
    """Let this process map `room` bytes beyond what it has now. More raises MemoryError, here or in a library.

    Only Linux counts so; elsewhere there is no limit.
    """
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + room if hard == resource.RLIM_INFINITY else min(now + room, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _in_memory(frames: UInt8[np.ndarray, "f 3 height width"]) -> int:
    """An open file without a name that holds the frames; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("minikeye-clip")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    with open(number, "wb", closefd=False) as file:
        file.write(np.ascontiguousarray(frames))
    return number
