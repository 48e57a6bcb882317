"""`sqtool doctor`: what this machine lacks."""

from __future__ import annotations

import click

from sqtool.cli.options import Settings, common, examples
from sqtool.errors import EXIT_INFRASTRUCTURE
from sqtool.hygiene import clean


@click.command("doctor", epilog=examples("sqtool doctor", "sqtool doctor --json"))
@common
def command(settings: Settings) -> int:
    """Check environments, reference models, disk and devices; each thing that is missing comes with its remedy.

    Exit code 0 when everything that a run needs is there, 4 otherwise.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.doctor import run_checks

    with Terminal(settings) as terminal:
        checks = run_checks(settings.here)
        ready = all(check.ok for check in checks)
        if settings.json:
            terminal.json({"ok": ready, "checks": [check.to_json() for check in checks]})
        for check in checks:
            mark = click.style("ok  ", fg="green") if check.ok else click.style("LACK", fg="red", bold=True)
            terminal.say(f"{mark}  {clean(check.name)}: {clean(check.detail)}", styled=True)
            if not check.ok and check.remedy:
                terminal.say(f"      -> {check.remedy}")
        lacking = sum(not check.ok for check in checks)
        terminal.say("ready" if ready else f"{lacking} of {len(checks)} things are missing")
        return 0 if ready else EXIT_INFRASTRUCTURE
