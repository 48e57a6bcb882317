"""`sqtool report`: the report of a run."""

from __future__ import annotations

import dataclasses

import click

from sqtool.cli.options import Settings, common, examples


@click.command("report", epilog=examples("sqtool report awq4", "sqtool report artifacts/runs/awq4 --markdown | less"))
@click.argument("run")
@click.option("--markdown", is_flag=True, help="Print report.md instead of the short form.")
@common
def command(settings: Settings, run: str, markdown: bool) -> int:
    """Draw the report of RUN (a name in artifacts/runs, or a folder) again from its records, and print it.

    Exit code 0, whatever the verdict was; `sqtool gate RUN` exits by the verdict.
    """
    from sqtool.cli.runs import show_facts
    from sqtool.cli.terminal import Terminal
    from sqtool.report import collect, write_report
    from sqtool.runfolder import RunFolder

    with Terminal(settings) as terminal:
        folder = RunFolder.find(settings.here, run)
        path = write_report(folder.path)
        facts = collect(folder.path)
        if settings.json:
            terminal.json(dataclasses.asdict(facts))
        elif markdown:
            click.echo(path.read_text(encoding="utf-8"), nl=False)
        else:
            show_facts(terminal, facts)
            if facts.remedy:
                terminal.say(f"  {facts.remedy}")
            terminal.say(f"\nreport: {path}")
    return 0
