"""A few faults of each kind, at moments chosen beforehand; `benchmarks/reliability/faults.py` tries hundreds."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import pytest

from tests.faults import damage, kills, surroundings
from tests.faults.lab import Lab, Row
from tests.faults.process import kill


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.make(tmp_path_factory.mktemp("faults") / "lab", names=("lean", "refused")) as made:
        yield made


def survived(row: Row, tries: int) -> None:
    assert row.problems == []
    assert (row.tries, row.survived) == (tries, tries)


def test_kill_9_where_a_stage_becomes_finished(lab: Lab) -> None:
    moments = kills.boundaries(kills.calls(lab, "lean", "lean"))
    row = kills.at_calls(
        lab, "lean", "lean", [moments[0], moments[3], moments[len(moments) // 2]], "the end of a stage"
    )
    survived(row, 3)
    assert row.kills == 3


def test_kill_9_of_a_run_that_is_refused_releases_nothing(lab: Lab) -> None:
    survived(kills.at_random(lab, "refused", "shared", random.Random(0), tries=1, kills=2), 1)


def test_kill_9_of_a_server(lab: Lab) -> None:
    row = kills.of_servers(lab, random.Random(0), 1, name="lean", states=("shared",))
    survived(row, 1)
    assert row.kills == 1


def test_a_full_disk_at_once_and_later(lab: Lab) -> None:
    survived(surroundings.failing_calls(lab, "ENOSPC", "", [1, 30], "lean", "lean", times=10**6), 2)


def test_a_flipped_bit_in_what_was_measured(lab: Lab) -> None:
    records = ["artifacts/runs/lean/evaluate/records/*.jsonl"]
    row = damage.of_files(lab, "", "", records, [damage.flip], random.Random(0), allowed=(0,))
    survived(row, 1)


def test_a_baseline_that_was_cut_short_is_not_measured_against(lab: Lab) -> None:
    records = ["artifacts/cache/baseline-*/records/*.jsonl"]
    row = damage.of_files(lab, "", "", records, [damage.cut], random.Random(0), allowed=(4,))
    survived(row, 1)


def test_nobody_reads_what_is_said(lab: Lab) -> None:
    row = surroundings.closed_screen(lab, "lean", "lean", ("pipe", "full --json", "pipe for stderr"))
    survived(row, 3)


def test_two_runs_at_once(lab: Lab) -> None:
    survived(surroundings.two_at_once(lab, "lean", "shared"), 2)


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 2, [signal.SIGHUP]], ids=["Ctrl-C twice", "SIGHUP"])
def test_a_cancelled_run(lab: Lab, numbers: list[int]) -> None:
    row = surroundings.signals(lab, random.Random(1), 1, numbers, 0.1, "", name="lean", states=("shared",))
    survived(row, 1)
    assert set(row.codes) == {130}


# ---------------------------------------------------------------------- the harness itself: it has to be able to fail


def test_a_result_that_is_written_first_is_noticed(lab: Lab) -> None:
    row = Row("self-test", "result.json before the folder is whole")
    with (
        lab.trying(row, "lean", "shared", "killed in between") as one,
        one.disturbed(plan={"broken": "result_first"}, env={"FAULTS_BROKEN_AT": "evaluate"}, allowed=(-9,)),
    ):
        pass
    assert row.survived == 0
    assert any(problem.endswith("evaluate/records/echo.jsonl: missing") for problem in row.problems)
    assert not any("again:" in problem for problem in row.problems), "what was half made was taken for finished"


def test_a_server_that_outlives_the_run_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "gone_within", 2.0)
    row = Row("self-test", "no guard")
    with (
        lab.trying(row, "lean", "shared", "killed while a server runs") as one,
        one.disturbed(plan={"broken": "no_guard"}, env={"FAULTS_PACE": "0.05"}, allowed=(-9,)) as run,
    ):
        assert run.until("evaluate: echo: 120 to do")
        run.pids("server")
        kill(run.process.pid)
    assert row.survived == 0
    assert any("outlived the run: process" in problem and ", server: " in problem for problem in row.problems)
    assert any("outlived the run: port" in problem for problem in row.problems)


def test_a_release_without_a_pass_is_noticed(lab: Lab) -> None:
    row = Row("self-test", "a gate that stops nothing")
    with (
        lab.trying(row, "refused", "shared", "released") as one,
        one.disturbed(plan={"broken": "blind_gate"}),
    ):
        pass
    assert any("released, and the verdict is REGRESSED" in problem for problem in row.problems)


def test_a_lost_record_is_noticed(lab: Lab) -> None:
    row = Row("self-test", "records without their last line")
    with lab.trying(row, "lean", "lean", "torn") as one:
        lab.project.restore("shared")
        with one.disturbed(plan={"broken": "torn_records"}):
            pass
    assert any("evaluate/records/echo.jsonl: differs" in problem for problem in row.problems)
