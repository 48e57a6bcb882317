"""Power figures against brute force and against the design's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sqtool.gate.intervals import tango
from sqtool.gate.power import (
    items_needed,
    items_without_flips,
    minimum_detectable_drop,
    passes,
    plan_gate,
    power_to_pass,
    power_to_refuse,
    smallest_margin,
)
from sqtool.gate.tests import mcnemar_exact

Z95 = float(stats.norm.ppf(0.95))


def brute_force(n: int, discordance: float, drop: float, accepted: object) -> float:
    gain, loss = discordance / 2, discordance / 2 + drop
    total = 0.0
    for gains in range(n + 1):
        for losses in range(n + 1 - gains):
            if accepted(gains, losses):  # type: ignore[operator]
                cells = [gains, losses, n - gains - losses]
                total += float(stats.multinomial.pmf(cells, n, [gain, loss, 1 - gain - loss]))
    return total


def test_power_to_pass_is_exact() -> None:
    expected = brute_force(60, 0.1, 0.05, lambda g, k: tango(g, k, 60, Z95)[0] > -0.15)
    assert power_to_pass(60, 0.15, 0.1, drop=0.05) == pytest.approx(expected, abs=1e-9)


def test_power_to_refuse_is_exact() -> None:
    expected = brute_force(60, 0.1, 0.2, lambda g, k: mcnemar_exact(g, k) <= 0.05 and g - k <= -0.15 * 60)
    assert power_to_refuse(60, 0.15, 0.1, drop=0.2) == pytest.approx(expected, abs=1e-9)


def test_passes_agrees_with_the_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        n = int(rng.integers(20, 2000))
        gains, losses = (int(rng.integers(0, n // 8 + 1)) for _ in range(2))
        margin = float(rng.uniform(0.005, 0.1))
        expected = tango(gains, losses, n, Z95)[0] > -margin
        assert bool(passes(np.array([float(gains)]), np.array([float(losses)]), n, margin, 0.05)[0]) == expected


def test_without_flips() -> None:
    assert items_without_flips(0.01) == 299
    assert items_without_flips(0.02) == 149
    assert items_needed(0.02, 0.0) == 149
    assert power_to_pass(148, 0.02, 0.0) == 0.0
    # The score bound alone would do with these:
    for margin, n in ((0.01, 268), (0.02, 133)):
        assert tango(0, 0, n, Z95)[0] > -margin > tango(0, 0, n - 1, Z95)[0]


def test_exact_items_lie_above_the_normal_theory() -> None:
    """Normal theory asks for 619 items at 1 % discordance and a 1-point margin; there are only about six flips among
    them, and the exact sum shows that they give 67 %, not 80 %."""
    normal = math.ceil((Z95 + stats.norm.ppf(0.8)) ** 2 * 0.01 / 0.01**2)
    assert normal == 619
    assert power_to_pass(619, 0.01, 0.01) == pytest.approx(0.674, abs=0.005)
    needed = items_needed(0.01, 0.01)
    assert needed is not None
    assert power_to_pass(needed, 0.01, 0.01) >= 0.8
    assert 780 < needed < 830
    dense = items_needed(0.02, 0.10)
    assert dense is not None
    assert dense == pytest.approx((Z95 + stats.norm.ppf(0.8)) ** 2 * 0.10 / 0.02**2, rel=0.02)


def test_false_accept_rate_is_near_alpha() -> None:
    """At a true drop equal to the margin, with changes both ways, Tango's rate is alpha to within its known error."""
    for n in (200, 500, 1000, 3000):
        for discordance in (0.01, 0.03, 0.1):
            assert power_to_pass(n, 0.02, discordance, drop=0.02) < 0.0515


def test_minimum_detectable_drop_and_smallest_margin() -> None:
    drop = minimum_detectable_drop(500, 0.02, 0.03)
    assert drop is not None
    assert power_to_refuse(500, 0.02, 0.03, drop=drop) >= 0.8 > power_to_refuse(500, 0.02, 0.03, drop=drop - 2e-3)
    margin = smallest_margin(500, 0.03)
    assert margin is not None
    assert power_to_pass(500, margin, 0.03) >= 0.8
    assert minimum_detectable_drop(2, 0.02, 0.01) is None
    assert items_needed(0.02, 0.01, drop=0.02) is None


def test_plan_of_a_gate() -> None:
    plan = plan_gate({"a.x": 0.02, "b.x": 0.02}, {"a.x": 500, "b.x": 300}, discordances=(0.01,))
    chances = [row.power_to_pass for row in plan.rows]
    low, free = plan.all_pass[0.01]
    assert low == pytest.approx(sum(chances) - 1)
    assert free == pytest.approx(chances[0] * chances[1])
    assert plan.to_dict()["power"] == 0.8
