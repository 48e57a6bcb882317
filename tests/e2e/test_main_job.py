"""The main job on real parts: llm-compressor quantizes, vLLM answers, the gate decides, and only a PASS is released."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.e2e.action_runner import Job

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

EVALUATE = """
evaluate:
  tasks: [tasks, recall]
  limit: 100
  drift: {items: 12, prose_items: 4}
speculate: {enabled: false}
"""
PASSES = (
    """name: passes
quantize:
  methods:
    - fp8: {scheme: FP8_DYNAMIC}
gate:
  metrics:
    tasks.exact_match: {max_drop: 0.2}
    recall.exact_match: {max_drop: 0.1}
"""
    + EVALUATE
)
REGRESSES = (
    """name: regresses
quantize:
  methods:
    - rtn: {scheme: W4A16}
gate:
  metrics:
    recall.exact_match: {max_drop: 0.02}
"""
    + EVALUATE
)


def sqtool(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sqtool", *words], cwd=project, capture_output=True, text=True, check=False, timeout=1200
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own, so that nothing is cached and nothing of the checkout is touched."""
    root = tmp_path_factory.mktemp("project")
    (root / "pyproject.toml").write_text("")
    (root / "artifacts").mkdir()
    (root / "artifacts" / "reference").symlink_to(ROOT / "artifacts" / "reference")
    (root / "evals").symlink_to(ROOT / "evals")
    (root / "passes.yaml").write_text(PASSES)
    (root / "regresses.yaml").write_text(REGRESSES)
    return root


@pytest.fixture(scope="module")
def passed(project: Path) -> subprocess.CompletedProcess[str]:
    return sqtool(project, "quantize", "passes.yaml", "--json")


def _states(project: Path, name: str) -> dict[str, str]:
    run: dict[str, Any] = json.loads((project / "artifacts" / "runs" / name / "run.json").read_text())
    return {stage["name"]: stage["state"] for stage in run["stages"]}


def test_a_checkpoint_within_the_margins_is_released(project: Path, passed: subprocess.CompletedProcess[str]) -> None:
    assert passed.returncode == 0, passed.stderr[-3000:]
    json.loads(passed.stdout)
    releases = project / "artifacts" / "releases" / "passes"
    folder = next(p for p in releases.iterdir() if p.is_dir() and not p.is_symlink())
    names = {p.name for p in folder.iterdir()}
    assert {"MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    verified = sqtool(project, "verify", str(folder))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    report = (project / "artifacts" / "runs" / "passes" / "report.md").read_text()
    assert "recall.exact_match" in report


def test_the_second_run_reuses_every_stage(project: Path, passed: subprocess.CompletedProcess[str]) -> None:
    assert passed.returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (project / "artifacts" / "runs" / "passes").rglob("result.json")}
    started = time.monotonic()
    again = sqtool(project, "quantize", "passes.yaml")
    assert again.returncode == 0, again.stderr[-3000:]
    assert time.monotonic() - started < 60  # 4 s on an idle machine
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "running" not in _states(project, "passes").values()


def test_a_regressed_checkpoint_is_refused(project: Path, passed: subprocess.CompletedProcess[str]) -> None:
    refused = sqtool(project, "quantize", "regresses.yaml")
    assert refused.returncode == 1, refused.stderr[-3000:]
    assert "recall.exact_match" in refused.stderr + refused.stdout
    assert not (project / "artifacts" / "releases" / "regresses").exists()
    states = _states(project, "regresses")
    assert states["baseline"] == "cached"
    assert not (project / "artifacts" / "runs" / "regresses" / "release").exists()
    verdict = json.loads((project / "artifacts" / "runs" / "regresses" / "gate" / "verdict.json").read_text())
    assert verdict["outcome"] == "REGRESSED"
    assert verdict["control"]["deterministic"], "vLLM on a CPU gave other answers the second time"


@pytest.mark.parametrize(("recipe", "code", "verdict"), [("passes", 0, "PASS"), ("regresses", 1, "REGRESSED")])
def test_the_github_action_on_the_same_recipes(
    project: Path, passed: subprocess.CompletedProcess[str], tmp_path: Path, recipe: str, code: int, verdict: str
) -> None:
    """All of action.yml's own steps, with the sqtool and the vLLM of this checkout."""
    assert passed.returncode == 0
    job = Job(project, tmp_path, {"recipe": f"{recipe}.yaml"})
    outputs = job.run()
    assert (job.code, outputs["exit-code"], outputs["verdict"]) == (code, str(code), verdict), job.log[-3000:]
    assert outputs["outcome"] == ("refused" if code else "released")
    assert bool(outputs["release"]) == (code == 0)
    assert not code or "::error" in job.log
    assert verdict in (tmp_path / "summary.md").read_text()
    uploaded = dict(job.used)["actions/upload-artifact"]
    files = {path.name for path in Path(uploaded["path"]).iterdir()}
    assert {"junit.xml", "comment.md", "report.md", "run.json", "verdict.json"} <= files
    junit = ElementTree.parse(Path(uploaded["path"]) / "junit.xml").getroot()
    assert bool(list(junit.iter("failure"))) == bool(code)
