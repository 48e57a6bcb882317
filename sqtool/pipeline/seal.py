"""The integrity record of what runs share (artifacts/cache): nobody measures against a baseline that was touched.

result.json of a shared folder names every file in it with its sha256, and carries a seal over all of that: a sha256,
or with SQTOOL_CACHE_KEY set an HMAC-SHA256. Plain hashes show damage and edits; the HMAC shows that whoever made the
entry knew the key, so that a cache which others can write to (a CI cache, a shared disk) can be used.

An entry that does not hold is never used and never repaired in silence: the run ends, and says how to make it again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqtool.errors import InfrastructureError
from sqtool.files import canonical_json
from sqtool.progress import SILENT, Progress
from sqtool.runfolder import FILES, RESULT, contents

KEY_VARIABLE = "SQTOOL_CACHE_KEY"
SEAL = "seal"
PLAIN, KEYED = "sha256", "hmac-sha256"
SHORTEST_KEY = 16
LARGE_BYTES = 500_000_000
"""Reading more than this takes long enough to say so."""


def key_of(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The key in SQTOOL_CACHE_KEY; None without one. `InfrastructureError` for one that can be guessed."""
    key = environment.get(KEY_VARIABLE, "").encode()
    if key and len(key) < SHORTEST_KEY:
        raise InfrastructureError(
            f"{KEY_VARIABLE} has {len(key)} bytes, and a key needs at least {SHORTEST_KEY}",
            remedy="`openssl rand -hex 32` prints a good one.",
        )
    return key or None


def sealed(folder: Path, result: dict[str, Any], key: bytes | None) -> dict[str, Any]:
    """`result` with the hashes of all files in `folder` and the seal over everything."""
    value = {**result, FILES: contents(folder, whole=True)}
    return {**value, SEAL: _seal(value, key)}


def check(folder: Path, result: Mapping[str, Any], key: bytes | None, progress: Progress = SILENT) -> None:
    """`InfrastructureError` unless the files in `folder` are those of `result`, and its seal holds."""
    problem = _problem(folder, result, key, progress)
    if problem:
        name = str(result.get("stage") or folder.name.partition("-")[0])
        raise InfrastructureError(
            f"the shared {name} in {folder} cannot be trusted: {problem}",
            remedy=f"`--force {name}` measures it again; so does removing that folder.",
        )


def _problem(folder: Path, result: Mapping[str, Any], key: bytes | None, progress: Progress) -> str:
    listed = result.get(FILES)
    if not isinstance(listed, Mapping):
        return f"its {RESULT} has no integrity record"
    given = result.get(SEAL)
    if not isinstance(given, str):
        return f"its {RESULT} has no seal"
    body = {name: value for name, value in result.items() if name != SEAL}
    if key is not None and not given.startswith(f"{KEYED}:"):
        return f"it is not signed, and {KEY_VARIABLE} is set"
    # Without the key nothing can be said of an HMAC; the files are still held against their hashes.
    if (key is not None or given.startswith(f"{PLAIN}:")) and not hmac.compare_digest(given, _seal(body, key)):
        by_key = f"it was not signed with the key in {KEY_VARIABLE}, or " if key is not None else ""
        return f"{by_key}its {RESULT} was changed"
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if size > LARGE_BYTES:
        progress.note(f"checking {size / 1e9:.1f} GB in {folder.name}")
    actual = contents(folder, whole=True)
    changed = sorted(name for name in {**listed, **actual} if listed.get(name) != actual.get(name))
    if not changed:
        return ""
    first = changed[0]
    how = "is gone" if first not in actual else "was added" if first not in listed else "was changed"
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{first} {how} since it was measured{more}"


def _seal(value: Mapping[str, Any], key: bytes | None) -> str:
    data = canonical_json(value).encode()
    if key is None:
        return f"{PLAIN}:{hashlib.sha256(data).hexdigest()}"
    return f"{KEYED}:{hmac.new(key, data, hashlib.sha256).hexdigest()}"
