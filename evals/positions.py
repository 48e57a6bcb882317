"""Figures of every position on disk, and statistics over any part of them, with memory that does not depend on how
many there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
Range = tuple[int, int]
"""Positions from the first up to, without, the second."""

COLUMNS = ("kl", "agree", "nll_baseline", "nll_candidate")
BLOCK = 1 << 14
"""Positions read at once (256 kB)."""
FEW = 1 << 16
"""Up to so many values a quantile is taken in memory."""
QUANTILES = {"kl_p99": 0.99, "kl_p999": 0.999}


class Positions:
    """A file of float32 rows [positions, COLUMNS], removed when the `with` block ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("w+b")

    def append(self, rows: Floats) -> None:
        """Add rows [positions, COLUMNS]."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self.count += len(rows)

    def blocks(self, ranges: Iterable[Range]) -> Iterator[Floats]:
        """The rows of these ranges in order, at most BLOCK at a time; ranges that touch are read together."""
        width = len(COLUMNS) * 4
        for start, stop in _joined(ranges):
            for at in range(start, stop, BLOCK):
                self._file.seek(at * width)
                raw = self._file.read(min(BLOCK, stop - at) * width)
                yield np.frombuffer(raw, dtype=np.float32).reshape(-1, len(COLUMNS))

    def statistics(self, ranges: Sequence[Range]) -> dict[str, Any]:
        """`statistics` over the rows of these ranges."""
        return statistics(lambda: self.blocks(ranges))

    def __enter__(self) -> Positions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    first, last = 0, 0
    for start, stop in ranges:
        if start != last:
            if last > first:
                yield first, last
            first = start
        last = stop
    if last > first:
        yield first, last


def statistics(blocks: Callable[[], Iterable[Floats]]) -> dict[str, Any]:
    """Figures over all rows that `blocks()` gives, each time the same; see `evals.drift.drift` for their names.

    Rows with NaN or infinity are counted in `non_finite` and left out. Without others only the counts are returned.
    """
    positions = used = 0
    sums = np.zeros(5)
    largest = 0.0
    for block in blocks():
        rows = block[np.isfinite(block).all(axis=1)].astype(np.float64)
        positions += len(block)
        used += len(rows)
        kl, agree, base, cand = rows.T
        change = np.exp(-cand) - np.exp(-base)
        sums += [kl.sum(), agree.sum(), base.sum(), cand.sum(), change @ change]
        largest = max(largest, float(kl.max(initial=0.0)))
    counts = {"positions": positions, "non_finite": positions - used}
    if not used:
        return counts
    kl_mean, same, base, cand, square = (float(x) for x in sums / used)

    def values() -> Iterator[Floats]:
        for block in blocks():
            yield block[np.isfinite(block).all(axis=1), 0]

    return {
        **counts,
        "kl_mean": kl_mean,
        **dict(zip(QUANTILES, quantiles(values, used, list(QUANTILES.values())), strict=True)),
        "kl_max": largest,
        "top1_agreement": same,
        "perplexity_baseline": _exp(base),
        "perplexity_candidate": _exp(cand),
        "perplexity_ratio": _exp(cand - base),
        "rms_delta_p": math.sqrt(square),
    }


def _exp(value: float) -> float:
    """exp, but finite, for JSON has no infinity."""
    return math.exp(min(value, 700.0))


def quantiles(blocks: Callable[[], Iterable[Floats]], count: int, wanted: Sequence[float]) -> list[float]:
    """Quantiles of `count` float32 values >= 0, interpolated linearly, exact as those of NumPy.

    Many values are not held but counted, twice: by the upper and then by the lower half of their bits, whose order is
    that of the numbers. Memory: three tables of 65,536.
    """
    if count <= FEW:
        return [float(q) for q in np.quantile(np.concatenate(list(blocks())).astype(np.float64), wanted)]
    places = [q * (count - 1) for q in wanted]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    upper = np.zeros(1 << 16, dtype=np.int64)
    for block in blocks():
        upper += np.bincount(_bits(block) >> 16, minlength=1 << 16)
    below = np.cumsum(upper) - upper
    halves = {rank: int(np.searchsorted(below, rank, side="right")) - 1 for rank in ranks}
    value: dict[int, float] = {}
    for half in sorted(set(halves.values())):
        lower = np.zeros(1 << 16, dtype=np.int64)
        for block in blocks():
            bits = _bits(block)
            lower += np.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=1 << 16)
        ends = np.cumsum(lower)
        for rank in (rank for rank in ranks if halves[rank] == half):
            low = int(np.searchsorted(ends, rank - below[half], side="right"))
            value[rank] = float(np.array([half << 16 | low], dtype=np.uint32).view(np.float32)[0])
    found = []
    for place in places:
        first, second = value[math.floor(place)], value[math.ceil(place)]
        found.append(first + (second - first) * (place - math.floor(place)))
    return found


def _bits(values: Floats) -> np.ndarray[Any, np.dtype[np.uint32]]:
    # Adding zero makes of -0 a 0, whose bits come first.
    return (values.astype(np.float32) + np.float32(0)).view(np.uint32)
