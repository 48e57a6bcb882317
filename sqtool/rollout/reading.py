"""Reading logs line by line: plain or gzip, files or standard input, in bounded memory and with progress."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from sqtool.errors import DataError
from sqtool.progress import SILENT, Progress
from sqtool.rollout.clock import Clock
from sqtool.rollout.formats import FieldError, Format, Reader, detect
from sqtool.rollout.record import Record

STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_TELL_EVERY = 2000
LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one request's line, prompt and answer included."""
MOST_UNPACKED = 400
"""A gzip file that unpacks to more times its size is no log: rows that repeat every key shrink to a thirtieth."""
UNPACKED_FREE = 256 * 1024 * 1024
"""Bytes that any file may unpack to."""


@dataclass
class Source:
    """What was read, for the report: filled while `records` runs."""

    names: tuple[str, ...]
    format: Literal["sqtool", "gateway"] | None = None
    lines: int = 0
    ignored: list[str] = field(default_factory=list)
    """Keys that sqtool's format does not have; nothing was done with them."""
    incomplete: str = ""
    """Where the last line was cut off, as in a log that is being written."""
    out_of_order: int = 0
    """Records older than one before them."""
    most_behind: float = 0.0
    """Seconds, the largest such step back."""
    behind_at: str = ""
    """The line with that step."""
    far_ahead: int = 0
    """Records more than a day ahead of those before and after them, as of a wrong clock."""
    most_ahead: float = 0.0
    """Seconds, the most that one is ahead."""
    ahead_at: str = ""
    """The first such line."""
    only_answers: bool = False
    """Whether requests count as not failed by their answers alone: no line has a status, an error, or `failed`."""
    first: float | None = None
    last: float | None = None

    def placed(self, off: float, name: str, number: int) -> None:
        """Count a record at this line that is `off` seconds ahead of the log's time (behind if negative)."""
        if off < 0:
            self.out_of_order += 1
            if -off > self.most_behind:
                self.most_behind, self.behind_at = -off, f"{name}:{number}"
        elif off > 0:
            self.far_ahead += 1
            self.most_ahead = max(self.most_ahead, off)
            self.ahead_at = self.ahead_at or f"{name}:{number}"


def records(
    source: Source,
    kind: Format = "auto",
    mapping: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
    absent: Collection[str] = (),
) -> Iterator[Record]:
    """The records of `source.names` (paths, or `-`) one after the other, in the order of the lines.

    Raises `DataError` with file, line and field for a line that is no record, and for logs without any. A last line
    that is cut off is left out and noted: a canary is read while its log is being written.
    """
    import msgspec

    decode = msgspec.json.Decoder().decode
    reader = Reader(kind, mapping, absent) if kind != "auto" else None
    clock: Clock[tuple[str, int]] = Clock()
    for name, number, line, last in _lines(source.names, progress):
        try:
            value: Any = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if last:
                source.incomplete = f"{name}:{number}"
                continue
            raise DataError(name, f"not JSON: {error}", line=number, remedy=_JSONL) from None
        except RecursionError:
            raise DataError(name, "nested too deeply to be a request", line=number, remedy=_JSONL) from None
        if not isinstance(value, dict):
            raise DataError(name, f"expected a JSON object, found {type(value).__name__}", line=number, remedy=_JSONL)
        try:
            if reader is None:
                reader = Reader(detect(value, mapping), mapping, absent)
            record = reader.record(value)
        except FieldError as error:
            raise DataError(name, error.message, line=number, field=error.field, remedy=error.remedy) from None
        source.lines += 1
        for _, off, place in clock.tell(record.timestamp, (name, number)):
            if off:
                source.placed(off, *place)
        source.first = record.timestamp if source.first is None else min(source.first, record.timestamp)
        source.last = record.timestamp if source.last is None else max(source.last, record.timestamp)
        yield record
    if reader is None or not source.lines:
        raise DataError(", ".join(source.names), "holds no requests", remedy="Give a log with one request a line.")
    source.format, source.ignored = reader.kind, sorted(reader.ignored)
    source.only_answers = bool(reader.answers) and not reader.outcomes


_JSONL = "A log is JSON Lines: one object a line."


def _lines(names: Sequence[str], progress: Progress) -> Iterator[tuple[str, int, bytes, bool]]:
    """(shown name, 1-based number, content, whether it is the log's last and has no line end) of non-empty lines."""
    for name in names:
        shown = "standard input" if name == STDIN else name
        raw, size = _open(name, shown)
        with raw, progress.task(f"reading {shown}" + (" (bytes)" if size else " (lines)"), total=size) as task:
            told = number = 0
            try:
                packed, lines = _lines_of(raw)
                total = 0
                for number, line in enumerate(lines, 1):
                    total += len(line)
                    if len(line) > LONGEST_LINE:
                        message = f"longer than {LONGEST_LINE >> 20} MiB, which no request is"
                        raise DataError(shown, message, line=number, remedy=_JSONL)
                    if packed and size and total > max(UNPACKED_FREE, MOST_UNPACKED * size):
                        message = f"unpacks to more than {MOST_UNPACKED} times its size, which no log does"
                        raise DataError(shown, message, line=number, remedy="Unpack it yourself if you trust it.")
                    if number % _TELL_EVERY == 0:
                        position = raw.tell() if size else number
                        task.advance(position - told)
                        told = position
                    if number == 1:
                        line = line.removeprefix(_BOM)
                    if line.strip():
                        yield shown, number, line, not line.endswith(b"\n")
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    shown, f"broken gzip after this line: {error}", line=number, remedy="Pack the log again."
                ) from None
            task.advance((size or number) - told)


def _open(name: str, shown: str) -> tuple[IO[bytes], int | None]:
    if name == STDIN:
        # A copy of the descriptor, so that closing it leaves the interpreter's own stream alone.
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False)), None
    path = Path(name)
    try:
        size = path.stat().st_size if path.is_file() else None  # a pipe (`<(zcat log)`) has none
        return path.open("rb"), size or None
    except FileNotFoundError:
        raise DataError(shown, "no such file") from None
    except OSError as error:
        raise DataError(shown, f"cannot be read: {error.strerror or error}") from None


def _lines_of(raw: IO[bytes]) -> tuple[bool, Iterable[bytes]]:
    """Whether it is gzip (by content, not by name: standard input has none), and its lines; one that is too long is cut
    just behind what is allowed, so that it never lies in memory whole."""
    assert isinstance(raw, io.BufferedReader)
    packed = raw.peek(2)[:2] == _GZIP
    text = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
    return packed, iter(partial(text.readline, LONGEST_LINE + 1), b"")
