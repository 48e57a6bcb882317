"""The exact check of a PASS against brute force, by its own definition and by its error rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sqtool.gate.compare import compare, decide
from sqtool.gate.exact import critical_score, items_without_flips, noninferiority_p, probability, score
from sqtool.gate.intervals import tango, tango_variance
from sqtool.gate.spec import MetricRule


def table(n: int, margin: float) -> dict[tuple[int, int], float]:
    """The score of every possible result."""
    cells = [(g, k) for g in range(n + 1) for k in range(n + 1 - g)]
    gains, losses = (np.array(side, dtype=np.float64) for side in zip(*cells, strict=True))
    return dict(zip(cells, score(gains, losses, n, margin).tolist(), strict=True))


def brute_force(gains: int, losses: int, n: int, margin: float) -> float:
    """The largest probability of a score at least as large, on a fine grid of the rate of gains."""
    scores = table(n, margin)
    good = [cell for cell, value in scores.items() if value >= scores[gains, losses] - 1e-9]
    counts = np.array([(g, k, n - g - k) for g, k in good])
    best = 0.0
    for rate in np.linspace(0, (1 - margin) / 2, 400):
        cells = [rate, rate + margin, max(1 - 2 * rate - margin, 0.0)]
        best = max(best, float(stats.multinomial.pmf(counts, n, np.array(cells) / sum(cells)).sum()))
    return best


@pytest.mark.parametrize(
    ("gains", "losses", "n", "margin"),
    [(0, 0, 20, 0.1), (0, 1, 30, 0.15), (2, 1, 25, 0.1), (3, 5, 30, 0.2), (1, 8, 20, 0.3), (0, 20, 20, 0.05)],
)
def test_p_is_the_largest_probability(gains: int, losses: int, n: int, margin: float) -> None:
    assert noninferiority_p(gains, losses, n, margin) == pytest.approx(
        brute_force(gains, losses, n, margin), abs=2e-4, rel=2e-3
    )


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
def test_fewest_items_that_pass(margin: float) -> None:
    n = items_without_flips(margin)
    assert (1 - margin) ** n <= noninferiority_p(0, 0, n, margin) + 1e-12
    assert noninferiority_p(0, 0, n, margin) <= 0.05 < noninferiority_p(0, 0, n - 1, margin)


def test_the_two_usual_margins() -> None:
    assert (items_without_flips(0.02), items_without_flips(0.01)) == (149, 299)


def test_the_score_is_tangos() -> None:
    for gains, losses, n, margin in ((3, 7, 100, 0.05), (0, 0, 50, 0.02), (10, 0, 40, 0.1)):
        expected = ((gains - losses) / n + margin) / (tango_variance(gains, losses, n, -margin) / n) ** 0.5
        assert score(np.array([1.0 * gains]), np.array([1.0 * losses]), n, margin)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("n", "margin"), [(133, 0.02), (150, 0.02), (80, 0.05)])
def test_a_pass_is_wrong_with_at_most_alpha(n: int, margin: float) -> None:
    """The chance of PASS by the gate's own rule at a true drop equal to the margin, summed over all results, for any
    rate of gains. The score bound alone is above 5 % in several of these cases."""
    passing = np.zeros((n + 1, n + 1), dtype=bool)
    quantile = float(stats.norm.ppf(0.95))
    for gains in range(n + 1):
        for losses in range(n + 1 - gains):
            if tango(gains, losses, n, quantile)[0] <= -margin:
                break
            passing[gains, losses] = noninferiority_p(gains, losses, n, margin) <= 0.05
        if gains > 9:
            break  # the rates below make more gains than that practically impossible
    for rate in (0.0, 0.1 / n, 0.3 / n, 1 / n, 2 / n, 3 / n):
        g, k = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        pmf = stats.binom.pmf(g, n, rate) * stats.binom.pmf(k, np.maximum(n - g, 0), (rate + margin) / (1 - rate))
        assert float(pmf[passing].sum()) <= 0.05 + 1e-9


@settings(deadline=None, max_examples=60)
@given(st.integers(20, 400), st.integers(0, 10), st.integers(0, 15), st.floats(0.01, 0.3))
def test_properties(n: int, gains: int, losses: int, margin: float) -> None:
    p = noninferiority_p(gains, losses, n, margin)
    assert 0 <= p <= 1
    assert noninferiority_p(gains, losses + 1, n, margin) >= p - 1e-9  # a further loss never speaks for it
    assert noninferiority_p(gains + 1, losses, n, margin) <= p + 1e-9


@pytest.mark.parametrize(("n", "margin"), [(149, 0.02), (200, 0.05), (600, 0.02)])
def test_the_critical_score_is_where_the_p_value_crosses(n: int, margin: float) -> None:
    level = critical_score(n, margin, 0.05)
    for (gains, losses), value in table(n, margin).items():
        if gains < 6 and losses < 12 and abs(value - level) < 0.3:
            assert (value >= level) == (noninferiority_p(gains, losses, n, margin) <= 0.05)


def test_only_the_exact_check_says_no() -> None:
    same = np.ones(140)
    result = compare(same, same, None, MetricRule(max_drop=0.02), 0.05)
    assert result.interval.lower > result.threshold
    assert decide(result, 1.0, 0.05) == ("INCONCLUSIVE", "exact_test_reaches_margin")
    own = compare(same, same, None, MetricRule(max_drop=0.02, alpha=0.1), 0.05)
    assert decide(own, 1.0, 0.05)[0] == "PASS"  # 0.98^140 is below the metric's own 10 %


def test_where_there_is_no_exact_test() -> None:
    same, halves = np.ones(400), np.full(400, 0.5)
    assert compare(halves, halves, None, MetricRule(max_drop=0.02), 0.05).exact_p is None
    assert compare(same, same, np.arange(400) // 2, MetricRule(max_drop=0.02), 0.05).exact_p is None
    assert compare(same, same, None, MetricRule(relative=0.02), 0.05).exact_p is None


def test_probability_of_everything_and_nothing() -> None:
    assert probability(50, 0.1, 0.2, lambda g, _: g >= 0) == pytest.approx(1.0)
    assert probability(50, 0.0, 0.0, lambda g, _: g < 0) == 0.0
