"""evaluate: the candidate's answers to the same items through the same engine, and its drift from the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.spec import EvaluateSpec
from sqtool.errors import UsageError
from sqtool.files import digest_folder
from sqtool.gate.spec import GateSpec
from sqtool.spec import Spec
from sqtool.stages import drifting, measuring
from sqtool.stages.baseline import RECORDS, STATES
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import counted_of, engine_preflight, evaluation_estimate
from sqtool.stages.sections import engine_section, gate_section


def run(spec: EvaluateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the candidate into `out`; `candidate_digest` in the summary is what was measured."""
    from evals.config_diff import differences
    from evals.drift import drift, kept_texts
    from evals.engine_check import probe
    from evals.flips import compare_records, encoder
    from evals.records import remove_parts
    from evals.run import evaluate
    from sqtool.gate.stopping import Watch

    assert inputs.candidate is not None
    spec = drifting.possible(spec, inputs)
    digest = digest_folder(inputs.candidate)
    differ = [found.to_json() for found in differences(inputs.model, inputs.candidate)]
    for found in differ:
        inputs.progress.note(
            f"{found['file']}: {found['field']} is {found['candidate']}, the baseline's {found['baseline']}; the gate "
            "refuses that unless gate.allow_differences names it"
        )
    gate = gate_section(inputs)
    before = inputs.folders["baseline"]
    watch = None if gate.early_stop == "off" else Watch(gate, before / RECORDS)
    summary = evaluate(
        spec,
        engine_section(inputs).of_side("candidate"),
        model=inputs.candidate,
        root=inputs.root,
        out=out,
        progress=inputs.progress,
        seed=inputs.seed,
        resume_from=inputs.earlier,
        watch=watch,
        probe=probe(spec, lambda: kept_texts(before / STATES), out, inputs.progress),
    )
    summary = {**summary, "candidate_digest": digest, "differences": differ}
    if _short(summary):
        summary["ended_by"] = _rules(gate)
    sampled = _sampled(spec, inputs.root)
    summary["changes"] = compare_records(before / RECORDS, out / RECORDS, encoder(inputs.model), sampled)
    if spec.drift is not None:
        summary["drift"] = drift(
            spec,
            baseline=inputs.model,
            candidate=inputs.candidate,
            states=before / STATES,
            out=out,
            progress=inputs.progress,
            engine={"baseline": before, "candidate": out},
        )
    remove_parts(out)
    return StageResult(summary)


def _sampled(spec: EvaluateSpec, root: Path) -> set[str]:
    """Tasks whose answers are drawn, so that where two of them differ says nothing."""
    from evals.tasks import find_task, read_task

    tasks = [read_task(find_task(name, root)) for name in spec.tasks]
    if spec.generation.as_served:  # what a server then does is its own business, and vLLM samples
        return {task.task for task in tasks}
    default = spec.generation.temperature
    own = {task.task: task.generation.temperature for task in tasks}
    return {name for name, value in own.items() if (default if value is None else value) > 0}


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
    return measuring.data_files(spec, inputs)


def counted(section: Spec) -> Spec:
    return counted_of("candidate", section)


def fingerprint(spec: EvaluateSpec, inputs: Inputs) -> dict[str, Any]:
    return measuring.fingerprint(spec, inputs, "candidate")


def preflight(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    engine = engine_section(inputs)
    if engine.kind == "openai" and engine.of_side("candidate") == engine.of_side("baseline"):
        raise UsageError(
            f"baseline and candidate would both be asked of {engine.model} at {engine.base_url}",
            remedy="Name the candidate's server or its name there: `engine: {candidate_base_url: ..., "
            "candidate_model: ...}`.",
        )
    engine_preflight(inputs, "candidate")
    return evaluation_estimate(drifting.possible(spec, inputs), inputs)
