"""Workers as processes: the bits that come, and what happens when one dies, stops, eats memory, or loses its parent."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from films import ODD, odd_films, write
from odd_work import by_name

from minikeye.config import VideoConfig
from minikeye.inputs.service import Clip, FrameRequest, ServiceConfig, VideoReader
from minikeye.inputs.service.process import ProcessWorker
from minikeye.inputs.service.request import BadVideo, OutOfMemory, TookTooLong, WorkerDied
from minikeye.inputs.service.worker import Job
from minikeye.inputs.video import read_video

pytestmark = pytest.mark.slow  # every test starts other Pythons

GUARD = 120.0  # seconds until a test that waits for ever is called red
FILMS = VideoConfig(fps=99.0, min_frame_tokens=1, max_frame_tokens=6, video_tokens=100_000)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in odd_films(tmp_path_factory.mktemp("films"))]


def pids(reader: VideoReader) -> list[int]:
    return [worker.pid for worker in reader.service.workers]


def odd(*, workers: int = 1, **numbers) -> VideoReader:
    """A reader whose workers misbehave by the name of the file."""
    return VideoReader(ServiceConfig(cores=2, workers=workers, **numbers), partial(ProcessWorker, work=by_name))


@pytest.mark.parametrize(("workers", "cache"), [(1, 0), (2, 2**20), (2, 0)])
def test_bits_are_those_of_read_video(films: list[str], workers: int, cache: int) -> None:
    """Of every odd film, twice in a mixed order; in order and as they come."""
    expected = {path: read_video(path, FILMS, max_frames=5) for path in films}
    requests = [FrameRequest(path, config=FILMS, max_frames=5) for path in (*films, *films[::2], *films[1::2])]
    config = ServiceConfig(cores=2, workers=workers, cache_bytes=cache, flight_bytes=10**6)
    with VideoReader(config) as reader:
        for in_order in (True, False):
            seen = []
            for number, clip in reader.stream(requests, in_order):
                seen.append(number)
                alone, video = expected[requests[number].source], clip.video()
                assert torch.equal(video.frames, alone.frames) and torch.equal(video.seconds, alone.seconds)
                assert (clip.indices, clip.info, clip.notes) == (alone.indices, alone.info, alone.notes)
                assert not clip.frames.flags.writeable and clip.source == requests[number].source
            assert sorted(seen) == list(range(len(requests))) and (not in_order or seen == sorted(seen))


def test_one_bad_neighbour(tmp_path: Path) -> None:
    """Among good films: one that kills its worker, one that does so once, one that stops, one cut off. Each bad one has
    its one error, with path and reason; everybody else has frames; workers were replaced and none is left."""
    good = [str(write(tmp_path / f"good{n}.mp4", frames=12)) for n in range(3)]
    names = {name: str(write(tmp_path / f"{name}.mp4", frames=12)) for name in ("dies", "dies_once", "stops", "cut")}
    (tmp_path / "dies_once.once").touch()
    cut = Path(names["cut"])
    cut.write_bytes(cut.read_bytes()[:-200])
    order = [good[0], names["dies"], good[1], names["stops"], names["dies_once"], names["cut"], good[2], good[0]]
    with odd(workers=2, limit=5.0, cache_bytes=0) as reader:
        results = dict(reader.stream([FrameRequest(path, (84, 56), indices=(5,)) for path in order]))
        left = [pid for pid in pids(reader) if pid is not None]  # a new one may be about to start
    kinds = [type(results[n]) for n in range(len(order))]
    assert kinds == [Clip, WorkerDied, Clip, TookTooLong, Clip, BadVideo, Clip, Clip]
    assert [results[n].source for n in range(len(order))] == order
    assert "SIGKILL" in results[1].reason and "within 5 s" in results[3].reason and "truncated" in results[5].reason
    for n in (0, 2, 4, 6, 7):
        assert torch.equal(results[n].video().frames, read_video(order[n], FILMS).frames[5:6])
    assert reader.service.statistics.deaths == 5  # three times, once, once
    assert gone([*left])


def test_a_worker_killed_in_the_middle(tmp_path: Path) -> None:
    """Whoever is killed, and whenever: idle, or with a job. Nothing is lost, nothing comes twice."""
    path = str(write(tmp_path / "a.mp4", **ODD["short_groups.mp4"]))
    whole = read_video(path, FILMS)
    with VideoReader(ServiceConfig(cores=2, workers=2, flight_bytes=10**5, cache_bytes=0, merged=1)) as reader:
        requests = [FrameRequest(path, (84, 56), indices=(n % 40,)) for n in range(60)]
        seen = []
        for number, clip in reader.stream(requests):
            assert np.array_equal(clip.frames[0], whole.frames[number % 40].numpy())
            seen.append(number)
            if number in (10, 30):
                os.kill(pids(reader)[number // 30], signal.SIGKILL)
    assert seen == list(range(60)) and reader.service.statistics.failed == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts address space")
def test_memory_has_a_limit(tmp_path: Path) -> None:
    """100 MB beyond what the worker has: more ends with one error and a new worker, in which the limit holds again."""
    path = str(write(tmp_path / "a.mp4", frames=12))
    many = [n % 12 for n in range(3 * 10**8 // (3 * 2000 * 2000))]
    with VideoReader(ServiceConfig(cores=1, worker_bytes=10**8)) as reader:
        for _ in range(2):
            with pytest.raises(OutOfMemory, match="worker_bytes") as error:
                reader.read(FrameRequest(path, (2000, 2000), indices=many))
            assert error.value.source == path
            assert len(reader.read(FrameRequest(path, (84, 56), indices=(5,))).frames) == 1


def test_nothing_is_left_in_memory_or_open(tmp_path: Path) -> None:
    """After a hundred clips and three workers: as many open files as before, and no named segment."""
    path = str(write(tmp_path / "a.mp4", frames=12))
    here, named = psutil.Process(), Path("/dev/shm")
    before = {*named.iterdir()} if named.is_dir() else set()
    with VideoReader(ServiceConfig(cores=1, cache_bytes=0)) as reader:
        reader.read(FrameRequest(path, (84, 56), indices=(5,)))
        opened = here.num_fds()
        for round_ in range(3):
            for _, clip in reader.stream([FrameRequest(path, (84, 56), indices=(n % 12,)) for n in range(30)]):
                assert clip.frames.shape == (1, 3, 56, 84)
            assert here.num_fds() == opened
            if round_ < 2:
                os.kill(pids(reader)[0], signal.SIGKILL)
    assert (not named.is_dir()) or not {p for p in {*named.iterdir()} - before if "minikeye" in p.name}


def test_a_worker_that_cannot_start(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    worker = ProcessWorker(ServiceConfig(cores=1), work=by_name)
    paths, sys.path[:] = [*sys.path], [p for p in sys.path if "service" not in p]
    try:
        with pytest.raises(WorkerDied, match="a worker does not start: exit code 1; what it printed says why"):
            worker.start()
    finally:
        sys.path[:] = paths
        worker.close()
    assert "odd_work" in capfd.readouterr().err


PARENT = """
import signal, sys, threading
from functools import partial
from odd_work import by_name
from minikeye.inputs.service import FrameRequest, ServiceConfig, VideoReader
from minikeye.inputs.service.process import ProcessWorker

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests with & has it ignored
with VideoReader(ServiceConfig(cores=2, workers=2), partial(ProcessWorker, work=by_name)) as reader:
    reader.read(FrameRequest(sys.argv[1], (84, 56), indices=(0,)))
    requests = [FrameRequest(path, (84, 56), indices=(0,)) for path in sys.argv[2:]]
    while not all(worker.pid for worker in reader.service.workers):
        pass
    def tell():
        while reader.service._line or len(reader.service._decoding) < len(requests):
            pass
        print(*[worker.pid for worker in reader.service.workers], flush=True)
    threading.Thread(target=tell, daemon=True).start()
    list(reader.stream(requests))
"""


def gone(numbers: list[int]) -> bool:
    """Whether these processes end; one that nobody has looked after (a zombie) has ended."""
    processes = [psutil.Process(n) for n in numbers if psutil.pid_exists(n)]
    running = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return not psutil.wait_procs(running, timeout=GUARD)[1] if running else True


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans(tmp_path: Path, end: signal.Signals) -> None:
    """The parent is killed, or interrupted as by Ctrl-C, while one worker sleeps and one spins: both end."""
    files = [str(write(tmp_path / f"{name}.mp4", frames=12)) for name in ("good", "stops", "spins")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command, pipe = [sys.executable, "-P", "-c", PARENT, *files], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(psutil.pid_exists(n) for n in workers)
        parent.send_signal(end)
        printed = parent.communicate(timeout=GUARD)[1]
    assert parent.returncode == -end and (end == signal.SIGKILL or "KeyboardInterrupt" in printed)
    assert gone(workers)


def test_a_job_goes_to_a_process_and_back(tmp_path: Path) -> None:
    """A worker by itself, without a service."""
    path = str(write(tmp_path / "a.mp4", frames=12))
    worker = ProcessWorker(ServiceConfig(cores=1))
    worker.start()
    number = worker.pid
    worker.start()  # it is there already
    requests = (FrameRequest(path, (84, 56), indices=(3,)), FrameRequest(path, (28, 28), seconds=(0.5, 0.0)))
    first, second = worker.run(Job(requests, threads=1, room=10**6))
    assert worker.pid == number and first.indices == (3,) and second.indices == (5, 0)
    assert second.frames.shape == (2, 3, 28, 28)
    worker.kill()
    with pytest.raises(WorkerDied):
        worker.run(Job(requests, threads=1, room=10**6))
    worker.close()
