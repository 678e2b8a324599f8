"""Back pressure in bytes: clips that are decoded or wait to be taken hold a share of a limit, others wait for it."""

import asyncio
from dataclasses import dataclass

from minikeye.inputs.service.request import Clip


class ByteLimit:
    """A semaphore that counts bytes. First come, first served: a large request is not overtaken for ever."""

    def __init__(self, limit: int):
        self.limit, self.used, self.most = limit, 0, 0
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    async def take(self, amount: int) -> int:
        """Wait until `amount` bytes are free, or the whole limit where that is less, and take them. Gives how many."""
        amount = min(amount, self.limit)
        async with self._turn:
            while self.used + amount > self.limit:
                self._freed.clear()
                await self._freed.wait()
            self.used += amount
        self.most = max(self.most, self.used)
        return amount

    def give(self, amount: int) -> None:
        """Give bytes back."""
        self.used -= amount
        self._freed.set()


@dataclass(eq=False)
class Flight:
    """A request on its way from being admitted to being taken by the trainer."""

    number: int  # position among the requests
    task: asyncio.Task  # its clip
    held: int  # bytes

    def landed(self, limit: ByteLimit) -> None:
        """The task is done: from now on hold what the clip takes. What was taken for it is an upper bound."""
        failed = self.task.cancelled() or self.task.exception() is not None
        size = 0 if failed else self.task.result().frames.nbytes
        limit.give(self.held - size)
        self.held = size

    async def result(self) -> Clip | Exception:
        """What came of the request."""
        try:
            return await self.task
        except Exception as error:
            return error
