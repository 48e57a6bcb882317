"""Real processes: kill -9, Ctrl-C, two runs at once. The stages are contract doubles, the pipeline is real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sqtool.pipeline import run
from sqtool.runfolder import RESULT, RunFolder
from tests.pipeline.fakes import HOLD, STAGES, FakeSpec, calls, make_job

ROOT = Path(__file__).parents[2]
FILES = 5


class Worker:
    """A worker process; its output is read line by line."""

    def __init__(self, root: Path, name: str = "run", *words: str, hold: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.worker", str(root), name, str(FILES), *words],
            cwd=ROOT,
            env={**os.environ, HOLD: hold},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def read_until(self, text: str) -> None:
        """Read output until a line has `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return
        raise AssertionError(f"no line with {text!r}: {self.lines}")

    def kill_after(self, lines: int) -> None:
        """kill -9 when so many lines were seen (or the end)."""
        assert self.process.stdout is not None
        for _ in range(lines):
            if not self.process.stdout.readline():
                break
        self.process.kill()

    def end(self, release: bool = False) -> tuple[int, str]:
        """Wait for the end; exit code and standard error. `release` lets a stage that holds go on."""
        out, err = self.process.communicate("go\n" if release else None, timeout=120)
        self.lines += out.splitlines()
        return self.process.returncode, err


def files_of(root: Path) -> dict[str, str]:
    """Every file that the stages made."""
    found = {}
    for base in (root / "artifacts/runs/run", root / "artifacts/cache"):
        for path in sorted(base.rglob("out-*.txt")):
            found[str(path.relative_to(root))] = path.read_text()
    return found


def run_whole(root: Path) -> Worker:
    with Worker(root) as worker:
        assert worker.end() == (0, "")
        return worker


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_at_any_moment_then_the_same_result(tmp_path: Path, seed: int) -> None:
    whole, victim = tmp_path / "whole", tmp_path / "victim"
    total = len(run_whole(whole).lines)
    moments = random.Random(seed)
    for _ in range(4):
        with Worker(victim) as worker:
            worker.kill_after(moments.randrange(1, total))
        for result in victim.rglob(RESULT):  # whatever is called finished is whole
            assert json.loads(result.read_text())["summary"]
            assert len(list(result.parent.glob("out-*.txt"))) == FILES
    run_whole(victim)
    assert files_of(victim) == files_of(whole), "and nothing half-built is left"
    assert RunFolder.of(victim, "run").state()["outcome"] == "released"


def test_stages_finished_before_the_kill_are_not_run_again(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "run")
    with Worker(tmp_path, hold="quantize") as worker:
        worker.read_until("holding")
    assert folder.stage("quantize.tmp").is_dir(), "kill -9 leaves the half-built folder"
    worker = run_whole(tmp_path)
    assert "quantize goes on from what is there" in worker.lines
    assert "removed what an interrupted run left: quantize.tmp" in worker.lines
    assert calls(tmp_path).count("calibrate") == 1
    assert calls(tmp_path).count("quantize") == 2


def test_ctrl_c_discards_the_stage_and_exits_130(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "run")
    with Worker(tmp_path, hold="quantize") as worker:
        worker.read_until("holding")
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(60) == 130
    assert not folder.stage("quantize.tmp").exists()
    assert (folder.stage("calibrate") / RESULT).is_file()
    state = folder.state()
    assert (state["outcome"], state["exit_code"]) == ("cancelled", 130)
    assert folder.report.read_text().startswith("# CANCELLED: run")


def test_a_second_run_says_who_holds_the_folder_or_waits(tmp_path: Path) -> None:
    with Worker(tmp_path, hold="quantize") as first:
        first.read_until("holding")
        with Worker(tmp_path) as second:
            code, said = second.end()
        assert code == 4
        assert f"run run is in use by process {first.process.pid}" in said
        assert "--wait" in said
        with Worker(tmp_path, "run", "wait") as third:
            third.read_until("waiting")
            assert first.end(release=True)[0] == 0
            assert third.end()[0] == 0
    assert calls(tmp_path) == [stage.name for stage in STAGES], "the one that waited found everything done"


def test_two_runs_share_one_baseline(tmp_path: Path) -> None:
    make_job(tmp_path)
    with Worker(tmp_path, "one", hold="baseline") as one:
        one.read_until("holding")
        with Worker(tmp_path, "two") as two:
            two.read_until("waiting")
            assert one.end(release=True)[0] == 0
            assert two.end()[0] == 0
    assert calls(tmp_path).count("baseline") == 1
    assert calls(tmp_path).count("quantize") == 2
    states = [
        record["state"]
        for name in ("one", "two")
        for record in RunFolder.of(tmp_path, name).state()["stages"]
        if record["name"] == "baseline"
    ]
    assert states == ["done", "cached"]


def test_a_killed_owner_holds_no_lock(tmp_path: Path) -> None:
    with Worker(tmp_path, hold="baseline") as worker:
        worker.read_until("holding")
    again = Worker(tmp_path, hold="baseline")
    with again as worker:
        worker.read_until("holding")
    assert "baseline goes on from what is there" in again.lines
    spec = FakeSpec(text="a", files=FILES)
    job = make_job(tmp_path, **{stage.name: spec for stage in STAGES})
    assert run(job, stages=STAGES).exit_code == 0
    assert not list((tmp_path / "artifacts/cache").glob("*.tmp"))
