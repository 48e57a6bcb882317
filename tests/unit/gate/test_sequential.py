"""Always-valid tests and bounds: against brute force, by their properties, and by how often they are wrong."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqtool.gate.intervals import Floats
from sqtool.gate.sequential import (
    BETS,
    PRIOR,
    Monitor,
    anytime_p,
    cluster_terms,
    log_wealth,
    looks,
    order,
    sequence_bounds,
)

ALPHA = 0.05
HORIZONS = pytest.mark.parametrize("horizon", [None, 60])
terms_lists = st.lists(st.sampled_from([-0.9, -0.25, 0.0, 0.1, 1.1]), min_size=1, max_size=60)


def ones(values: Floats) -> Floats:
    return np.ones(len(values))


# -------------------------------------------------------------------------------------------- against brute force


@settings(deadline=None)
@given(terms_lists)
def test_mixture_is_the_mean_of_products(terms: list[float]) -> None:
    wealth = sum(
        weight * math.prod(1 + bet * term / 0.9 for term in terms) for bet, weight in zip(BETS, PRIOR, strict=True)
    )
    assert log_wealth(np.array(terms), -0.9, 1.1)[-1] == pytest.approx(math.log(wealth), abs=1e-9)


@settings(deadline=None)
@given(terms_lists)
def test_planned_bets_written_out(terms: list[float]) -> None:
    horizon, wealth, running = 40, 1.0, []
    for t, term in enumerate(terms):
        second_moment = (0.9**2 + sum(x * x for x in terms[:t])) / (t + 1)
        missing = max(math.log(20 / wealth), 0.5)
        bet = math.sqrt(2 * missing / (max(horizon - t, 1) * second_moment))
        wealth *= 1 + min(bet, 0.95 / 0.9) * term
        running.append(math.log(wealth))
    assert log_wealth(np.array(terms), -0.9, 1.1, horizon=horizon) == pytest.approx(running, abs=1e-9)


@pytest.mark.parametrize("against", [None, -0.05])
def test_bounds_are_where_the_p_value_meets_alpha(against: float | None) -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 0.3, 1.0], p=[0.05, 0.8, 0.1, 0.05], size=300)
    lower, upper = sequence_bounds(values, ones(values), -1, 1, 1, ALPHA, margin_at=against, horizon=300)
    assert anytime_p(upper - values, upper - 1, upper + 1)[-1] == pytest.approx(ALPHA, rel=1e-5)
    if against is None:
        assert anytime_p(values - lower, -1 - lower, 1 - lower)[-1] == pytest.approx(ALPHA, rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_planned_bound_agrees_with_its_p_value(seed: int) -> None:
    values = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=330)
    lower, _ = sequence_bounds(values, ones(values), -1, 1, 1, ALPHA, margin_at=-0.02, horizon=400)
    assert (lower > -0.02) == (anytime_p(values + 0.02, -0.98, 1.02, horizon=400)[-1] <= ALPHA)


def test_rounding_and_sparse_looks_only_widen() -> None:
    """More distinct values than are told apart, and more terms than are looked at one by one."""
    values = np.clip(np.random.default_rng(0).normal(0.01, 0.2, 30_000), -1, 1)
    lower, upper = sequence_bounds(values, ones(values), -1, 1, 1, ALPHA)
    assert lower < values.mean() < upper < values.mean() + 0.006
    assert anytime_p(values - lower, -1 - lower, 1 - lower)[-1] <= ALPHA
    assert anytime_p(upper - values, upper - 1, upper + 1)[-1] <= ALPHA
    assert upper - lower < 2.8 * sequence_bounds(values[:4096], ones(values)[:4096], -1, 1, 1, ALPHA)[1]


# --------------------------------------------------------------------------------------------------- properties


@HORIZONS
@settings(deadline=None)
@given(terms=terms_lists)
def test_p_values_are_probabilities_and_never_rise(horizon: int | None, terms: list[float]) -> None:
    p = anytime_p(np.array(terms), -0.9, 1.1, horizon=horizon)
    assert np.all((p > 0) & (p <= 1))
    assert all(later <= earlier for earlier, later in pairwise(p))


@HORIZONS
@settings(deadline=None)
@given(terms=terms_lists, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_batches_make_no_difference(horizon: int | None, terms: list[float], cuts: list[int]) -> None:
    monitor = Monitor(-0.9, 1.1, horizon)
    for part in np.split(np.array(terms), sorted(cuts)):
        monitor.feed(part)
    assert monitor.count == len(terms)
    assert monitor.p_value == pytest.approx(anytime_p(np.array(terms), -0.9, 1.1, horizon=horizon)[-1], rel=1e-12)


def test_long_runs_are_cut_into_blocks() -> None:
    terms = np.random.default_rng(1).choice([-0.9, 0.1, 1.1], size=10_000, p=[0.02, 0.97, 0.01])
    monitor = Monitor(-0.9, 1.1)
    wealth = np.concatenate([monitor.feed(part) for part in np.split(terms, [3, 5000, 9999])])
    assert log_wealth(terms, -0.9, 1.1) == pytest.approx(wealth, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.lists(st.integers(1, 4), min_size=40, max_size=40))
def test_the_mean_seen_last_is_never_rejected_by_the_last_look(means: list[float], counts: list[int]) -> None:
    sizes = np.array(counts[: len(means)], dtype=float)
    sums = np.array(means) * sizes
    mean = float(np.clip(sums.sum() / sizes.sum(), -1 + 1e-6, 1 - 1e-6))
    assert log_wealth(cluster_terms(sums, sizes, mean, 4), -1 - mean, 1 - mean)[-1] <= 1e-4
    assert log_wealth(-cluster_terms(sums, sizes, mean, 4), mean - 1, mean + 1)[-1] <= 1e-4


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=2, max_size=60), st.integers(1, 59))
def test_bounds_only_tighten_and_swap_with_the_sign(values: list[float], cut: int) -> None:
    array = np.array(values)
    lower, upper = sequence_bounds(array, ones(array), -1, 1, 1, ALPHA)
    early_lower, early_upper = sequence_bounds(array[:cut], ones(array[:cut]), -1, 1, 1, ALPHA)
    assert -1 <= early_lower <= lower + 1e-9
    assert upper - 1e-9 <= early_upper <= 1
    assert sequence_bounds(-array, ones(array), -1, 1, 1, ALPHA) == pytest.approx((-upper, -lower), abs=1e-9)


@settings(deadline=None)
@given(st.sampled_from([0.01, 0.05, 0.2]), st.integers(0, 100))
def test_a_smaller_alpha_is_wider(alpha: float, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, 50)
    narrow, wide = (sequence_bounds(values, ones(values), -1, 1, 1, a) for a in (alpha, alpha / 10))
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_clusters_of_one_are_the_plain_case() -> None:
    values = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=200)
    assert np.array_equal(cluster_terms(values, ones(values), -0.02, 1), values + 0.02)


def test_degenerate_inputs() -> None:
    nothing = np.zeros(0)
    assert sequence_bounds(nothing, nothing, -1, 1, 1, ALPHA) == (-1, 1)
    assert sequence_bounds(-np.ones(50), np.ones(50), -1, 1, 1, ALPHA)[0] == -1
    assert sequence_bounds(np.ones(50), np.ones(50), -1, 1, 1, ALPHA)[1] == 1
    assert Monitor(-1, 1).p_value == 1
    assert Monitor(-1, 1).feed(nothing).shape == (0,)
    assert anytime_p(np.ones(5000), -1, 1)[-1] > 0
    with pytest.raises(ValueError, match="cannot test"):
        Monitor(0.0, 1.0)
    with pytest.raises(ValueError, match="terms must be in"):
        log_wealth(np.array([0.0, -1.5]), -1, 1)
    with pytest.raises(ValueError, match="terms must be in"):
        log_wealth(np.array([0.0, math.nan]), -1, 1)
    with pytest.raises(ValueError, match="largest declared"):
        sequence_bounds(np.zeros(3), np.array([1, 5, 1]), -1, 1, 4, ALPHA)


@settings(deadline=None)
@given(st.integers(1, 10**6))
def test_looks_rise_and_end_at_the_last_term(count: int) -> None:
    ends = looks(count)
    assert ends[-1] == count
    assert np.all(np.diff(ends) > 0)
    assert len(ends) < 400


def test_a_million_items_take_seconds() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.02, 0.965, 0.015], size=10**6)
    start = time.process_time()
    lower, upper = sequence_bounds(values, ones(values), -1, 1, 1, ALPHA, margin_at=-0.02, horizon=10**6)
    assert time.process_time() - start < 5
    assert -0.0062 < lower < values.mean() < upper < -0.0038


# -------------------------------------------------------------------------------------------------------- order


names = st.lists(st.text(max_size=3), unique=True, max_size=12)


@settings(deadline=None)
@given(names, st.lists(st.sampled_from([None, "a", "b", 1]), min_size=12, max_size=12), st.integers(0, 9), st.randoms())
def test_order_is_a_permutation_that_ignores_the_files_order(
    ids: list[str], clusters: list[str | int | None], seed: int, random: object
) -> None:
    rows = list(zip(ids, clusters, strict=False))
    asked = [rows[i] for i in order([r[0] for r in rows], [r[1] for r in rows], seed)]
    assert sorted(asked, key=repr) == sorted(rows, key=repr)
    shuffled = rows[::-1]
    assert asked == [shuffled[i] for i in order([r[0] for r in shuffled], [r[1] for r in shuffled], seed)]
    places = [[i for i, row in enumerate(asked) if row[1] == name] for name in ("a", "b", 1)]
    assert all(found == list(range(found[0], found[0] + len(found))) for found in places if found)


def test_order_is_the_same_for_ever() -> None:
    ids = [f"item-{i}" for i in range(8)]
    assert order(ids, [None, "x", None, "y", "x", None, "y", "x"], seed=7) == [0, 1, 4, 7, 2, 5, 3, 6]
    assert order(ids, [None] * 8, seed=1) != order(ids, [None] * 8, seed=2)


def test_an_item_may_be_named_like_a_cluster() -> None:
    assert sorted(order(["a", "b", "c"], ["b", None, "b"], 0)) == [0, 1, 2]


# -------------------------------------------------------------------------------------------------- error rates


def within(share: float, draws: int) -> bool:
    return share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / draws)


@HORIZONS
@pytest.mark.parametrize(("loss", "gain"), [(0.05, 0.0), (0.1, 0.05), (0.3, 0.25)])
def test_false_alarms_with_a_look_after_every_item(horizon: int | None, loss: float, gain: float) -> None:
    """At a drop equal to the margin, from both sides: the chance of ever being wrong is at most alpha."""
    rng, draws, n, margin = np.random.default_rng(11), 1000, 400, 0.05
    wrong = np.zeros(2)
    for _ in range(draws):
        terms = rng.choice([-1.0, 0.0, 1.0], p=[loss, 1 - loss - gain, gain], size=n) + margin
        wrong += (
            anytime_p(terms, margin - 1, margin + 1, horizon=None if horizon is None else n)[-1] <= ALPHA,
            anytime_p(-terms, -margin - 1, 1 - margin)[-1] <= ALPHA,
        )
    assert within(wrong.max() / draws, draws)


def test_false_alarms_with_clusters_that_change_together() -> None:
    """Of one or eight items, at a mean drop of the margin; ignoring the clusters is far off, so the check can fail."""
    rng, draws, clusters, largest = np.random.default_rng(12), 800, 150, 8
    wrong = np.zeros(3)
    for _ in range(draws):
        size = np.where(rng.random(clusters) < 0.8, 1, largest)
        direction = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.75, 0.1], size=clusters)
        terms = cluster_terms(direction * size, size, -0.05, largest)
        alone = np.repeat(direction, size) + 0.05
        wrong += (
            anytime_p(terms, -0.95, 1.05)[-1] <= ALPHA,
            anytime_p(terms, -0.95, 1.05, horizon=clusters)[-1] <= ALPHA,
            anytime_p(alone, -0.95, 1.05)[-1] <= ALPHA,
        )
    assert within(wrong[0] / draws, draws)
    assert within(wrong[1] / draws, draws)
    assert wrong[2] / draws > 2 * ALPHA


def test_relative_margin() -> None:
    """candidate - (1 - r) * baseline against 0: wrong at the margin at most at alpha, and right well inside it."""
    rng, draws, n, keep = np.random.default_rng(13), 600, 500, 0.9
    passed = np.zeros(2)
    for _ in range(draws):
        baseline = (rng.random(n) < 0.8).astype(float)
        for at, hold in enumerate((keep, 1.0)):
            candidate = np.where(rng.random(n) < hold, baseline, 0.0)
            terms = candidate - keep * baseline
            passed[at] += anytime_p(terms, -keep, 1.0, horizon=n)[-1] <= ALPHA
    assert within(passed[0] / draws, draws)
    assert passed[1] == draws
