"""gate: the verdict over both sides' records, and the error that keeps a refused candidate from going on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engines import conditions
from evals.spec import EvaluateSpec
from sqtool.errors import (
    EXIT_INCONCLUSIVE,
    EXIT_REFUSED,
    InconclusiveError,
    InfrastructureError,
    RegressedError,
    UsageError,
    did_you_mean,
)
from sqtool.files import write_text
from sqtool.gate.acceptance import exit_code_of
from sqtool.gate.spec import GateSpec
from sqtool.runfolder import RESULT, read_result
from sqtool.stages.baseline import RECORDS
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import item_facts

if TYPE_CHECKING:
    from sqtool.gate.plan import GatePlan, PlannedTask

if TYPE_CHECKING:
    from sqtool.gate.control import ControlMetric
    from sqtool.gate.verdict import Verdict

VERDICT = "verdict.json"
PER_SERVER = ("start_seconds",)


def run(spec: GateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Judge and write `out/verdict.json`."""
    from sqtool.gate.judge import judge

    baseline, candidate = inputs.folders["baseline"], inputs.folders["evaluate"]
    bindings = bindings_of(baseline, candidate)
    control = inputs.folders.get("control")
    verdict = judge(
        spec,
        baseline / RECORDS,
        candidate / RECORDS,
        control=None if control is None else control / RECORDS,
        bindings=bindings,
        differences=differences_of(candidate),
    )
    write_text(out / VERDICT, verdict.to_json())
    return StageResult(
        {
            "outcome": verdict.outcome,
            "accepted": verdict.accepted,
            "exit_code": verdict.exit_code,
            "undecided": verdict.undecided,
            "reasons": list(verdict.reasons),
            "deciding": deciding(verdict),
            "differences": [d.name for d in verdict.differences if not d.allowed],
        }
    )


def differences_of(candidate: Path) -> list[dict[str, str]]:
    """In which fields beside the weights the candidate differed when it was evaluated."""
    result = read_result(candidate)
    return [] if result is None else list(result["summary"].get("differences", ()))


def bindings_of(baseline: Path, candidate: Path) -> dict[str, Any]:
    """What was measured: the engine of each side, and the digest of the candidate's checkpoint.

    `InfrastructureError` when the sides were not measured under the same conditions: then nothing can be compared.
    """
    sides = {}
    for side, folder in (("baseline", baseline), ("candidate", candidate)):
        result = read_result(folder)
        if result is None:
            raise InfrastructureError(f"{folder / RESULT} is missing", remedy="Run `sqtool quantize` again.")
        sides[side] = result["summary"]
    engines = {
        side: {k: v for k, v in summary.get("engine", {}).items() if k not in PER_SERVER}
        for side, summary in sides.items()
    }
    left, right = (conditions(engines[side]) for side in ("baseline", "candidate"))
    apart = [f"{name} {left[name]} and {right[name]}" for name in left if left[name] != right[name]]
    if apart:
        raise InfrastructureError(
            f"baseline and candidate were not measured under the same conditions ({', '.join(apart)}), so they cannot "
            "be compared",
            remedy="Measure both in the same place; `engine.dtype` makes checkpoints of different types comparable.",
        )
    return {
        "engine": engines["candidate"],
        "baseline_engine": engines["baseline"],
        "candidate_digest": sides["candidate"]["candidate_digest"],
    }


def deciding(verdict: Verdict) -> list[str]:
    """What the verdict rests on, in sentences: a difference beside the weights, else an unsteady engine, else what did
    not pass, else the closest call."""
    refused = [f"{d.name} is {d.candidate}, the baseline's {d.baseline}" for d in verdict.differences if not d.allowed]
    if refused:
        return refused
    if verdict.control is not None and not verdict.control.stable:
        return [unsteady(m) for m in verdict.control.metrics if not m.steady]
    gated = [m for m in (*verdict.metrics, *verdict.slices) if m.gated]
    judged = [m for m in gated if m.outcome not in ("PASS", "NOT_JUDGED") and m.reason != "stopped_early"]
    judged = judged or [m for m in gated if m.outcome not in ("PASS", "NOT_JUDGED")]
    said = [sentence(m) for m in judged] or [sentence(min(gated, key=lambda m: m.lower + m.margin))]
    if verdict.outcome == "REGRESSED":
        said += [
            f"the evaluation ended early, after {s.items} of {s.of} items of {s.task}, for that was certain"
            for s in verdict.stopped
        ]
    return said


def unsteady(metric: ControlMetric) -> str:
    """Why the engine is too unsteady for a verdict, in words."""
    return (
        f"{metric.metric}: the baseline disagrees with itself on {metric.flips} of {metric.items} items, "
        f"{100 * metric.disagreement:.2f} points (up to {100 * metric.upper:.2f}, at most {100 * metric.limit:.2f} are "
        "tolerable): unstable_engine"
    )


def sentence(metric: Any) -> str:
    """One metric's result in words, in points (hundredths)."""
    drop = -100 * metric.difference
    moved = f"dropped {drop:.2f} points" if drop > 0 else f"rose {-drop:.2f} points" if drop < 0 else "did not move"
    interval = f"interval [{100 * metric.lower:+.2f}, {100 * metric.upper:+.2f}]"
    return (
        f"{metric.name}: {100 * metric.baseline:.2f} % -> {100 * metric.candidate:.2f} %, {moved}, {interval}, "
        f"margin {100 * metric.margin:.2f} points, {metric.items} items: {metric.outcome}"
    )


def check(spec: GateSpec, summary: dict[str, Any]) -> None:
    """Raises unless the verdict lets the candidate be released."""
    what = "; ".join(summary["deciding"])
    names = summary.get("differences")
    if names:
        raise RegressedError(
            f"the candidate is not served as the baseline is: {what}",
            remedy=f"Copy the baseline's files into the candidate; or, where a difference is meant, allow it: "
            f"`gate: {{allow_differences: [{', '.join(names)}]}}`.",
        )
    code = exit_code_of(summary["outcome"], spec.inconclusive, undecided=summary["undecided"])
    if code == EXIT_REFUSED:
        raise RegressedError(f"the candidate regressed: {what}", remedy="report.md shows the items that got worse.")
    if code == EXIT_INCONCLUSIVE:
        if not summary["undecided"]:
            raise InconclusiveError(
                f"the engine does not agree with itself, so no verdict means anything: {what}",
                remedy="Fix what varies (sampling, batch-dependent kernels, a shared server), or measure elsewhere.",
            )
        raise InconclusiveError(
            f"the items measured cannot decide: {what}",
            remedy="Measure more items, or accept the risk with `gate: {inconclusive: allow}`.",
        )


def preflight(spec: GateSpec, inputs: Inputs) -> Estimate:
    """UsageError when a metric belongs to a task that nobody evaluates; says what the gate can decide."""
    planned = plan_of(spec, inputs)
    return Estimate(2.0, rule="reads the records", details={"gate": planned.to_dict()}, warnings=planned.warnings)


def details(spec: GateSpec, inputs: Inputs) -> dict[str, Any]:
    return {"gate": plan_of(spec, inputs).to_dict()}


def plan_of(spec: GateSpec, inputs: Inputs) -> GatePlan:
    """What this gate can decide: on the baseline's records where there are any, else on the tasks' items."""
    from sqtool.gate.plan import plan

    section = inputs.sections["evaluate"]
    assert isinstance(section, EvaluateSpec)
    baseline = inputs.folders.get("baseline")
    whole = _check_tasks(spec, section, inputs.root)
    if baseline is not None and read_result(baseline) is not None:
        return plan(spec, _recorded(spec, baseline / RECORDS, whole))
    return plan(spec, _expected(section, inputs.root, whole))


def _check_tasks(spec: GateSpec, section: EvaluateSpec, root: Path) -> frozenset[str]:
    """UsageError for a metric that nobody measures; otherwise the tasks that are asked whole, which are lm-eval's."""
    from evals.harness.stage import check_metric, names
    from evals.tasks import find_task, read_task

    whole = names(section, root)
    tasks = [read_task(find_task(name, root)).task for name in section.tasks] + whole
    for name in spec.metrics:
        task, _, metric = name.rpartition(".")
        if task not in tasks:
            raise UsageError(
                f"gate.metrics.{name}: evaluate.tasks names no task {task!r}", remedy=did_you_mean(task, tasks)
            )
        check_metric(section, root, task, metric)
    return frozenset(whole)


def _recorded(spec: GateSpec, folder: Path, whole: frozenset[str]) -> dict[str, PlannedTask]:
    from sqtool.gate.plan import PlannedTask
    from sqtool.gate.records import load, task_files

    needed = {name.rpartition(".")[0] for name in spec.gated}
    with_fields = any(rule.field != "kind" for rule in spec.slices)
    files = task_files(folder)
    return {
        task: PlannedTask(load(files[task], with_fields=with_fields), measured=True, asked_whole=task in whole)
        for task in sorted(needed)
    }


def _expected(section: EvaluateSpec, root: Path, whole: frozenset[str]) -> dict[str, PlannedTask]:
    """Stand-ins for the records that the baseline will have."""
    import numpy as np

    from sqtool.gate.plan import PlannedTask
    from sqtool.gate.records import TaskRecords

    tasks = {}
    for name, facts in item_facts(section, root).items():
        records = TaskRecords(
            path=facts.path,
            sha256="",
            ids=list(facts.ids),
            clusters=list(facts.clusters),
            kinds=list(facts.kinds),
            fields=list(facts.fields),
            scores={metric: np.where(applies, 1.0, np.nan) for metric, applies in facts.applies.items()},
        )
        tasks[name] = PlannedTask(records, measured=False, asked_whole=name in whole)
    return tasks
