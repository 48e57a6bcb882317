"""`sqtool keygen`: a pair of keys for signing releases."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sqtool.cli.options import Settings, common, examples


@click.command(
    "keygen",
    epilog=examples(
        "sqtool keygen release.key                                  without a password",
        "SQTOOL_SIGNING_PASSWORD=... sqtool keygen release.key      with one",
        "sqtool keygen ~/keys/release.key --json",
    ),
)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@common
def command(settings: Settings, path: Path) -> int:
    """Make an elliptic-curve pair (P-256): PATH, the private key, and PATH.pub, which verifiers need.

    The private key is readable by its owner alone; keep it out of the repository. Its password, if it is to have one,
    is read from SQTOOL_SIGNING_PASSWORD, here and when signing. A file that exists is never overwritten. Keys made by
    openssl (`ecparam -name prime256v1 -genkey -noout`) serve as well.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.release.signing import PASSWORD_VARIABLE, make_keys

    with Terminal(settings) as terminal:
        private, public, fingerprint = make_keys(path, os.environ.get(PASSWORD_VARIABLE, "").encode() or None)
        if settings.json:
            terminal.json({"private": str(private), "public": str(public), "public_key_sha256": fingerprint})
        terminal.say(f"private key: {private}")
        terminal.say(f"public key:  {public} (sha256 {fingerprint})")
        terminal.say(f"sign:        sqtool quantize RECIPE --sign-key {private}")
        terminal.say(f"check:       sqtool verify FOLDER --key {public}")
    return 0
