"""The bootstrap against SciPy's, and what must hold whatever the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

from sqtool.speculate.latency import effective_size, percentile_interval, requests_needed, share_interval
from sqtool.speculate.resample import Floats, Resamples, interval


def resamples(size: int, *, replicates: int = 4000, seed: int = 0) -> Resamples:
    return Resamples({f"r{at:04d}": "k" for at in range(size)}, seed=seed, replicates=replicates)


def positive(rng: np.random.Generator, size: int) -> Floats:
    return rng.lognormal(0, 0.5, size)


def test_weights_draw_each_kind_for_itself_and_small_kinds_together() -> None:
    kinds = {f"r{at:02d}": "a" if at < 20 else "bc"[at % 2] for at in range(28)}
    weights = Resamples(kinds, seed=1, replicates=50).weights
    assert weights[:, :20].sum(axis=1) == pytest.approx(20)
    assert weights[:, 20:].sum(axis=1) == pytest.approx(8)
    assert weights[:, 20:].var(axis=0).mean() == pytest.approx(1, rel=0.4), "as in an endless stratum, not 7/8"
    again = Resamples(dict(reversed(kinds.items())), seed=1, replicates=50).weights
    assert (weights == again).all(), "the order of the requests changes nothing"
    assert (weights != Resamples(kinds, seed=2, replicates=50).weights).any()


@pytest.mark.parametrize("size", [40, 150])
def test_ratio_intervals_are_those_of_scipy(size: int) -> None:
    rng = np.random.default_rng(size)
    below = positive(rng, size)
    above = below * rng.normal(2, 0.3, size)
    ours = interval(resamples(size).ratio(np.arange(size), above, below), size)
    theirs = bootstrap(
        (above, below), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours is not None
    # Ours is wider by Student's t and by n/(n-1): 5 % at 40 requests, 1 % at 150; both have Monte Carlo error.
    assert ours[0] == pytest.approx(theirs.low, abs=0.12 * width)
    assert ours[1] == pytest.approx(theirs.high, abs=0.12 * width)


@pytest.mark.parametrize("probability", [0.5, 0.95])
def test_quantile_replicates_are_those_of_scipy(probability: float) -> None:
    values = positive(np.random.default_rng(3), 120)
    ours = resamples(120).quantiles(np.arange(120), values, probability)
    theirs = bootstrap(
        (values,), lambda x, axis: np.quantile(x, probability, axis=axis), n_resamples=4000, vectorized=True,
        rng=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.01)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1)


def test_weighted_quantiles_are_numpys_of_the_repeated_values() -> None:
    rng = np.random.default_rng(4)
    unit, values = rng.integers(0, 15, 40), positive(rng, 40)
    drawn = resamples(15, replicates=60)
    drawn.weights = rng.integers(0, 4, drawn.weights.shape).astype(float)
    for probability in (0.0, 0.5, 0.9, 0.95, 1.0):
        ours = drawn.quantiles(unit, values, probability)
        for row, value in zip(drawn.weights, ours, strict=True):
            repeated = np.repeat(values, row[unit].astype(int))
            assert value == pytest.approx(np.quantile(repeated, probability))


def test_nothing_to_resample() -> None:
    drawn = resamples(15, replicates=200)
    one = np.zeros(1, dtype=np.int64)
    values = drawn.quantiles(one, np.ones(1), 0.5)
    assert set(values[~np.isnan(values)]) == {1.0}
    assert np.isnan(values).sum() == (drawn.weights[:, 0] == 0).sum()
    assert interval(values, 15) is None, "it does not exist in a third of the resamples"
    assert interval(np.ones(100), 9) is None, "too few requests"
    assert interval(np.append(np.ones(60), np.full(40, np.inf)), 50) is None


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.integers(10, 60))
def test_scaling_the_data_scales_the_interval(seed: int, factor: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    unit, values = np.arange(size), positive(rng, size)
    drawn = resamples(size, replicates=200)
    ends = interval(drawn.quantiles(unit, values, 0.5), size)
    scaled = interval(drawn.quantiles(unit, values * factor, 0.5), size)
    assert ends is not None
    assert scaled == pytest.approx([end * factor for end in ends])
    assert ends[0] <= np.median(values) <= ends[1]


def test_requests_that_an_interval_of_a_percentile_needs() -> None:
    assert [requests_needed(p) for p in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]
    for probability in (0.5, 0.95, 0.99):
        needed = requests_needed(probability)
        values = positive(np.random.default_rng(0), needed)
        assert percentile_interval(values, np.arange(needed), probability)[0] is not None
        assert percentile_interval(values[1:], np.arange(needed - 1), probability)[0] is None


@pytest.mark.parametrize(("size", "probability"), [(60, 0.5), (130, 0.95), (400, 0.99)])
def test_percentile_intervals_cover(size: int, probability: float) -> None:
    rng = np.random.default_rng(size)
    truth = float(np.exp(0.5 * norm.ppf(probability)))
    inside = 0
    for _ in range(1000):
        ends, _ = percentile_interval(positive(rng, size), np.arange(size), probability)
        assert ends is not None
        inside += ends[0] <= truth <= ends[1]
    assert inside >= 940  # 95 % and three standard errors


def test_a_request_that_repeats_itself_is_one_value() -> None:
    values = positive(np.random.default_rng(5), 200)
    unit = np.arange(200)
    alone = effective_size(values, unit, 0.9)
    repeated = effective_size(np.tile(values, 3), np.tile(unit, 3), 0.9)
    assert alone == 200
    assert repeated == pytest.approx(200, rel=0.05)
    free = effective_size(positive(np.random.default_rng(6), 600), np.tile(unit, 3), 0.9)
    assert 450 < free <= 600
    one_slow_request = np.where(np.tile(unit, 3) == 7, 50.0, np.tile(np.ones(200), 3))
    assert effective_size(one_slow_request, np.tile(unit, 3), 0.99) == 200, "one request's tail shows no variance"


def test_intervals_of_shares() -> None:
    drawn, unit = resamples(100), np.arange(100)
    assert share_interval(unit, np.ones(100), drawn) == pytest.approx([0.025**0.01, 1])
    assert share_interval(unit, np.zeros(100), drawn) == pytest.approx([0, 1 - 0.025**0.01])
    assert share_interval(np.tile(unit, 2), np.ones(200), drawn) == pytest.approx([0.025**0.01, 1])
    ends = share_interval(unit, (unit < 30) * 1.0, drawn)
    assert ends == pytest.approx([0.3 - 1.98 * 0.0458, 0.3 + 1.98 * 0.0458], abs=0.02)
    few = share_interval(np.arange(4), np.array([1.0, 1, 0, 1]), resamples(4))
    assert few is not None
    assert few[0] < 0.2
    assert few[1] > 0.99
    assert share_interval(np.arange(0), np.zeros(0), drawn) is None
