"""The reference pair and timing by turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "artifacts/reference/target"


def cpu_and_wall(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def by_turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """(CPU, wall) seconds of both, measured in turn so that a busy machine slows both."""
    pairs = []
    for turn in range(repeats):
        if turn % 2:
            after = cpu_and_wall(second)
            pairs.append((cpu_and_wall(first), after))
        else:
            pairs.append((cpu_and_wall(first), cpu_and_wall(second)))
    return pairs


def ratios(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> tuple[float, float]:
    """Median over the turns of first divided by second, for CPU and for wall seconds."""
    return tuple(median(a[at] / b[at] for a, b in pairs) for at in (0, 1))  # type: ignore[return-value]
