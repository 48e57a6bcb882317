"""evaluate: the candidate's answers to the same items through the same engine, and its drift from the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.spec import EvaluateSpec
from sqtool.files import digest_folder
from sqtool.gate.spec import GateSpec
from sqtool.stages import measuring
from sqtool.stages.baseline import RECORDS, STATES
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import engine_preflight, evaluation_estimate, task_files
from sqtool.stages.sections import engine_section, gate_section


def run(spec: EvaluateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the candidate into `out`; `candidate_digest` in the summary is what was measured."""
    from evals.drift import drift
    from evals.run import evaluate
    from sqtool.gate.stopping import Watch

    assert inputs.candidate is not None
    digest = digest_folder(inputs.candidate)
    gate = gate_section(inputs)
    watch = None if gate.early_stop == "off" else Watch(gate, inputs.folders["baseline"] / RECORDS)
    summary = evaluate(
        spec,
        engine_section(inputs),
        model=inputs.candidate,
        root=inputs.root,
        out=out,
        progress=inputs.progress,
        seed=inputs.seed,
        resume_from=inputs.earlier,
        watch=watch,
    )
    summary = {**summary, "candidate_digest": digest}
    if _short(summary):
        summary["ended_by"] = _rules(gate)
    if spec.drift is not None:
        summary["drift"] = drift(
            spec,
            baseline=inputs.model,
            candidate=inputs.candidate,
            states=inputs.folders["baseline"] / STATES,
            out=out,
            progress=inputs.progress,
        )
    return StageResult(summary)


def stale(summary: dict[str, Any], inputs: Inputs) -> str:
    """An evaluation that ended early is worth nothing under other rules than those that let it end."""
    if _short(summary) and summary.get("ended_by") != _rules(gate_section(inputs)):
        return "it ended early by other rules of the gate"
    return ""


def _short(summary: dict[str, Any]) -> bool:
    return bool(summary.get("stopped")) or any(task["n"] < task.get("of", 0) for task in summary["tasks"].values())


def _rules(gate: GateSpec) -> dict[str, Any]:
    return gate.model_dump(mode="json", exclude={"inconclusive"})


def data_files(spec: EvaluateSpec, inputs: Inputs) -> list[Path]:
    return task_files(spec, inputs.root)


def fingerprint(spec: EvaluateSpec, inputs: Inputs) -> dict[str, Any]:
    return measuring.fingerprint(spec, inputs)


def preflight(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    engine_preflight(inputs)
    return evaluation_estimate(spec, inputs)
