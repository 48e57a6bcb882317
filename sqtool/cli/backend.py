"""`sqtool backend`: the quantizers that live in environments of their own."""

from __future__ import annotations

import click

from sqtool.cli.options import Settings, common, examples


@click.group("backend", epilog=examples("sqtool backend list", "sqtool backend install gptqmodel"))
def command() -> None:
    """List and install the quantizers other than llm-compressor, for `quantize.backend` in a recipe."""


@command.command("list", epilog=examples("sqtool backend list --json"))
@common
def list_command(settings: Settings) -> int:
    """Show each backend: is it installed, which versions, which methods."""
    from importlib.metadata import version

    from quantize.backends.environments import QUANTIZERS, state
    from quantize.methods import METHODS
    from sqtool.cli.terminal import Terminal

    states = [state(name) for name in QUANTIZERS]
    with Terminal(settings) as terminal:
        default = {"name": "llmcompressor", "installed": True, "methods": list(METHODS), "upstream": "maintained"}
        own = {"versions": {"llmcompressor": version("llmcompressor")}, "folder": ""}
        if settings.json:
            terminal.json({"backends": [{**default, **own}, *(s.to_json() for s in states)]})
        rows = [("llmcompressor", f"{version('llmcompressor')}, in sqtool's own environment", "all", "maintained")]
        for found in states:
            versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
            what = versions if found.installed else f"not installed: sqtool backend install {found.name}"
            rows.append((found.name, what, ", ".join(found.methods), found.upstream))
        terminal.table(("backend", "installed", "methods", "upstream"), tuple(rows), "backends")
    return 0


@command.command("install", epilog=examples("sqtool backend install gptqmodel"))
@click.argument("name")
@common
def install_command(settings: Settings, name: str) -> int:
    """Make the environment of backend NAME in .backends/NAME, or finish one that was begun.

    Nothing happens when it is there. Takes minutes and 1 to 2 GB on a CPU; SQTOOL_BACKENDS names another folder.
    """
    from quantize.backends.environments import install, state
    from sqtool.cli.terminal import Terminal

    with Terminal(settings) as terminal:
        install(name)
        found = state(name)
        if settings.json:
            terminal.json(found.to_json())
        versions = ", ".join(f"{package} {number}" for package, number in found.versions.items())
        terminal.say(f"backend {name} is ready: {versions}")
    return 0
