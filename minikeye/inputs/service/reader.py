"""The video service for code without asyncio: the same calls, and an event loop in a thread of its own."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from minikeye.inputs.service.process import ProcessWorker, Worker
from minikeye.inputs.service.request import Clip, FrameRequest, ServiceConfig, ServiceError
from minikeye.inputs.service.service import VideoService


class VideoReader:
    """Clips decoded ahead by other processes, for a plain loop.

    >>> with VideoReader(ServiceConfig(workers=2)) as reader:
    ...     for number, result in reader.stream(requests):  # decoding goes on while the body runs
    ...         ...
    ...     print(reader.report())

    To be opened in the process that uses it: after a fork its thread is not there (RuntimeError).
    """

    def __init__(self, config: ServiceConfig | None = None, worker: Callable[[ServiceConfig], Worker] = ProcessWorker):
        self.service = VideoService(config, worker)
        self._process = 0  # that opened it; 0: nobody

    def __enter__(self) -> "VideoReader":
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="video-service", daemon=True)
        self._thread.start()
        self._do(self.service.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        if sys.is_finalizing():  # see `_do`
            for worker in self.service.workers:
                worker.kill()
            self._process = 0
            return
        self._do(self.service.__aexit__())
        self._do(self._loop.shutdown_asyncgens())
        self._do(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._process = 0

    def read(self, request: FrameRequest) -> Clip:
        """As `VideoService.read`. Raises ServiceError."""
        return self._do(self.service.read(request))

    def stream(
        self, requests: Iterable[FrameRequest], in_order: bool = True
    ) -> Iterator[tuple[int, Clip | ServiceError]]:
        """As `VideoService.stream`. `requests` is iterated in the reader's thread: it must not wait for anything."""
        results, turn = self.service.stream(requests, in_order), asyncio.Lock()

        async def following() -> tuple[int, Clip | ServiceError] | None:
            async with turn:
                return await anext(results, None)

        async def close() -> None:
            async with turn:  # after Ctrl-C the last step may still be ending
                await results.aclose()

        try:
            while (result := self._do(following())) is not None:
                yield result
        finally:
            if self._process == os.getpid():
                self._do(close())

    def report(self) -> str:
        """As `VideoService.report`."""
        return self.service.report()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it in the loop's thread, wait for it.

        Not while Python ends, when an iterator that nobody finished is closed: then that thread runs no more.
        """
        if sys.is_finalizing():
            return work.close()
        if self._process == os.getpid() and threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("expected requests that do not use this reader, which would wait for itself")
        if self._process != os.getpid():
            work.close()
            state = "a fork does not have its thread" if self._process else "it is not open"
            raise RuntimeError(f"expected `with VideoReader(...)` in this process, but {state}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C while waiting; nothing once it is done
