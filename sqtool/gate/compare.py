"""One comparison: paired scores and a rule in, interval, test and outcome out. No files, no names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from sqtool.gate.exact import items_without_flips, noninferiority_p
from sqtool.gate.intervals import Floats, Interval, Ints, is_binary, paired_interval
from sqtool.gate.spec import MetricRule
from sqtool.gate.tests import HarmTest, harm_test

Outcome = Literal["PASS", "REGRESSED", "INCONCLUSIVE"]
_SEARCH_LIMIT = 10**9


@dataclass(frozen=True)
class Comparison:
    """Measured, not yet judged: the outcome needs the p-value adjusted over the whole gate.

    `difference` and the interval are oriented, so that negative is worse. `threshold` is what the interval's lower
    bound must exceed: -margin, or 0 for a relative margin (whose interval is of candidate - (1 - r) baseline).
    """

    n: int
    clusters: int
    baseline: float
    candidate: float
    difference: float
    improved: int
    worsened: int
    margin: float
    threshold: float
    interval: Interval
    harm: HarmTest
    too_few: bool
    alpha: float
    exact: bool
    """Whether there is an exact test of "the drop is at least the margin": see `sqtool.gate.exact`."""

    @property
    def exact_p(self) -> float | None:
        """That test's p-value, None where there is none (it takes some 20 ms, and is remembered)."""
        return noninferiority_p(self.improved, self.worsened, self.n, self.margin) if self.exact else None

    @property
    def lower(self) -> float:
        """Lower bound on the difference's scale (a relative margin's interval is moved there)."""
        return self.interval.lower - (self.margin + self.threshold)

    @property
    def upper(self) -> float:
        """Upper bound on the difference's scale."""
        return self.interval.upper - (self.margin + self.threshold)


def compare(
    baseline: Floats, candidate: Floats, codes: Ints | None, rule: MetricRule, alpha: float, min_items: int = 1
) -> Comparison:
    """Compare paired scores, shapes [n], n >= 1, in [0, 1]. A rule's own alpha, if it has one, takes the place of
    `alpha` in its interval."""
    n = len(baseline)
    alpha = rule.alpha or alpha
    means = math.fsum(baseline) / n, math.fsum(candidate) / n
    if rule.direction == "lower":
        left, right = 1.0 - baseline, 1.0 - candidate
    else:
        left, right = baseline, candidate
    interval = paired_interval(left, right, codes, alpha, rule.relative)
    absolute = rule.absolute_margin
    margin = (rule.relative or 0.0) * means[0] if absolute is None else absolute
    changes = right - left
    improved, worsened = int(np.count_nonzero(changes > 0)), int(np.count_nonzero(changes < 0))
    exact = codes is None and absolute is not None and is_binary(baseline) and is_binary(candidate)
    return Comparison(
        n=n,
        clusters=n if codes is None else int(codes.max()) + 1,
        baseline=means[0],
        candidate=means[1],
        difference=math.fsum(changes) / n,
        improved=improved,
        worsened=worsened,
        margin=margin,
        threshold=0.0 if absolute is None else -margin,
        interval=interval,
        harm=harm_test(left, right, codes),
        too_few=n < max(min_items, rule.min_items or 1),
        alpha=alpha,
        exact=exact,
    )


def decide(comparison: Comparison, p_adjusted: float, alpha: float) -> tuple[Outcome, str]:
    """(outcome, reason) by the gate's rules; nothing is rounded before it is compared."""
    c = comparison
    if p_adjusted <= alpha and c.interval.estimate <= c.threshold:
        return "REGRESSED", "drop_exceeds_margin" if c.interval.upper < c.threshold else "drop_shown"
    if c.too_few:
        return "INCONCLUSIVE", "too_few_items"
    if c.interval.lower <= c.threshold:
        return "INCONCLUSIVE", "interval_reaches_margin"
    if c.exact_p is not None and c.exact_p > c.alpha:
        return "INCONCLUSIVE", "exact_test_reaches_margin"
    return "PASS", "drop_beyond_margin_excluded"


def items_to_decide(comparison: Comparison, alpha: float, family: int, min_items: int) -> int | None:
    """Fewest items at which the outcome would be clear if items went on behaving as those seen; None beyond 10^9.

    Above the margin that is where the lower bound clears it, at or below it where the harm test, at Holm's strictest
    step over `family` tests, rejects.
    """
    c = comparison
    if c.interval.estimate <= c.threshold:
        if c.harm.z >= 0:
            return None
        needed = math.ceil(c.n * (float(norm.ppf(1 - alpha / family)) / c.harm.z) ** 2)
        return max(needed, c.n + 1) if needed <= _SEARCH_LIMIT else None

    if c.exact:
        min_items = max(min_items, items_without_flips(c.margin, c.alpha))

    def clear(n: int) -> bool:
        return c.interval.at(n / c.n)[0] > c.threshold

    low, high = 0, max(c.n, min_items)
    if clear(c.n):  # the interval alone would do, and the exact test says not yet
        return max(c.n + 1, min_items)
    while not clear(high):
        low, high = high, high * 2
        if high > _SEARCH_LIMIT:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clear(middle) else (middle, high)
    return max(high, min_items)


def with_power(items: int | None, alpha: float, power: float = 0.8) -> int | None:
    """Items for deciding with probability `power` where `items` do in about half of the cases (normal theory)."""
    if items is None:
        return None
    z_alpha = float(norm.ppf(1 - alpha))
    return math.ceil(items * ((z_alpha + float(norm.ppf(power))) / z_alpha) ** 2)
