"""`sqtool calibrate`: the calibration set alone, and how well it covers the traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.options import Settings, common, examples, running, trusting

if TYPE_CHECKING:
    from sqtool.cli.terminal import Terminal
    from sqtool.pipeline import Job, RunOutcome


@click.command(
    "calibrate",
    epilog=examples(
        "sqtool calibrate recipes/gptq4.yaml",
        "sqtool calibrate recipes/gptq4.yaml --fix    add what is missing from the sources",
        "sqtool calibrate gptq4 --json                coverage.json and the set's card, for a machine",
    ),
)
@click.argument("recipe")
@click.option("--fix", is_flag=True, help="Add conversations of the sources that hold what is missing.")
@running
@common
@trusting
def command(settings: Settings, recipe: str, fix: bool, force: tuple[str, ...], wait: bool) -> int:
    """Build RECIPE's calibration set and measure what it covers: of the traffic sample, of the evaluation's items, and
    by kind. Refuses (exit code 1) what the recipe's calibrate.coverage refuses. Nothing is quantized.

    --fix is calibrate.coverage.fix for this run; put it into the recipe for `sqtool quantize` to build the same set.
    """
    from sqtool.cli.runs import load_job, run_quietly, show_note
    from sqtool.cli.terminal import Terminal, show_error
    from sqtool.pipeline.run import with_sections

    with Terminal(settings) as terminal:
        job = load_job(terminal, recipe)
        asked = job.sections["calibrate"]
        already = asked.coverage.fix  # type: ignore[attr-defined]
        if fix and not already:
            coverage = asked.coverage.model_copy(update={"fix": True})  # type: ignore[attr-defined]
            job = with_sections(job, calibrate=asked.model_copy(update={"coverage": coverage}))
        outcome = run_quietly(terminal, job, until="calibrate", force=force, wait=wait)
        _show(terminal, job, outcome)
        if fix and not already and outcome.exit_code == 0:
            terminal.say(
                "To build the same set with `sqtool quantize`, set calibrate.coverage.fix: true in the recipe."
            )
        for error in outcome.problems or ([outcome.error] if outcome.error is not None else []):
            show_error(error)
        if outcome.outcome == "failed" and not outcome.problems:
            show_note(f"  log: {job.shown(outcome.folder.log)}")
        return outcome.exit_code


def _show(terminal: Terminal, job: Job, outcome: RunOutcome) -> None:
    from sqtool.cli.runs import as_json
    from sqtool.files import read_json
    from sqtool.hygiene import clean
    from sqtool.report.coverage import DIMENSION_HEADERS, dimension_rows, dimensions, missing_lines

    record = outcome.stages[0]
    places = (outcome.folder.stage("calibrate"), outcome.folder.failed("calibrate"))
    done = record.state in ("done", "cached")
    path = places[0 if done else 1] / "coverage.json"
    # What an earlier attempt left in failed/ says nothing about a run that never began.
    measured = path.is_file() and (done or record.state == "failed")
    coverage: dict[str, Any] = read_json(path) if measured else {}
    if terminal.settings.json:
        terminal.json({**as_json(job, outcome), "coverage": coverage or None})
        return
    if record.state == "skipped":
        terminal.say(f"{job.name}: no calibration set: {record.why}")
    if not coverage:
        return
    found = dimensions(coverage)
    terminal.say(f"{coverage['verdict']}: {coverage['samples']} conversations, {coverage['tokens']} tokens")
    rows = tuple(tuple(clean(cell) for cell in row) for row in dimension_rows(found))
    if rows:
        terminal.table(DIMENSION_HEADERS, rows)
    kinds = tuple(
        (clean(k), str(v["samples"]), str(v["tokens"]), str(v["in_pool"])) for k, v in coverage["kinds"].items()
    )
    terminal.table(("kind", "conversations", "tokens", "in the sources"), kinds)
    for line in missing_lines(found):
        terminal.say(f"  {clean(line)}")
    if done:
        terminal.say(f"\nset: {job.shown(places[0])} (card.md, calibration.jsonl, tokens.safetensors)")
