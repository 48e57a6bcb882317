"""The time of a log, which single lines with a wrong clock do not move.

The windows of users close by the newest time seen. Were it simply the largest, one line ten years ahead would close all
of them, and none would ever close after it. But a log also has gaps: nobody asks on a quiet weekend. After a gap every
request is far from the ones before it; a wrong clock is one among many that are right. So a request that is more than a
day ahead waits. When one that is near the clock comes, those that waited are the odd ones, and are placed at the
clock's time. When ten wait, they are right: the clock goes to the nearest of them, and each is placed by its own time.

In the same way ten requests in a row that are more than a day behind overrule a clock that was set by a wrong line, as
by the first one of the log. The clock then stays and goes on with their time, so that it never goes back and an open
window keeps what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

FAR = 86_400.0
"""Seconds from the clock beyond which a time has to be confirmed."""
AGREE = 10
"""Requests that confirm it."""

T = TypeVar("T")


class Clock(Generic[T]):
    """Tell it the time of each request in the order of the log; it says when each is placed."""

    def __init__(self) -> None:
        self.now = float("-inf")
        """The newest time that counts. It never goes back."""
        self.waiting: list[tuple[float, T]] = []
        """Requests far ahead, each with its time, of which it is not known whether they are right; less than AGREE."""
        self._shift = 0.0
        self._behind = 0
        self._nearest = float("-inf")

    def tell(self, timestamp: float, item: T) -> Sequence[tuple[float, float, T]]:
        """The requests that are placed now, `item` or ones that waited: (the clock then, seconds that the request's
        own time is ahead of it, or behind if negative, item)."""
        time = timestamp + self._shift
        off = time - self.now
        if off > FAR and self.now != float("-inf"):
            self.waiting.append((timestamp, item))
            return () if len(self.waiting) < AGREE else self._go_on()
        if off < -FAR:
            self._far_behind(time)
            return ((self.now, off, item),)
        self._behind = 0
        odd = self._odd() if self.waiting else ()
        if off > 0:
            self.now, off = time, 0.0
        return (*odd, (self.now, off, item))

    def _odd(self) -> Sequence[tuple[float, float, T]]:
        odd, self.waiting = self.waiting, []
        return [(self.now, timestamp + self._shift - self.now, item) for timestamp, item in odd]

    def _go_on(self) -> Sequence[tuple[float, float, T]]:
        run, self.waiting = self.waiting, []
        self.now = min(timestamp for timestamp, _ in run) + self._shift
        # The nearest of them is near now, so that less than AGREE can wait again.
        return [placed for timestamp, item in run for placed in self.tell(timestamp, item)]

    def _far_behind(self, time: float) -> None:
        self._nearest = max(self._nearest, time) if self._behind else time
        self._behind += 1
        if self._behind == AGREE:
            self._shift += self.now - self._nearest
            self._behind = 0
