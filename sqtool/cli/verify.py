"""`sqtool verify`: is this release what was measured and passed?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sqtool.cli.options import Settings, common, examples
from sqtool.errors import EXIT_REFUSED, EXIT_RELEASED

if TYPE_CHECKING:
    from sqtool.cli.terminal import Terminal
    from sqtool.release.check import Checked
    from sqtool.release.signing import Trust

SHOWN = 50
"""Findings that people are shown; a folder of another release has one a file."""
F = TypeVar("F", bound=Callable[..., Any])


def trusting(function: F) -> F:
    """--key, --identity, --issuer, --require-signature and --allow-inconclusive."""
    options = (
        click.option(
            "--key", type=click.Path(dir_okay=False, path_type=Path), metavar="PUBLIC_KEY",
            help="The publisher's public key (PEM): the release must be signed with its private half.",
        ),
        click.option("--identity", help="For a keyless signature: the e-mail address or workflow URL that signed."),
        click.option("--issuer", help="For a keyless signature: the OpenID Connect issuer of that identity."),
        click.option("--require-signature", is_flag=True, help="An unsigned release fails."),
        click.option(
            "--allow-inconclusive", is_flag=True, help="Accept a release whose recipe accepted an INCONCLUSIVE verdict."
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    "verify",
    epilog=examples(
        "sqtool verify artifacts/releases/awq4/latest",
        "sqtool verify ./downloaded --require-signature --key release.key.pub",
        "sqtool verify ./downloaded --identity ci@example.org --issuer https://token.actions.githubusercontent.com",
        "sqtool verify ./downloaded --json",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path))
@trusting
@click.option("--run", metavar="RUN", help="For a release without records: compute the verdict from this run's.")
@common
def command(settings: Settings, folder: Path, run: str | None, **options: Any) -> int:
    """Check the release in FOLDER.

    That is: every byte against its manifest; that its verdict is a PASS, given for these bytes by the rules of its
    recipe and computed again from its records; its bill of materials; and with --key (or --identity and --issuer) its
    signature and attestation.

    Exit code 0 when everything holds, 1 when something does not (all of it is listed, the first is named), 2 when
    FOLDER is no release or a key cannot be read.
    """
    from sqtool.cli.terminal import Terminal

    with Terminal(settings) as terminal:
        found = check(terminal, folder.resolve() if folder.is_symlink() else folder, run=run, **options)
        return show(terminal, found)


def check(terminal: Terminal, folder: Path, *, run: str | None = None, **options: Any) -> Checked:
    """Check one release by the options of `trusting`."""
    from sqtool.release.check import check_release

    key, identity, issuer = options["key"], options["identity"], options["issuer"]
    trust = trust_of(key, identity, issuer)
    if options["require_signature"] and trust is None:
        raise click.UsageError("--require-signature needs --key, or --identity and --issuer: whose signature counts?")
    with terminal.progress.task(f"verify: {folder.name}"):
        return check_release(
            folder,
            trust=trust,
            require_signature=options["require_signature"],
            rules_of=rules_of,
            records=_records(terminal, run),
            allow_inconclusive=options["allow_inconclusive"],
        )


def trust_of(key: Path | None, identity: str | None, issuer: str | None) -> Trust | None:
    """Whom the options trust."""
    from sqtool.release.signing import Trust

    if key is not None and (identity or issuer):
        raise click.UsageError("give --key, or --identity and --issuer")
    if bool(identity) != bool(issuer):
        raise click.UsageError("--identity and --issuer belong together: an identity is somebody's word")
    if key is None and not identity:
        return None
    return Trust(key, identity or "", issuer or "")


def rules_of(text: str) -> dict[str, Any]:
    """The gate section of a recipe's text, with every default; `RecipeError` when it is none."""
    from sqtool.errors import RecipeError
    from sqtool.recipe.load import validate
    from sqtool.yaml_text import parse

    recipe, problems = validate(parse(text))
    if recipe is None:
        raise RecipeError("RECIPE.yaml", problems)
    return recipe.gate.model_dump(mode="json")


def _records(terminal: Terminal, run: str | None) -> Any:
    from sqtool.runfolder import RunFolder

    if run is None:
        return None
    folder = RunFolder.find(terminal.settings.here, run)
    stages = {name: place for name, (place, _) in folder.finished(folder.state()).items()}
    missing = [name for name in ("baseline", "evaluate") if name not in stages]
    if missing:
        raise click.UsageError(f"run {run} has no finished {' and no '.join(missing)}")
    control = stages.get("control")
    return stages["baseline"] / "records", stages["evaluate"] / "records", control / "records" if control else None


def as_json(found: Checked) -> dict[str, Any]:
    """What was found, as JSON value."""
    return {
        "folder": str(found.folder),
        "name": found.name,
        "version": found.version,
        "ok": found.ok,
        "outcome": found.outcome,
        "signature": found.signature,
        "files": found.files,
        "findings": [vars(finding) for finding in found.findings],
        "notes": found.notes,
    }


def show(terminal: Terminal, found: Checked) -> int:
    """Print what was found; the exit code."""
    from sqtool.hygiene import one_line

    code = EXIT_RELEASED if found.ok else EXIT_REFUSED
    if terminal.settings.json:
        terminal.json({**as_json(found), "exit_code": code})
        return code
    what = one_line(f"{found.name} {found.version}".strip() or str(found.folder))
    if found.ok:
        terminal.say(f"VERIFIED: {what}: {found.files} files, verdict {found.outcome}, signature {found.signature}")
    else:
        first = found.findings[0]
        terminal.say(f"NOT VERIFIED: {what}: {one_line(first.message)}")
        for finding in found.findings[:SHOWN]:
            terminal.say(f"  {finding.check}: {one_line(finding.message)}")
        if len(found.findings) > SHOWN:
            terminal.say(f"  and {len(found.findings) - SHOWN:,} more (--json lists them)")
    for note in found.notes:
        terminal.say(f"  note: {note}")
    return code
