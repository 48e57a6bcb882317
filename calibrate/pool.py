"""The pool: one pass over all sources that checks every record and keeps a bounded, even draw of them.

Of each source the records with the smallest keyed hash are kept (bottom-k sampling: every different record is as likely
as any other, whatever the order, and the same seed keeps the same ones), and a few of each kind, so that a rare kind is
not lost in a large pool. What is kept lies in a file; memory holds a few numbers for each, and 8 bytes for each record
that was read.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from calibrate.conversation import (
    NO_KIND,
    NoAnswer,
    NoConversation,
    Record,
    as_record,
    length_bin,
    prompt_chars,
    tools_called,
)
from calibrate.sources import Line, read_source
from calibrate.spec import CalibrateSpec, SourceSpec
from sqtool.errors import DataError
from sqtool.progress import SILENT, Progress, Task

KEPT_OF_A_KIND = 64
"""Records of each kind that are kept however rare it is."""
MAX_KINDS = 4096
SHOWN_BAD_LINES = 20
STEP = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One record that is considered."""

    source: int
    path: Path
    line: int
    offset: int
    """Where it starts in the pool's file, in bytes."""
    kind: str
    tools_called: tuple[str, ...]
    prompt_chars: int = 0

    @property
    def bin(self) -> str:
        """The stratum of its prompt's length in characters."""
        return length_bin(self.prompt_chars)


@dataclass
class Counts:
    """What became of the lines that were read."""

    read: int = 0
    bad_lines: int = 0
    unanswered: int = 0
    """Logged requests that failed."""
    duplicates: int = 0
    """Records with the same messages and tools as an earlier one."""
    near_duplicates: int = 0
    """Records considered that are nearly the same as an earlier one."""
    contaminated: int = 0
    """Records considered that share text with a test item."""
    too_long: int = 0
    """Records considered that are longer than the model's context and were left out."""
    shown: list[str] = field(default_factory=list)
    """The first bad lines, with what is wrong."""


@dataclass
class Pool:
    """What is considered, by source and in the sources' order, and what was seen of the rest."""

    sources: tuple[str, ...]
    entries: tuple[tuple[Entry, ...], ...]
    counts: Counts
    kinds: tuple[Counter[str], ...]
    """Records of each kind, by source: those considered where that is all, all that were read otherwise."""
    file: IO[bytes]

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.entries)

    @property
    def duplicates(self) -> int:
        return self.counts.duplicates

    def all(self) -> list[Entry]:
        """Every entry, source by source."""
        return [entry for entries in self.entries for entry in entries]

    def read(self, entries: Sequence[Entry]) -> list[Record]:
        """The records of `entries`, in their order."""
        records: dict[int, Record] = {}
        for offset in sorted({entry.offset for entry in entries}):
            self.file.seek(offset)
            records[offset] = json.loads(self.file.readline())
        return [records[entry.offset] for entry in entries]

    def without(self, left_out: set[Entry]) -> Pool:
        """The pool without some entries."""
        if not left_out:
            return self
        entries = tuple(tuple(e for e in of if e not in left_out) for of in self.entries)
        kinds = tuple(
            counted - Counter(e.kind for e in of if e in left_out)
            for counted, of in zip(self.kinds, self.entries, strict=True)
        )
        return Pool(self.sources, entries, self.counts, kinds, self.file)


def read_pool(
    spec: CalibrateSpec,
    sources: Sequence[SourceSpec],
    root: Path,
    file: IO[bytes],
    *,
    seed: int,
    progress: Progress = SILENT,
) -> Pool:
    """Read every source once. `file` is a temporary file for what is kept, which must stay open.

    Raises DataError with file, line and field for the first bad line (unless the spec skips and counts those), for a
    source without any record and for one that cannot be read.
    """
    reader = _Reader(spec, file, seed)
    entries, kinds = [], []
    with progress.task("calibrate: read the pool") as task:
        for number, source in enumerate(sources):
            found, counted = reader.source(number, source, root, task)
            entries.append(found)
            kinds.append(counted)
    reader.counts.duplicates = reader.repeated()
    return Pool(tuple(str(s) for s in sources), tuple(entries), reader.counts, tuple(kinds), file)


class _Reader:
    def __init__(self, spec: CalibrateSpec, file: IO[bytes], seed: int) -> None:
        self.spec, self.file, self.seed = spec, file, str(seed).encode()
        self.counts = Counts()
        self.keys = array("Q")
        self.held: dict[int, Entry] = {}
        """Key -> entry, of all that is kept so far."""
        self.size = 0

    def repeated(self) -> int:
        """Records that an earlier one equals, among all that were read."""
        import numpy as np

        return len(self.keys) - len(np.unique(np.frombuffer(self.keys, dtype=np.uint64))) if self.keys else 0

    def source(self, number: int, source: SourceSpec, root: Path, task: Task) -> tuple[tuple[Entry, ...], Counter[str]]:
        draw = _Draw(self.spec.considered, max(KEPT_OF_A_KIND, self.spec.coverage.min_per_kind))
        kinds: Counter[str] = Counter()
        path, lines = Path(str(source)), 0
        for line in read_source(source, root):
            path, lines = line.path, lines + 1
            if lines % STEP == 0:
                task.advance(STEP)
            record = self.record(line, source)
            if record is None:
                continue
            kind = record.get("kind") or NO_KIND
            kinds[kind] += 1
            if len(kinds) > MAX_KINDS:
                raise DataError(
                    line.path, f"more than {MAX_KINDS} different kinds", line=line.number, field="kind",
                    remedy="A kind is a label that many conversations share, such as the task; ids go into id.",
                )  # fmt: skip
            key = _key(record, self.seed)
            self.keys.append(key)
            if key in self.held:
                continue
            rank = key if self.spec.shuffle else lines
            if draw.wants(kind, rank):
                entry = self.keep(record, number, line, kind)
                self.held[key] = entry
                for dropped in draw.add(kind, rank, key):
                    del self.held[dropped]
        if not lines:
            raise DataError(path, "is empty", remedy="A calibration source has at least one conversation or text.")
        kept = sorted((self.held[key] for key in draw.keys), key=lambda e: e.offset)
        # Where all were kept, repeated ones must not count twice in the kinds' shares.
        return tuple(kept), Counter(e.kind for e in kept) if draw.complete else kinds

    def record(self, line: Line, source: SourceSpec) -> Record | None:
        """The record of a line; None, and counted, for one that is left out."""
        self.counts.read += 1
        error = line.value
        if not isinstance(error, DataError):
            try:
                return as_record(error, source.kind)
            except NoAnswer:
                self.counts.unanswered += 1
                return None
            except NoConversation as wrong:
                error = DataError(line.path, str(wrong), line=line.number, field=wrong.field)
        if self.spec.on_bad_line == "error":
            error.remedy = "Mend the line, or set calibrate.on_bad_line: skip to leave such lines out."
            raise error
        self.counts.bad_lines += 1
        if len(self.counts.shown) < SHOWN_BAD_LINES:
            self.counts.shown.append(str(error))
        return None

    def keep(self, record: Record, number: int, line: Line, kind: str) -> Entry:
        raw = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        offset, self.size = self.size, self.size + len(raw)
        self.file.write(raw)
        return Entry(number, line.path, line.number, offset, kind, tools_called(record), prompt_chars(record))


class _Draw:
    """The `total` smallest ranks of a source, and the `each` smallest of every kind."""

    def __init__(self, total: int, each: int) -> None:
        self.total, self.each = total, each
        self.ranked: list[tuple[int, int]] = []
        self.by_kind: dict[str, list[tuple[int, int]]] = {}
        self.uses: Counter[int] = Counter()
        self.complete = True

    @property
    def keys(self) -> list[int]:
        return list(self.uses)

    def wants(self, kind: str, rank: int) -> bool:
        heaps = (self.ranked, self.total), (self.by_kind.get(kind, []), self.each)
        wanted = any(len(heap) < size or rank < -heap[0][0] for heap, size in heaps)
        self.complete &= wanted
        return wanted

    def add(self, kind: str, rank: int, key: int) -> list[int]:
        """Take it in; the keys that nothing holds any more."""
        out: list[int] = []
        for heap, size in ((self.ranked, self.total), (self.by_kind.setdefault(kind, []), self.each)):
            self.uses[key] += 1
            heapq.heappush(heap, (-rank, key))
            if len(heap) > size:
                out.append(heapq.heappop(heap)[1])
        self.uses.subtract(out)
        dropped = [one for one in set(out) if not self.uses[one]]
        for one in dropped:
            del self.uses[one]
        self.complete &= not dropped
        return dropped


def _key(record: Record, seed: bytes) -> int:
    """64 bits that only the same messages and tools (or text) share, in an order that only the seed knows."""
    import msgspec

    said: Any = [record.get("messages") or record.get("text"), record.get("tools") or []]
    text = msgspec.json.encode(said, order="sorted")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed).digest(), "big")
