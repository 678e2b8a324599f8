"""The service: requests in, clips out, with asyncio in front of a few workers that may die.

A request goes this way: it waits for its bytes (`ByteLimit`), looks into the cache, joins an equal request that is
being decoded, or else waits in line for a worker. Each worker has a lane, a task that takes the first in the line,
with others on the same file, and deals with the death of its worker.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace

from minikeye.inputs.service.cache import ByteCache
from minikeye.inputs.service.flight import ByteLimit, Flight
from minikeye.inputs.service.process import ProcessWorker, Worker
from minikeye.inputs.service.request import (
    Clip,
    FrameRequest,
    OutOfMemory,
    ServiceConfig,
    ServiceError,
    TookTooLong,
    WorkerDied,
)
from minikeye.inputs.service.statistics import Statistics
from minikeye.inputs.service.worker import Job

# A request whose worker died goes to another, until so many have died on it. Two would do for a file that is to blame;
# where workers are killed for other reasons, every two seconds, now and then two in a row had the same request.
DEATHS = 3
STARTS = 5  # attempts to start a worker, one after another, before requests are told. Our choice


@dataclass(eq=False)
class _Ticket:
    """A request in the line for a worker."""

    request: FrameRequest
    clip: asyncio.Future
    alone: bool = False  # not to be merged with others: a job of several ended without an answer
    deaths: int = 0  # workers that died on it, while it was alone


class VideoService:
    """Decodes videos in other processes, ahead of whoever takes the frames.

    >>> async with VideoService(ServiceConfig(workers=2)) as service:
    ...     clip = await service.read(FrameRequest("a.mp4", (588, 336), indices=(0, 30)))
    ...     async for number, result in service.stream(requests):  # a Clip, or the ServiceError of that request
    ...         ...
    ...     print(service.report())

    Frames and seconds are those of `read_video`, bit for bit. `worker` makes a worker: a process here, or a Ray actor.
    """

    def __init__(self, config: ServiceConfig | None = None, worker: Callable[[ServiceConfig], Worker] = ProcessWorker):
        self.config = ServiceConfig() if config is None else config
        self.workers = [worker(self.config) for _ in range(self.config.workers)]
        self.statistics = Statistics()
        self._cache: ByteCache[Clip] = ByteCache(self.config.cache_bytes)
        self._decoding: dict[Hashable, asyncio.Task] = {}  # equal requests share a task
        self._line: deque[_Ticket] = deque()
        self._called = asyncio.Event()  # somebody is in the line
        self._begun, self._open = 0.0, False

    async def __aenter__(self) -> "VideoService":
        self._begun, self._open = time.perf_counter(), True
        self._threads = ThreadPoolExecutor(len(self.workers), "video-worker")  # each waits for a worker
        self._lanes = [asyncio.create_task(self._lane(worker)) for worker in self.workers]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the workers. Requests that wait for them end as cancelled."""
        self._open = False
        for task in [*self._lanes, *self._decoding.values()]:
            task.cancel()
        stopped = asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while not stopped.done():  # one that is just being started can be killed a little later
            for worker in self.workers:
                worker.kill()
            await asyncio.wait([stopped], timeout=0.1)
        for worker in self.workers:
            worker.close()
        await asyncio.gather(*self._lanes, *self._decoding.values(), return_exceptions=True)

    async def read(self, request: FrameRequest) -> Clip:
        """One clip. Raises ServiceError, of the kind that says what went wrong."""
        async with aclosing(self.stream([request])) as results:
            _, result = await anext(results)
        if isinstance(result, Exception):
            raise result
        return result

    async def stream(
        self, requests: Iterable[FrameRequest], in_order: bool = True
    ) -> AsyncIterator[tuple[int, Clip | ServiceError]]:
        """(position of the request, its clip or its error), in the order of the requests or as they come.

        Requests are taken from the iterable only when there is room for their frames (`flight_bytes`), so it may be
        endless; but what it does runs in the event loop, so it must not wait. A clip that has been yielded is the
        taker's and is not counted any more. Each stream has a limit of its own: with one for all, a stream inside the
        body of another would wait for it for ever.
        Raises RuntimeError where the service is not open.
        """
        if not self._open:
            raise RuntimeError("expected `async with VideoService(...)` around its calls, but it is not open")
        limit = ByteLimit(self.config.flight_bytes)
        ready: asyncio.Queue = asyncio.Queue()  # flights to be taken next; in the end, how many there are
        flights: set[Flight] = set()
        feeder = asyncio.create_task(self._feed(requests, in_order, limit, ready, flights))
        taken, total = 0, None
        try:
            while total is None or taken < total:
                begun = time.perf_counter()
                flight = await ready.get()
                if isinstance(flight, Exception):
                    raise flight
                if isinstance(flight, int):
                    total = flight
                    continue
                result = await flight.result()
                taken += 1
                flights.discard(flight)
                limit.give(flight.held)
                self._count(result, time.perf_counter() - begun)
                if isinstance(result, Exception) and not isinstance(result, ServiceError):
                    raise result
                yield flight.number, result
        finally:
            for task in (feeder, *(flight.task for flight in flights)):
                task.cancel()
            await asyncio.gather(feeder, *(flight.task for flight in flights), return_exceptions=True)
            self.statistics.most_bytes = max(self.statistics.most_bytes, limit.most)

    def report(self) -> str:
        """Where the time went, in one line."""
        self.statistics.elapsed = time.perf_counter() - self._begun
        return self.statistics.line(self.config)

    async def _feed(
        self,
        requests: Iterable[FrameRequest],
        in_order: bool,
        limit: ByteLimit,
        ready: asyncio.Queue,
        flights: set[Flight],
    ) -> None:
        """Send requests on their way, one after another, as their bytes become free."""
        number = 0
        try:
            for request in requests:
                held = await limit.take(request.frame_bytes)
                key = await asyncio.to_thread(_identity, request)  # a network disk may take its time
                flight = Flight(number, asyncio.create_task(self._clip(request, key)), held)
                flights.add(flight)
                flight.task.add_done_callback(lambda _, flight=flight: flight.landed(limit))
                if in_order:
                    ready.put_nowait(flight)
                else:
                    flight.task.add_done_callback(lambda _, flight=flight: ready.put_nowait(flight))
                number += 1
            ready.put_nowait(number)
        except Exception as error:  # of the iterable
            ready.put_nowait(error)

    def _count(self, result: Clip | Exception, waited: float) -> None:
        self.statistics.waiting += waited
        if isinstance(result, Exception):
            self.statistics.failed += 1
        else:
            self.statistics.frames += len(result.frames)
            self.statistics.frame_bytes += result.frames.nbytes

    async def _clip(self, request: FrameRequest, key: Hashable) -> Clip:
        """From the cache, from an equal request that is being decoded, or from a worker."""
        clip = self._cache.get(key)
        if clip is not None:
            self.statistics.hits += 1
            return replace(clip, source=request.source)
        task = self._decoding.get(key)
        if task is None:
            task = self._decoding[key] = asyncio.create_task(self._decoded(key, request))
            task.add_done_callback(lambda task: self._finished(key, task))
        else:
            self.statistics.shared += 1
        clip = await asyncio.shield(task)  # if this taker leaves, the others still want it
        return replace(clip, source=request.source)

    def _finished(self, key: Hashable, task: asyncio.Task) -> None:
        del self._decoding[key]
        if not task.cancelled():
            task.exception()  # looked at: asyncio need not complain where all who waited have left

    async def _decoded(self, key: Hashable, request: FrameRequest) -> Clip:
        ticket = _Ticket(request, asyncio.get_running_loop().create_future())
        self._line.append(ticket)
        self._called.set()
        clip = await ticket.clip
        self.statistics.decodes += 1
        self._cache.put(key, clip, clip.frames.nbytes)
        return clip

    async def _lane(self, worker: Worker) -> None:
        """Keep one worker going, and bring it what is first in the line."""
        loop = asyncio.get_running_loop()
        while True:
            await self._started(worker)  # while there is nothing to do yet
            tickets = await self._next()
            if (failure := await self._started(worker)) is not None:  # it may have died in the meantime
                self._fail(tickets, WorkerDied(tickets[0].request.source, failure))
                continue
            job = Job(tuple(t.request for t in tickets), self.config.threads, self.config.flight_bytes)
            begun = time.perf_counter()
            try:
                answers = await loop.run_in_executor(self._threads, worker.run, job)
                pairs = list(zip(tickets, answers, strict=True))
            except (WorkerDied, TookTooLong) as error:
                self.statistics.deaths += 1
                self._lost(tickets, error)
            except Exception as error:  # a fault of ours must not leave anybody waiting
                self._fail(tickets, ServiceError(job.requests[0].source, f"{type(error).__name__}: {error}"))
            else:
                self.statistics.deaths += any(isinstance(result, OutOfMemory) for result in answers)  # it was killed
                for ticket, result in pairs:
                    self._settle(ticket, result)
            self.statistics.decoding += time.perf_counter() - begun

    async def _started(self, worker: Worker) -> str | None:
        """Have a worker that is ready for a job; why not, where there is none after a few attempts."""
        failure = None
        for _ in range(STARTS):
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, worker.start)
                return None
            except Exception as error:
                failure = str(error)
        return failure

    async def _next(self) -> list[_Ticket]:
        """The first in the line, with the next few on the same file that may be decoded in the same pass."""
        while not self._line:
            self._called.clear()
            await self._called.wait()
        first = self._line.popleft()
        if first.alone:
            return [first]
        same = [t for t in self._line if t.request.source == first.request.source and not t.alone]
        same = same[: self.config.merged - 1]
        for ticket in same:
            self._line.remove(ticket)
        self.statistics.merged += len(same) + 1 if same else 0
        return [first, *same]

    def _lost(self, tickets: list[_Ticket], error: ServiceError) -> None:
        """A worker died or was killed. Several requests at once: nobody knows whose fault it was, so each goes alone.

        One request: again if the worker died, which may have had any reason; up to DEATHS, and not if it took too long.
        """
        for ticket in reversed(tickets):  # to the head of the line, in their order
            ticket.deaths += len(tickets) == 1
            if len(tickets) > 1 or (isinstance(error, WorkerDied) and ticket.deaths < DEATHS):
                ticket.alone = True
                self._line.appendleft(ticket)
                self._called.set()
            else:
                self._settle(ticket, error)

    def _fail(self, tickets: list[_Ticket], error: ServiceError) -> None:
        for ticket in tickets:
            self._settle(ticket, error)

    def _settle(self, ticket: _Ticket, result: Clip | ServiceError) -> None:
        if ticket.clip.done():  # nobody waits any more
            return
        if isinstance(result, Exception):
            ticket.clip.set_exception(result)
        else:
            ticket.clip.set_result(result)


def _identity(request: FrameRequest) -> Hashable:
    """Equal for requests that get the same frames: the file, as it is now, and what is asked of it."""
    try:
        state = os.stat(request.source)
    except OSError:  # the worker says what is wrong
        return request
    return os.path.realpath(request.source), state.st_size, state.st_mtime_ns, replace(request, source="")
