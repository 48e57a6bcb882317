"""Evidence against brute force, and its error rates with a look after every request."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from sqtool.gate.sequential import anytime_p, log_wealth, sequence_bounds
from sqtool.rollout.compare import Comparison
from sqtool.rollout.matching import Matcher

MARGIN = 0.02


def fed(arms: np.ndarray, values: np.ndarray, margin: float = MARGIN) -> Comparison:
    comparison = Comparison(margin)
    for arm, value in zip(arms.tolist(), values.astype(float).tolist(), strict=True):
        comparison.add(arm, value)
    return comparison


def terms_of(arms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The differences that the matcher makes of them."""
    matcher = Matcher()
    terms = (matcher.add(a, v) for a, v in zip(arms.tolist(), values.astype(float).tolist(), strict=True))
    return np.array([term.difference for term in terms if term is not None])


def pairs(n: int, low: float, high: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(arms, values, differences) of n requests on each arm in turn."""
    rng = np.random.default_rng(seed)
    values = np.column_stack((rng.random(n) < low, rng.random(n) < high)).ravel()
    arms = np.arange(2 * n) % 2 == 1
    return arms, values, terms_of(arms, values)


@pytest.mark.parametrize(("low", "high", "seed"), [(0.05, 0.05, 1), (0.05, 0.09, 2), (0.3, 0.25, 3), (0.0, 0.0, 4)])
def test_evidence_is_that_of_the_gates_sequence(low: float, high: float, seed: int) -> None:
    arms, values, differences = pairs(1500, low, high, seed)
    evidence = fed(arms, values).evidence(0.05, 0.05)
    assert evidence.terms == len(differences) > 1490
    assert evidence.p_harm == pytest.approx(anytime_p(differences, -1, 1)[-1])
    assert evidence.p_no_harm == pytest.approx(anytime_p(MARGIN - differences, MARGIN - 1, MARGIN + 1)[-1])
    assert evidence.difference == pytest.approx(differences.mean())
    # The interval is that of the last term: never tighter than the intersection over all of them.
    lower, upper = sequence_bounds(differences, np.ones(len(differences)), -1, 1, 1, 0.05)
    assert evidence.lower <= max(lower, 0.0) + 1e-8 if evidence.p_harm <= 0.05 else evidence.lower <= lower + 1e-8
    assert evidence.upper >= min(upper, MARGIN) - 1e-8
    assert evidence.lower <= differences.mean() <= evidence.upper


def test_the_ends_are_where_the_wealth_meets_alpha() -> None:
    arms, values, differences = pairs(1000, 0.1, 0.1, 5)
    evidence = fed(arms, values, 0.5).evidence(0.05, 0.01)
    assert log_wealth(differences - evidence.lower, -1 - evidence.lower, 1 - evidence.lower)[-1] == pytest.approx(
        math.log(20), abs=1e-4
    )
    upper = log_wealth(evidence.upper - differences, evidence.upper - 1, evidence.upper + 1)[-1]
    assert upper == pytest.approx(math.log(100), abs=1e-4)


def test_shares_of_users_are_rounded_outwards_only() -> None:
    rng = np.random.default_rng(6)
    n = 800
    arms = np.arange(2 * n) % 2 == 1
    values = rng.binomial(7, 0.2, 2 * n) / 7
    differences = terms_of(arms, values)
    evidence = fed(arms, values, 0.5).evidence(0.05, 0.05)
    for bound, sign in ((evidence.lower, 1), (evidence.upper, -1)):
        centred = sign * (differences - bound)
        wealth = log_wealth(centred, -1 - sign * bound, 1 - sign * bound)[-1]
        assert math.log(20) <= wealth + 1e-6 <= math.log(20) + 0.2


def test_nothing_yet() -> None:
    evidence = Comparison(MARGIN).evidence(0.05, 0.05)
    assert (evidence.difference, evidence.lower, evidence.upper, evidence.p_harm, evidence.p_no_harm) == (
        None,
        -1,
        1,
        1,
        1,
    )


def test_asking_in_between_changes_nothing() -> None:
    arms, values, _ = pairs(700, 0.1, 0.12, 7)
    once, often = Comparison(MARGIN), Comparison(MARGIN)
    for number, (arm, value) in enumerate(zip(arms.tolist(), values.tolist(), strict=True)):
        once.add(arm, float(value))
        often.add(arm, float(value))
        if number % 97 == 0:
            often.evidence(0.05, 0.05)
    first, second = once.evidence(0.05, 0.05), often.evidence(0.05, 0.05)
    assert first.p_harm == pytest.approx(second.p_harm)
    assert first.lower == pytest.approx(second.lower)


def test_false_alarms_with_a_look_after_every_request() -> None:
    """A small benchmarks/rollout/false_alarms.py: p-values never rise, so the last says whether any look alarmed."""
    rng = np.random.default_rng(8)
    runs, n = 120, 2000
    shown = {"harm": 0, "no_harm": 0, "found": 0, "z": 0}
    for _ in range(runs):
        arms, draws = rng.random(n) < 0.5, rng.random(n)
        bad = draws < 0.05
        shown["harm"] += fed(arms, bad).evidence(0.05, 0.05).p_harm <= 0.05
        at_margin = fed(arms, draws < np.where(arms, 0.05 + MARGIN, 0.05))
        shown["no_harm"] += at_margin.evidence(0.05, 0.05).p_no_harm <= 0.05
        shown["found"] += fed(arms, draws < np.where(arms, 0.15, 0.05)).evidence(0.05, 0.05).p_harm <= 0.05
        ones, zeros = np.cumsum(arms)[99:], np.cumsum(~arms)[99:]
        hits, others = np.cumsum(bad & arms)[99:], np.cumsum(bad & ~arms)[99:]
        pooled = (hits + others) / (ones + zeros)
        error = np.sqrt(pooled * (1 - pooled) * (1 / ones + 1 / zeros))
        shown["z"] += bool(np.any(hits / ones - others / zeros > 1.645 * error))
    for name in ("harm", "no_harm"):
        assert binomtest(shown[name], runs, 0.05, alternative="greater").pvalue > 0.01, shown
    assert shown["found"] >= 0.95 * runs
    assert shown["z"] > 0.15 * runs, "the repeated z test alarms far too often, which is why it is not used"


def test_a_drifting_rate_under_a_changing_split_is_no_harm() -> None:
    rng = np.random.default_rng(9)
    n, alarms = 6000, 0
    day = np.linspace(0, 1, n)
    for _ in range(20):
        arms = rng.random(n) < 0.02 + 0.48 * day
        alarms += fed(arms, rng.random(n) < 0.03 + 0.2 * day).evidence(0.05, 0.05).p_harm <= 0.05
    assert alarms <= 3  # the pooled means differ by 5 points here
