"""BCa against SciPy's, and what the gate asks of every interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sqtool.gate.bootstrap import RESAMPLES, bca_bounds, skewness_of_mean
from sqtool.gate.intervals import paired_interval


def skewed(seed: int, n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.15, -rng.beta(1, 3, n), 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_against_scipy(seed: int) -> None:
    values = skewed(seed)
    ours = bca_bounds(values, None, 0.05)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=50_000, method="BCa", batch=1000, rng=seed
    ).confidence_interval
    # Of two bootstraps: each percentile is known to a fortieth of a standard error or so.
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.12 * values.std() / math.sqrt(len(values)))


def test_the_same_resamples_give_scipys_bounds_exactly() -> None:
    values = np.sort(skewed(4))
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(20241)
    ).confidence_interval
    assert bca_bounds(values, None, 0.05)[0] == pytest.approx(theirs.low, rel=1e-9)


def test_clusters_against_scipy() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, 300).astype(float)
    sums = sizes * skewed(5, 300)
    order = np.lexsort((sizes, sums))
    theirs = stats.bootstrap(
        (sums[order], sizes[order]),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=0.9,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(20241),
    ).confidence_interval
    assert bca_bounds(sums, sizes, 0.05)[0] == pytest.approx(theirs.low, rel=1e-9)
    # Whole clusters, not their items, are drawn: the items alone would pretend to more precision.
    alone = np.repeat(sums / sizes, sizes.astype(int))
    lower, upper = bca_bounds(alone, None, 0.05)
    assert upper - lower < np.diff(bca_bounds(sums, sizes, 0.05))[0]


def test_order_swap_and_repetition() -> None:
    rng = np.random.default_rng(6)
    sizes, sums = np.ones(400), skewed(6)
    order = rng.permutation(400)
    lower, upper = bca_bounds(sums, sizes, 0.05)
    assert bca_bounds(sums[order], sizes[order], 0.05) == pytest.approx((lower, upper), abs=1e-15)
    assert bca_bounds(-sums, sizes, 0.05) == (-upper, -lower)
    assert bca_bounds(sums, None, 0.05) == pytest.approx((lower, upper), abs=1e-15)
    wide = bca_bounds(sums, None, 0.01)
    assert wide[0] < lower < sums.mean() < upper < wide[1]


def test_skewness_of_the_mean() -> None:
    values = skewed(7)
    assert skewness_of_mean(values, None) == pytest.approx(float(stats.skew(values)) / math.sqrt(400))
    assert skewness_of_mean(values, np.ones(400)) == pytest.approx(skewness_of_mean(values, None))
    assert math.isnan(skewness_of_mean(np.full(5, 0.5), None))


def test_more_items_of_the_same_behaviour() -> None:
    values = skewed(8)
    interval = paired_interval(np.ones(400), 1 + values, None, 0.05)
    assert interval.method == "bca"
    assert interval.at(1.0) == pytest.approx((interval.lower, interval.upper))
    lower, upper = interval.at(4.0)
    assert lower == pytest.approx((interval.estimate + interval.lower) / 2)
    assert upper == pytest.approx((interval.estimate + interval.upper) / 2)
    # Skewed to the left, the bounds reach further there.
    assert interval.estimate - interval.lower > interval.upper - interval.estimate
