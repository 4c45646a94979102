"""What a service keeps for later requests, within bounds: least recently used first out, and a time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

_Value = TypeVar("_Value")


class _Entry(NamedTuple, Generic[_Value]):
    value: _Value
    size: int
    until: float


class Kept(Generic[_Value]):
    """Values by key: at most so many, of at most so many bytes, each for some time after its last use. For any thread.

    Args:
        most: number of values.
        most_bytes: size of all values together; a larger one is not kept.
        seconds: how long a value is kept after its last use.
        clock: the time in seconds.

    Example:
        >>> kept = Kept[str](most=2, most_bytes=100, seconds=60)
        >>> for name in ("a", "b", "a", "c"):
        ...     kept.get(name) or kept.put(name, name.upper(), 1)
        True
        True
        'A'
        True
        >>> kept.get("b"), kept.get("a"), len(kept)
        (None, 'A', 2)
    """

    def __init__(
        self, most: int, most_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._most_bytes, self._seconds, self._clock = most, most_bytes, seconds, clock
        self._entries: OrderedDict[str, _Entry[_Value]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        with self._lock:
            self._forget_old()
            return len(self._entries)

    def put(self, key: str, value: _Value, size: int) -> bool:
        """Keep a value of ``size`` bytes; returns whether it is kept, which one that is too large is not."""
        with self._lock:
            self.drop(key)
            self._forget_old()
            if size > self._most_bytes:
                return False
            self._entries[key] = _Entry(value, size, self._clock() + self._seconds)
            self._bytes += size
            while len(self._entries) > self._most or self._bytes > self._most_bytes:
                self.drop(next(iter(self._entries)))
            return True

    def get(self, key: str) -> _Value | None:
        """The value, which is then kept anew; ``None`` where it is not kept, or no longer."""
        with self._lock:
            self._forget_old()
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries[key] = entry._replace(until=self._clock() + self._seconds)
            self._entries.move_to_end(key)
            return entry.value

    def drop(self, key: str) -> bool:
        """Forget a value; returns whether it was kept."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._bytes -= entry.size
            return entry is not None

    def _forget_old(self) -> None:
        """Forget what is past its time: the order of use is the order of times."""
        now = self._clock()
        while self._entries and next(iter(self._entries.values())).until <= now:
            self.drop(next(iter(self._entries)))


__all__ = ["Kept"]
