"""kill -9 of `sqtool` over a real vLLM: while the server starts, and while it answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.process import CHECKOUT, Sqtool, kill
from tests.faults.project import Project

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = """name: killed
quantize: {checkpoint: artifacts/reference/target}
evaluate: {tasks: [tasks], limit: 120, concurrency: 2, drift: null, control: null, as_served: null}
gate:
  metrics: {tasks.exact_match: {max_drop: 0.2}}
speculate: {enabled: false}
"""
ANSWERS = 5


def answers(project: Project) -> int:
    """How many answers the baseline that is being made has so far."""
    parts = project.cache.glob("baseline-*.tmp/records/tasks.jsonl.part")
    return sum(len(part.read_text().splitlines()) for part in parts)


def test_the_server_is_gone_and_the_next_run_goes_on(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", tmp_path / "kept")
    (project.root / "artifacts").mkdir(parents=True)
    (project.root / "pyproject.toml").touch()
    (project.root / "killed.yaml").write_text(RECIPE)
    (project.root / "artifacts" / "reference").symlink_to(CHECKOUT / "artifacts" / "reference")
    (project.root / "evals").symlink_to(CHECKOUT / "evals")
    words = ("quantize", "killed.yaml", "--until", "baseline")

    with Sqtool(project, *words) as run:
        assert run.until("vLLM: start (target): ", 300), run.said
        assert run.after(3.0), run.said  # the server's own processes come up
        assert len(run.alive()) > 2, "sqtool, the guard and the server"
        kill(run.process.pid)
        assert run.end() == -9
        assert run.leftovers() == []

    with Sqtool(project, *words) as run:
        assert run.until("evaluate: tasks: 120 to do", 900), run.said
        while answers(project) < ANSWERS:
            assert run.after(0.05), run.said
        kill(run.process.pid)
        assert run.end() == -9
        assert run.leftovers() == []
    assert not list(project.cache.glob("baseline-*/result.json"))

    with Sqtool(project, *words) as run:
        assert run.end(1200) == 0, run.said
        assert run.leftovers() == []
    result = json.loads(next(project.cache.glob("baseline-*/result.json")).read_text())
    task = result["summary"]["tasks"]["tasks"]
    assert task["resumed"] >= ANSWERS
    assert task["n"] == 120
