"""Confidence intervals for the mean paired difference d = candidate - baseline of scores in [0, 1].

Which interval is used, decided by the data's form and never by the outcome that it would give:

| scores | margin | differing items | interval |
| --- | --- | --- | --- |
| all 0 or 1 | absolute | any number | Tango's score interval |
| all 0 or 1 | relative | any number | bounded score interval of candidate - (1 - r) baseline |
| between | either | fewer than 30, or fewer than 300 items or clusters | bounded score interval |
| between | either | else, skewness of the mean up to 0.05 | Student t |
| between | either | else, skewness up to 0.3 and at most 5,000 items or clusters | BCa bootstrap |
| between | either | else | bounded score interval |

The bounded score interval is Tango's construction on any values in a known range: the hypothesised mean is tested with
the variance of the nonparametric maximum likelihood estimate under that hypothesis, the ends of the range included in
its support (Owen 2001, Empirical Likelihood, section 2.5 for the estimate). On {-1, 0, 1} it is Tango's interval, on
the four cells of a relative margin the interval of Tang, Tang and Chan (2003, Statistics in Medicine 22:1217-1233).
Unlike Student t it does not shrink to a point when nothing differed, and it allows for a rare total loss that no item
has shown yet, which is why it serves small samples. On larger ones its one-sided error is right at any skewness, and
Student t's is not: benchmarks/gate/coverage.md compares the three.

Clusters (items that share a source): Student t takes the cluster-robust variance, never below the independent one,
with G - 1 degrees of freedom; the bootstrap draws whole clusters. The score intervals divide their counts by the design
effect (Rao and Scott 1992, Biometrics 48:577-585), at least 1, and use the same t quantile; with fewer than 10 clusters
that contain a difference the effect cannot be estimated and the worst one is taken, that the items of a cluster always
change together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from sqtool.gate.bootstrap import bca_bounds, skewness_of_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bounds = Callable[[float], tuple[float, float]]

FEW_DIFFERENCES = 30
"""Below this many differing items only the bounded score interval is trusted."""
FEW_TERMS = 300
"""Below this many items (or clusters) too: a total loss on 1 % of them goes unseen with more than 5 %."""
MANY_TERMS = 5000
"""Beyond this many the bootstrap is slow."""
SKEWED = 0.05
"""Skewness of the mean above which Student t's error rate is off by more than half a point (0.11 x skewness)."""
VERY_SKEWED = 0.3
"""Skewness of the mean above which the bootstrap is off as well."""
FEW_CLUSTERS = 10
"""Below this many clusters with a difference their correlation is taken as complete."""
_MANY_VALUES = 4096
"""Above this many distinct values the bounded score interval moves them outward to a grid."""


@dataclass(frozen=True)
class Interval:
    """Bounds on a mean, each wrong with probability about alpha. `at(f)` is the same with f times as many items of
    the same behaviour, for asking how many items would decide."""

    estimate: float
    lower: float
    upper: float
    method: str
    design_effect: float
    at: Bounds


def tango(gains: float, losses: float, n: float, quantile: float) -> tuple[float, float]:
    """Tango's score interval for (gains - losses) / n, n pairs of which gains + losses are discordant.

    (Tango 1998, Statistics in Medicine 17:891-908.) `quantile` is the one-sided normal (or t) quantile. Counts may be
    fractions, as a design effect makes them. Without a discordant pair the bounds are -+ q^2 / (n + q^2), exactly.
    """
    if n <= 0 or gains < 0 or losses < 0 or gains + losses > n * (1 + 1e-12):
        raise ValueError(f"impossible counts: gains {gains}, losses {losses}, n {n}")
    quantile = float(quantile)
    if gains + losses == 0:
        bound = quantile**2 / (n + quantile**2)
        return -bound, bound
    return _tango_lower(gains, losses, n, quantile), -_tango_lower(losses, gains, n, quantile)


def _tango_lower(gains: float, losses: float, n: float, quantile: float) -> float:
    mean = (gains - losses) / n
    if losses >= n:
        return -1.0
    if gains >= n:
        return (n - quantile**2) / (n + quantile**2)

    def excess(delta: float) -> float:
        return n * (mean - delta) ** 2 - quantile**2 * tango_variance(gains, losses, n, delta)

    # At -1 the variance is 0 and the distance is not, at the estimate it is the other way round: one sign change.
    return float(brentq(excess, -1.0, mean, xtol=1e-15, rtol=8.9e-16, maxiter=200))


def tango_variance(gains: float, losses: float, n: float, delta: float) -> float:
    """Variance of one pair's difference under the maximum likelihood estimate with the mean held at `delta`."""
    b = (2 * n - gains + losses) * delta - gains - losses
    c = -losses * delta * (1 - delta)
    root = math.sqrt(max(b * b - 8 * n * c, 0.0))
    # Two forms of the same root; each loses its digits where the other keeps them.
    loss_rate = -2 * c / (root + b) if b > 0 else (root - b) / (4 * n)
    return max(2 * loss_rate + delta * (1 - delta), 0.0)


def bounded_score(
    values: Floats, weights: Floats, low: float, high: float, n: float, quantile: float
) -> tuple[float, float]:
    """Score interval for the mean of values in [low, high]; `weights` are the values' shares, summing to 1."""
    lower = _bounded_lower(values, weights, low, n, quantile)
    upper = -_bounded_lower(-values, weights, -high, n, quantile)
    return lower, upper


def _bounded_lower(values: Floats, weights: Floats, low: float, n: float, quantile: float) -> float:
    if len(values) > _MANY_VALUES:
        step = (float(values.max()) - low) / _MANY_VALUES
        values, weights = _merge(low + np.floor((values - low) / step) * step, weights)
    mean = float(values @ weights)
    if mean <= low:
        return low

    def excess(delta: float) -> float:
        return n * (mean - delta) ** 2 - quantile**2 * _constrained_variance(values, weights, low, delta)

    if excess(mean) >= 0:  # no observed variance: the bound of Tango's zero-discordance case, on this range
        return mean - (mean - low) * quantile**2 / (n + quantile**2)
    return float(brentq(excess, low + 1e-12 * (mean - low), mean, xtol=1e-15, rtol=8.9e-16, maxiter=200))


def _constrained_variance(values: Floats, weights: Floats, low: float, delta: float) -> float:
    """Variance of the likeliest distribution with mean `delta` < observed mean, on the values seen and `low`."""
    away = values - delta
    limit = 1.0 / (delta - low)

    def pull(tilt: float) -> float:
        return float(np.sum(weights * away / (1.0 + tilt * away)))

    interior = values > low
    at_limit = weights[interior] / (1.0 + limit * away[interior])
    spare = 1.0 - float(at_limit.sum())
    if bool(interior.all()) and spare >= 0:
        # The tilt runs into its limit: the rest of the probability sits at the low end, seen there or not.
        return float(np.sum(at_limit * away[interior] ** 2)) + spare * (low - delta) ** 2
    top = limit * (1 - 1e-14)
    if pull(top) >= 0:
        tilt = top
    elif pull(0.0) <= 0:
        tilt = 0.0
    else:
        tilt = float(brentq(pull, 0.0, top, xtol=1e-15, rtol=8.9e-16, maxiter=200))
    return float(np.sum(weights * away**2 / (1.0 + tilt * away)))


def _merge(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    distinct, where = np.unique(values, return_inverse=True)
    return distinct, np.bincount(where, weights=weights).astype(np.float64)


def _totals(values: Floats, codes: Ints) -> tuple[Floats, Floats]:
    """(sums, sizes) of the clusters."""
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def student_t(values: Floats, codes: Ints | None) -> tuple[float, float, float]:
    """(standard error, degrees of freedom, design effect) of the mean; cluster-robust where `codes` are given."""
    n = len(values)
    mean = math.fsum(values) / n
    centred = values - mean
    independent = math.fsum(centred**2) / (n * (n - 1)) if n > 1 else math.inf
    if codes is None:
        return math.sqrt(independent), n - 1, 1.0
    totals = np.bincount(codes, weights=centred)
    groups = len(totals)
    robust = groups / (groups - 1) * math.fsum(totals**2) / n**2
    effect = max(1.0, robust / independent) if independent > 0 else 1.0
    return math.sqrt(max(robust, independent)), groups - 1, effect


def design_effect(values: Floats, changed: NDArray[np.bool_], codes: Ints) -> float:
    """How many times too large the item count is as a measure of information, at least 1 (see the module)."""
    sizes = np.bincount(codes)
    touched = np.count_nonzero(np.bincount(codes, weights=changed))
    if touched < FEW_CLUSTERS:
        return float(np.sum(sizes.astype(np.float64) ** 2) / len(values))
    return student_t(values, codes)[2]


def paired_interval(
    baseline: Floats, candidate: Floats, codes: Ints | None, alpha: float, relative: float | None = None
) -> Interval:
    """Interval for mean(candidate - baseline), or for mean(candidate - (1 - relative) baseline).

    Shapes: both [n], n >= 1, scores in [0, 1]; `codes` [n] numbers the clusters 0..G-1, None when all items stand
    alone. Each bound is wrong with probability about `alpha`.
    """
    n = len(baseline)
    keep = 1.0 if relative is None else 1.0 - relative
    values = candidate - keep * baseline
    estimate = math.fsum(values) / n
    low, high = -keep, 1.0
    groups = n if codes is None else int(codes.max()) + 1
    if codes is not None and groups < 2:
        return Interval(estimate, low, high, "none: one cluster only", float(n), lambda _: (low, high))
    quantile = float(norm.ppf(1 - alpha)) if codes is None else float(t.ppf(1 - alpha, groups - 1))
    changed = candidate != baseline
    binary = is_binary(baseline) and is_binary(candidate)
    suffix = "" if codes is None else ", clusters"

    if not binary and np.count_nonzero(changed) >= FEW_DIFFERENCES and groups >= FEW_TERMS:
        error, freedom, effect = student_t(values, codes)
        sums, sizes = (values, None) if codes is None else _totals(values, codes)
        skewness = abs(skewness_of_mean(sums, sizes))
        if skewness <= SKEWED or (skewness <= VERY_SKEWED and groups <= MANY_TERMS):
            if skewness <= SKEWED:
                reach = float(t.ppf(1 - alpha, freedom)) * error
                method, ends = "student_t", (estimate - reach, estimate + reach)
            else:
                method, ends = "bca", bca_bounds(sums, sizes, alpha)

            def scaled(factor: float) -> tuple[float, float]:
                below, above = (end + (estimate - end) * (1 - 1 / math.sqrt(factor)) for end in ends)
                return max(low, below), min(high, above)

            return Interval(estimate, *scaled(1.0), method + suffix, effect, scaled)

    effect = 1.0 if codes is None else design_effect(values, changed, codes)
    size = n / effect
    if binary and relative is None:
        gains, losses = float(np.count_nonzero(values > 0)), float(np.count_nonzero(values < 0))

        def by_tango(factor: float) -> tuple[float, float]:
            scale = factor / effect
            return tango(gains * scale, losses * scale, n * scale, quantile)

        return Interval(estimate, *by_tango(1.0), "tango" + suffix, effect, by_tango)

    distinct, weights = _merge(values, np.full(n, 1.0 / n))

    def by_score(factor: float) -> tuple[float, float]:
        return bounded_score(distinct, weights, low, high, size * factor, quantile)

    return Interval(estimate, *by_score(1.0), "bounded_score" + suffix, effect, by_score)


def is_binary(scores: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.all((scores == 0) | (scores == 1)))
