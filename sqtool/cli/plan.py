"""`sqtool plan`: the dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.options import Settings, common, examples

if TYPE_CHECKING:
    from sqtool.pipeline import Plan, Step

WORDS = {"cached": "cached", "run": "will run", "skip": "skipped"}


@click.command(
    "plan",
    epilog=examples(
        "sqtool plan recipes/awq4.yaml",
        "sqtool plan recipes/awq4.yaml --json | jq .seconds",
    ),
)
@click.argument("recipe")
@click.option("--until", metavar="STAGE", help="Plan no further than this stage.")
@click.option("--force", multiple=True, metavar="STAGE", help="As in `sqtool quantize`.")
@common
def command(settings: Settings, recipe: str, until: str | None, force: tuple[str, ...]) -> int:
    """Show what `sqtool quantize RECIPE` would do: stages, what is cached and why not, sizes, time. Runs nothing.

    Exit code 0 when it could run, else that of the first problem found.
    """
    from sqtool.cli.runs import load_job
    from sqtool.cli.terminal import Terminal, show_error
    from sqtool.pipeline import make_plan

    with Terminal(settings) as terminal:
        job = load_job(terminal, recipe)
        plan = make_plan(job, until=until, force=force, progress=terminal.progress)
        if settings.json:
            terminal.json(as_json(plan))
        show(terminal, plan)
        for problem in plan.problems:
            show_error(problem)
        return plan.problems[0].exit_code if plan.problems else 0


def show(terminal: Any, plan: Plan) -> None:
    """The plan as a table with what each figure rests on."""
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
        words.append(f"{details['arms']} x {details['requests']} requests")
    return ", ".join(words)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON document."""
    from sqtool.pipeline.run import describe

    return {
        "name": plan.job.name,
        "model": plan.job.shown(plan.job.model),
        "draft": plan.job.shown(plan.job.draft) if plan.job.draft is not None else None,
        "seconds": plan.seconds,
        "problems": [describe(problem) for problem in plan.problems],
        "stages": [
            {
                "name": step.stage.name,
                "action": step.action,
                "why": step.why,
                "digest": step.digest,
                "folder": plan.job.shown(step.folder) if step.action != "skip" else None,
                "seconds": step.guess.seconds if step.action == "run" else None,
                "seconds_source": step.guess.source,
                "details": step.estimate.details,
            }
            for step in plan.steps
        ],
    }
