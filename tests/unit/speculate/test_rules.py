"""Rules are judged on intervals."""

from __future__ import annotations

from typing import Any

import pytest

from sqtool.speculate.rules import EXCEEDED, KEPT, NOT_SHOWN, judge
from sqtool.speculate.spec import RulesSpec


def report(drop: tuple[float, list[float] | None], gain: tuple[float, list[float] | None]) -> dict[str, Any]:
    over = {"both": {"against": "quantized", "gain": gain[0], "ci": gain[1]}}
    change = {"overall": {"acceptance_rate": {"value": -drop[0], "ci": drop[1]}}}
    return {
        "arms": {"both": {}},
        "loads": ["c8"],
        "acceptance_change": {"c8": change},
        "interaction": {"c8": {"e2e_p99": {"over_plain": over}, "cost_per_accepted_answer": {"over_plain": over}}},
    }


def test_only_the_rules_that_are_set() -> None:
    assert judge(RulesSpec(), report((0.1, None), (1.0, None))) == []
    assert judge(None, report((0.1, None), (1.0, None))) == []


@pytest.mark.parametrize(
    ("change", "status"),
    [([-0.08, -0.02], KEPT), ([-0.12, -0.02], NOT_SHOWN), ([-0.2, -0.11], EXCEEDED), (None, NOT_SHOWN)],
)
def test_acceptance_drop(change: list[float] | None, status: str) -> None:
    [entry] = judge(RulesSpec(max_acceptance_drop=0.1), report((0.05, change), (1.0, None)))
    assert (entry["status"], entry["ok"]) == (status, status == KEPT)
    assert (entry["value"], entry["limit"], entry["against"]) == (0.05, 0.1, "speculative")
    assert bool(entry["reason"]) == (status != KEPT)
    if change is not None:
        assert entry["ci"] == [-change[1], -change[0]]


def test_ratios_are_the_inverse_of_gains() -> None:
    rules = RulesSpec(max_p99_ratio=1.1, max_cost_ratio=0.5)
    p99, cost = judge(rules, report((0.0, None), (1.25, [1.0, 1.6])))
    assert (p99["value"], p99["ci"], p99["status"]) == (0.8, [0.625, 1.0], KEPT)
    assert (cost["status"], cost["arm"], cost["against"]) == (EXCEEDED, "both", "quantized")


def test_a_missing_measure_keeps_no_rule() -> None:
    empty = {"arms": {"speculative": {}}, "loads": ["c8"], "acceptance_change": None, "interaction": {"c8": {}}}
    entries = judge(RulesSpec(max_acceptance_drop=0.1, max_p99_ratio=2, max_cost_ratio=2), empty)
    assert [(e["value"], e["ok"], e["status"]) for e in entries] == [(None, False, NOT_SHOWN)] * 3
    assert {e["arm"] for e in entries} == {"speculative"}
