"""The harm tests and Holm, against scipy and statsmodels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from sqtool.gate.multiplicity import holm
from sqtool.gate.tests import harm_test, mcnemar_exact, sign_flip


@pytest.mark.parametrize(("gains", "losses"), [(0, 5), (3, 9), (6, 16), (10, 10), (200, 260)])
def test_mcnemar_against_scipy_and_statsmodels(gains: int, losses: int) -> None:
    ours = mcnemar_exact(gains, losses)
    assert ours == pytest.approx(stats.binomtest(losses, gains + losses, 0.5, alternative="greater").pvalue)
    if losses > gains:
        two_sided = mcnemar([[50, losses], [gains, 50]], exact=True).pvalue
        assert min(1.0, 2 * ours) == pytest.approx(two_sided)


def test_mcnemar_published() -> None:
    """Complete response before and after consolidation (Fagerland et al. 2017): exact conditional P = 0.052479."""
    assert 2 * mcnemar_exact(6, 16) == pytest.approx(0.052479, abs=5e-7)


def test_nothing_differs() -> None:
    same = np.array([0.0, 1.0, 1.0])
    assert harm_test(same, same, None).p_value == 1.0
    assert harm_test(same * 0.5, same * 0.5, None).p_value == 1.0


def test_sign_flip_exact_by_enumeration() -> None:
    differences = np.array([-0.5, 0.25, -0.125, 0.0, -1.0, 0.3])
    nonzero = differences[differences != 0]
    sums = [np.dot(signs, np.abs(nonzero)) for signs in itertools.product((-1, 1), repeat=len(nonzero))]
    expected = np.mean(np.array(sums) <= differences.sum() + 1e-9)
    assert sign_flip(differences) == (pytest.approx(expected), "sign_flip_exact")


def test_sign_flip_against_scipy_permutation_test() -> None:
    differences = np.random.default_rng(0).normal(-0.1, 0.3, 14)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="less", n_resamples=np.inf
    ).pvalue
    assert sign_flip(differences)[0] == pytest.approx(theirs)


def test_sign_flip_equals_mcnemar_on_binary_differences() -> None:
    assert sign_flip(np.array([-1.0] * 9 + [1.0] * 3 + [0.0] * 50))[0] == pytest.approx(mcnemar_exact(3, 9))


def test_normal_form_is_near_the_permutation_distribution() -> None:
    rng = np.random.default_rng(1)
    differences = rng.uniform(-1, 0.8, 200)
    signs = rng.choice((-1.0, 1.0), size=(40_000, 200))
    simulated = np.mean(signs @ np.abs(differences) <= differences.sum())
    p_value, name = sign_flip(differences)
    assert name == "sign_flip_normal"
    assert p_value == pytest.approx(simulated, abs=0.005)


def test_clusters_turn_together() -> None:
    baseline, candidate = np.ones(20), np.zeros(20)
    codes = np.repeat(np.arange(4), 5)
    alone, together = harm_test(baseline, candidate, None), harm_test(baseline, candidate, codes)
    assert alone.p_value == pytest.approx(0.5**20)
    assert together.p_value == pytest.approx(0.5**4)
    assert together.name == "sign_flip_exact, clusters"


@settings(deadline=None, max_examples=20)  # statsmodels takes 60 ms a call
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_against_statsmodels(p_values: list[float]) -> None:
    expected = list(multipletests(p_values, method="holm")[1]) if p_values else []
    assert holm(p_values) == pytest.approx(expected)
