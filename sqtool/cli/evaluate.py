"""`sqtool eval`: scores of a recipe's candidate, or of any model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from sqtool.cli.options import Settings, common, examples, running, trusting


@click.command(
    "eval",
    epilog=examples(
        "sqtool eval recipes/awq4.yaml",
        "sqtool eval --model artifacts/reference/target --task tool_calls --task recall",
    ),
)
@click.argument("recipe", required=False)
@click.option("--model", metavar="MODEL", help="Folder or hub id of a model to evaluate alone.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Task name, or path of its YAML file. Repeatable.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the evaluation.")
@running
@common
@trusting
def command(
    settings: Settings,
    recipe: str | None,
    model: str | None,
    tasks: tuple[str, ...],
    seed: int,
    force: tuple[str, ...],
    wait: bool,
) -> int:
    """Evaluate RECIPE's baseline and candidate (and quantize first where needed), or one --model on each --task.

    Results are cached: the same model, tasks and engine are not evaluated twice.
    """
    from sqtool.cli.adhoc import eval_job
    from sqtool.cli.runs import load_job
    from sqtool.cli.terminal import Terminal

    if (recipe is None) == (model is None):
        raise click.UsageError("give RECIPE or --model, one of them")
    if recipe is not None and tasks:
        raise click.UsageError("the tasks of a recipe stand in it; --task goes with --model")
    with Terminal(settings) as terminal:
        if recipe is not None:
            return _run(terminal, _to_the_end(load_job(terminal, recipe)), "evaluate", force, wait)
        assert model is not None
        job = eval_job(settings, model, tasks, seed=seed, progress=terminal.progress)
        return _run(terminal, job, "baseline", force, wait)


def _to_the_end(job: Any) -> Any:
    """Scores are what is asked for here, so nothing ends before the last item."""
    gate = job.sections["gate"].model_copy(update={"early_stop": "off"})
    # Not `with_sections`: recipe.json keeps the recipe's own rules, by which `sqtool gate RUN` judges.
    return replace(job, sections={**job.sections, "gate": gate})


def _run(terminal: Any, job: Any, until: str, force: tuple[str, ...], wait: bool) -> int:
    from sqtool.cli.runs import as_json, run_quietly, show_note
    from sqtool.cli.terminal import show_error

    outcome = run_quietly(terminal, job, until=until, force=force, wait=wait)
    if terminal.settings.json:
        terminal.json(as_json(job, outcome))
    names = ("baseline", "evaluate")
    sides: list[tuple[str, Any]] = [(n, outcome.results[n]["summary"]) for n in names if n in outcome.results]
    if sides:
        headers, rows = scores(sides)
        terminal.table(headers, rows, f"{job.name}: scores")
        terminal.say(f"records: {', '.join(r.folder for r in outcome.stages if r.name in dict(sides))}")
    for error in outcome.problems or ([outcome.error] if outcome.error is not None else []):
        show_error(error)
    if outcome.outcome == "failed" and not outcome.problems:
        show_note(f"  log: {job.shown(outcome.folder.log)}")
    return outcome.exit_code


def scores(sides: list[tuple[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Means of every metric, overall, by kind and by the slices that the task declares, one column a side."""
    from sqtool.report.numbers import percent

    names = {"baseline": "model" if len(sides) == 1 else "baseline", "evaluate": "candidate"}
    headers = ("task", "kind or slice", "metric", "items", *(names[name] for name, _ in sides))
    rows = []
    for task, result in sides[0][1]["tasks"].items():
        groups = [("all", [side["tasks"].get(task, {}) for _, side in sides])]
        groups += [
            (kind, [side["tasks"].get(task, {}).get("by_kind", {}).get(kind, {}) for _, side in sides])
            for kind in result.get("by_kind", {})
            if kind
        ]
        groups += [
            (f"{field}={value}", [_slice(side["tasks"].get(task, {}), field, value) for _, side in sides])
            for field, values in result.get("slices", {}).items()
            for value in sorted(values, key=_by_number)
        ]
        for kind, parts in groups:
            for metric in parts[0].get("metrics", {}):
                values = [part.get("metrics", {}).get(metric) for part in parts]
                shown = tuple("-" if value is None else percent(value) for value in values)
                rows.append((task, kind, metric, str(parts[0].get("n", "")), *shown))
    return headers, tuple(rows)


def _slice(task: Any, field: str, value: str) -> Any:
    return task.get("slices", {}).get(field, {}).get(value, {})


def _by_number(value: str) -> tuple[float, str]:
    """2 before 16, and what is no number behind all that are."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
