"""One metric of one candidate arm against the baseline: evidence that holds whenever one looks.

Two bets run over the matched differences d (candidate minus baseline of the bad event's rate, sqtool.rollout.matching):
one against "the mean of d is at most 0", whose gain shows harm, one against "the mean of d is at least the margin",
whose gain shows that there is none beyond it. Both are the mixture of `sqtool.gate.sequential.Monitor`: its size is not
known beforehand and a rollout has no planned end. 1 / (largest wealth so far) is a p-value at any time (Ville 1939).

The interval holds the means that the wealth at the last term does not reject (Waudby-Smith and Ramdas 2024), from
counts of the terms on a grid, rounded outwards: memory does not grow with the log. Where a bet had already ruled out
0 or the margin at an earlier term, the interval ends there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from sqtool.gate.sequential import BETS, Monitor, mixed
from sqtool.rollout.matching import Matcher

GRID = 2**13
"""Steps of the interval's grid per unit: a term is moved outwards by at most 1/8192."""
_BUFFER = 512


@dataclass(frozen=True)
class Evidence:
    """What the matched units say. Rates and difference are of the bad event; `lower` and `upper` bound the mean
    difference at any time, each wrong with its own alpha; p-values are valid at any time."""

    terms: int
    baseline: float | None
    candidate: float | None
    lower: float
    upper: float
    p_harm: float
    p_no_harm: float

    @property
    def difference(self) -> float | None:
        """Candidate minus baseline."""
        return None if self.baseline is None or self.candidate is None else self.candidate - self.baseline


class Comparison:
    """Feed values in [0, 1] of either arm as their units complete; ask for the evidence whenever you like."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.matcher = Matcher()
        self._harm = Monitor(-1.0, 1.0)
        self._safe = Monitor(margin - 1.0, margin + 1.0)
        self._buffer: list[float] = []
        self._sums = [0.0, 0.0]
        self._below: NDArray[np.int64] = np.zeros(2 * GRID + 1, dtype=np.int64)
        self._above: NDArray[np.int64] = np.zeros(2 * GRID + 1, dtype=np.int64)
        self.terms = 0

    def add(self, candidate: bool, value: float) -> None:
        """The next unit's value."""
        term = self.matcher.add(candidate, value)
        if term is None:
            return
        self.terms += 1
        self._sums[0] += term.baseline
        self._sums[1] += term.candidate
        self._buffer.append(term.difference)
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def evidence(self, alpha_harm: float, alpha_safe: float) -> Evidence:
        """All evidence so far; the interval's lower end at `alpha_harm`, its upper end at `alpha_safe`."""
        self._flush()
        if not self.terms:
            return Evidence(0, None, None, -1.0, 1.0, 1.0, 1.0)
        lower = _lower_bound(self._below, alpha_harm)
        upper = -_lower_bound(self._above[::-1], alpha_safe)
        p_harm, p_safe = self._harm.p_value, self._safe.p_value
        if p_harm <= alpha_harm:
            lower = max(lower, 0.0)
        if p_safe <= alpha_safe:
            upper = min(upper, self.margin)
        baseline, candidate = (total / self.terms for total in self._sums)
        return Evidence(self.terms, baseline, candidate, lower, upper, p_harm, p_safe)

    def _flush(self) -> None:
        if not self._buffer:
            return
        terms = np.array(self._buffer)
        self._buffer.clear()
        self._harm.feed(terms)
        self._safe.feed(self.margin - terms)
        places = (terms + 1) * GRID
        # Rounding errors of the means must not move a term by a whole step: 1/3 - 1/3 is 0.
        np.add.at(self._below, np.clip(np.floor(places + 1e-6), 0, 2 * GRID).astype(np.int64), 1)
        np.add.at(self._above, np.clip(np.ceil(places - 1e-6), 0, 2 * GRID).astype(np.int64), 1)


def _lower_bound(counts: NDArray[np.int64], alpha: float) -> float:
    """The largest mean that the wealth of counted terms in [-1, 1] rejects as an upper bound; -1 when none."""
    used = np.flatnonzero(counts)
    values, weights = used / GRID - 1.0, counts[used].astype(np.float64)
    target = math.log(1 / alpha)

    def excess(mean: float) -> float:
        # 1 + bet * (x - m) / (m + 1): falls with m for every bet, so the root is the only one.
        logs = np.log(1 + np.multiply.outer((values + 1) / (mean + 1) - 1, BETS))
        return float(mixed(weights @ logs)) - target

    start = -1 + 1e-12
    if excess(start) <= 0:
        return -1.0
    return max(float(brentq(excess, start, 1.0, xtol=1e-10)) - 2e-10, -1.0)
