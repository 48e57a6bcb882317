"""Running a pilot for `sqtool plan --pilot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqtool.cli.terminal import Terminal

if TYPE_CHECKING:
    from sqtool.gate.measured import Measured
    from sqtool.pipeline import Job, Plan, RunOutcome


@dataclass(frozen=True)
class Pilot:
    """How a pilot ended. `measured` is None unless it ended well."""

    job: Job
    outcome: RunOutcome
    limit: int
    measured: Measured | None

    def as_json(self) -> dict[str, Any]:
        """{"run": name of the run that ended it, "folder", "items_per_task", "seconds", "exit_code", "error":
        null or {"type", "message", "remedy", "exit_code"}, "measured": null or Measured.to_dict()}."""
        from sqtool.pipeline.ending import describe

        error = self.outcome.error
        return {
            "run": self.outcome.name,
            "folder": self.job.shown(self.outcome.folder.path),
            "items_per_task": self.limit,
            "seconds": round(self.outcome.seconds, 3),
            "exit_code": self.outcome.exit_code,
            "error": None if error is None else describe(error),
            "measured": None if self.measured is None else self.measured.to_dict(),
        }


def run_pilot(terminal: Terminal, plan: Plan, items: int, *, wait: bool) -> Pilot:
    """Say what will run and for how long, run it, and measure.

    `plan` is of the whole recipe and without problems. Raises `DataError` when the pilot's records lack a metric.
    """
    from evals.spec import EvaluateSpec
    from sqtool.cli.runs import run_quietly
    from sqtool.pipeline import make_plan
    from sqtool.pipeline.pilot import MAKES_CANDIDATE, MEASURES, finished_checkpoint, measured, pilot_job

    job, checkpoint = plan.job, finished_checkpoint(plan)
    small = pilot_job(job, items, checkpoint)
    section = small.sections["evaluate"]
    assert isinstance(section, EvaluateSpec)
    limit = section.limit or items
    announce(terminal, make_plan(small, until=MEASURES, progress=terminal.progress), limit, owner=job.name)
    if checkpoint is None:
        outcome = run_quietly(terminal, job, until=MAKES_CANDIDATE, force=(), wait=wait)
        if outcome.error is not None:
            return Pilot(job, outcome, limit, None)
        checkpoint = outcome.folder.stage(MAKES_CANDIDATE) / "checkpoint"
        small = pilot_job(job, items, checkpoint)
    outcome = run_quietly(terminal, small, until=MEASURES, force=(), wait=wait)
    if outcome.error is not None:
        return Pilot(small, outcome, limit, None)
    folders = {record.name: small.root / record.folder for record in outcome.stages if record.folder}
    return Pilot(small, outcome, limit, measured(plan, folders["baseline"], folders["evaluate"]))


def announce(terminal: Terminal, plan: Plan, limit: int, *, owner: str) -> None:
    """What a pilot runs, and for how long; on stderr, for it is no result."""
    from sqtool.report.numbers import span

    running = [step.stage.name for step in plan.steps if step.action == "run"]
    if not running:
        terminal.progress.note(f"pilot: {limit} items of each task, measured before")
        return
    time = f", about {span(plan.seconds)}" if plan.seconds is not None else ""
    terminal.progress.note(
        f"pilot: runs {', '.join(running)} on {limit} items of each task as run {plan.job.name}{time}"
    )
    if "quantize" in running:
        terminal.progress.note(f"pilot: the checkpoint is made as run {owner}, which uses it later")
