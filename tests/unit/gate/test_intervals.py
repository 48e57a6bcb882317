"""Intervals against published examples, against independent implementations, and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from statsmodels.stats.proportion import proportion_confint

from sqtool.gate.intervals import (
    bounded_score,
    design_effect,
    paired_interval,
    student_t,
    tango,
    tango_variance,
)

Z95 = float(stats.norm.ppf(0.95))
Z975 = float(stats.norm.ppf(0.975))


@pytest.mark.parametrize(
    ("gains", "losses", "n", "quantile", "expected"),
    [
        # Tango 1998, Statistics in Medicine 17:891, soft contact lenses, 90 %.
        (0, 1, 44, Z95, (-0.096, 0.037)),
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850, airway hyper-responsiveness, 95 %.
        (1, 7, 21, Z975, (-0.517, -0.026)),
        # Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables, complete response, 95 %.
        (6, 16, 161, Z975, (-0.124, -0.0054)),
    ],
)
def test_tango_published(gains: int, losses: int, n: int, quantile: float, expected: tuple[float, float]) -> None:
    assert tango(gains, losses, n, quantile) == pytest.approx(expected, abs=5e-4)


def test_tango_1998_noninferiority_statistic() -> None:
    statistic = (-1 / 44 + 0.1) * math.sqrt(44 / tango_variance(0, 1, 44, -0.1))
    assert statistic == pytest.approx(1.709, abs=5e-4)


def test_no_discordance_is_exact_and_needs_268_and_133_items() -> None:
    z2 = Z95**2
    for n in (1, 50, 133, 268, 10**6):
        assert tango(0, 0, n, Z95) == (-z2 / (n + z2), z2 / (n + z2))
    assert tango(0, 0, 268, Z95)[0] > -0.01 > tango(0, 0, 267, Z95)[0]
    assert tango(0, 0, 133, Z95)[0] > -0.02 > tango(0, 0, 132, Z95)[0]


def numeric_score_bound(gains: int, losses: int, n: int, quantile: float) -> float:
    """The lower bound with the constrained maximum likelihood found numerically, sharing no formula with `tango`."""

    def statistic(delta: float) -> float:
        def minus_likelihood(q: float) -> float:
            cells = ((gains, q + delta), (losses, q), (n - gains - losses, 1 - 2 * q - delta))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return ((gains - losses) / n - delta) * math.sqrt(n / (2 * q + delta * (1 - delta))) - quantile

    return float(brentq(statistic, -1 + 1e-9, (gains - losses) / n - 1e-9))


@pytest.mark.parametrize(("gains", "losses", "n"), [(3, 9, 100), (12, 5, 80), (0, 4, 300), (7, 7, 500), (40, 60, 200)])
def test_tango_against_numeric_likelihood(gains: int, losses: int, n: int) -> None:
    lower, upper = tango(gains, losses, n, Z95)
    assert lower == pytest.approx(numeric_score_bound(gains, losses, n, Z95), abs=1e-6)
    assert upper == pytest.approx(-numeric_score_bound(losses, gains, n, Z95), abs=1e-6)


def test_tango_with_losses_only_is_wilson() -> None:
    """With one-sided changes the difference is a single proportion, whose score interval is Wilson's."""
    for losses, n in ((0, 150), (3, 150), (40, 1000)):
        wilson = proportion_confint(losses, n, alpha=0.1, method="wilson")[1]
        assert tango(0, losses, n, Z95)[0] == pytest.approx(-wilson, rel=1e-9)


@pytest.mark.parametrize(("gains", "losses"), [(10, 0), (0, 10)])
def test_tango_when_everything_changed(gains: int, losses: int) -> None:
    lower, upper = tango(gains, losses, 10, Z95)
    bound = (10 - Z95**2) / (10 + Z95**2)
    assert (lower, upper) == pytest.approx((bound, 1.0) if gains else (-1.0, -bound))


@pytest.mark.parametrize(("gains", "losses", "n"), [(-1, 0, 5), (0, 0, 0), (3, 3, 5)])
def test_impossible_counts(gains: int, losses: int, n: int) -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        tango(gains, losses, n, Z95)


counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500)).filter(lambda c: sum(c) > 0)


@given(counts)
def test_tango_properties(cells: tuple[int, int, int]) -> None:
    gains, losses, _ = cells
    n = sum(cells)
    lower, upper = tango(gains, losses, n, Z95)
    assert -1 <= lower <= (gains - losses) / n + 1e-12
    assert (gains - losses) / n - 1e-12 <= upper <= 1
    assert tango(losses, gains, n, Z95) == pytest.approx((-upper, -lower), abs=1e-12)  # swap
    wider = tango(gains, losses, n, Z975)
    assert wider[0] <= lower
    assert upper <= wider[1]
    more = tango(gains * 4, losses * 4, n * 4, Z95)  # the same behaviour on more items
    assert lower <= more[0] + 1e-12
    assert more[1] <= upper + 1e-12


@given(counts)
def test_bounded_score_is_tango_on_three_values(cells: tuple[int, int, int]) -> None:
    gains, losses, same = cells
    n = sum(cells)
    shares = np.array([losses, same, gains]) / n
    seen = shares > 0
    result = bounded_score(np.array([-1.0, 0.0, 1.0])[seen], shares[seen], -1, 1, n, Z95)
    assert result == pytest.approx(tango(gains, losses, n, Z95), abs=1e-8)


def test_relative_margin_matches_published_ratio_interval() -> None:
    """Tang's interval for a ratio (Fagerland et al. 2017: 0.7476 to 0.9876) is where our bounds cross zero."""
    n = 161
    cells = np.array([59, 6, 16, 80]) / n

    def bound(ratio: float, side: int) -> float:
        values = np.array([1 - ratio, 1.0, -ratio, 0.0])
        return bounded_score(values, cells, -ratio, 1.0, n, Z975)[side]

    assert brentq(lambda r: bound(r, 0), 0.3, 0.86) == pytest.approx(0.7476, abs=5e-5)
    assert brentq(lambda r: bound(r, 1), 0.87, 1.5) == pytest.approx(0.9876, abs=5e-5)


def test_bounded_score_with_thousands_of_values_is_conservative_and_near() -> None:
    values = np.random.default_rng(0).uniform(-0.4, 0.3, 20_000)
    shares = np.full(len(values), 1 / len(values))
    lower, upper = bounded_score(values, shares, -1, 1, len(values), Z95)
    half = Z95 * values.std() / math.sqrt(len(values))
    assert values.mean() - half * 1.2 < lower < values.mean() - half * 0.99
    assert values.mean() + half * 0.99 < upper < values.mean() + half * 1.2


def scores(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, n), rng.uniform(0, 1, n)


def test_student_t_against_scipy() -> None:
    baseline, candidate = scores(1)
    ours = paired_interval(baseline, candidate, None, 0.05)
    theirs = stats.ttest_1samp(candidate - baseline, 0.0).confidence_interval(0.90)
    assert ours.method == "student_t"
    assert (ours.lower, ours.upper) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_cluster_robust_against_statsmodels() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 60, 600)
    shared = rng.normal(0, 0.2, 60)[codes]
    values = np.clip(shared + rng.normal(0, 0.1, 600), -1, 1)
    fit = sm.OLS(values, np.ones(600)).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    error, freedom, effect = student_t(values, codes)
    assert error == pytest.approx(float(fit.bse[0]), rel=1e-12)
    assert freedom == 59
    assert effect == pytest.approx((error / (values.std(ddof=1) / math.sqrt(600))) ** 2)


def test_rule_of_choice() -> None:
    rng = np.random.default_rng(3)
    binary = rng.integers(0, 2, 200).astype(float)
    other = binary.copy()
    other[:5] = 1 - other[:5]
    fractional = np.full(200, 0.5)
    few = fractional.copy()
    few[:29] += 0.1
    noise = rng.uniform(-0.1, 0.1, 20_000)
    skewed = np.where(rng.random(20_000) < 0.05, -0.5, noise)
    rare = np.where(np.arange(20_000) % 4000 == 0, -0.5, noise / 1000)

    def chosen(differences: np.ndarray, codes: np.ndarray | None = None) -> str:
        half = np.full(len(differences), 0.5)
        return paired_interval(half, half + differences, codes, 0.05).method

    assert paired_interval(binary, other, None, 0.05).method == "tango"
    assert paired_interval(binary, other, None, 0.05, relative=0.1).method == "bounded_score"
    assert paired_interval(fractional, few, None, 0.05).method == "bounded_score"
    assert chosen(noise[:300]) == "student_t"
    assert chosen(noise[:299]) == "bounded_score"
    assert chosen(noise[:598], np.arange(598) // 2) == "bounded_score, clusters"
    assert chosen(noise[:600], np.arange(600) // 2) == "student_t, clusters"
    assert chosen(np.where(np.arange(400) < 29, noise[:400], 0.0)) == "bounded_score"
    assert chosen(skewed[:1000]) == "bca"
    assert chosen(skewed[:1000], np.arange(1000) // 2) == "bca, clusters"
    assert chosen(rare[:5000]) == "bounded_score"  # 2 items carry all: too skewed for the bootstrap
    assert chosen(rare) == "bounded_score"  # too many
    assert chosen(noise) == "student_t"
    assert chosen(np.full(400, 0.1)) == "bounded_score"  # no variance, no skewness
    assert paired_interval(binary, other, np.arange(200) // 2, 0.05).method == "tango, clusters"


def test_identical_fractional_scores_never_give_a_point() -> None:
    same = np.full(10, 0.5)
    interval = paired_interval(same, same, None, 0.05)
    assert (interval.lower, interval.upper) == pytest.approx(tango(0, 0, 10, Z95))


def test_clusters_widen() -> None:
    rng = np.random.default_rng(4)
    codes = np.repeat(np.arange(100), 5)
    baseline = np.ones(500)
    candidate = np.repeat((rng.random(100) > 0.2).astype(float), 5)
    alone = paired_interval(baseline, candidate, None, 0.05)
    together = paired_interval(baseline, candidate, codes, 0.05)
    assert together.design_effect == pytest.approx(5, rel=0.05)
    # Completely dependent items are worth one item a cluster.
    reference = tango(0, float(np.sum(candidate[::5] == 0)), 100, float(stats.t.ppf(0.95, 99)))
    assert together.lower == pytest.approx(reference[0], rel=0.02)
    assert together.lower < alone.lower


def test_few_touched_clusters_take_the_worst_design_effect() -> None:
    codes = np.repeat(np.arange(40), 5)
    values = np.zeros(200)
    assert design_effect(values, values != 0, codes) == 5.0
    unequal = np.concatenate((np.zeros(10), np.arange(1, 11))).astype(np.int64)
    assert design_effect(np.zeros(20), np.zeros(20, dtype=bool), unequal) == pytest.approx((100 + 10) / 20)


def test_one_cluster_says_nothing() -> None:
    interval = paired_interval(np.ones(50), np.ones(50), np.zeros(50, dtype=np.int64), 0.05)
    assert (interval.lower, interval.upper) == (-1.0, 1.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([None, 3]), st.booleans())
def test_swap_symmetry_and_order_invariance(seed: int, cluster_size: int | None, binary: bool) -> None:
    rng = np.random.default_rng(seed)
    baseline, candidate = rng.random(90), rng.random(90)
    if binary:
        baseline, candidate = np.round(baseline), np.round(candidate)
    codes = None if cluster_size is None else np.arange(90) // cluster_size
    interval = paired_interval(baseline, candidate, codes, 0.05)
    swapped = paired_interval(candidate, baseline, codes, 0.05)
    assert (swapped.lower, swapped.upper) == pytest.approx((-interval.upper, -interval.lower), abs=1e-9)
    order = rng.permutation(90)
    moved = paired_interval(baseline[order], candidate[order], None if codes is None else codes[order], 0.05)
    assert (moved.lower, moved.upper) == pytest.approx((interval.lower, interval.upper), abs=1e-12)
