"""`sqtool quantize`: the whole job."""

from __future__ import annotations

from pathlib import Path

import click

from sqtool.cli.options import Settings, common, examples, running, trusting


@click.command(
    "quantize",
    epilog=examples(
        "sqtool quantize recipes/awq4.yaml",
        "sqtool quantize recipes/awq4.yaml --until gate     judge, publish nothing",
        "sqtool quantize awq4 --force quantize --json       once more, for a machine",
        "sqtool quantize awq4 --sign-key release.key        a signed release",
    ),
)
@click.argument("recipe")
@click.option("--until", metavar="STAGE", help="Stop behind this stage.")
@click.option(
    "--sign-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign the release with this private key (default: `release.sign`, else $SQTOOL_SIGNING_KEY).",
)
@running
@common
@trusting
def command(
    settings: Settings, recipe: str, until: str | None, sign_key: Path | None, force: tuple[str, ...], wait: bool
) -> int:
    """Quantize by RECIPE, measure against the baseline, refuse what regressed, release what passed.

    RECIPE is a YAML file, or the name of one in recipes/. Stages whose inputs did not change are reused, so the same
    command goes on after an interruption. Exit code: 0 released, 1 refused, 2 usage or recipe, 3 inconclusive,
    4 infrastructure.
    """
    from sqtool.cli.runs import run_recipe

    return run_recipe(settings, recipe, until=until, force=force, wait=wait, sign_key=sign_key)
