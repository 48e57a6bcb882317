"""Bootstrap over requests: one set of resamples, shared by all arms and loads, so that every comparison is paired.

A resample draws request ids with replacement within each kind, because the sample was drawn so that each kind keeps
its share. A request brings everything that was measured of it: its rounds, its gaps between chunks, its drafts in
every arm. What depends within a request is therefore never taken for independent. Statistics are functions of the
weights [replicates, ids], which makes them matrix products.

Drawing as many as there are would make a small kind vary too little, so one fewer is drawn and weights are scaled up
to the kind's size (Rao and Wu 1988, JASA 83:231-241). Intervals are percentile intervals, read at the levels of
Student's t and not of the normal distribution (Hesterberg 2015, The American Statistician 69:371-386, section 4.3.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = list[float] | None

LEVEL = 0.95
"""Confidence of every interval, two-sided."""
REPLICATES = 2000
MIN_UNITS = 10
"""Fewer distinct requests than this make no bootstrap interval."""
_SMALL_STRATUM = 10


def draw(rng: np.random.Generator, size: int, replicates: int) -> Floats:
    """[replicates, size] weights of one stratum, each row adding up to `size`; a stratum of one does not vary."""
    if size < 2:
        return np.ones((replicates, size))
    # A multinomial draw with equal chances is how often each member comes up.
    drawn = rng.multinomial(size - 1, np.full(size, 1 / size), size=replicates)
    return drawn.astype(np.float64) * (size / (size - 1))


class Resamples:
    """Weights of `ids` in each replicate: `weights` [replicates, ids], adding up to the number of ids."""

    def __init__(self, kinds: Mapping[str, str], *, seed: int, replicates: int = REPLICATES) -> None:
        """`kinds`: each request's kind by id. Equal ids, kinds and seed give equal weights, in whatever order."""
        names = sorted(kinds)
        self.place = {name: at for at, name in enumerate(names)}
        sizes = Counter(kinds.values())
        # A stratum of one or two would hardly vary; small kinds are drawn together.
        stratum = [kinds[n] if sizes[kinds[n]] >= _SMALL_STRATUM else "" for n in names]
        rng = np.random.default_rng([seed & 0xFFFFFFFF, 7201])
        self.weights: Floats = np.zeros((replicates, len(names)))
        for label in sorted(set(stratum)):
            members = np.flatnonzero([one == label for one in stratum])
            self.weights[:, members] = draw(rng, len(members), replicates)

    @property
    def units(self) -> int:
        """Number of distinct requests."""
        return len(self.place)

    def totals(self, unit: Ints, values: Floats) -> Floats:
        """[replicates] sums of `values` [n], each with its request's weight; `unit` [n] are places of ids."""
        return self.weights @ np.bincount(unit, values, minlength=self.units)

    def ratio(self, unit: Ints, above: Floats, below: Floats) -> Floats:
        """[replicates] sum(above) / sum(below); NaN where nothing below was drawn."""
        top, bottom = self.totals(unit, above), self.totals(unit, below)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bottom > 0, top / bottom, np.where(top > 0, np.inf, np.nan))

    def quantiles(self, unit: Ints, values: Floats, probability: float) -> Floats:
        """[replicates] quantiles of the resampled values, interpolated as by `numpy.quantile`; NaN without values."""
        order = np.argsort(values, kind="stable")
        values, unit = values[order], unit[order]
        result = np.full(len(self.weights), np.nan)
        step = max(1, 2**22 // max(len(values), 1))
        for start in range(0, len(self.weights), step):
            reached = np.cumsum(self.weights[start : start + step][:, unit], axis=1)
            drawn = np.round(reached[:, -1], 9)
            filled = np.flatnonzero(drawn > 0)
            place = probability * (drawn[filled] - 1)
            low = np.floor(place)
            # Rows are made disjoint ranges of one sorted array, so that one search serves them all.
            stride = np.ceil(drawn.max()) + 2
            flat = (reached[filled] + np.arange(len(filled))[:, None] * stride).ravel()
            base = np.arange(len(filled)) * len(values)
            offset = np.arange(len(filled)) * stride
            at = np.searchsorted(flat, low + offset, side="right") - base
            top = np.minimum(low + 1, drawn[filled] - 1)
            after = np.searchsorted(flat, top + offset, side="right") - base
            part = place - low
            result[start + filled] = values[at] * (1 - part) + values[after] * part
        return result


def interval(replicates: Floats, units: int, level: float = LEVEL) -> Interval:
    """Expanded percentile interval [low, high] of a statistic's replicates; None where there is none.

    None when fewer than `MIN_UNITS` distinct requests stand behind it, when the statistic does not exist in more than
    1 % of the replicates, or when an end is infinite (nothing accepted in too many resamples).
    """
    if units < MIN_UNITS:
        return None
    there = replicates[~np.isnan(replicates)]
    if len(there) < 0.99 * len(replicates):
        return None
    tail = float(norm.cdf(t.ppf((1 - level) / 2, units - 1)))
    # `inverted_cdf` picks replicates and never mixes two of them, so that an infinite one cannot become NaN.
    ends = np.quantile(there, [tail, 1 - tail], method="inverted_cdf")
    return [float(end) for end in ends] if np.isfinite(ends).all() else None


def why_no_interval(units: int) -> str:
    """The reason to give where `interval` returned None."""
    if units < MIN_UNITS:
        return f"{units} distinct requests; a bootstrap interval needs {MIN_UNITS}"
    return "the measure does not exist in too many of the resamples"
