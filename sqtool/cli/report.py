"""`sqtool report`: the report of a run, for people and for CI."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sqtool.cli.options import Settings, common, examples

if TYPE_CHECKING:
    from sqtool.cli.terminal import Terminal
    from sqtool.report import Facts
    from sqtool.runfolder import RunFolder

FORMATS = ("text", "md", "json", "junit", "comment", "github")


@click.command(
    "report",
    epilog=examples(
        "sqtool report awq4",
        "sqtool report artifacts/runs/awq4 --markdown | less",
        "sqtool report awq4 --format junit --output junit.xml",
        "sqtool report awq4 --format github     inside a GitHub Actions step",
    ),
)
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="text: short, for a terminal (the default). md: report.md. json: its facts. junit: JUnit XML. comment: short "
    "Markdown for a pull request. github: annotations on stdout, and the step's summary and outputs.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@click.option("--markdown", is_flag=True, help="The same as --format md.")
@common
def command(settings: Settings, run: str, form: str | None, output: Path | None, markdown: bool) -> int:
    """Draw the report of RUN (a name in artifacts/runs, or a folder) again from its records, and print it.

    Exit code 0, whatever the verdict was; `sqtool gate RUN` exits by the verdict.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.report import collect, write_report
    from sqtool.runfolder import RunFolder

    form = _form(form, markdown=markdown, as_json=settings.json)
    if output is not None and form in ("text", "github"):
        raise click.UsageError("--output needs --format md, json, junit or comment")
    settings = dataclasses.replace(settings, json=form == "json")
    with Terminal(settings) as terminal:
        folder = RunFolder.find(settings.here, run)
        try:
            write_report(folder.path)
        except OSError as error:  # a run folder that is only to be read still has a report
            click.echo(f"{folder.report} is not written again: {error.strerror or error}", err=True)
        if form == "github":
            _github(folder)
            return 0
        facts = collect(folder.path)
        if form == "text":
            _show(terminal, facts, folder)
            return 0
        text = _text(form, folder, facts)
        if output is None:
            click.echo(text, nl=False)
        else:
            _write(output, text)
    return 0


def _form(form: str | None, *, markdown: bool, as_json: bool) -> str:
    """The one format that was asked for."""
    asked = {f for f, given in ((form, form), ("md", markdown), ("json", as_json)) if given}
    if len(asked) > 1:
        raise click.UsageError("--format, --markdown and --json contradict each other; give one of them")
    return str(asked.pop()) if asked else "text"


def _show(terminal: Terminal, facts: Facts, folder: RunFolder) -> None:
    from sqtool.cli.runs import show_facts

    show_facts(terminal, facts)
    if facts.remedy:
        terminal.say(f"  {facts.remedy}")
    terminal.say(f"\nreport: {folder.report}")


def _text(form: str, folder: RunFolder, facts: Facts) -> str:
    from sqtool.ci import comment, junit, read_run
    from sqtool.report import render

    if form == "md":
        return render(facts)
    if form == "json":
        return json.dumps(dataclasses.asdict(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {"junit": junit, "comment": comment}[form](read_run(folder.path))


def _github(folder: RunFolder) -> None:
    from sqtool.ci import github, read_run

    run = read_run(folder.path)
    for line in github.annotate(run):
        click.echo(line)
    try:
        missing = github.publish(run, folder.report, os.environ)
    except OSError as error:
        raise click.UsageError(f"cannot write {error.filename}: {error.strerror}") from None
    if missing:
        click.echo(f"{' and '.join(missing)}: not set, so nothing is written there", err=True)


def _write(path: Path, text: str) -> None:
    from sqtool.files import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}") from None
