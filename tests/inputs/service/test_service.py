"""What the service does around its workers: order, bytes in flight, equal requests, the cache, deaths.

Workers are threads of this process here, whose `work` waits for events; test_process.py has real ones.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from odd_work import INFO, Local, drawn

from minikeye.inputs.service import Clip, FrameRequest, ServiceConfig, ServiceError, VideoReader, VideoService
from minikeye.inputs.service.request import BadVideo, OutOfMemory, TookTooLong, WorkerDied

GUARD = 60.0  # seconds until a test that waits for ever is called red


def request(n: int, source: str = "a.mp4", frames: int = 1) -> FrameRequest:
    return FrameRequest(source, (10, 10), indices=(n,) * frames)  # 300 bytes a frame


def service(work: Callable = drawn, workers: int = 1, **numbers) -> tuple[VideoService, list[Local]]:
    """A service with its workers, which share `work`."""
    locals_ = [Local(work) for _ in range(workers)]
    rest = iter(locals_)
    config = ServiceConfig(cores=workers, workers=workers, **numbers)
    return VideoService(config, lambda _: next(rest)), locals_


def run(body: Callable) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(body(), GUARD)

    # In a thread of its own: tests of the site, in the same process, may have left a loop running in this one.
    with ThreadPoolExecutor(1) as alone:
        alone.submit(lambda: asyncio.run(guarded())).result()


async def collected(results) -> list[tuple[int, int]]:
    """(position, number that the first frame shows) of each clip."""
    return [(number, int(clip.frames[0, 0, 0, 0])) async for number, clip in results]


class Gate:
    """A `work` that lets jobs through one frame number at a time."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._open = {n: threading.Event() for n in range(100)}
        self.arrived = threading.Condition()

    def __call__(self, job) -> list:
        with self.arrived:
            self.seen += [r.indices[0] for r in job.requests]
            self.arrived.notify_all()
        for r in job.requests:
            assert self._open[r.indices[0]].wait(GUARD)
        return drawn(job)

    def let(self, *numbers: int) -> None:
        for n in numbers:
            self._open[n].set()

    async def until(self, count: int) -> None:
        def wait() -> None:
            with self.arrived:
                assert self.arrived.wait_for(lambda: len(self.seen) >= count, GUARD)

        await asyncio.to_thread(wait)


def test_order_on_demand() -> None:
    """The second of two workers is done first: in order it waits, else it comes first. Each says which it is."""

    async def body() -> None:
        for in_order, expected in ((True, [(0, 5), (1, 6)]), (False, [(1, 6), (0, 5)])):
            gate = Gate()
            videos, _ = service(gate, workers=2)
            async with videos:
                stream = videos.stream([request(5, "a.mp4"), request(6, "b.mp4")], in_order)
                first = asyncio.ensure_future(anext(stream))
                await gate.until(2)
                gate.let(6)
                if in_order:
                    done, _ = await asyncio.wait([first], timeout=0.05)
                    assert not done
                    gate.let(5)
                number, clip = await first
                gate.let(5)
                assert [(number, int(clip.frames[0, 0, 0, 0])), *await collected(stream)] == expected

    run(body)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_request_has_one_answer(in_order: bool, workers: int) -> None:
    async def body() -> None:
        videos, _ = service(workers=workers, flight_bytes=900, merged=2)
        async with videos:
            got = await collected(videos.stream((request(n) for n in range(90)), in_order))
        assert sorted(got) == [(n, n) for n in range(90)] and (not in_order or got == sorted(got))
        assert videos.statistics.frames == 90 and videos.statistics.frame_bytes == 27_000

    run(body)


def test_back_pressure_counts_bytes() -> None:
    """1,000 bytes hold three frames. Who does not take stops the requests; a clip that is taken lets one in."""
    asked: list[int] = []

    def requests() -> Iterator[FrameRequest]:
        for n in range(20):
            asked.append(n)
            yield request(n)

    async def body() -> None:
        videos, _ = service(workers=2, flight_bytes=1000)
        async with videos:
            stream = videos.stream(requests())
            for taken in range(17):
                assert (await anext(stream))[0] == taken
                for _ in range(50):  # whatever can go on goes on
                    await asyncio.sleep(0.001)
                assert len(asked) <= taken + 5  # one taken, three in flight, one that waits for room
            await stream.aclose()
            assert videos.statistics.most_bytes == 900
            large = [request(1, frames=30), request(2)]  # 9,000 bytes: alone, and then `answer` refuses it
            assert len(await collected(videos.stream(large))) == 2
        assert videos.statistics.most_bytes == 1000

    run(body)


def test_a_sampled_request_holds_what_it_takes() -> None:
    """Its bound is most of the limit; when the clip is there, its bytes are counted, and others come in beside it."""
    from minikeye.config import VideoConfig

    def work(job) -> list:
        return [Clip(r.source, np.zeros((1, 3, 10, 10), np.uint8), np.zeros(1), (0,), INFO) for r in job.requests]

    async def body() -> None:
        videos, locals_ = service(work, flight_bytes=1_000_000)
        sampled = [FrameRequest(f"{n}.mp4", config=VideoConfig(), max_frames=1) for n in range(4)]
        assert sampled[0].frame_bytes > 500_000
        async with videos:
            stream = videos.stream(sampled)
            await anext(stream)
            while len(locals_[0].jobs) < 3:  # the first was taken, two more lie there untaken
                await asyncio.sleep(0.001)
            await stream.aclose()

    run(body)


def test_a_stream_within_a_stream() -> None:
    """Each has a limit of its own, else the inner one would wait for clips that the outer one holds."""

    async def body() -> None:
        videos, _ = service(flight_bytes=300)
        async with videos:
            async for number, _ in videos.stream(request(n) for n in range(5)):
                clip = await videos.read(request(50 + number))
                assert clip.frames[0, 0, 0, 0] == 50 + number

    run(body)


def test_equal_requests_are_one_decoding() -> None:
    """Eight at once, all waiting, then one more from the cache: one job. One that leaves early takes nothing away."""

    async def body() -> None:
        gate = Gate()
        videos, (local,) = service(gate, merged=1)
        async with videos:
            readers = [asyncio.create_task(videos.read(request(7))) for _ in range(8)]
            await gate.until(1)
            while videos.statistics.shared < 7:
                await asyncio.sleep(0.001)
            readers[0].cancel()
            gate.let(7)
            clips = await asyncio.gather(*readers[1:])
            again = await videos.read(request(7))
        assert len(local.jobs) == 1 and all(clip.frames is again.frames for clip in clips)
        assert (videos.statistics.decodes, videos.statistics.shared, videos.statistics.hits) == (1, 7, 1)

    run(body)


def test_a_file_that_changes_is_another(tmp_path) -> None:
    """A link leads to the same file; what comes is called as it was asked for."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1")
    link = tmp_path / "link.mp4"
    link.symlink_to(path)

    async def body() -> None:
        videos, (local,) = service()
        async with videos:
            assert (await videos.read(request(1, str(path)))).source == str(path)
            assert (await videos.read(request(1, str(link)))).source == str(
                link
            )  # one file, and it says as it was asked
            assert len(local.jobs) == 1
            path.write_bytes(b"12")
            await videos.read(request(1, str(path)))
            assert len(local.jobs) == 2

    run(body)


@pytest.mark.parametrize(("cache", "decodes"), [(900, 3), (600, 6), (0, 6)])
def test_the_cache_is_bounded_by_bytes(cache: int, decodes: int) -> None:
    """Three frames of 300 bytes, twice around: 900 bytes keep them, 600 always drop the one that comes next."""

    async def body() -> None:
        videos, (local,) = service(cache_bytes=cache)
        async with videos:
            for n in (0, 1, 2) * 2:
                await videos.read(request(n))
        assert len(local.jobs) == videos.statistics.decodes == decodes

    run(body)


def test_what_waits_on_a_file_goes_together() -> None:
    """Behind a job on another file five wait on this one: with `merged=4`, four go together, then the fifth."""

    async def body() -> None:
        gate = Gate()
        videos, (local,) = service(gate, merged=4)
        async with videos:
            files = {0: "other.mp4", 1: "a.mp4", 2: "a.mp4", 3: "a.mp4", 9: "b.mp4", 4: "a.mp4", 5: "a.mp4"}
            stream = videos.stream([request(n, name) for n, name in files.items()])
            first = asyncio.ensure_future(anext(stream))
            await gate.until(1)
            while len(videos._line) < 6:
                await asyncio.sleep(0.001)
            gate.let(*range(10))
            await first
            assert [n for _, n in await collected(stream)] == [1, 2, 3, 9, 4, 5]
        assert [[r.indices[0] for r in job.requests] for job in local.jobs] == [[0], [1, 2, 3, 4], [9], [5]]

    run(body)


def test_two_deaths_are_retried_a_third_is_not() -> None:
    async def body() -> None:
        videos, (local,) = service()
        async with videos:
            local.deaths = 2
            assert (await videos.read(request(1))).frames[0, 0, 0, 0] == 1
            local.deaths = 3
            with pytest.raises(WorkerDied, match=r"^a.mp4: SIGKILL"):
                await videos.read(request(2))
            assert (await videos.read(request(2))).frames[0, 0, 0, 0] == 2  # errors are not kept
            assert len(local.jobs) == 3 + 3 + 1 and videos.statistics.deaths == 5 and local.starts == 6

    run(body)


def test_a_limit_and_a_bad_file_are_not_retried() -> None:
    def work(job) -> list:
        return [BadVideo(job.requests[0].source, "is damaged")]

    async def body() -> None:
        videos, (local,) = service(work)
        async with videos:
            local.slow = 1
            with pytest.raises(TookTooLong):
                await videos.read(request(1))
            with pytest.raises(BadVideo, match="is damaged"):
                await videos.read(request(1))
        assert len(local.jobs) == 2 and videos.statistics.failed == 2

    run(body)


@pytest.mark.parametrize("end", ["deaths", "slow"])
def test_a_job_of_several_accuses_nobody(end: str) -> None:
    """Three go together and the worker is lost: each goes again, alone and in order; a further death is its own."""

    async def body() -> None:
        gate = Gate()
        videos, (local,) = service(gate)
        async with videos:
            stream = videos.stream([request(0, "other.mp4"), *(request(n) for n in (1, 2, 3))])
            first = asyncio.ensure_future(anext(stream))
            await gate.until(1)
            while len(videos._line) < 3:
                await asyncio.sleep(0.001)
            setattr(local, end, 1)
            gate.let(*range(10))
            await first
            assert await collected(stream) == [(1, 1), (2, 2), (3, 3)]
        assert [[r.indices[0] for r in job.requests] for job in local.jobs] == [[0], [1, 2, 3], [1], [2], [3]]

    run(body)


def test_faults_leave_nobody_waiting() -> None:
    """Of the service, of a worker that does not start, of the requests; the service goes on."""

    def fail(job) -> list:
        raise RuntimeError("a fault of ours")

    def requests() -> Iterator[FrameRequest]:
        yield request(1)
        raise KeyError("in the middle")

    async def body() -> None:
        videos, (local,) = service(fail)
        async with videos:
            with pytest.raises(ServiceError, match="RuntimeError: a fault of ours"):
                await videos.read(request(1))
            local.work = drawn
            with pytest.raises(KeyError, match="in the middle"):
                await collected(videos.stream(requests()))
            assert await collected(videos.stream([request(1), request(2)])) == [(0, 1), (1, 2)]

            def no_start() -> None:
                raise WorkerDied("", "no Python")

            local.start = no_start
            with pytest.raises(WorkerDied, match=r"a.mp4: no Python"):
                await videos.read(request(3))

    run(body)


def test_out_of_memory_counts_as_a_death() -> None:
    async def body() -> None:
        videos, _ = service(lambda job: [OutOfMemory(job.requests[0].source, "too much")])
        async with videos:
            with pytest.raises(OutOfMemory):
                await videos.read(request(1))
        assert videos.statistics.deaths == 1

    run(body)


def test_the_report_is_one_line() -> None:
    """A taker that only waits: input is the bottleneck; one that found everything there: it keeps up."""

    async def body() -> None:
        videos, _ = service(workers=2)
        async with videos:
            await videos.read(request(1))
            await videos.read(request(1))
            line = videos.report()
            assert "\n" not in line and "2 frames" in line and "2 x 1 threads on 2 cores" in line
            assert "1 decoded, 1 from the cache, 0 shared, 0 failed; 0 workers replaced" in line
            for waiting, verdict in ((0.03, "input is the bottleneck"), (0.01, "input keeps up")):
                videos.statistics.elapsed, videos.statistics.waiting = 1.0, waiting
                assert verdict in videos.statistics.line(videos.config)

    run(body)


def test_without_asyncio() -> None:
    """The same answers in a plain loop that may be left early; outside of `with` it says so."""
    reader = VideoReader(ServiceConfig(cores=1), lambda _: Local())
    with pytest.raises(RuntimeError, match="it is not open"):
        reader.read(request(1))
    with reader:
        assert reader.read(request(3)).frames[0, 0, 0, 0] == 3
        assert [number for number, _ in reader.stream(request(n) for n in range(30))] == list(range(30))
        for number, _ in reader.stream((request(n) for n in range(10**9)), in_order=False):
            if number > 5:
                break
        left = reader.stream([request(1), request(2)])
        next(left)
        assert "frames" in reader.report()
    with pytest.raises(RuntimeError, match="it is not open"):
        next(reader.stream([request(1)]))
    left.close()


def test_a_service_that_is_not_open_says_so() -> None:
    async def body() -> None:
        videos, _ = service()
        with pytest.raises(RuntimeError, match="expected `async with VideoService"):
            await videos.read(request(1))

    run(body)
