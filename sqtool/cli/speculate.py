"""`sqtool speculate`: the job up to the verdict on speculation."""

from __future__ import annotations

import click

from sqtool.cli.options import Settings, common, examples, running, trusting


@click.command(
    "speculate",
    epilog=examples(
        "sqtool speculate recipes/awq4.yaml",
        "sqtool speculate awq4 --force speculate    measure the arms again",
    ),
)
@click.argument("recipe")
@running
@common
@trusting
def command(settings: Settings, recipe: str, force: tuple[str, ...], wait: bool) -> int:
    """Run RECIPE up to the speculate stage: baseline, quantized, speculative and both, on the same traffic.

    A candidate that the gate refuses is not measured; the exit code is then the gate's.
    """
    from sqtool.cli.runs import run_recipe

    return run_recipe(settings, recipe, until="approve", force=force, wait=wait)
