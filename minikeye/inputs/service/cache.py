"""A cache bounded by bytes: what was used least recently goes first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keeps values whose sizes add up to at most `limit` bytes. One that is larger than that is not kept."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()  # the least recently used comes first

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Value | None:
        """The value, which becomes the most recently used one; None where there is none."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, in place of the old one under that key."""
        if key in self._kept:
            self.bytes -= self._kept.pop(key)[1]
        if size > self.limit:
            return
        self._kept[key] = (value, size)
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self.bytes -= freed
