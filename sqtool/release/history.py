"""The versions of one name: their order, which is current, and going back to an earlier one.

Releases are ordered by `sequence`, a number that grows by one under the name's lock: no clock decides which is newer.
A rollback only moves `latest`; `<to>/<name>/.rollbacks.jsonl` remembers it, so that running the recipe of a withdrawn
release again does not make it current again. A new release does become current.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, InfrastructureError, UsageError, did_you_mean
from sqtool.progress import SILENT, Progress
from sqtool.release import staging
from sqtool.release.manifest import read_manifest, verify_manifest
from sqtool.release.spec import LATEST

ROLLBACKS = ".rollbacks.jsonl"


@dataclass(frozen=True)
class Release:
    """One version, as its manifest describes it; `problem` says why there is no more to say."""

    name: str
    version: str
    folder: Path
    latest: bool
    sequence: int = 0
    created: str = ""
    outcome: str = ""
    signed: bool = False
    withdrawn: bool = False
    problem: str = ""


def sequence_of(folder: Path) -> int:
    """A release's place in the order of its name's releases, from 1; 0 when its manifest does not say."""
    try:
        value = read_manifest(folder).get("sequence")
    except DataError:
        return 0
    return value if isinstance(value, int) else 0


def next_sequence(home: Path) -> int:
    """One more than the highest that is there; call it with the name's lock held."""
    return 1 + max((sequence_of(folder) for folder in _versions(home)), default=0)


def releases(to: Path, name: str | None = None) -> list[Release]:
    """All releases below `to`, or those of one name, each name's oldest first.

    `UsageError` with a suggestion when the name has none.
    """
    names = sorted(p.name for p in to.glob("[!.]*") if p.is_dir() and _versions(p)) if to.is_dir() else []
    if name is not None:
        if name not in names:
            remedy = did_you_mean(name, names) if names else "`sqtool quantize RECIPE` makes one."
            raise UsageError(f"no release called {name} in {to}", remedy=remedy[:1].upper() + remedy[1:])
        names = [name]
    found = [_describe(folder) for each in names for folder in _versions(to / each)]
    return sorted(found, key=lambda r: (r.name, r.sequence, r.version))


def find(to: Path, name: str, version: str | None = None) -> Release:
    """One version of a name, by default the one that `latest` points to."""
    known = {release.version: release for release in releases(to, name)}
    if version is None or version == LATEST:
        current = next((r for r in known.values() if r.latest), None)
        if current is None:
            raise UsageError(f"{name} has no `latest`", remedy=f"Name a version: {', '.join(known)}.")
        return current
    if version not in known:
        remedy = did_you_mean(version, list(known))
        raise UsageError(f"{name} has no version {version}", remedy=remedy[:1].upper() + remedy[1:])
    return known[version]


def rollback(to: Path, name: str, version: str | None = None, progress: Progress = SILENT) -> tuple[Release, Release]:
    """Point `latest` of `name` to `version`, by default to the release before the current one; (from, to).

    Nothing is removed. `UsageError` when there is nothing to go back to, `InfrastructureError` when the target was
    changed since it was published.
    """
    releases(to, name)
    with staging.alone(to, name, progress):
        current = find(to, name)
        if version is None:
            earlier = [r for r in releases(to, name) if r.sequence < current.sequence and not r.problem]
            earlier = [r for r in earlier if not r.withdrawn] or earlier
            if not earlier:
                raise UsageError(f"{name} {current.version} is the first release; there is none before it")
            target = earlier[-1]
        else:
            target = find(to, name, version)
        if target.version == current.version:
            raise UsageError(f"{name} {target.version} is the current release already")
        problems = verify_manifest(target.folder)
        if problems:
            raise InfrastructureError(
                f"{name} {target.version} was changed after it was published: {'; '.join(problems[:5])}",
                remedy="Choose another version; `sqtool releases verify` checks one.",
            )
        home = to / name
        _remember(home, current, target)
        staging.point_latest(home, name, target.version)
        return current, target


def withdrawn(home: Path) -> set[str]:
    """Versions that a rollback took `latest` away from, and that no later rollback gave it back to."""
    found: set[str] = set()
    for entry in _rollbacks(home):
        found |= set(entry.get("withdrawn", ()))
        found.discard(str(entry.get("to")))
    return found


def current(home: Path) -> str | None:
    """The version that `latest` should point to, going by the manifests and the rollbacks: the newest that was not
    withdrawn; None when there is no readable one."""
    known = [_describe(folder) for folder in _versions(home)]
    found = [(r.sequence, r.version) for r in known if not r.withdrawn and not r.problem]
    return max(found)[1] if found else None


def _rollbacks(home: Path) -> list[dict[str, Any]]:
    try:
        lines = (home / ROLLBACKS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed while it wrote
        found += [value] if isinstance(value, dict) else []
    return found


def _remember(home: Path, current: Release, target: Release) -> None:
    newer = [r.version for r in releases(home.parent, home.name) if r.sequence > target.sequence]
    entry = {
        "from": current.version,
        "to": target.version,
        "withdrawn": newer,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (home / ROLLBACKS).open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _versions(home: Path) -> list[Path]:
    if not home.is_dir():
        return []
    return sorted(p for p in home.iterdir() if not p.name.startswith(".") and p.is_dir() and not p.is_symlink())


def _describe(folder: Path) -> Release:
    home, version = folder.parent, folder.name
    latest = staging.latest_version(home) == version
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return Release(home.name, version, folder, latest, problem=error.message)
    verdict = manifest.get("verdict")
    return Release(
        name=home.name,
        version=version,
        folder=folder,
        latest=latest,
        sequence=sequence_of(folder),
        created=str(manifest.get("created", "")),
        outcome=str(verdict.get("outcome", "")) if isinstance(verdict, dict) else "",
        signed=bool(manifest.get("signing")),
        withdrawn=version in withdrawn(home),
    )
