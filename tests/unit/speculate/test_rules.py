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
        "control": {"c8": {"cost_per_accepted_answer": {"gain": 0.8, "ci": [0.7, 0.9], "steady": False}}},
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
    assert (p99["noise"], p99["judged_on"]) == (1.0, p99["ci"])
    assert (cost["arm"], cost["against"]) == ("both", "quantized")


def test_a_p99_without_an_interval_says_what_it_needs() -> None:
    [entry] = judge(RulesSpec(max_p99_ratio=1.1), report((0.0, None), (1.25, None)))
    assert (entry["status"], entry["reason"]) == (NOT_SHOWN, "an interval of p99 needs 368 distinct requests")


def test_a_machine_that_is_not_steady_decides_less() -> None:
    # The interval is [0.625, 1]; two runs of the baseline differ by 1.25.
    for limit, status in ((0.4, EXCEEDED), (0.55, NOT_SHOWN), (1.1, NOT_SHOWN), (1.3, KEPT)):
        [entry] = judge(RulesSpec(max_cost_ratio=limit), report((0.0, None), (1.25, [1.0, 1.6])))
        assert entry["noise"] == pytest.approx(1.25)
        assert entry["judged_on"] == pytest.approx([0.5, 1.25])
        assert entry["status"] == status
        assert ("differ 1.25 times" in entry["reason"]) == (status == NOT_SHOWN)


def test_a_gain_that_may_be_nothing_bounds_no_ratio() -> None:
    [entry] = judge(RulesSpec(max_cost_ratio=5.0), report((0.0, None), (1.25, [0.0, 1.6])))
    assert (entry["value"], entry["ci"], entry["status"]) == (0.8, None, NOT_SHOWN)


def sent(requests: int, failed: int) -> dict[str, Any]:
    return {"loads": {"c8": {"requests": requests, "failures": {"count": failed, "examples": []}}}}


@pytest.mark.parametrize(
    ("both", "quantized", "reason"),
    [
        (25, 0, "25 of 400 requests failed"),
        (25, 30, "25 of 400 requests failed"),  # 1 % and more: p99 is among those that are not known
        (4, 4, "4 of 400 requests failed"),
        (1, 0, "1 of 400 requests failed"),
        (3, 3, ""),
        (0, 3, ""),
        (0, 0, ""),
    ],
)
def test_requests_that_failed_are_slow_ones_that_no_percentile_shows(both: int, quantized: int, reason: str) -> None:
    """The 25 slowest time out, and p99 of the rest is better than ever: [0.625, 1] times."""
    value = report((0.0, None), (1.25, [1.0, 1.6]))
    value["arms"] = {"both": sent(400, both), "quantized": sent(400, quantized)}
    p99, cost = judge(RulesSpec(max_p99_ratio=1.1, max_cost_ratio=1.3), value)
    assert (p99["ok"], p99["status"], p99["reason"]) == (not reason, NOT_SHOWN if reason else KEPT, reason)
    assert (p99["value"], p99["ci"]) == (0.8, [0.625, 1.0]), "the figures of those that were answered"
    assert cost["ok"], "a failed request has its time in the cost, and nothing accepted"


def test_failures_of_speculation_alone_are_held_to_the_baselines() -> None:
    over = {"speculative": {"against": "baseline", "gain": 1.25, "ci": [1.0, 1.6]}}
    value = {
        **report((0.0, None), (1.0, None)),
        "arms": {"speculative": sent(800, 2), "baseline": sent(400, 0)},
        "interaction": {"c8": {"e2e_p99": {"over_plain": over}}},
    }
    [entry] = judge(RulesSpec(max_p99_ratio=1.1), value)
    assert (entry["against"], entry["reason"]) == ("baseline", "2 of 800 requests failed")


def test_a_missing_measure_keeps_no_rule() -> None:
    empty = {
        "arms": {"speculative": {}},
        "loads": ["c8"],
        "acceptance_change": None,
        "interaction": {"c8": {}},
        "control": {},
    }
    entries = judge(RulesSpec(max_acceptance_drop=0.1, max_p99_ratio=2, max_cost_ratio=2), empty)
    assert [(e["value"], e["ok"], e["status"]) for e in entries] == [(None, False, NOT_SHOWN)] * 3
    assert {e["arm"] for e in entries} == {"speculative"}
