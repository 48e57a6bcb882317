"""The table of a rollout: rates, latency, tokens and cost of each arm with 95 % intervals, in one pass.

Every measure has its interval from the same device, random groups (Wolter, Introduction to Variance Estimation, 2007,
ch. 2): each user or session falls into one of 50 groups by a hash of its name, and the spread between the groups shows
how much requests of one user hang together. Rates get Wilson's score interval at the size that the design effect
leaves; percentiles get Woodruff's (1952), the same interval for the share below, read off the distribution; means and
ratios the linearised t interval. Requests without a user are independent. Memory does not grow with the log.

These are intervals for one look. They describe; the verdict, which is read again and again, does not use them.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from sqtool.rollout.record import Record
from sqtool.rollout.rules import RATES, Rate

GROUPS = 50
_MARKS = 2**16
LEVEL = 0.95
PERCENTILES = (50, 95, 99)
_LOWEST_MS, _HIGHEST_MS = 0.01, 1e8
_STEP = math.log(1.02)
"""Latencies are counted in bins 2 % wide, so a percentile is within 1 %."""
_BINS = math.ceil(math.log(_HIGHEST_MS / _LOWEST_MS) / _STEP) + 1
LATENCIES = ("ttft_ms", "e2e_ms")
AMOUNTS = ("prompt_tokens", "output_tokens", "device_seconds", "price")
Floats = NDArray[np.float64]
Value = dict[str, Any]


class Cell:
    """Everything about one arm, or one kind of one arm."""

    def __init__(self) -> None:
        self.requests = [0] * GROUPS
        self.clustered = False
        self._marks = bytearray(_MARKS)
        self._turn = 0
        self._known = {name: [0] * GROUPS for name in RATES}
        self._true = {name: [0] * GROUPS for name in RATES}
        self._amount = {name: [0.0] * GROUPS for name in AMOUNTS}
        self._amounts = {name: [0] * GROUPS for name in AMOUNTS}
        self._bins: dict[str, NDArray[np.int32] | None] = dict.fromkeys(LATENCIES)
        self._rates = tuple((field, self._known[name], self._true[name]) for name, field in RATES.items())

    def add(self, record: Record) -> None:
        """Count one request."""
        if record.cluster is None:
            # Dealt out in turn: any other way of making groups of independent requests is as good.
            group = self._turn = (self._turn + 1) % GROUPS
        else:
            number = zlib.crc32(record.cluster.encode("utf-8", "surrogatepass"))
            group = number % GROUPS
            self._marks[number // GROUPS % _MARKS] = 1
            self.clustered = True
        self.requests[group] += 1
        for field, known, true in self._rates:
            value = getattr(record, field)
            if value is not None:
                known[group] += 1
                true[group] += value
        for name in AMOUNTS:
            amount = getattr(record, name)
            if amount is not None:
                self._amount[name][group] += amount
                self._amounts[name][group] += 1
        if record.failed or record.cancelled:
            return  # the time until an error or a cancellation is no latency of an answer
        for name in LATENCIES:
            ms = getattr(record, name)
            if ms is not None:
                bins = self._bins[name]
                if bins is None:
                    bins = self._bins[name] = np.zeros((GROUPS, _BINS), dtype=np.int32)
                bins[group, _bin(ms)] += 1

    def to_dict(self, price_per_hour: float | None = None, unit: str | None = None) -> Value:
        """All measures: `{value, ci, n}` each, or `{missing: reason}`. Latency in milliseconds; `unit` is the cost's:
        "price", "device_seconds" or None for none."""
        rates: Value = {name: self._rate(name) for name in RATES}
        tokens = {name: self._mean(name, self._counts(name)) for name in AMOUNTS[:2]}
        latency = {name: {f"p{p}": self._percentile(name, p / 100) for p in PERCENTILES} for name in LATENCIES}
        cost = self._cost(unit, price_per_hour)
        return {"requests": sum(self.requests), **rates, **latency, **tokens, "cost_per_accepted_answer": cost}

    def has_all(self, name: str) -> bool:
        """Whether every request has this amount."""
        return sum(self._amounts[name]) == sum(self.requests)

    def _counts(self, name: str) -> Floats:
        return np.array(self._amounts[name], dtype=np.float64)

    def _rate(self, name: Rate) -> Value:
        known, true = (np.array(x[name], dtype=np.float64) for x in (self._known, self._true))
        total = known.sum()
        if not total:
            return {"missing": f"no request says whether it was {RATES[name]}"}
        share = float(true.sum() / total)
        return {"value": share, "ci": self._score(true, known), "n": int(total)}

    def _quantile_and_effect(self, part: Floats, whole: Floats) -> tuple[float, float] | None:
        """(quantile of the interval, design effect) of the share sum(part)/sum(whole); None with one user group."""
        groups, total = int(np.count_nonzero(whole)), float(whole.sum())
        if not self.clustered:
            return float(norm.ppf((1 + LEVEL) / 2)), 1.0
        if groups < 2:
            return None
        share = float(part.sum()) / total
        binomial = share * (1 - share) * total
        spread = groups / (groups - 1) * float(np.sum((part - share * whole) ** 2))
        # Without an event nothing shows how events hang together: a user is then one observation, and there are at
        # least as many users as marks.
        effect = max(1.0, spread / binomial if binomial > 0 else total / sum(self._marks))
        return float(t.ppf((1 + LEVEL) / 2, groups - 1)), effect

    def _score(self, part: Floats, whole: Floats) -> list[float] | None:
        found = self._quantile_and_effect(part, whole)
        if found is None:
            return None
        quantile, effect = found
        return list(wilson(float(part.sum() / whole.sum()), float(whole.sum()) / effect, quantile))

    def _percentile(self, name: str, share: float) -> Value:
        bins = self._bins[name]
        if bins is None:
            return {"missing": f"no answered request has {name}"}
        counts = bins.sum(axis=0, dtype=np.int64)
        below = np.cumsum(counts)
        total = int(below[-1])
        place = _at(below, share)
        whole = bins.sum(axis=1).astype(np.float64)
        found = self._quantile_and_effect(bins[:, : place + 1].sum(axis=1).astype(np.float64), whole)
        ends = None
        if found is not None:
            low, high = wilson(share, total / found[1], found[0])
            ends = [_middle(_at(below, low)), _middle(_at(below, high))]
        return {"value": _middle(place), "ci": ends, "n": total}

    def _mean(self, name: str, whole: Floats) -> Value:
        if not whole.sum():
            return {"missing": f"no request has {name}"}
        return self._ratio(np.array(self._amount[name]), whole)

    def _ratio(self, part: Floats, whole: Floats) -> Value:
        total = float(whole.sum())
        ratio = float(part.sum()) / total
        groups = int(np.count_nonzero(whole + (part > 0)))
        ends = None
        if groups >= 2:
            error = math.sqrt(groups / (groups - 1) * float(np.sum((part - ratio * whole) ** 2))) / total
            reach = float(t.ppf((1 + LEVEL) / 2, groups - 1)) * error
            ends = [max(ratio - reach, 0.0), ratio + reach]
        return {"value": ratio, "ci": ends, "n": int(total)}

    def _cost(self, unit: str | None, price_per_hour: float | None) -> Value:
        if unit is None:
            return {"missing": "not every request has a price, nor device_seconds"}
        accepted = np.array(self._true["acceptance"], dtype=np.float64)
        if not accepted.sum():
            return {"missing": "no answer was accepted"}
        spent = np.array(self._amount[unit])
        if unit == "device_seconds" and price_per_hour is not None:
            spent = spent * price_per_hour / 3600
        return self._ratio(spent, accepted)


def wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share seen in `size` observations (need not be whole)."""
    square = quantile**2 / size
    centre = (share + square / 2) / (1 + square)
    reach = quantile / (1 + square) * math.sqrt(share * (1 - share) / size + square / (4 * size))
    return max(centre - reach, 0.0), min(centre + reach, 1.0)


def _bin(ms: float) -> int:
    if ms <= _LOWEST_MS:
        return 0
    return min(int(math.log(ms / _LOWEST_MS) / _STEP) + 1, _BINS - 1)


def _middle(place: int) -> float:
    """The value in milliseconds that is at most 1 % off anything in this bin."""
    return _LOWEST_MS if place == 0 else _LOWEST_MS * math.exp(_STEP * (place - 0.5))


def _at(below: NDArray[np.int64], share: float) -> int:
    """The bin of the share-quantile: the first with at least that share at or below it."""
    rank = max(1, math.ceil(share * int(below[-1]) - 1e-9))
    return int(np.searchsorted(below, rank))
