"""Talking to a person or to a machine: results on stdout, progress and errors on stderr, the rest in the log."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from sqtool.cli.options import Settings
from sqtool.errors import EXIT_CANCELLED, EXIT_INCONCLUSIVE, EXIT_REFUSED, InfrastructureError, RecipeError, SqtoolError
from sqtool.hygiene import LogFormatter, clean, one_line, redact, redact_file, terminal_json
from sqtool.progress import SILENT, Progress

log = logging.getLogger("sqtool")
log.addHandler(logging.NullHandler())  # without any, Python would print errors to the screen a second time


class Terminal:
    """The streams of one command.

    `with terminal.captured(log)` sends what libraries and child processes print to the log file instead of the
    screen, so that progress stays readable and `--json` prints one document; our own output goes on as before.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.err: IO[str] = sys.stderr
        self.progress: Progress = SILENT
        self._log: logging.Handler | None = None

    def __enter__(self) -> Terminal:
        from sqtool.cli.bars import make_progress

        if self.settings.log_file is not None:
            try:
                self.settings.log_file.parent.mkdir(parents=True, exist_ok=True)
                self._log = logging.FileHandler(self.settings.log_file, encoding="utf-8")
            except OSError as error:
                raise click.UsageError(f"cannot write the log file: {error}") from None
            self._log.setFormatter(LogFormatter())
            log.addHandler(self._log)
        log.setLevel(logging.INFO)
        log.propagate = False
        self.progress = make_progress(self)
        return self

    def __exit__(self, *_: object) -> None:
        close = getattr(self.progress, "close", None)
        if close is not None:
            close()
        if self._log is not None:
            log.removeHandler(self._log)
            self._log.close()

    @contextlib.contextmanager
    def captured(self, path: Path) -> Iterator[None]:
        """Append everything that is written to file descriptors 1 and 2 to `path`."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise InfrastructureError(
                f"cannot write to {path.parent}: {error.strerror or error}",
                remedy="Make the folder writable, or use --root on another disk.",
            ) from None
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        own = self.err
        real = _is_descriptor(sys.stderr, 2)
        shown = os.fdopen(os.dup(saved[1]), "w", encoding="utf-8", errors="replace", buffering=1) if real else None
        try:
            if shown is not None:
                self.err = shown
                faulthandler.enable(file=shown)  # a crash of a native library must not vanish in the log
            os.dup2(target, 1)
            os.dup2(target, 2)
            os.close(target)
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            if shown is not None:
                faulthandler.disable()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
            close = getattr(self.progress, "close", None)
            if close is not None:
                close()
            self.err = own
            if shown is not None:
                with contextlib.suppress(OSError):  # nobody reads it any more
                    shown.close()
            redact_file(path)  # what libraries and children printed did not pass our formatter

    def json(self, value: Any) -> None:
        """The one JSON document of a command that was asked for one."""
        click.echo(terminal_json(value))

    def say(self, text: str = "", *, styled: bool = False) -> None:
        """A line of the result, for people; nothing with --json. `styled` text is ours, with colours in it."""
        if not self.settings.json:
            click.echo(text if styled else clean(text))

    def table(self, headers: tuple[str, ...], rows: tuple[tuple[str, ...], ...], title: str = "") -> None:
        """A table of the result, for people."""
        if self.settings.json:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=one_line(title) or None, title_justify="left", pad_edge=False)
        for header in headers:
            table.add_column(Text(clean(header)), overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        console = Console(file=sys.stdout)
        if console.is_terminal:
            console.print(table)
            return
        # A pipe or a CI log has no width; a table that is folded at 80 columns cannot be read there.
        text = io.StringIO()
        Console(file=text, width=200).print(table)
        click.echo("\n".join(line.rstrip() for line in text.getvalue().splitlines()))

    def error(self, error: SqtoolError, details: str = "") -> None:
        """What went wrong and what to do about it."""
        show_error(error, details)


def _is_descriptor(stream: Any, number: int) -> bool:
    try:
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):
        return False


def show_error(error: SqtoolError, details: str = "") -> None:
    """One message with its remedy on stderr."""
    if isinstance(error, RecipeError):
        count = len(error.problems)
        head = f"the recipe has {count} problem{'s' if count != 1 else ''}:"
        click.echo(f"Error: {head}\n{_indented(clean(error.message))}", err=True)
    else:
        # Indented: no line of a text that was found somewhere can pass for one of ours.
        click.echo(f"{_word(error)}: {_indented(clean(error.message)).lstrip()}", err=True)
    if error.remedy:
        click.echo(f"  {clean(error.remedy)}", err=True)
    if details:
        click.echo(f"  {clean(details)}", err=True)


def _word(error: SqtoolError) -> str:
    """A refusal is a result, not an error."""
    words = {EXIT_REFUSED: "Refused", EXIT_INCONCLUSIVE: "Inconclusive", EXIT_CANCELLED: "Cancelled"}
    return words.get(error.exit_code, "Error")


def error_json(error: SqtoolError) -> dict[str, Any]:
    """An error that came before there was any result, as the one JSON document."""
    value: dict[str, Any] = {
        "exit_code": error.exit_code,
        "error": {"type": type(error).__name__, "message": error.message, "remedy": error.remedy},
    }
    if isinstance(error, RecipeError):
        value["problems"] = [
            {"file": error.path, "line": p.line, "field": p.field, "message": p.message, "hint": p.hint}
            for p in error.problems
        ]
    return value


def show_unexpected(error: BaseException) -> None:
    """An error that nobody thought of: one line, and the traceback in a file."""
    import tempfile

    text = redact("".join(traceback.format_exception(error)))
    log.error("unexpected error\n%s", text)
    with tempfile.NamedTemporaryFile("w", prefix="sqtool-", suffix=".log", delete=False, encoding="utf-8") as handle:
        handle.write(text)
    click.echo(f"Error: {type(error).__name__}: {clean(redact(str(error)))}", err=True)
    click.echo(f"  This is a defect in sqtool; the traceback is in {handle.name}.", err=True)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
