"""`sqtool plan`: the dry run, and what the gate could decide; with `--pilot` also a small wet one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.options import Settings, common, examples, trusting

if TYPE_CHECKING:
    from quantize.preflight.trial import Trial
    from sqtool.cli.pilot import Pilot
    from sqtool.gate.measured import Measured
    from sqtool.pipeline import Plan, Step

WORDS = {"cached": "cached", "run": "will run", "skip": "skipped"}


@click.command(
    "plan",
    epilog=examples(
        "sqtool plan recipes/awq4.yaml",
        "sqtool plan recipes/awq4.yaml --json | jq .seconds",
        "sqtool plan recipes/awq4.yaml --trial        time the real methods on one layer",
        "sqtool plan recipes/awq4.yaml --pilot 100    measure how many answers change first",
    ),
)
@click.argument("recipe")
@click.option("--until", metavar="STAGE", help="Plan no further than this stage.")
@click.option("--force", multiple=True, metavar="STAGE", help="As in `sqtool quantize`.")
@click.option(
    "--pilot",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run up to the evaluation of N items of each task, as run NAME-pilot, and plan with the share of answers that "
    "change instead of assuming it. The checkpoint is made once, as run NAME; the N items are evaluated again later.",
)
@click.option(
    "--trial",
    is_flag=True,
    help="Time the real methods on copies of the model with one and two decoder layers, and extrapolate.",
)
@click.option("--wait", is_flag=True, help="With --pilot: wait while another process holds the run.")
@common
@trusting
def command(
    settings: Settings,
    recipe: str,
    until: str | None,
    force: tuple[str, ...],
    pilot: int | None,
    trial: bool,
    wait: bool,
) -> int:
    """Show what `sqtool quantize RECIPE` would do: stages, what is cached and why not, sizes, time, and what the gate
    could decide on these items. Runs nothing but a --pilot or a --trial.

    Choose margins before looking at a pilot: its items may only be used again because nothing was fitted to them.

    Exit code 0 when it could run, else that of the first problem found.
    """
    from sqtool.cli.pilot import run_pilot
    from sqtool.cli.runs import load_job
    from sqtool.cli.terminal import Terminal
    from sqtool.pipeline import make_plan
    from sqtool.pipeline.pilot import last_run

    if pilot is not None and (until is not None or force):
        raise click.UsageError("--pilot runs what a pilot needs; --until and --force do not go with it")
    with Terminal(settings) as terminal:
        job = load_job(terminal, recipe)
        plan = make_plan(job, until=until, force=force, progress=terminal.progress, hash_large=pilot is not None)
        ended, tried = None, None
        if trial and not plan.problems:
            plan, tried = _trial(terminal, plan)
        if pilot is not None and not plan.problems:
            ended = run_pilot(terminal, plan, pilot, wait=wait)
            plan = make_plan(job, progress=terminal.progress)
        earlier = last_run(plan) if pilot is None else None
        if settings.json:
            terminal.json(as_json(plan, ended, earlier, tried))
        show(terminal, plan, ended, earlier, tried)
        return _exit_code(plan, ended)


def _trial(terminal: Any, plan: Plan) -> tuple[Plan, Trial | None]:
    """The plan with the trial's time, where there is something to quantize."""
    from sqtool.cli.quantizeplan import STAGE, run_trial

    if not any(step.stage.name == STAGE and step.action == "run" for step in plan.steps):
        terminal.say("nothing to quantize: no trial")
        return plan, None
    with terminal.captured(plan.job.root / "artifacts" / "cache" / "trial.log"):
        return run_trial(terminal, plan)


def _exit_code(plan: Plan, ended: Pilot | None) -> int:
    """Says what is wrong, on stderr."""
    from sqtool.cli.terminal import show_error

    for problem in plan.problems:
        show_error(problem)
    if ended is not None and ended.outcome.error is not None:
        show_error(ended.outcome.error, f"log: {ended.job.shown(ended.outcome.folder.log)}")
        return ended.outcome.exit_code
    return plan.problems[0].exit_code if plan.problems else 0


def show(
    terminal: Any,
    plan: Plan,
    ended: Pilot | None = None,
    earlier: Measured | None = None,
    tried: Trial | None = None,
) -> None:
    """The plan as a table with what each figure rests on, then what the gate can decide."""
    from sqtool.cli.quantizeplan import show_quantize
    from sqtool.report.numbers import span

    rows = []
    for step in plan.steps:
        time = f"~{span(step.guess.seconds)}" if step.action == "run" and step.guess.seconds is not None else ""
        rows.append((step.stage.name, WORDS[step.action], time, _details(step), step.why))
    terminal.table(("stage", "what", "time", "size", "why"), tuple(rows), f"{plan.job.name}: plan")
    for step in plan.steps:
        if step.action == "run" and step.guess.source:
            terminal.say(f"  time of {step.stage.name}: {step.guess.source}")
    total = plan.seconds
    running = sum(step.action == "run" for step in plan.steps)
    if running:
        terminal.say(f"{running} stages to run, about {span(total)}" if total is not None else f"{running} to run")
    else:
        terminal.say("everything is there: nothing to run")
    if plan.unread:
        terminal.say(f"{len(plan.unread)} large files were not hashed yet: a run does that first, once")
    quantize = next((step for step in plan.steps if "methods" in step.estimate.details), None)
    if quantize is not None:
        terminal.say()
        show_quantize(terminal, quantize.estimate.details, tried)
    _show_gate(terminal, plan, ended, earlier)


def _show_gate(terminal: Any, plan: Plan, ended: Pilot | None, earlier: Measured | None) -> None:
    from sqtool.cli.gateplan import show_gate, show_measured

    gate = next((step.estimate.details["gate"] for step in plan.steps if "gate" in step.estimate.details), None)
    if gate is not None:
        terminal.say()
        show_gate(terminal, gate)
        if earlier is not None:
            show_measured(terminal, earlier.to_dict(), gate, "Measured in the last run")
        if ended is not None and ended.measured is not None:
            title = f"Measured by the pilot, {ended.limit} items of each task"
            show_measured(terminal, ended.measured.to_dict(), gate, title)
    for warning in _warnings(plan):
        terminal.say(f"warning: {warning}")


def _warnings(plan: Plan) -> list[str]:
    return [warning for step in plan.steps for warning in step.estimate.warnings]


def _details(step: Step) -> str:
    from sqtool.report.numbers import size

    details = step.estimate.details
    words = []
    if details.get("bytes_before") and details.get("bytes_after"):
        words.append(f"{size(details['bytes_before'])} -> {size(details['bytes_after'])}")
    if "samples" in details:
        words.append(f"{details['samples']} samples")
    if "items" in details:
        words.append(f"{sum(details['items'].values())} items")
    if "requests" in details:
        loads = f" at {', '.join(details['loads'])}" if details.get("loads") else ""
        words.append(f"{details['arms']} arms x {details['requests']} requests{loads}")
        if there := details.get("elsewhere"):
            words.append(", ".join(f"{arm} at {url}" for arm, url in there.items()))
    if "gate" in details:
        words.append(f"{details['gate']['tests']} tests")
    return ", ".join(words)


def as_json(
    plan: Plan, ended: Pilot | None = None, earlier: Measured | None = None, tried: Trial | None = None
) -> dict[str, Any]:
    """The plan as one JSON document.

    Beside name, model, draft, seconds and problems: `warnings` (texts), `stages` (of which the gate's
    `details.gate` is `GatePlan.to_dict()`), `pilot` (`Pilot.as_json()`, null without one) and `last_run`
    (`Measured.to_dict()`, null without a finished evaluation that still holds), `trial`
    (`Trial.to_json()`, null without one). A stage's digest is null where a large file was not hashed.
    """
    from sqtool.pipeline.ending import describe

    return {
        "name": plan.job.name,
        "model": plan.job.shown(plan.job.model),
        "draft": plan.job.shown(plan.job.draft) if plan.job.draft is not None else None,
        "seconds": plan.seconds,
        "problems": [describe(problem) for problem in plan.problems],
        "warnings": _warnings(plan),
        "pilot": None if ended is None else ended.as_json(),
        "last_run": None if earlier is None else earlier.to_dict(),
        "trial": None if tried is None else tried.to_json(),
        "stages": [
            {
                "name": step.stage.name,
                "action": step.action,
                "why": step.why,
                "digest": None if plan.unread and step.action == "run" else step.digest,
                "folder": plan.job.shown(step.folder) if step.action != "skip" else None,
                "seconds": step.guess.seconds if step.action == "run" else None,
                "seconds_source": step.guess.source,
                "details": step.estimate.details,
            }
            for step in plan.steps
        ],
    }
