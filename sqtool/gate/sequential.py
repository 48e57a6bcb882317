"""Always-valid evidence about a mean, so that an evaluation may stop early without spending its error rate.

Bet against "the mean is at most b" with each term x - b in its random order, never more than one can lose:

    wealth_t = product of (1 + bet_i * (x_i - b)),    0 <= bet_i < 1 / (b - low)

While the claim holds the wealth is a non-negative supermartingale, so it reaches 1/alpha at *any* time with
probability at most alpha (Ville 1939): 1 / max wealth is a p-value whenever one looks, and the means b that were never
rejected form a confidence sequence (Waudby-Smith and Ramdas 2024, JRSS-B 86:1-27). The items are an i.i.d. sample of
the traffic, so sampling is with replacement and nothing is gained for having seen most of a file.

What to bet is a matter of power alone, and each side has its own way:

- **Harm is of unknown size.** Wealth is split once over a fixed grid of bets and never touched again (Cover's universal
  portfolio, discretised; Orabona and Jun 2021, arXiv:2110.14099). It grows nearly as fast as the best bet of the grid,
  whichever that turns out to be: a broken checkpoint is seen within a batch or two.
- **A pass has a date.** The margin and the number of declared items, the horizon, are known beforehand, so each bet is
  the one that would just reach 1/alpha with what is left to gain and the terms left to gain it (Voracek and Orabona
  2025, "STaR-Bets", arXiv:2505.22422). These bets are made against the margin; at other means the same shares of the
  largest possible bet are judged, so the rejected means are an interval by construction.

Both depend on a prefix through its values only (and on the declared margin and horizon): looking changes nothing.

Clusters: items that share a source come together, and one cluster is one term, sum(x - b) over its items divided by
the size of the largest declared cluster. The claim stays one about the mean over items, E[sum(x - b)] <= 0; with
clusters of one item the terms are the items'.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

from sqtool.gate.intervals import Floats, Ints

BETS: Floats = np.geomspace(0.001, 0.99, 32)
"""The grid: bets as shares of the largest, even in the logarithm. The small ones serve long runs."""
PRIOR: Floats = (BETS + 0.02) / np.sum(BETS + 0.02)
"""How the wealth is split: nearly evenly over the share, a little of it evenly over the logarithm."""
LARGEST_SHARE = 0.95
"""Planned bets stop short of all: a single loss must not end the run."""
REMAINING = 0.5
"""Planned bets go on as if at least this much log wealth were missing, so bounds tighten after the margin is passed."""
_BLOCK = 4096
_EVERY_TERM = 4096
_MANY_VALUES = 2**14


class Monitor:
    """The running test of "mean <= 0" on terms in [low, high], low < 0 < high, fed in their random order.

    Without a `horizon` wealth is mixed over the grid, with one (the number of declared terms) it is bet to reach
    1/alpha by then. Feeding in batches or all at once gives the same numbers.
    """

    def __init__(self, low: float, high: float, horizon: int | None = None, alpha: float = 0.05) -> None:
        if not low < 0 < high:
            raise ValueError(f"terms in [{low}, {high}] cannot test a mean of 0")
        self.low, self.high = low, high
        self.count = 0
        self.best = 0.0
        self._logs: Floats = np.zeros(len(BETS))
        self._planned = None if horizon is None else _Planned(-low, horizon, math.log(1 / alpha))

    @property
    def p_value(self) -> float:
        """Anytime-valid, in (0, 1], never rising."""
        return math.exp(-min(self.best, 700.0))

    def feed(self, terms: Floats) -> Floats:
        """Log wealth after each of these further terms, shape as `terms` [n]."""
        terms = np.asarray(terms, dtype=np.float64)
        slack = 1e-9 * (self.high - self.low)
        if len(terms) and not (terms.min() >= self.low - slack and terms.max() <= self.high + slack):
            raise ValueError(f"terms must be in [{self.low}, {self.high}], found {terms.min()} to {terms.max()}")
        if self._planned is not None:
            wealth = self._planned.feed(terms)[1]
        else:
            wealth = np.empty(len(terms))
            for start in range(0, len(terms), _BLOCK):
                part = terms[start : start + _BLOCK] / -self.low
                logs = self._logs + np.cumsum(np.log1p(np.multiply.outer(part, BETS)), axis=0)
                wealth[start : start + _BLOCK] = mixed(logs)
                self._logs = logs[-1]
        self.count += len(terms)
        self.best = max(self.best, float(wealth.max(initial=0.0)))
        return wealth


class _Planned:
    """Bets that are recalculated before each term to reach log wealth `target` with the terms left."""

    def __init__(self, reach: float, horizon: int, target: float) -> None:
        self.reach, self.horizon, self.target = reach, horizon, target
        self.count = 0
        self.wealth = 0.0
        self.square = 1.0

    def feed(self, terms: Floats) -> tuple[Floats, Floats]:
        """(shares of the largest bet [n], log wealth after each term [n])."""
        shares, wealth = [], []
        for term in (np.asarray(terms, dtype=np.float64) / self.reach).tolist():
            self.count += 1
            # The variance starts from one imagined total loss: nobody bets high before losses had a chance to show.
            left = max(self.horizon - self.count + 1, 1) * self.square / self.count
            share = min(math.sqrt(2 * max(self.target - self.wealth, REMAINING) / left), LARGEST_SHARE)
            self.wealth += math.log1p(share * term)
            self.square += term * term
            shares.append(share)
            wealth.append(self.wealth)
        return np.array(shares), np.array(wealth)


def mixed(logs: Floats) -> Floats:
    """Log of the mean over the grid, the last axis of `logs`."""
    top = logs.max(axis=-1)
    result: Floats = top + np.log(np.exp(logs - top[..., None]) @ PRIOR)
    return result


def log_wealth(terms: Floats, low: float, high: float, *, horizon: int | None = None, alpha: float = 0.05) -> Floats:
    """Running log wealth [n] against "mean <= 0" of terms [n] in [low, high], low < 0 < high (see `Monitor`)."""
    return Monitor(low, high, horizon, alpha).feed(terms)


def anytime_p(terms: Floats, low: float, high: float, *, horizon: int | None = None, alpha: float = 0.05) -> Floats:
    """Running p-value [n] of "mean <= 0", valid whenever one stops; never rises."""
    best = np.maximum.accumulate(np.maximum(log_wealth(terms, low, high, horizon=horizon, alpha=alpha), 0.0))
    return np.exp(-np.minimum(best, 700.0))


def cluster_terms(values: Floats, sizes: Floats | Ints, bound: float, largest: int) -> Floats:
    """Terms [G] of "mean over items <= bound" from cluster sums and sizes [G].

    With values in [low, high] the terms are in [low - bound, high - bound]. `largest` is the size of the largest
    cluster among the *declared* items, those not yet asked included.
    """
    return (np.asarray(values, dtype=np.float64) - np.asarray(sizes, dtype=np.float64) * bound) / largest


def sequence_bounds(
    values: Floats,
    sizes: Floats | Ints,
    low: float,
    high: float,
    largest: int,
    alpha: float,
    *,
    margin_at: float | None = None,
    horizon: int | None = None,
) -> tuple[float, float]:
    """(lower, upper) of the mean over items at the last point of the confidence sequence, running intersection.

    `values` and `sizes` [G] are sums and item counts of the clusters in the order asked (sizes of 1: items), item
    values in [low, high]. Each side is wrong at any time with probability at most `alpha`. With `margin_at` and
    `horizon` (declared clusters) the lower side is that of the planned bets: it is above `margin_at` exactly when
    their p-value against that mean got to `alpha`.
    """
    values, sizes = np.asarray(values, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if len(values) == 0:
        return low, high
    if sizes.max() > largest:
        raise ValueError(f"a cluster of {sizes.max():g} items, but the largest declared has {largest}")
    if margin_at is None or horizon is None:
        lower = _mixture_lower(values, sizes, low, high, largest, alpha)
    else:
        lower = _planned_lower(values, sizes, low, high, largest, alpha, margin_at, horizon)
    return lower, -_mixture_lower(-values, sizes, -high, -low, largest, alpha)


def _planned_lower(
    values: Floats,
    sizes: Floats,
    low: float,
    high: float,
    largest: int,
    alpha: float,
    margin_at: float,
    horizon: int,
) -> float:
    target = math.log(1 / alpha)
    terms = cluster_terms(values, sizes, margin_at, largest)
    shares = _Planned(margin_at - low, horizon, target).feed(terms)[0]

    def best(bound: float) -> float:
        return float(np.cumsum(np.log1p(shares * cluster_terms(values, sizes, bound, largest) / (bound - low))).max())

    return _highest_rejected(best, low, high, target)


def _mixture_lower(values: Floats, sizes: Floats, low: float, high: float, largest: int, alpha: float) -> float:
    """Items of equal value and size are counted, so a bound costs looks x distinct terms, not items."""
    gains = values - sizes * low
    scale = largest * (high - low)
    pairs = gains / scale + 2.0 * sizes
    if len(np.unique(pairs)) > _MANY_VALUES:
        gains = np.floor(gains / scale * _MANY_VALUES) / _MANY_VALUES * scale
        pairs = gains / scale + 2.0 * sizes
    _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
    gain, size = gains[first] / largest, sizes[first] / largest
    head, ends = which[:_EVERY_TERM], looks(len(values))
    counts = _counts(which, ends, len(first))

    def best(bound: float) -> float:
        # 1 + share * (x - b) / (b - low), written so that it falls with b for every share: the root is the only one.
        logs = np.log(1 + np.multiply.outer(gain / (bound - low) - size, BETS))
        early, late = mixed(np.cumsum(logs[head], axis=0)), mixed(counts @ logs)
        return max(float(early.max()), float(late.max()))

    return _highest_rejected(best, low, high, math.log(1 / alpha))


def looks(count: int) -> Ints:
    """Numbers of terms after which `sequence_bounds` looks, besides each of the first 4096: every 1.6 % more, and all.

    An intersection over some of the times is as valid as one over all of them, and a hair wider.
    """
    ends = [min(count, _EVERY_TERM)]
    while ends[-1] < count:
        ends.append(min(ends[-1] + ends[-1] // 64, count))
    return np.array(ends)


def _counts(which: Ints, ends: Ints, distinct: int) -> Floats:
    """How often each distinct term occurs up to each look, [looks, distinct]."""
    look = np.searchsorted(ends, np.arange(len(which)), side="right")
    table = np.bincount(look * distinct + which, minlength=len(ends) * distinct)
    return np.cumsum(table.reshape(-1, distinct), axis=0, dtype=np.float64)


def _highest_rejected(best: Callable[[float], float], low: float, high: float, target: float) -> float:
    """The mean where the falling `best` meets `target`, from below; `low` when no mean is rejected."""
    width = high - low
    start = low + 1e-12 * width
    if best(start) <= target:
        return low
    tolerance = 1e-10 * width
    root = float(brentq(lambda bound: best(bound) - target, start, high, xtol=tolerance, rtol=1e-14))
    return max(root - 2 * tolerance, low)


def order(ids: Sequence[str], clusters: Sequence[str | int | None], seed: int) -> list[int]:
    """Places of the items in the order in which they are asked: clusters shuffled, their items together, by id.

    The shuffle is that of SHA-256 over seed and name, so it depends neither on the order of the file nor on the
    platform or the versions of anything. An item without a cluster is one of its own.
    """
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, (name, cluster) in enumerate(zip(ids, clusters, strict=True)):
        groups[("item", str(name)) if cluster is None else (type(cluster).__name__, str(cluster))].append(place)

    def shuffled(group: tuple[str, str]) -> bytes:
        return hashlib.sha256("\0".join((str(seed), *group)).encode("utf-8", "surrogatepass")).digest()

    return [place for group in sorted(groups, key=shuffled) for place in sorted(groups[group], key=lambda i: ids[i])]
