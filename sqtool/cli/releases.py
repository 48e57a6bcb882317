"""`sqtool releases`: what was published, and going back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sqtool.cli.options import Settings, common, examples
from sqtool.cli.verify import trusting

if TYPE_CHECKING:
    from sqtool.release.history import Release

F = TypeVar("F", bound=Callable[..., Any])


def _placed(function: F) -> F:
    return click.option(
        "--dir",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of all releases. Default: artifacts/releases of the project.",
    )(function)


def _to(settings: Settings, folder: Path | None) -> Path:
    from sqtool.release.spec import RELEASES

    return settings.here / RELEASES if folder is None else folder


@click.group(
    "releases",
    epilog=examples(
        "sqtool releases list",
        "sqtool releases show awq4",
        "sqtool releases verify awq4 2026-03-01-1f2e3d4c --key release.key.pub",
        "sqtool releases rollback awq4",
    ),
)
def command() -> None:
    """List, show and verify releases, and let `latest` point to an earlier one."""


@command.command("list", epilog=examples("sqtool releases list", "sqtool releases list awq4 --json"))
@click.argument("name", required=False)
@_placed
@common
def list_command(settings: Settings, name: str | None, folder: Path | None) -> int:
    """List all releases, or those of NAME, oldest first. `*` marks the one that `latest` points to."""
    from sqtool.cli.terminal import Terminal
    from sqtool.release.history import releases

    with Terminal(settings) as terminal:
        found = releases(_to(settings, folder), name)
        if settings.json:
            terminal.json({"releases": [_as_json(release) for release in found]})
        if not found:
            terminal.say("no releases yet; `sqtool quantize RECIPE` makes one")
            return 0
        rows = tuple(
            (
                "*" if r.latest else "",
                r.name,
                r.version,
                r.problem or r.outcome,
                "signed" if r.signed else "unsigned",
                r.created,
                "withdrawn" if r.withdrawn else "",
            )
            for r in found
        )
        terminal.table(("", "name", "version", "verdict", "signature", "published", ""), rows)
    return 0


@command.command("show", epilog=examples("sqtool releases show awq4", "sqtool releases show awq4 v2 --json"))
@click.argument("name")
@click.argument("version", required=False)
@_placed
@common
def show_command(settings: Settings, name: str, version: str | None, folder: Path | None) -> int:
    """Show one release (default: the latest of NAME) as its manifest and verdict describe it. Checks nothing."""
    from sqtool.cli.terminal import Terminal
    from sqtool.release.describe import describe
    from sqtool.release.history import find

    with Terminal(settings) as terminal:
        facts = describe(find(_to(settings, folder), name, version))
        if settings.json:
            terminal.json(facts)
        width = max(len(key) for key in facts)
        for key, value in facts.items():
            if not isinstance(value, list):
                terminal.say(f"{key.replace('_', ' '):{width}}  {value}")
        rows = tuple(
            (m["metric"], str(m["items"]), f"{m['baseline']:.2%}", f"{m['candidate']:.2%}", m["outcome"])
            for m in facts["metrics"]
        )
        terminal.table(("metric", "items", "baseline", "candidate", "verdict"), rows)
    return 0


@command.command(
    "verify", epilog=examples("sqtool releases verify awq4", "sqtool releases verify awq4 v2 --key release.key.pub")
)
@click.argument("name")
@click.argument("version", required=False)
@_placed
@trusting
@common
def verify_command(settings: Settings, name: str, version: str | None, folder: Path | None, **options: Any) -> int:
    """Check one release (default: the latest of NAME) as `sqtool verify` does, with the same exit codes."""
    from sqtool.cli.terminal import Terminal
    from sqtool.cli.verify import check, show
    from sqtool.release.history import find

    with Terminal(settings) as terminal:
        return show(terminal, check(terminal, find(_to(settings, folder), name, version).folder, **options))


@command.command("rollback", epilog=examples("sqtool releases rollback awq4", "sqtool releases rollback awq4 --to v1"))
@click.argument("name")
@click.option("--to", "version", metavar="VERSION", help="Where to go back to. Default: the release before the latest.")
@_placed
@common
def rollback_command(settings: Settings, name: str, version: str | None, folder: Path | None) -> int:
    """Let `latest` of NAME point to an earlier release, in one step. Nothing is removed.

    What is left behind counts as withdrawn: running its recipe again does not make it the latest again, a new release
    does become the latest, and `--to` goes forward as well. Works on folders; at a URL the pointer is yours to move.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.release.history import rollback

    with Terminal(settings) as terminal:
        left, now = rollback(_to(settings, folder), name, version, terminal.progress)
        if settings.json:
            terminal.json({"name": name, "from": left.version, "to": now.version})
        terminal.say(f"{name}: latest was {left.version}, is {now.version}")
    return 0


def _as_json(release: Release) -> dict[str, Any]:
    return {**vars(release), "folder": str(release.folder)}
