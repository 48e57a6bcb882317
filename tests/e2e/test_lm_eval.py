"""lm-eval's tasks on the real vLLM: the same answers as lm-eval's own transformers model, and an A/A control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.control import control
from evals.harness.spec import LmEvalSpec
from evals.run import evaluate
from evals.spec import ControlSpec, EngineSpec, EvaluateSpec
from sqtool.gate.control import judge_control
from sqtool.gate.judge import judge
from sqtool.gate.records import task_files
from sqtool.gate.spec import GateSpec
from tests.unit.evals.harness.conftest import network

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "artifacts" / "reference" / "target"
TASKS = LmEvalSpec(tasks=("lookups", "lookup_prose"), include_path="tests/lm_eval_tasks", apply_chat_template=True)
SPEC = EvaluateSpec(tasks=(), lm_eval=TASKS, drift=None, control=ControlSpec(items=100))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def rows(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records" / f"{task}.jsonl").read_text().splitlines()]


def test_a_local_task_through_lm_eval_on_vllm(tmp_path: Path) -> None:
    from evals.harness.in_process import InProcess
    from evals.harness.run import run

    out, again, here = tmp_path / "out", tmp_path / "again", tmp_path / "here"
    for folder in (out, again, here):
        folder.mkdir()
    summary = evaluate(SPEC, EngineSpec(), model=REFERENCE, root=ROOT, out=out)
    tasks = summary["tasks"]
    assert {name: task["n"] for name, task in tasks.items()} == dict.fromkeys(
        ("lookup_text", "lookup_choice", "lookup_prose"), 24
    )
    assert tasks["lookup_text"]["metrics"]["exact_match,strict"] > 0.8
    assert tasks["lookup_choice"]["metrics"]["acc"] > 0.8
    assert summary == json.loads((out / "evaluation.json").read_text())

    # lm-eval's own model computes in the same type, in other kernels.
    known = run(SPEC, InProcess(network(REFERENCE), batch_size=16), root=ROOT, out=here, key="")
    for task, metric in (("lookup_text", "exact_match,strict"), ("lookup_choice", "acc")):
        pairs = list(zip(rows(out, task), rows(here, task), strict=True))
        assert [a["id"] for a, _ in pairs] == [b["id"] for _, b in pairs]
        assert [a["lm_eval"] for a, _ in pairs] == [b["lm_eval"] for _, b in pairs], "the same prompts"
        assert sum(a["scores"][metric] == b["scores"][metric] for a, b in pairs) >= 22
    for a, b in zip(rows(out, "lookup_choice"), rows(here, "lookup_choice"), strict=True):
        tokens = [[one["tokens"] for one in row["output"]["loglikelihoods"]] for row in (a, b)]
        assert tokens[0] == tokens[1]
    bytes_ = [each["lookup_prose"]["lm_eval"]["reported"]["bits_per_byte"] for each in (tasks, known)]
    assert bytes_[0] == pytest.approx(bytes_[1], rel=0.02)

    told = control(SPEC, EngineSpec(), model=REFERENCE, baseline=out, root=ROOT, out=again)
    assert told["items"] == 72
    gate = GateSpec.for_metrics(["lookup_text.exact_match,strict", "lookup_choice.acc"], max_drop=0.2)
    judged = judge_control(gate, task_files(out), again / "records")
    assert judged.items == 72
    assert judged.different_answers == told["different_answers"]
    assert judged.stable, judged
    verdict = judge(gate, out, out, control=again / "records")
    assert verdict.outcome == "PASS"
