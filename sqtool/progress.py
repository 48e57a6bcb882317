"""How a stage tells what it is doing; the command line decides how that looks.

A stage calls `with progress.task("evaluate: recall", total=500) as t: ... t.advance()`. On a terminal that is a
rich bar with the time left; elsewhere it is a log line now and then; with `--quiet` it is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """A running piece of work with a known or unknown total."""

    def advance(self, n: float = 1) -> None:
        """n more units are done (any thread)."""

    def describe(self, text: str) -> None:
        """Say what is being done now."""


class Progress(Protocol):
    """What a stage reports to."""

    def task(self, description: str, total: float | None = None) -> AbstractContextManager[Task]:
        """Open a task; `total=None` when the amount is unknown."""

    def note(self, text: str) -> None:
        """One line that the user should see and the log should keep."""


class _Silent:
    def advance(self, n: float = 1) -> None:
        return None

    def describe(self, text: str) -> None:
        return None

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        yield self

    def note(self, text: str) -> None:
        return None


SILENT: Progress = _Silent()
