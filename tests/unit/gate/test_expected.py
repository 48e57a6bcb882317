"""Expected items and chances of stopping early: against the processes themselves and the exact fixed power."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sqtool.gate.expected import LOOK_EVERY, Paths, draw_paths, expected, harm_looks, pass_looks
from sqtool.gate.power import power_to_pass, power_to_refuse
from sqtool.gate.sequential import log_wealth


def one_path(seed: int, n: int, gain: float, loss: float) -> tuple[np.ndarray, Paths]:
    changes = np.random.default_rng(seed).choice([1.0, -1.0, 0.0], p=[gain, loss, 1 - gain - loss], size=n)
    paths = Paths(
        (changes > 0).astype(float)[None], (changes < 0).astype(float)[None], np.ones(n, dtype=np.int64), LOOK_EVERY
    )
    return changes, paths


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_paths_agree_with_the_monitors(seed: int, margin: float) -> None:
    n, target = 500, math.log(20)
    changes, paths = one_path(seed, n, 0.03, 0.06 + margin / 2)
    planned = log_wealth(changes + margin, margin - 1, margin + 1, horizon=n)
    reached = np.flatnonzero(planned >= target)
    assert pass_looks(paths, margin, 0.05)[0] == (reached[0] // LOOK_EVERY if len(reached) else len(paths.ends))
    mixture = log_wealth(-changes - margin, -margin - 1, 1 - margin)[paths.ends - 1]
    reached = np.flatnonzero(mixture >= 1.0)
    assert harm_looks(paths, margin, 1.0)[0] == (reached[0] if len(reached) else len(paths.ends))


def test_looks_end_with_the_last_item() -> None:
    for n, by_item in ((31, True), (32, False), (100, True), (100, False), (10_007, True), (50_001, False)):
        paths = draw_paths(np.random.default_rng(0), 2, n, 0.1, 0.02, 32, by_item)
        assert paths.asked[-1] == paths.sizes.sum() == n
        assert np.all(np.diff(paths.asked) > 0)
        assert len(paths.ends) <= 513


@pytest.mark.parametrize("drop", [0.0, 0.04])
def test_off_is_the_fixed_power(drop: float) -> None:
    found = expected(0.02, 400, "off", 0.03, drop, draws=20_000)
    assert found.items == 400
    assert found.chance["PASS"] == pytest.approx(power_to_pass(400, 0.02, 0.03, drop=drop), abs=0.012)
    assert found.chance["REGRESSED"] == pytest.approx(power_to_refuse(400, 0.02, 0.03, drop=drop), abs=0.012)


def test_stopping_on_regressions_saves_items_and_costs_a_pass_nothing() -> None:
    off, regressed = (expected(0.02, 1000, mode, 0.03) for mode in ("off", "regressed"))
    assert abs(regressed.chance["PASS"] - off.chance["PASS"]) < 0.02
    clear = expected(0.02, 1000, "regressed", 0.05, 0.20)
    assert clear.chance["REGRESSED"] == 1
    assert clear.items < 150
    assert clear.items_if["PASS"] is None


def test_an_early_pass_costs_no_more_than_the_best_single_bet() -> None:
    """Which reaches 80 % at 1,084 items, told the discordance beforehand."""
    found = expected(0.01, 1084, "both", 0.01, draws=8000)
    assert found.chance["PASS"] > 0.79
    assert found.items < 760


def test_false_accepts_and_refusals_stay_below_alpha() -> None:
    for mode in ("regressed", "both"):
        assert expected(0.02, 600, mode, 0.04, 0.02, draws=8000).chance["PASS"] <= 0.05 + 0.008
        assert expected(0.02, 600, mode, 0.10, 0.0, draws=8000).chance["REGRESSED"] <= 0.05 + 0.008


def test_equal_arguments_equal_results() -> None:
    assert expected(0.02, 300, "both", 0.03) == expected(0.02, 300, "both", 0.03)
    assert expected(0.02, 300, "both", 0.03) != expected(0.02, 300, "both", 0.03, seed=1)
    assert expected(0.02, 40, "both", 0.0).chance["INCONCLUSIVE"] == 1
    assert sum(expected(0.02, 300, "both", 0.3, 0.9).chance.values()) == pytest.approx(1)
