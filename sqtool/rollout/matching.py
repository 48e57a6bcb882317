"""From two streams of units to one stream of differences whose mean is that of the arms.

In production the arms are not paired: the router sends each user to one of them. Units of the two arms are therefore
matched in the order of their arrival, k of the arm with more traffic against one of the other, k following the split:

    term = mean of the candidate's values in the block - mean of the baseline's,    in [-1, 1]

Which values make a block depends on the order of the arms' names alone, never on a value, and no value is used twice.
So under a split that is random (given the time) each term has the mean difference of its moment, whatever the terms
before it were, and the test by betting on terms (sqtool.gate.sequential) holds. Matching neighbours in time also spares
it what a comparison of two running averages suffers from: rates that drift over the day while the split is changed.
Turner, Ly and Grünwald (2024, J. Stat. Plan. Inference 230:106116) work in blocks of both samples likewise.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

MEMORY = 500
"""Units over which the split is averaged when choosing k."""
MOST = 256
"""The largest k. At a split more uneven than that the rest of the larger arm is left out."""
WAITING = 64
"""Units of a side that may wait beyond a block; the oldest is left out then, so that matched units stay neighbours."""


class Term(NamedTuple):
    """One block: the means of the two sides."""

    baseline: float
    candidate: float

    @property
    def difference(self) -> float:
        """Candidate minus baseline, in [-1, 1]."""
        return self.candidate - self.baseline


class Matcher:
    """Feed values of the two arms as they arrive; now and then a block is full and its term comes out."""

    def __init__(self) -> None:
        self._waiting: tuple[deque[float], deque[float]] = (deque(), deque())
        self._traffic = [1.0, 1.0]
        self._owed = 0.0
        self._need = [1, 1]
        self.unmatched = 0
        """Units that were left out because too many of their side were waiting."""

    def add(self, candidate: bool, value: float) -> Term | None:
        """`value` of the next unit of the candidate or the baseline; the block's term when it completes one."""
        keep = 1 - 1 / MEMORY
        self._traffic[0] *= keep
        self._traffic[1] *= keep
        self._traffic[candidate] += 1
        baseline, other = self._waiting
        mine = self._waiting[candidate]
        mine.append(value)
        if len(baseline) < self._need[0] or len(other) < self._need[1]:
            if len(mine) > WAITING + 4 * self._need[candidate]:
                mine.popleft()
                self.unmatched += 1
            return None
        term = Term(_mean_of(baseline, self._need[0]), _mean_of(other, self._need[1]))
        self._plan()
        return term

    def _plan(self) -> None:
        """The sizes of the next block, so that on average they follow the split (error diffusion for 1.5 to 1)."""
        smaller = int(self._traffic[1] < self._traffic[0])
        ratio = self._traffic[1 - smaller] / self._traffic[smaller]
        self._owed += min(ratio, float(MOST))
        many = max(1, math.floor(self._owed))
        self._owed = max(self._owed - many, 0.0)
        self._need[smaller], self._need[1 - smaller] = 1, many


def _mean_of(values: deque[float], count: int) -> float:
    if count == 1:
        return values.popleft()
    return math.fsum(values.popleft() for _ in range(count)) / count
