"""The table's measures and intervals, against NumPy, SciPy and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sqtool.rollout.record import Record
from sqtool.rollout.table import Cell, wilson


def cell(records: list[Record]) -> Cell:
    found = Cell()
    for record in records:
        found.add(record)
    return found


def test_rates_count_only_what_is_known() -> None:
    records = [Record("a", 0, corrected=c, retried=False) for c in [True] * 3 + [False] * 7 + [None] * 5]
    told = cell(records).to_dict()
    expected = binomtest(3, 10).proportion_ci(method="wilson")
    assert told["requests"] == 15
    assert told["correction"] == {"value": 0.3, "ci": pytest.approx([expected.low, expected.high]), "n": 10}
    assert told["retry"]["value"] == 0
    assert told["acceptance"] == {"missing": "no request says whether it was accepted"}


@given(st.lists(st.floats(0.02, 1e7), min_size=1, max_size=200), st.sampled_from((0.5, 0.95, 0.99)))
def test_percentiles_are_within_one_per_cent(values: list[float], share: float) -> None:
    told = cell([Record("a", 0, e2e_ms=v) for v in values]).to_dict()["e2e_ms"][f"p{100 * share:.0f}"]
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert told["value"] == pytest.approx(exact, rel=0.0101)
    assert told["ci"][0] <= told["value"] <= told["ci"][1]
    assert told["n"] == len(values)


def test_failed_and_cancelled_requests_have_no_latency() -> None:
    records = [
        Record("a", 0, e2e_ms=10),
        Record("a", 0, e2e_ms=1, failed=True),
        Record("a", 0, e2e_ms=1, cancelled=True),
    ]
    told = cell(records).to_dict()
    assert told["e2e_ms"]["p50"]["n"] == 1
    assert told["ttft_ms"]["p50"] == {"missing": "no answered request has ttft_ms"}


def test_cost_per_accepted_answer() -> None:
    records = [Record("a", 0, accepted=n % 4 != 0, device_seconds=2.0, output_tokens=n) for n in range(400)]
    found = cell(records)
    told = found.to_dict(unit="device_seconds")
    assert told["cost_per_accepted_answer"]["value"] == pytest.approx(800 / 300)
    low, high = told["cost_per_accepted_answer"]["ci"]
    assert low < 800 / 300 < high
    priced = found.to_dict(3600.0, "device_seconds")["cost_per_accepted_answer"]
    assert priced["value"] == pytest.approx(800 / 300)
    assert found.to_dict(1.8, "device_seconds")["cost_per_accepted_answer"]["value"] == pytest.approx(800 / 300 / 2000)
    assert "not every request" in found.to_dict()["cost_per_accepted_answer"]["missing"]
    assert told["output_tokens"]["value"] == pytest.approx(199.5)
    assert found.has_all("device_seconds")
    assert not found.has_all("price")


def test_no_accepted_answer_has_no_cost() -> None:
    told = cell([Record("a", 0, accepted=False, price=1.0)]).to_dict(unit="price")
    assert told["cost_per_accepted_answer"] == {"missing": "no answer was accepted"}


def test_one_user_has_no_interval() -> None:
    told = cell([Record("a", 0, cluster="u", corrected=n % 2 == 0, e2e_ms=5, price=1) for n in range(10)]).to_dict()
    assert told["correction"]["ci"] is None
    assert told["e2e_ms"]["p95"]["ci"] is None


def test_intervals_hold_when_users_differ() -> None:
    """Of a rate, a percentile and a mean over users who differ; ignoring who asks, they are too narrow."""
    rng = np.random.default_rng(0)
    runs, hits, naive = 80, np.zeros(3), 0
    for _ in range(runs):
        records, alone = [], 0
        for user in range(150):
            rate, speed = rng.beta(0.5, 4.5), rng.normal(0, 0.5)
            for _ in range(8):
                bad = bool(rng.random() < rate)
                alone += bad
                ms = float(1000 * np.exp(speed + rng.normal(0, 0.2)))
                records.append(Record("a", 0, cluster=f"user {user}", corrected=bad, e2e_ms=ms, output_tokens=ms))
        told = cell(records).to_dict()
        mean = 1000 * np.exp((0.5**2 + 0.2**2) / 2)
        for place, (measure, true) in enumerate(
            ((told["correction"], 0.1), (told["e2e_ms"]["p50"], 1000.0), (told["output_tokens"], mean))
        ):
            hits[place] += measure["ci"][0] * 0.99 <= true <= measure["ci"][1] * 1.01
        low, high = wilson(alone / 1200, 1200, 1.96)
        naive += low <= 0.1 <= high
    assert (hits >= 0.88 * runs).all(), hits
    assert naive < 0.88 * runs


def test_no_event_among_few_users_is_not_taken_for_much_evidence() -> None:
    records = [Record("a", 0, cluster=f"u{n % 4}", corrected=False) for n in range(4000)]
    low, high = cell(records).to_dict()["correction"]["ci"]
    assert low == 0
    assert high > 0.3, "four users, not four thousand requests"
    many = [Record("a", 0, cluster=f"u{n % 1000}", corrected=False) for n in range(4000)]
    low, high = cell(many).to_dict()["correction"]["ci"]
    assert 0.0037 < high < 0.005, "a thousand users, not fifty groups"
