"""One-sided tests of "no drop" against "worse", for the refusals.

Under "no change" the two answers to an item could be swapped, so the sign of each difference is a fair coin. Every
test here follows from that:

- scores 0 or 1, items independent: McNemar's exact test, which is that coin's binomial (not mid-p: the level holds);
- otherwise, at most 20 items (or clusters: their items' signs turn together) that differ: all sign patterns counted;
- otherwise: the same distribution's normal form, sum / sqrt(sum of squares), uncentred, which bounded symmetric
  terms approach from the conservative side (Efron 1969, JASA 64:1278-1302).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

from sqtool.gate.intervals import Floats, Ints, is_binary

ENUMERATE_UP_TO = 20


@dataclass(frozen=True)
class HarmTest:
    """One-sided p-value of "no drop", the test's name, and its normal score (for scaling to other sample sizes)."""

    p_value: float
    name: str
    z: float


def mcnemar_exact(gains: int, losses: int) -> float:
    """P(at most `gains` heads in gains + losses fair tosses); 1 when nothing differs."""
    return float(binom.cdf(gains, gains + losses, 0.5)) if gains + losses else 1.0


def sign_flip(differences: Floats) -> tuple[float, str]:
    """One-sided p-value of the summed differences under random signs; shape [n], negative means worse."""
    terms = np.sort(np.abs(differences[differences != 0]))
    if len(terms) == 0:
        return 1.0, "sign_flip_exact"
    observed = math.fsum(differences)
    if len(terms) <= ENUMERATE_UP_TO:
        sums = np.zeros(1)
        for term in terms:
            sums = np.concatenate((sums - term, sums + term))
        # Equal sums reached in another order differ in their last bits; they count as equal.
        slack = 1e-9 * float(terms.sum())
        return float(np.count_nonzero(sums <= observed + slack)) / len(sums), "sign_flip_exact"
    return float(norm.cdf(observed / math.sqrt(math.fsum(terms**2)))), "sign_flip_normal"


def harm_test(baseline: Floats, candidate: Floats, codes: Ints | None) -> HarmTest:
    """Test "no drop" on paired scores, shapes [n]; `codes` [n] numbers the clusters or is None."""
    differences = candidate - baseline
    if codes is not None:
        differences = np.bincount(codes, weights=differences).astype(np.float64)
    square = math.fsum(differences**2)
    z = math.fsum(differences) / math.sqrt(square) if square > 0 else 0.0
    if codes is None and is_binary(baseline) and is_binary(candidate):
        gains, losses = int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))
        return HarmTest(mcnemar_exact(gains, losses), "mcnemar_exact", z)
    p_value, name = sign_flip(differences)
    return HarmTest(p_value, name if codes is None else name + ", clusters", z)
