"""What the commands that run a recipe share: load it, run it, show how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.cli.options import Settings
from sqtool.cli.terminal import Terminal, show_error

if TYPE_CHECKING:
    from sqtool.pipeline import Job, RunOutcome


def load_job(terminal: Terminal, recipe: str) -> Job:
    """The job of a recipe named on the command line."""
    from sqtool.pipeline import job_of
    from sqtool.recipe import find_recipe, load_recipe

    settings = terminal.settings
    loaded = load_recipe(find_recipe(recipe, settings.root), settings.root)
    return job_of(loaded, terminal.progress, trust_remote_code=settings.trust_remote_code)


def run_recipe(
    settings: Settings,
    recipe: str,
    *,
    until: str | None,
    force: Sequence[str],
    wait: bool,
    sign_key: Path | None = None,
) -> int:
    """Run a recipe up to `until` and show the outcome; the exit code. `sign_key` goes before the recipe's own."""
    with Terminal(settings) as terminal:
        job = load_job(terminal, recipe)
        if sign_key is not None:
            job = _signed_with(job, sign_key.resolve())
        return run_job(terminal, job, until=until, force=force, wait=wait)


def _signed_with(job: Job, key: Path) -> Job:
    import dataclasses

    from sqtool.release.spec import SignSpec

    section = job.sections["release"].model_copy(update={"sign": SignSpec(key=str(key))})
    return dataclasses.replace(job, sections={**job.sections, "release": section})


def run_job(terminal: Terminal, job: Job, *, until: str | None, force: Sequence[str], wait: bool) -> int:
    """Run a job and show the outcome; the exit code."""
    outcome = run_quietly(terminal, job, until=until, force=force, wait=wait)
    show_outcome(terminal, job, outcome)
    return outcome.exit_code


def run_quietly(terminal: Terminal, job: Job, *, until: str | None, force: Sequence[str], wait: bool) -> RunOutcome:
    """Run a job with progress, and what libraries print in its log; shows nothing of the outcome."""
    import signal

    from sqtool.pipeline import run
    from sqtool.runfolder import RunFolder

    # A CI system cancels with SIGTERM, a closed terminal with SIGHUP (unless nohup said to ignore it); they end like
    # Ctrl-C: the stage in progress is discarded, servers are stopped.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        with terminal.captured(RunFolder.of(job.root, job.name).log):
            return run(job, until=until, force=force, wait=wait, progress=terminal.progress)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_outcome(terminal: Terminal, job: Job, outcome: RunOutcome) -> None:
    """The verdict, its tables and where the rest is; or the outcome as JSON."""
    from sqtool.report import collect

    if not outcome.recorded:  # what the folder says is not of this run
        assert outcome.error is not None
        raise outcome.error
    if terminal.settings.json:
        terminal.json(as_json(job, outcome))
    facts = collect(outcome.folder.path)
    # What stopped the run is said once, on stderr.
    show_facts(terminal, facts, why=outcome.error is None)
    terminal.say(f"\nreport: {job.shown(outcome.folder.report)}")
    for error in outcome.problems or ([outcome.error] if outcome.error is not None else []):
        show_error(error)
    if outcome.outcome == "failed" and not outcome.problems:
        failed = next((r.name for r in outcome.stages if r.state == "failed"), None)
        kept = outcome.folder.failed(failed) if failed else None
        where = f", what the stage left in {job.shown(kept)}" if kept is not None and kept.is_dir() else ""
        show_note(f"  log: {job.shown(outcome.folder.log)}{where}")


def show_note(text: str) -> None:
    """A line on stderr that goes with an error."""
    import click

    from sqtool.hygiene import clean

    click.echo(clean(text), err=True)


def show_facts(terminal: Terminal, facts: Any, *, why: bool = True) -> None:
    """The report's head and tables in the terminal."""
    if terminal.settings.json:
        return
    terminal.say(f"{facts.headline}: {facts.name}" + (f" ({facts.seconds})" if facts.seconds else ""))
    for line in (*(facts.why if why else ()), *facts.saves):
        terminal.say(f"  {_plain(line)}")
    for line in facts.caveats:
        terminal.say(f"  note: {_plain(line)}")
    for title, table in (("Quality", facts.metrics), ("Slices that did not hold", facts.slices)):
        if table:
            terminal.table(table.headers, _clean(table.rows), title)
    if facts.arms:
        terminal.table(facts.arms.headers, _clean(facts.arms.rows), "Speculative decoding")
        for line in facts.speculation:
            terminal.say(f"  {_plain(line)}")
    for line in facts.unreadable:
        terminal.say(f"  {_plain(line)}")
    if facts.serve:
        terminal.say(f"\nserve it: {facts.serve}")
        if facts.serve_speculative:
            terminal.say(f"with speculation (approved): {facts.serve_speculative}")
        elif facts.speculation_status:
            terminal.say(_plain(facts.speculation_status))


def _plain(text: str) -> str:
    from sqtool.hygiene import clean

    return clean(text)


def _clean(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_plain(cell) for cell in row) for row in rows)


def as_json(job: Job, outcome: RunOutcome) -> dict[str, Any]:
    """The outcome as one JSON document: the run's state, each stage's summary, and where things are."""
    state = outcome.folder.state()
    return {
        **state,
        "folder": job.shown(outcome.folder.path),
        "report": job.shown(outcome.folder.report),
        "results": {name: result["summary"] for name, result in outcome.results.items()},
    }
