"""`sqtool schema`: the JSON Schema of a recipe, of a task file or of a rollout log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sqtool.cli.options import examples


@click.command(
    "schema",
    epilog=examples(
        "sqtool schema > recipe.schema.json",
        "sqtool schema --out recipe.schema.json",
        "sqtool schema --task > task.schema.json",
        "sqtool schema --rollout > rollout.schema.json",
        "# yaml-language-server: $schema=recipe.schema.json    as a recipe's first line",
    ),
)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@click.option("--task", is_flag=True, help="Of an evaluation task's file instead, scorers' options included.")
@click.option("--rollout", is_flag=True, help="Of one line of a log for `sqtool rollout` instead.")
def command(out: Path | None, task: bool, rollout: bool) -> int:
    """Print the JSON Schema (draft 2020-12) of a recipe; editors complete and check recipes with it."""
    from sqtool.files import write_text

    if task and rollout:
        raise click.UsageError("--task and --rollout are two schemas: ask for one")
    text = json.dumps(_schema(task=task, rollout=rollout), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return 0
    try:
        write_text(out, text + "\n")
    except OSError as error:
        raise click.UsageError(f"cannot write {out}: {error.strerror}") from None
    return 0


def _schema(*, task: bool, rollout: bool) -> Any:
    if rollout:
        from sqtool.rollout.record import json_schema as record_schema

        return record_schema()
    if task:
        from evals.tasks import json_schema

        return json_schema()
    from sqtool.recipe import json_schema as recipe_schema

    return recipe_schema()
