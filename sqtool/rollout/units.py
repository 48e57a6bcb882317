"""From requests to the independent units of a verdict: one user or session is one unit, however often it asks.

The requests of one user hang together (one who is never content corrects everything), so a test that takes them for
independent finds harm where there is none. A unit is therefore the *first visit* of a cluster: its requests within a
window of fixed length from its first one. Its value for a metric is the share of these requests with the bad event, so
that each user counts once. Because the window is of the same length for all, units close in the order in which they
opened: no arm's short visits come first. Later requests of a cluster are counted in the table and in no verdict; they
depend on its first visit. What time it is says `sqtool.rollout.clock`.

A request without a cluster is a unit of its own. A cluster that more than one arm answered belongs to the arm that
answered it first, and only that arm's requests are its value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sqtool.rollout.clock import Clock
from sqtool.rollout.record import Record
from sqtool.rollout.rules import Event


class Unit(NamedTuple):
    """One independent observation: for each metric the share with the bad event in [0, 1], None where not known."""

    arm: str
    values: tuple[float | None, ...]


class _Request(NamedTuple):
    arm: str
    key: int | None
    bad: tuple[bool | None, ...]


class _Open:
    __slots__ = ("arm", "bad", "closes", "known")

    def __init__(self, arm: str, closes: float, metrics: int) -> None:
        self.arm, self.closes = arm, closes
        self.known = [0] * metrics
        self.bad = [0] * metrics

    def unit(self) -> Unit:
        return Unit(self.arm, tuple(b / k if k else None for b, k in zip(self.bad, self.known, strict=True)))


class Units:
    """Feed records in the order of the log; out come the units that are complete.

    Memory grows with the number of clusters (a set entry each), not with that of requests.
    """

    def __init__(self, events: Sequence[Event], window_s: float) -> None:
        self._events = tuple(events)
        self._window = window_s
        self._clock: Clock[_Request] = Clock()
        self._open: dict[int, _Open] = {}
        self._order: deque[int] = deque()
        self._seen: set[int] = set()
        self.bad = [0] * len(self._events)
        """For each metric, requests that say that it happened."""
        self.fine = [0] * len(self._events)
        """For each metric, requests that say that it did not."""
        self.silent = [0] * len(self._events)
        """For each metric, requests that say nothing about it."""
        self.alone = 0
        """Requests without a cluster."""
        self.later = 0
        """Requests that came after their cluster's window."""
        self.elsewhere = 0
        """Requests in a window that another arm had opened."""

    def known(self, place: int) -> bool:
        """Whether any request says anything about the metric."""
        return bool(self.bad[place] or self.fine[place])

    @property
    def clusters(self) -> int:
        """Clusters seen so far."""
        return len(self._seen) + len({key for key in self._keys_waiting() if key not in self._seen})

    @property
    def open(self) -> int:
        """Clusters whose window has not passed."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Requests of a cluster that are so far ahead that it is not known yet whether their clock is right."""
        return len(self._keys_waiting())

    def _keys_waiting(self) -> list[int]:
        return [request.key for _, request in self._clock.waiting if request.key is not None]

    def add(self, record: Record) -> list[Unit]:
        """The units that this record completes: those whose window it shows to be over, or itself."""
        bad = tuple([event(record) for event in self._events])
        for place, happened in enumerate(bad):
            counted = self.silent if happened is None else self.bad if happened else self.fine
            counted[place] += 1
        key = None if record.cluster is None else hash(record.cluster)
        done: list[Unit] = []
        for now, _, request in self._clock.tell(record.timestamp, _Request(record.arm, key, bad)):
            while self._order and self._open[self._order[0]].closes <= now:
                done.append(self._open.pop(self._order.popleft()).unit())
            if request.key is not None:
                self._count(request, request.key, now)
        if key is None:
            self.alone += 1
            done.append(Unit(record.arm, tuple(None if b is None else float(b) for b in bad)))
        return done

    def _count(self, request: _Request, key: int, now: float) -> None:
        unit = self._open.get(key)
        if unit is None:
            if key in self._seen:
                self.later += 1
                return
            self._seen.add(key)
            unit = self._open[key] = _Open(request.arm, now + self._window, len(self._events))
            self._order.append(key)
        elif unit.arm != request.arm:
            self.elsewhere += 1
            return
        for place, happened in enumerate(request.bad):
            if happened is not None:
                unit.known[place] += 1
                unit.bad[place] += happened
