"""A pilot: the recipe on a few items of each task, to measure how many answers change before all of them are asked.

The checkpoint is made under the recipe's own name, where the real run finds it; only the two small evaluations are the
pilot's, in a run folder of its own. It ends there: no verdict, no speculation, no release.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.spec import EvaluateSpec
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError
from sqtool.gate.spec import GateSpec
from sqtool.pipeline.job import Job
from sqtool.pipeline.plan import Plan, Step
from sqtool.pipeline.run import with_sections
from sqtool.stages.baseline import RECORDS
from sqtool.stages.gate import plan_of

if TYPE_CHECKING:
    from sqtool.gate.measured import Measured

SUFFIX = "-pilot"
MAKES_CANDIDATE = "quantize"
"""The last stage that belongs to the recipe's own run."""
MEASURES = "evaluate"
"""The last stage of a pilot."""


def pilot_job(job: Job, items: int, checkpoint: Path | None = None) -> Job:
    """The job that evaluates `items` items of each task (never more than the recipe does), without drift.

    `checkpoint` is the finished candidate; without one the job would make its own, which serves for an estimate only.
    """
    evaluate = job.sections["evaluate"]
    if not isinstance(evaluate, EvaluateSpec):
        raise UsageError(f"{job.name} has no evaluation to make a pilot of")
    limit = items if evaluate.limit is None else min(items, evaluate.limit)
    gate = job.sections["gate"].model_copy(update={"early_stop": "off"})  # what is measured is not to be cut short
    few = evaluate.model_copy(update={"limit": limit, "drift": None, "control": None, "as_served": None})
    small = with_sections(job, evaluate=few, gate=gate)
    if checkpoint is not None:
        small = replace(with_sections(small, quantize=QuantizeSpec(checkpoint=str(checkpoint))), checkpoint=checkpoint)
    return replace(small, name=job.name + SUFFIX)


def finished_checkpoint(plan: Plan) -> Path | None:
    """The candidate, where the recipe names one or an earlier run has made it; None when it is yet to be made."""
    if plan.job.checkpoint is not None:
        return plan.job.checkpoint
    step = _step(plan, MAKES_CANDIDATE)
    return step.folder / "checkpoint" if step is not None and step.action == "cached" else None


def measured(plan: Plan, baseline: Path, candidate: Path) -> Measured:
    """What the records in two stages' folders say about the gate of `plan`."""
    from sqtool.gate.measured import measure

    step = _step(plan, "gate")
    assert step is not None
    assert isinstance(step.spec, GateSpec)
    return measure(step.spec, plan_of(step.spec, step.inputs), baseline / RECORDS, candidate / RECORDS)


def last_run(plan: Plan) -> Measured | None:
    """What the last run of this very recipe measured; None without a finished evaluation that still holds."""
    gate, evaluate, baseline = (_step(plan, name) for name in ("gate", "evaluate", "baseline"))
    if gate is None or not isinstance(gate.spec, GateSpec):
        return None
    if evaluate is None or baseline is None or (evaluate.action, baseline.action) != ("cached", "cached"):
        return None
    if not all((step.folder / RECORDS).is_dir() for step in (baseline, evaluate)):
        return None  # somebody tidied up
    if ((evaluate.result or {}).get("summary") or {}).get("ended_by"):
        return None  # it ended early, where the answers seen were unusually bad
    return measured(plan, baseline.folder, evaluate.folder)


def _step(plan: Plan, name: str) -> Step | None:
    return next((step for step in plan.steps if step.stage.name == name), None)
