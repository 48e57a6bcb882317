"""How runs end: verdicts, failures, cancellation; what stays and what the state says."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from sqtool.errors import InfrastructureError
from sqtool.pipeline import run
from sqtool.runfolder import RunFolder
from tests.pipeline.fakes import STAGES, FakeSpec, calls, make_job


@pytest.mark.parametrize(
    ("verdict", "outcome", "code"), [("REGRESSED", "refused", 1), ("INCONCLUSIVE", "inconclusive", 3)]
)
def test_a_refusing_gate_ends_the_run_before_release(tmp_path: Path, verdict: str, outcome: str, code: int) -> None:
    job = make_job(tmp_path, gate=FakeSpec(outcome=verdict))
    for _ in range(2):  # the second time from the cached verdict
        ended = run(job, stages=STAGES)
        assert (ended.outcome, ended.exit_code) == (outcome, code)
        assert calls(tmp_path) == ["calibrate", "quantize", "baseline", "evaluate", "gate"]
        assert not (tmp_path / "releases").exists()
        state = json.loads((RunFolder.of(tmp_path, "run").run_json).read_text())
        assert (state["outcome"], state["exit_code"]) == (outcome, code)
        assert [s["state"] for s in state["stages"]][-2:] == ["not reached"] * 2
        assert RunFolder.of(tmp_path, "run").report.read_text().startswith(f"# {outcome.upper()}: run")


def test_a_stricter_gate_leaves_no_older_release_stage_beside_it(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    folder = RunFolder.of(tmp_path, "run")
    assert folder.stage("release").is_dir()
    run(make_job(tmp_path, gate=FakeSpec(outcome="REGRESSED")), stages=STAGES)
    assert not folder.stage("release").exists()
    assert folder.stage("speculate").is_dir(), "it does not depend on the verdict"


@pytest.mark.parametrize(
    ("fail", "code", "outcome", "words"),
    [
        ("engine", 4, "failed", "the engine died"),
        ("coverage", 1, "refused", "lookup 1 of 8"),
        ("bug", 4, "failed", "ZeroDivisionError: division by zero"),
        ("exit", 4, "failed", "SystemExit"),
        ("disk", 4, "failed", "the disk is full"),
        ("memory", 4, "failed", "out of memory"),
        ("interrupt", 130, "cancelled", "discarded"),
    ],
)
def test_failures(tmp_path: Path, fail: str, code: int, outcome: str, words: str) -> None:
    ended = run(make_job(tmp_path, quantize=FakeSpec(fail=fail)), stages=STAGES)
    folder = RunFolder.of(tmp_path, "run")
    assert (ended.exit_code, ended.outcome) == (code, outcome)
    assert ended.error is not None
    assert words in ended.error.message
    assert ended.error.remedy
    assert not folder.stage("quantize").exists()
    assert not folder.stage("quantize.tmp").exists()
    assert (folder.failed("quantize") / "server.log").read_text() == "what the engine said\n"
    state = folder.state()
    assert state["exit_code"] == code
    assert state["stages"][1]["state"] == ("cancelled" if code == 130 else "failed")
    assert words in folder.report.read_text()
    if fail == "bug":
        assert "Traceback" in folder.log.read_text()
    # The same command goes on where it stopped, and forgets the failure.
    ended = run(make_job(tmp_path), stages=STAGES)
    assert ended.exit_code == 0
    assert calls(tmp_path).count("calibrate") == 1
    assert not folder.failed("quantize").exists()


def test_a_failing_shared_stage_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    assert run(make_job(tmp_path, baseline=FakeSpec(fail="engine")), stages=STAGES).exit_code == 4
    cache = tmp_path / "artifacts/cache"
    assert [p.name for p in cache.iterdir() if p.is_dir()] == ["failed"]
    assert sorted(p.name for p in cache.glob("failed/baseline-*/*")) == ["answers.part", "out-0.txt", "server.log"]
    assert run(make_job(tmp_path), stages=STAGES).exit_code == 0


def test_an_unreadable_data_file_stops_before_anything_runs(tmp_path: Path) -> None:
    ended = run(make_job(tmp_path, speculate=FakeSpec(data="gone.jsonl")), stages=STAGES)
    assert (ended.exit_code, calls(tmp_path)) == (2, [])
    assert "gone.jsonl" in str(ended.error)


def test_state_names_every_stage_with_digest_and_time(tmp_path: Path) -> None:
    run(make_job(tmp_path, calibrate=FakeSpec(text="skip")), stages=STAGES)
    state = RunFolder.of(tmp_path, "run").state()
    stages = {s["name"]: s for s in state["stages"]}
    assert stages["calibrate"]["state"] == "skipped"
    assert stages["calibrate"]["why"] == "nothing to do"
    for name, record in stages.items():
        if name != "calibrate":
            assert record["state"] == "done"
            assert len(record["digest"]) == 64
            assert record["seconds"] >= 0
            assert (tmp_path / record["folder"] / "result.json").is_file()


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "artifacts").write_text("a file")
    with pytest.raises(InfrastructureError, match="cannot write to"):
        run(job, stages=STAGES)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_before_anything_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    monkeypatch.setattr("sqtool.runfolder.write_json", full)  # who holds the lock cannot be written down
    with pytest.raises(InfrastructureError, match="the disk is full"):
        run(job, stages=STAGES)


def test_an_end_that_cannot_be_written_down_is_not_taken_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json still says "released" then, and nobody may show that as how this run ended."""
    assert run(make_job(tmp_path), stages=STAGES).recorded
    monkeypatch.setattr(import_module("sqtool.pipeline.run"), "write_json", full)
    ended = run(make_job(tmp_path), stages=STAGES)
    assert (ended.exit_code, ended.outcome, ended.recorded) == (4, "failed", False)
    assert ended.error is not None
    assert "the disk is full" in ended.error.message
    assert RunFolder.of(tmp_path, "run").state()["outcome"] == "released"
