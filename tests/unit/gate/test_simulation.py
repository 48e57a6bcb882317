"""A small seeded simulation of the error rates; benchmarks/gate/simulate.py runs the large one."""

from __future__ import annotations

import numpy as np
import pytest

from sqtool.gate.compare import compare, decide
from sqtool.gate.intervals import Floats, Ints
from sqtool.gate.multiplicity import holm
from sqtool.gate.spec import MetricRule

RULE = MetricRule(max_drop=0.05)
ALPHA = 0.05


def outcomes(draws: list[list[tuple[Floats, Floats, Ints | None]]]) -> list[str]:
    """The overall outcome of each draw of several metrics."""
    result = []
    for metrics in draws:
        compared = [compare(b, c, codes, RULE, ALPHA) for b, c, codes in metrics]
        adjusted = holm([c.harm.p_value for c in compared])
        decided = {decide(c, p, ALPHA)[0] for c, p in zip(compared, adjusted, strict=True)}
        result.append("REGRESSED" if "REGRESSED" in decided else "PASS" if decided == {"PASS"} else "INCONCLUSIVE")
    return result


def draw(rng: np.random.Generator, n: int, loss: float, gain: float, cluster: int = 1) -> tuple[Floats, Floats, Ints]:
    codes = np.arange(n) // cluster
    u = rng.random(codes.max() + 1)[codes]
    baseline = np.where(u < gain, 0.0, 1.0)
    candidate = np.where((u >= gain) & (u < gain + loss), 0.0, 1.0)
    return baseline, candidate, codes


@pytest.mark.parametrize(("n", "cluster"), [(300, 1), (900, 3)])
def test_false_accepts_at_a_drop_equal_to_the_margin(n: int, cluster: int) -> None:
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(1000):
        b, c, codes = draw(rng, n, 0.08, 0.03, cluster)
        draws.append([(b, c, codes if cluster > 1 else None)])
    share = outcomes(draws).count("PASS") / 1000
    assert share < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize("metrics", [1, 4])
def test_refusals_under_no_change(metrics: int) -> None:
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(1000 // metrics):
        pairs = [draw(rng, 100, 0.1, 0.1) for _ in range(metrics)]
        draws.append([(b, c, None) for b, c, _ in pairs])
    share = outcomes(draws).count("REGRESSED") / len(draws)
    assert share < 0.05 + 3 * (0.05 * 0.95 / len(draws)) ** 0.5


def test_clear_damage_is_refused_and_no_change_passes() -> None:
    rng = np.random.default_rng(3)
    ruined = [[(*draw(rng, 400, 0.2, 0.01)[:2], None)] for _ in range(100)]
    fine = [[(*draw(rng, 400, 0.01, 0.01)[:2], None)] for _ in range(100)]
    assert outcomes(ruined).count("REGRESSED") == 100
    assert outcomes(fine).count("PASS") >= 95
