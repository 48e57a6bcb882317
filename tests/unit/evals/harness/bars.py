"""A progress that remembers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class _Bar:
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, n: float = 1) -> None:
        self.done += n

    def describe(self, text: str) -> None:
        return None


class Bars:
    """`seen`: description -> (total, what it had advanced to at its end)."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float | None, float]] = {}
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[_Bar]:
        bar = _Bar()
        yield bar
        self.seen[description] = (total, bar.done)

    def note(self, text: str) -> None:
        self.notes.append(text)
