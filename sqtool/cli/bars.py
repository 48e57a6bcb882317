"""Progress on a terminal (bars with the time left) and elsewhere (a line now and then with percent and time left)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqtool.hygiene import clean, redact
from sqtool.progress import Task

if TYPE_CHECKING:
    from sqtool.cli.terminal import Terminal
    from sqtool.progress import Progress

LINE_SECONDS = 15.0
"""Between two lines of one task, where there is no terminal."""
log = logging.getLogger("sqtool")


def make_progress(terminal: Terminal) -> Progress:
    """Bars, lines or (with --quiet) the log only, as the terminal is."""
    if terminal.settings.quiet:
        return Lines(terminal, shown=False)
    if terminal.err.isatty():
        return Bars(terminal)
    return Lines(terminal)


def clock(seconds: float) -> str:
    """Seconds as 0:42 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    text = f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{text.zfill(5)}" if hours else text


def count_of(number: float) -> str:
    """An amount without an exponent: 16920100 (bytes), 0.5."""
    return f"{number:.0f}" if number == int(number) or number >= 100 else f"{number:.2g}"


class _LineTask:
    def __init__(self, owner: Lines, description: str, total: float | None) -> None:
        self._owner, self._text, self._total = owner, description, total
        self._lock = threading.Lock()
        self._done = 0.0
        self._began = self._told = time.monotonic()

    def advance(self, n: float = 1) -> None:
        with self._lock:
            self._done += n
            now = time.monotonic()
            if now - self._told < LINE_SECONDS:
                return
            self._told = now
            line = self._line(now)
        self._owner.line(line)

    def describe(self, text: str) -> None:
        with self._lock:
            changed, self._text = text != self._text, text
        if changed:
            self._owner.line(text)

    def _line(self, now: float) -> str:
        spent = now - self._began
        if not self._total:
            return f"{self._text}: {count_of(self._done)} done, {clock(spent)} so far"
        share = min(1.0, self._done / self._total)
        left = f", {clock(spent / share - spent)} left" if share > 0 else ""
        return f"{self._text}: {100 * share:.0f} % ({count_of(self._done)}/{count_of(self._total)}){left}"

    def end(self) -> None:
        count = f", {count_of(self._done)}" if self._total else ""
        self._owner.line(f"{self._text}: done{count} in {clock(time.monotonic() - self._began)}")


class Lines:
    """Plain lines; every line is in the log, and on stderr unless `shown` is false."""

    def __init__(self, terminal: Terminal, *, shown: bool = True) -> None:
        self._terminal, self._shown = terminal, shown

    def line(self, text: str) -> None:
        log.info(text)
        if self._shown:
            with suppress(OSError):  # a run goes on when nobody looks at it any more
                self._terminal.err.write(f"{time.strftime('%H:%M:%S')} {clean(redact(text))}\n")
                self._terminal.err.flush()

    def note(self, text: str) -> None:
        self.line(text)

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        task = _LineTask(self, description, total)
        self.line(description + (f": {count_of(total)} to do" if total else ""))
        yield task
        task.end()


class _BarTask:
    def __init__(self, bars: Any, number: Any) -> None:
        self._bars, self._number = bars, number

    def advance(self, n: float = 1) -> None:
        self._bars.advance(self._number, n)

    def describe(self, text: str) -> None:
        from rich.markup import escape

        self._bars.update(self._number, description=escape(clean(text)))


class Bars:
    """rich's bars on stderr, drawn only while there is a task."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bars: Any = None
        self._open = 0
        self._lock = threading.RLock()

    def note(self, text: str) -> None:
        from rich.text import Text

        log.info(text)
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(Text(clean(redact(text))), soft_wrap=True)
            else:
                self._terminal.err.write(clean(redact(text)) + "\n")
                self._terminal.err.flush()

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        from rich.markup import escape

        log.info("%s%s", description, f": {count_of(total)} to do" if total else "")
        began = time.monotonic()
        with self._lock:
            bars = self._start()
            number = bars.add_task(escape(clean(description)), total=total)
            self._open += 1
        try:
            yield _BarTask(bars, number)
            log.info("%s: done in %s", description, clock(time.monotonic() - began))
        finally:
            with self._lock:
                bars.remove_task(number)
                self._open -= 1
                if self._open == 0:
                    self.close()

    def _start(self) -> Any:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._terminal.err),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        return self._bars

    def close(self) -> None:
        """Take the bars off the screen."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
