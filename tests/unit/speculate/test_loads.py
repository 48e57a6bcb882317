"""Arrival times: the process that was asked for, the same in every arm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sqtool.errors import UsageError
from sqtool.speculate.loads import arrival_times, loads_of
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.traffic import Request, choose


@given(st.integers(1, 300), st.floats(0.1, 1000), st.floats(0.1, 50), st.integers(0, 2**32 - 1))
def test_the_rate_is_what_was_asked_for(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = arrival_times(count, rate, burstiness, seed)
    assert times == arrival_times(count, rate, burstiness, seed)
    assert len(times) == count
    assert times[-1] == pytest.approx(count / rate)
    assert all(a <= b for a, b in pairwise([0.0, *times]))


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_are_gamma_distributed(burstiness: float) -> None:
    gaps = np.diff([0.0, *arrival_times(4000, 10.0, burstiness, 3)])
    fitting = stats.kstest(gaps, stats.gamma(burstiness, scale=1 / (10 * burstiness)).cdf)
    assert fitting.pvalue > 0.01
    other = stats.kstest(gaps, stats.gamma(2 * burstiness, scale=1 / (20 * burstiness)).cdf)
    assert other.pvalue < 1e-6


def test_rates_share_their_pattern() -> None:
    slow, fast = (np.array(arrival_times(50, rate, 1.0, 7)) for rate in (2.0, 8.0))
    assert slow == pytest.approx(4 * fast)


def requests(times: list[float | None]) -> list[Request]:
    return [Request(f"r{i}", "k", {}, arrival_s=at) for i, at in enumerate(times)]


def test_names_and_batches() -> None:
    traffic = choose(requests([None] * 90), 90, 0, 0, single_kind_blocks=False)
    spec = SpeculateSpec(max_concurrency=(1, 8), request_rate=(0.5, 16))
    loads = {load.name: load for load in loads_of(spec, traffic, 0)}
    assert list(loads) == ["c1", "c8", "r0.5", "r16"]
    assert [len(batch) for batch in loads["c8"].batches] == [len(block) for block in traffic.blocks]
    assert [len(batch) for batch in loads["r16"].batches] == [90]  # an arrival process is not cut into pieces
    assert loads["c1"].to_dict()["arrivals_s"] is None
    assert len(loads["r16"].to_dict()["arrivals_s"]) == loads["r16"].requests == 90


def test_a_trace_keeps_its_distances() -> None:
    traffic = choose(requests([7.0, 2.5, 4.0]), 3, 0, 0, single_kind_blocks=False)
    [load] = loads_of(SpeculateSpec(max_concurrency=(), trace=True), traffic, 0)
    assert load.name == "trace"
    assert [request.id for request in load.batches[0]] == ["r1", "r2", "r0"]
    assert load.arrivals == (0.0, 1.5, 4.5)


def test_a_trace_without_times() -> None:
    traffic = choose(requests([1.0, None]), 2, 0, 0, single_kind_blocks=False)
    with pytest.raises(UsageError, match="not every request of the traffic has a timestamp"):
        loads_of(SpeculateSpec(trace=True), traffic, 0)
