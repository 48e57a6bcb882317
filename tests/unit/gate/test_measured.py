"""The measured discordance: its interval against scipy's and its coverage, and the plan that follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sqtool.errors import DataError
from sqtool.gate.measured import Measured, discordance_interval, measure
from sqtool.gate.plan import PlannedTask, plan
from sqtool.gate.power import items_needed, joint, minimum_detectable_drop, power_to_pass
from sqtool.gate.records import load
from sqtool.gate.spec import GateSpec

Write = Callable[..., Path]
GATE = GateSpec.model_validate({"metrics": {"recall.m": 0.02}})


@given(st.integers(1, 400), st.data(), st.sampled_from([0.005, 0.05, 0.1]))
def test_the_interval_is_clopper_and_pearsons(n: int, data: st.DataObject, alpha: float) -> None:
    count = data.draw(st.integers(0, n))
    squares = np.array([1.0] * count + [0.0] * (n - count))
    lower, upper, name = discordance_interval(squares, 1.0, alpha)
    expected = stats.binomtest(count, n).proportion_ci(1 - 2 * alpha, method="exact")
    assert (lower, upper) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))
    assert name == "clopper_pearson"


def test_no_change_at_all_still_has_an_upper_bound() -> None:
    assert discordance_interval(np.zeros(100), 1.0, 0.05)[:2] == (0.0, pytest.approx(1 - 0.05 ** (1 / 100)))
    lower, upper, _ = discordance_interval(np.ones(100), 1.0, 0.05)
    assert (lower, upper) == (pytest.approx(0.05 ** (1 / 100)), 1.0)


@given(st.integers(10, 200), st.data())
def test_clusters_widen_it(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    squares = np.array([1.0] * count + [0.0] * (n - count))
    alone, together = (discordance_interval(squares, effect, 0.05) for effect in (1.0, 2.5))
    assert together[0] <= alone[0] <= count / n <= alone[1] <= together[1]


def test_scores_between_have_the_bounded_score_interval() -> None:
    squares = np.array([0.0] * 50 + [0.01] * 30 + [0.25] * 20)
    lower, upper, name = discordance_interval(squares, 1.0, 0.05)
    assert name == "bounded_score"
    assert 0 < lower < float(squares.mean()) < upper < 1


def pilot(write: Write, gains: int, losses: int, n: int, full: int, spec: GateSpec = GATE, **other: object) -> Measured:
    left = [0.0] * gains + [1.0] * (n - gains)
    right = [1.0] * gains + [0.0] * losses + [1.0] * (n - gains - losses)
    items = load(write("items", {"m": [1.0] * full}, **other) / "recall.jsonl", with_fields=True)
    planned = plan(spec, {"recall": PlannedTask(items, measured=False)})
    return measure(spec, planned, write("a", {"m": left}), write("b", {"m": right}))


def test_the_plan_at_what_was_measured(write_records: Write) -> None:
    found = pilot(write_records, 1, 3, 100, 600)
    (metric,) = found.metrics
    assert (metric.items, metric.improved, metric.worsened, metric.difference) == (100, 1, 3, pytest.approx(-0.02))
    assert metric.discordance == 0.04
    expected = stats.binomtest(4, 100).proportion_ci(0.9, method="exact")
    assert (metric.lower, metric.upper) == (pytest.approx(expected.low), pytest.approx(expected.high))
    for row, discordance in ((metric.at_estimate, 0.04), (metric.at_upper, metric.upper)):
        assert (row.items, row.margin, row.discordance) == (600, 0.02, discordance)
        assert row.power_to_pass == power_to_pass(600, 0.02, discordance)
        assert row.detectable_drop == minimum_detectable_drop(600, 0.02, discordance, alpha=0.04)
        assert row.items_for_power == items_needed(0.02, discordance)
    assert found.all_pass == joint([metric.at_estimate.power_to_pass])
    assert found.all_pass_at_upper == joint([metric.at_upper.power_to_pass])
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["metrics"][0]["upper"] == metric.upper


def test_required_slices_must_pass_as_well(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": 0.02}, "slices": [{"field": "kind", "require": "pass"}]})
    found = pilot(write_records, 1, 1, 100, 600, spec, kinds=["a"] * 400 + ["b"] * 200)
    chances = [power_to_pass(n, 0.02, 0.02) for n in (600, 400, 200)]
    assert found.all_pass == joint(chances)


def test_a_relative_margin_is_absolute_after_a_pilot(write_records: Write) -> None:
    spec = GateSpec.model_validate({"metrics": {"recall.m": {"relative": 0.05}}})
    (metric,) = pilot(write_records, 20, 0, 100, 600, spec).metrics
    assert metric.at_estimate.margin == pytest.approx(0.05 * 0.8)


def test_clusters_cost_items(write_records: Write) -> None:
    n = 120
    clusters = [f"c{k // 4}" for k in range(n)]
    left = write_records("a", {"m": [1.0] * n}, clusters=clusters)
    right = write_records("b", {"m": [0.0] * 8 + [1.0] * (n - 8)}, clusters=clusters)
    planned = plan(GATE, {"recall": PlannedTask(load(left / "recall.jsonl"), measured=True)})
    (metric,) = measure(GATE, planned, left, right).metrics
    assert (metric.items, metric.clusters) == (n, n // 4)
    row = metric.at_estimate
    assert row.items == n, "as many as there are, though they count as 30"
    assert row.power_to_pass == power_to_pass(30, 0.02, metric.discordance)
    assert row.items_for_power == math.ceil(4 * (items_needed(0.02, metric.discordance) or 0))


def test_records_that_do_not_pair(write_records: Write) -> None:
    left, right = write_records("a", {"m": [1.0] * 20}), write_records("b", {"m": [1.0] * 19})
    planned = plan(GATE, {"recall": PlannedTask(load(left / "recall.jsonl"), measured=True)})
    with pytest.raises(DataError, match="are missing"):
        measure(GATE, planned, left, right)
