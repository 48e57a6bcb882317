"""Users become one unit each, in the order in which they came; units of two arms become differences."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.rollout.matching import MOST, WAITING, Matcher
from sqtool.rollout.record import Record
from sqtool.rollout.rules import Rules, metrics_of
from sqtool.rollout.units import Unit, Units


def units(window_s: float = 60) -> Units:
    return Units([lambda r: r.corrected, lambda r: r.retried], window_s)


def asked(time: float, user: str | None, corrected: bool | None = None, arm: str = "a") -> Record:
    return Record(arm, time, cluster=user, corrected=corrected)


def test_a_request_without_a_user_is_a_unit_at_once() -> None:
    found = units()
    assert found.add(asked(0, None, True)) == [Unit("a", (1.0, None))]
    assert (found.alone, found.clusters, [found.known(0), found.known(1)]) == (1, 0, [True, False])


def test_a_user_counts_once_by_the_share_within_the_window() -> None:
    found = units()
    assert found.add(asked(0, "u", True)) == []
    assert found.add(asked(30, "u", False)) == []
    assert found.add(asked(59, "u", None)) == []  # says nothing: not in the share
    assert found.add(asked(60, "v", True)) == [Unit("a", (0.5, None))]
    assert found.add(asked(61, "u", True)) == []
    assert (found.later, found.open, found.clusters) == (1, 1, 2)


def test_units_close_in_the_order_in_which_they_opened() -> None:
    found = units()
    found.add(asked(0, "first", True))
    found.add(asked(1, "second", False))
    found.add(asked(50, "first", True))
    assert found.add(asked(1000, None)) == [Unit("a", (1.0, None)), Unit("a", (0.0, None)), Unit("a", (None, None))]


def test_a_user_of_two_arms_belongs_to_the_first() -> None:
    found = units()
    found.add(asked(0, "u", False, "a"))
    found.add(asked(1, "u", True, "b"))
    assert found.add(asked(99, None, arm="c"))[0] == Unit("a", (0.0, None))
    assert found.elsewhere == 1


def test_a_clock_that_steps_back_opens_no_window_twice() -> None:
    found = units()
    found.add(asked(100, "u", True))
    found.add(asked(10, "v", True))  # counts from the newest time seen
    assert [unit.arm for unit in found.add(asked(160, None))] == ["a", "a", "a"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans()), max_size=60))
def test_each_user_is_at_most_one_unit_with_a_share(events: list[tuple[int, int, bool]]) -> None:
    found, done, now = units(), [], 0
    for user, step, corrected in events:
        now += step
        done += found.add(asked(now, f"u{user}", corrected))
    done += [u for u in found.add(asked(now + 61, None)) if u.values[0] is not None]
    assert len([u for u in done if u.values[0] is not None]) == len({user for user, _, _ in events})
    assert all(0 <= u.values[0] <= 1 for u in done if u.values[0] is not None)


def matched(arms: list[bool], values: list[float]) -> list[tuple[float, float]]:
    matcher = Matcher()
    return [tuple(t) for a, v in zip(arms, values, strict=True) if (t := matcher.add(a, v)) is not None]  # type: ignore[misc]


def test_pairs_of_neighbours_at_an_even_split() -> None:
    arms = [False, True] * 5
    assert matched(arms, [0.0, 1.0] * 5) == [(0.0, 1.0)] * 5


@pytest.mark.parametrize(("split", "kept"), [(0.5, 0.9), (0.4, 0.85), (0.2, 0.85), (0.05, 0.85)])
def test_hardly_anything_is_lost_at_any_split(split: float, kept: float) -> None:
    """Precision of the mean of the terms, against that of the difference of the two means."""
    rng = random.Random(3)
    arms = [rng.random() < split for _ in range(20_000)]
    matcher, blocks = Matcher(), 0
    # With values of variance 1 a term's variance is 1/k_baseline + 1/k_candidate: read from two runs with unit values.
    for arm in arms:
        blocks += matcher.add(arm, 0.0) is not None
    n1 = sum(arms)
    best = 1 / (1 / n1 + 1 / (len(arms) - n1))
    ratio = max(n1, len(arms) - n1) / min(n1, len(arms) - n1)
    achieved = blocks / (1 + 1 / ratio)
    assert kept <= achieved / best <= 1.01


def test_blocks_never_depend_on_the_values() -> None:
    rng = random.Random(1)
    arms = [rng.random() < 0.3 for _ in range(3000)]
    plain, other = Matcher(), Matcher()
    for arm in arms:
        assert (plain.add(arm, rng.random()) is None) == (other.add(arm, float(rng.random() < 0.1)) is None)


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 2**32))
def test_no_value_is_used_twice_and_none_is_made_up(arms: list[bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    matcher, used = Matcher(), [0.0, 0.0]
    total = [0.0, 0.0]
    for arm in arms:
        value = float(rng.random())
        total[arm] += value
        before = list(matcher._need)
        term = matcher.add(arm, value)
        if term is not None:
            assert -1 <= term.difference <= 1
            used[0] += term.baseline * before[0]
            used[1] += term.candidate * before[1]
    assert used[0] <= total[0] + 1e-9
    assert used[1] <= total[1] + 1e-9


def test_waiting_is_bounded_and_the_oldest_goes() -> None:
    matcher = Matcher()
    for number in range(5000):
        assert matcher.add(False, number / 5000) is None
    assert len(matcher._waiting[0]) <= WAITING + 4 * MOST
    assert matcher.unmatched >= 5000 - WAITING - 4 * MOST
    term = matcher.add(True, 1.0)
    assert term is not None
    assert term.baseline > 0.9, "the neighbours in time, not the first of the day"


def test_slo_of_requests_that_failed_or_were_given_up() -> None:
    rules = Rules.model_validate({"margins": {}, "slo": {"e2e_ms": {"limit": 100}, "ttft_ms": {"limit": 50}}})
    e2e, ttft = (metric.bad for metric in metrics_of(rules))
    base = {"arm": "a", "timestamp": 0.0}
    assert (e2e(Record(**base, e2e_ms=100)), e2e(Record(**base, e2e_ms=101)), e2e(Record(**base))) == (
        False,
        True,
        None,
    )
    assert (e2e(Record(**base, failed=True)), ttft(Record(**base, failed=True))) == (True, True)
    assert (e2e(Record(**base, e2e_ms=99, cancelled=True)), e2e(Record(**base, e2e_ms=101, cancelled=True))) == (
        None,
        True,
    )
    assert ttft(Record(**base, e2e_ms=60, cancelled=True)) is True
    assert ttft(Record(**base, e2e_ms=40, cancelled=True)) is None
    assert ttft(Record(**base, ttft_ms=40, e2e_ms=60, cancelled=True)) is False
