"""`sqtool quantize`: the whole job."""

from __future__ import annotations

import click

from sqtool.cli.options import Settings, common, examples, running, trusting


@click.command(
    "quantize",
    epilog=examples(
        "sqtool quantize recipes/awq4.yaml",
        "sqtool quantize recipes/awq4.yaml --until gate     judge, publish nothing",
        "sqtool quantize awq4 --force quantize --json       once more, for a machine",
    ),
)
@click.argument("recipe")
@click.option("--until", metavar="STAGE", help="Stop behind this stage.")
@running
@common
@trusting
def command(settings: Settings, recipe: str, until: str | None, force: tuple[str, ...], wait: bool) -> int:
    """Quantize by RECIPE, measure against the baseline, refuse what regressed, release what passed.

    RECIPE is a YAML file, or the name of one in recipes/. Stages whose inputs did not change are reused, so the same
    command goes on after an interruption. Exit code: 0 released, 1 refused, 2 usage or recipe, 3 inconclusive,
    4 infrastructure.
    """
    from sqtool.cli.runs import run_recipe

    return run_recipe(settings, recipe, until=until, force=force, wait=wait)
