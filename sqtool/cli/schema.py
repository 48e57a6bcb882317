"""`sqtool schema`: the JSON Schema of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sqtool.cli.options import examples


@click.command(
    "schema",
    epilog=examples(
        "sqtool schema > recipe.schema.json",
        "sqtool schema --out recipe.schema.json",
        "# yaml-language-server: $schema=recipe.schema.json    as a recipe's first line",
    ),
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def command(out: Path | None) -> int:
    """Print the JSON Schema (draft 2020-12) of a recipe; editors complete and check recipes with it."""
    from sqtool.files import write_text
    from sqtool.recipe import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return 0
    try:
        write_text(out, text + "\n")
    except OSError as error:
        raise click.UsageError(f"cannot write {out}: {error.strerror}") from None
    return 0
