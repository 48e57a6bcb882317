"""The exact check behind a PASS: how likely is so good a result when the true drop is as large as the margin?

A score interval keeps its error rate on average, not for each sample size: where answers change in one direction only
and the item count is just what the zero-flip bound asks for, Tango's lower bound alone would accept a drop equal to
the margin in up to 6.8 % of cases at alpha = 5 %. So a metric whose scores are 0 or 1, with independent items and an
absolute margin, passes only if the exact unconditional test of the same score statistic agrees: its p-value is the
largest probability, over every possible rate of gains, of a statistic at least as large as the one seen (Chan 1998,
Statistics in Medicine 17:1403-1413; for matched pairs Hsueh, Liu and Chen 2001, Biometrics 57:478-483).

With no changed answer the p-value is (1 - margin)^n: 149 items pass a margin of 2 points, 299 one of 1 point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from sqtool.gate.intervals import Floats

GRID = 72
"""Rates of gains at which the probability is evaluated; each local maximum is then searched more finely."""
REFINE = 8
_SAME = 1e-9
"""Statistics closer than this are the same one, reached by other roundings."""


def score(gains: Floats, losses: Floats, n: float, margin: float) -> Floats:
    """Tango's score statistic of "the mean difference is -margin", elementwise; large speaks for a smaller drop."""
    delta = -margin
    b = (2 * n - gains + losses) * delta - gains - losses
    c = -losses * delta * (1 - delta)
    loss_rate = (np.sqrt(np.maximum(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = np.maximum(2 * loss_rate + delta * (1 - delta), 1e-300)
    result: Floats = math.sqrt(n) * ((gains - losses) / n - delta) / np.sqrt(variance)
    return result


def probability(
    n: int, gain_rate: float, loss_rate: float, accepted: Callable[[Floats, Floats], NDArray[np.bool_]]
) -> float:
    """P(accepted(gains, losses)) for n independent items, to 1e-12.

    `accepted` works elementwise and, for each number of changed answers, must hold for `losses <= some count`.
    """
    total = min(gain_rate + loss_rate, 1.0)
    if total <= 0:
        return float(accepted(np.zeros(1), np.zeros(1))[0])
    low, high = (int(binom.ppf(tail, n, total)) for tail in (1e-12, 1 - 1e-12))
    discordant = np.arange(low, high + 1, dtype=np.float64)
    # Bisect, for all discordant counts at once, for the most losses that are still accepted (-1: none).
    best, bad = np.full(len(discordant), -1.0), discordant + 1
    while np.any(bad - best > 1):
        middle = np.floor((best + bad) / 2)
        good = accepted(discordant - middle, middle) & (middle > best)
        best, bad = np.where(good, middle, best), np.where(good | (middle <= best), bad, middle)
    share = min(loss_rate / total, 1.0)
    return float(np.sum(binom.pmf(discordant, n, total) * binom.cdf(best, discordant, share)))


@lru_cache(maxsize=1 << 14)
def noninferiority_p(gains: int, losses: int, n: int, margin: float) -> float:
    """Exact p-value of "the drop is at least `margin`", for 0 < margin < 1, n >= 1 independent items of which `gains`
    became right and `losses` wrong."""
    seen = float(score(np.array([float(gains)]), np.array([float(losses)]), n, margin)[0])
    return _largest_probability(seen - _SAME, n, margin)


@lru_cache(maxsize=1 << 10)
def critical_score(n: int, margin: float, alpha: float) -> float:
    """The score from which on `noninferiority_p` is at most `alpha`, to 1e-6 (takes half a second, and is remembered).
    A result passes the exact check exactly when its score is at least that."""
    low, high = 0.0, 1.0
    while _largest_probability(high, n, margin) > alpha:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if _largest_probability(middle, n, margin) <= alpha else (middle, high)
    return high


def _largest_probability(least: float, n: int, margin: float) -> float:
    """The largest probability of a score >= `least` at a drop of `margin`, over every rate of gains."""

    def as_good(more: Floats, fewer: Floats) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = score(more, fewer, n, margin) >= least
        return result

    def at(rate: float) -> float:
        return probability(n, rate, rate + margin, as_good)

    top = (1 - margin) / 2
    # The interesting rates are those of few expected gains, whatever n is.
    grid = [0.0, *np.geomspace(min(0.02 / n, top / 2), top, GRID - 1).tolist()]
    values = [at(rate) for rate in grid]
    best = max(values)
    for i in range(1, len(grid) - 1):
        if values[i] >= max(values[i - 1], values[i + 1]) and values[i] > 0.9 * best:
            best = max(best, *(at(float(rate)) for rate in np.linspace(grid[i - 1], grid[i + 1], REFINE + 2)[1:-1]))
    return min(best, 1.0)


def items_without_flips(margin: float, alpha: float = 0.05) -> int:
    """Fewest independent items that can pass at all: (1 - margin)^n <= alpha."""
    return math.ceil(math.log(alpha) / math.log1p(-margin) - 1e-9)
