"""The time of a log does not follow single lines with a wrong clock, and goes over gaps."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.rollout import Rules, read_rollout
from sqtool.rollout.clock import AGREE, FAR, Clock
from sqtool.rollout.reading import Source, records
from sqtool.rollout.record import Record
from sqtool.rollout.units import Unit, Units
from tests.unit.rollout.conftest import WriteLog

YEARS = 10 * 365 * 86_400.0


def told(times: list[float]) -> tuple[list[tuple[float, float, int]], Clock[int]]:
    clock: Clock[int] = Clock()
    return [placed for number, time in enumerate(times) for placed in clock.tell(time, number)], clock


def test_near_times_are_taken_as_they_come() -> None:
    placed, clock = told([100, 90, 130, 130 + FAR])
    assert placed == [(100, 0, 0), (100, -10, 1), (130, 0, 2), (130 + FAR, 0, 3)]
    assert clock.waiting == []


def test_a_time_far_ahead_waits_and_is_placed_where_the_others_are() -> None:
    placed, clock = told([100, 100 + YEARS])
    assert placed == [(100, 0, 0)]
    assert [item for _, item in clock.waiting] == [1]
    placed, clock = told([100, 100 + YEARS, 110])
    assert placed == [(100, 0, 0), (100, YEARS, 1), (110, 0, 2)]
    assert clock.waiting == []


def test_a_gap_is_one_when_enough_requests_agree() -> None:
    times = [100.0, *(3 * FAR + n for n in range(AGREE - 1))]
    assert len(told(times)[0]) == 1
    placed, clock = told([*times, 3 * FAR + 50])
    assert placed == [(100, 0, 0), *((t, 0, n) for n, t in enumerate(times) if n), (3 * FAR + 50, 0, AGREE)]
    assert clock.waiting == []


def test_a_wrong_time_after_a_gap_is_found_as_well() -> None:
    times = [100.0, YEARS, *(3 * FAR + n for n in range(AGREE))]
    placed, clock = told(times)
    assert clock.now == 3 * FAR + AGREE - 1
    assert [number for _, off, number in placed if off > 0] == [1]


def test_a_first_line_with_a_wrong_clock_is_overruled() -> None:
    placed, clock = told([YEARS, *(100.0 + n for n in range(AGREE)), 200, 150])
    assert [off for _, off, _ in placed[-2:]] == [0, -50]
    assert clock.now == YEARS + 200 - (100 + AGREE - 1), "it goes on and never back"


def test_requests_that_are_days_apart_are_all_placed_in_turn() -> None:
    placed, clock = told([2 * FAR * n for n in range(100)])
    assert placed == [(2 * FAR * n, 0, n) for n in range(100 - AGREE + 1)]
    assert len(clock.waiting) == AGREE - 1


@given(st.lists(st.floats(0, 1e12), max_size=80))
def test_every_request_is_placed_once_and_the_clock_never_goes_back(times: list[float]) -> None:
    placed, clock = told(times)
    assert sorted([*(item for _, _, item in placed), *(item for _, item in clock.waiting)]) == list(range(len(times)))
    assert [now for now, _, _ in placed] == sorted(now for now, _, _ in placed)
    assert len(clock.waiting) < AGREE


@pytest.mark.parametrize("wrong", [YEARS, 0.0])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_windows_close_though_a_replicas_clock_is_wrong(wrong: float, share: float) -> None:
    rng = random.Random(5)
    units, done = Units([lambda r: r.corrected], 60), 0
    for n in range(5000):
        time = wrong + n if rng.random() < share else 1.79e9 + n
        done += len(units.add(Record("a", time, cluster=f"u{n // 5}", corrected=False)))
    assert done > 950


def visits(n: int, start: float = 1.79e9) -> list[Record]:
    rng = random.Random(2)
    return [
        Record("a", start + 7 * i, cluster=f"u{start}-{i // 6 + rng.randrange(9)}", corrected=rng.random() < 0.3)
        for i in range(n)
    ]


def completed(found: list[Record]) -> list[Unit]:
    units = Units([lambda r: r.corrected], 60)
    return [unit for record in found for unit in units.add(record) if unit.arm == "a"]


@given(st.integers(1, 99))
def test_one_line_years_ahead_changes_nothing_for_the_others(place: int) -> None:
    log = visits(100)
    wrong = Record("b", 1.79e9 + YEARS, cluster="w")
    assert completed([*log[:place], wrong, *log[place:]]) == completed(log)


def test_a_first_line_years_ahead_delays_and_does_not_stop() -> None:
    log = visits(300)
    wrong = Record("b", 1.79e9 + YEARS, cluster="w")
    found = completed([wrong, *log])
    assert len(found) == pytest.approx(len(completed(log)), abs=2)


@pytest.mark.parametrize("after", [AGREE, 100])
def test_a_quiet_weekend_ends_all_visits_before_it(after: int) -> None:
    friday, monday = visits(100), visits(100, 1.79e9 + 3 * FAR)[:after]
    opened = len({record.cluster for record in friday})
    assert len(completed(friday)) < opened
    assert len(completed([*friday, *monday])) == opened + len(completed(monday))


def test_a_visit_that_waits_is_counted_as_one() -> None:
    units = Units([lambda r: r.corrected], 60)
    units.add(Record("a", 0.0, cluster="u", corrected=True))
    for n in range(AGREE - 1):
        assert units.add(Record("a", 3 * FAR + n, cluster="u", corrected=False)) == []
    assert (units.clusters, units.open, units.waiting, units.later) == (1, 1, AGREE - 1, 0)
    assert units.add(Record("a", 3 * FAR + 20, cluster="v", corrected=False)) == [Unit("a", (1.0,))]
    assert (units.clusters, units.open, units.waiting, units.later) == (2, 1, 0, AGREE - 1)


def test_requests_without_a_user_never_wait() -> None:
    units = Units([lambda r: r.corrected], 60)
    assert [units.add(Record("a", time, corrected=True)) for time in (0.0, YEARS, 5.0)] == [[Unit("a", (1.0,))]] * 3
    assert (units.alone, units.waiting) == (3, 0)


# ---- logs


def log_lines(n: int, gap: float = 0.0) -> list[dict[str, Any]]:
    """A user a minute with two requests; after half of them nobody for `gap` seconds."""
    rng = random.Random(3)
    return [
        {
            "arm": ("baseline", "b")[rng.random() < 0.5 if i % 2 == 0 else arm],
            "timestamp": 1.79e9 + 30 * i + (gap if i > n // 2 else 0),
            "cluster": f"u{i // 2}",
            "corrected": rng.random() < 0.02,
        }
        for i, arm in ((i, i // 2 % 2) for i in range(n))
    ]


WIDE = Rules.model_validate({"margins": {"correction": 0.05}})


@pytest.mark.parametrize("place", [1, 1000, 3999])
def test_a_line_years_ahead_neither_stops_the_verdict_nor_stays_unsaid(write_log: WriteLog, place: int) -> None:
    log = log_lines(4000)
    usual = read_rollout([str(write_log(log))], WIDE)
    log.insert(place, {"arm": "b", "timestamp": 1.79e9 + YEARS, "cluster": "w"})
    path = write_log(log)
    result = read_rollout([str(path)], WIDE)
    assert (result.outcome, usual.outcome) == ("NO_HARM", "NO_HARM")
    assert result.to_dict()["source"]["far_ahead"] == 1
    (note,) = [note for note in result.notes if "ahead of the requests around them" in note]
    assert note.startswith("1 requests are")
    assert f"{path}:{place + 1}" in note
    assert not any("older than one before" in note for note in result.notes)
    assert read_rollout([str(path)], WIDE, sort=True).outcome == "NO_HARM"


def test_a_first_line_years_ahead_is_said_with_its_place(write_log: WriteLog) -> None:
    path = write_log([{"arm": "b", "timestamp": 1.79e9 + YEARS, "cluster": "w"}, *log_lines(4000)])
    result = read_rollout([str(path)], WIDE)
    assert result.outcome == "NO_HARM"
    assert any(note.startswith(f"{AGREE} requests are older") and f"{path}:2" in note for note in result.notes)


def test_a_quiet_weekend_is_no_wrong_clock(write_log: WriteLog) -> None:
    path = str(write_log(log_lines(4000, gap=3 * FAR)))
    result = read_rollout([path], WIDE)
    assert result.outcome == "NO_HARM"
    assert result.to_dict()["source"]["far_ahead"] == 0
    assert not any("ahead" in note for note in result.notes)


def test_requests_that_wait_at_the_end_are_said(write_log: WriteLog) -> None:
    log = log_lines(100)
    log += [{"arm": "b", "timestamp": 1.8e9, "cluster": f"w{n}"} for n in range(3)]
    result = read_rollout([str(write_log(log))], WIDE)
    assert any(note.startswith("the last 3 requests are more than a day ahead") for note in result.notes)


def test_where_times_are_out_of_order_is_known(write_log: WriteLog) -> None:
    path = write_log([{"arm": "a", "timestamp": t} for t in (5, 3, 6, 2, 5 + YEARS, 7)])
    source = Source((str(path),))
    assert len(list(records(source))) == 6
    assert (source.out_of_order, source.most_behind, source.behind_at) == (2, 4, f"{path}:4")
    assert (source.far_ahead, source.most_ahead, source.ahead_at) == (1, YEARS - 1, f"{path}:5")
    assert source.last == 5 + YEARS
