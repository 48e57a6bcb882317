"""Publish a checkpoint that passed: whole or not at all, and never other bytes than those that were measured.

A release is built in a hidden folder on the same file system, every file made durable, then renamed; the pointer
`latest` moves last. A process killed at any point leaves only that hidden folder, which the next publication removes.
"""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import DataError, InfrastructureError, UsageError
from sqtool.files import canonical_json, sha256_text
from sqtool.progress import SILENT, Progress
from sqtool.release import staging
from sqtool.release.card import model_card, serve_flags
from sqtool.release.manifest import (
    MANIFEST,
    ORIGINAL,
    SCHEMA,
    Entry,
    checkpoint_digest,
    checkpoint_files,
    copy_file,
    read_manifest,
    unsafe,
    verify_manifest,
    write_file,
)
from sqtool.release.provenance import collect
from sqtool.release.spec import ReleaseSpec
from sqtool.release.verdict import CANDIDATE_DIGEST, RERUN, Records, bound_digest, read_accepted

if TYPE_CHECKING:
    from sqtool.gate.verdict import Verdict

CARD, RECIPE, VERDICT = "README.md", "RECIPE.yaml", "verdict.json"


@dataclass(frozen=True)
class _Order:
    """Everything that a publication is made of, checked as far as that goes before copying."""

    spec: ReleaseSpec
    checkpoint: Path
    sources: dict[str, Path]
    measured: str
    verdict: Verdict
    verdict_text: str
    computed_again: bool
    recipe_text: str
    extras: dict[str, Path]
    speculation: Mapping[str, Any] | None

    @property
    def content(self) -> str:
        """Digest of what makes two publications the same: checkpoint, recipe, verdict, and whether speculation is
        approved (the card says so)."""
        parts: list[Any] = [self.measured, sha256_text(self.recipe_text), sha256_text(self.verdict_text)]
        return sha256_text(canonical_json([*parts, *([self.speculation] if self.speculation else [])]))


def publish(
    spec: ReleaseSpec,
    *,
    checkpoint: Path,
    verdict: Path,
    root: Path,
    recipe_text: str,
    extras: Mapping[str, Path] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    records: Records | None = None,
) -> dict[str, Any]:
    """Publish `checkpoint` as `<spec.to>/<spec.name>/<version>/` and point `<spec.to>/<spec.name>/latest` to it.

    `verdict` is the gate's verdict.json; its bindings must hold, under `candidate_digest`, the `digest_folder` of the
    checkpoint that was measured. `extras` (name in the release -> file, such as report.md and speculate.json) go in
    too. `provenance` (model, seed, serve_flags, anything JSON-able) goes into MANIFEST.json, over what is found out
    here: versions, hardware, git commit. `records` are the (baseline, candidate, control) records that the verdict
    rests on; when given, the verdict is computed again and must be the same text.

    Publishing the same checkpoint, recipe and verdict again finds the release that exists (`reused`), with the extras
    of its first publication; `latest` then moves only if it does not point to a newer one.

    Returns name, version, path and latest (relative to `root` where below it), serve (the command that serves it as
    it was measured), checkpoint_digest, manifest_sha256, files, bytes, reused. Raises `RegressedError` or
    `InconclusiveError` for a verdict that does not allow it; `DataError` when verdict and checkpoint do not belong
    together or either was tampered with; `UsageError` when the version exists with other content;
    `InfrastructureError` when the disk is full or an existing release is damaged.
    """
    order = _check(spec, checkpoint, verdict, recipe_text, extras or {}, records, (provenance or {}).get("speculation"))
    to = root / spec.to
    try:
        to.mkdir(parents=True, exist_ok=True)
        with staging.alone(to, spec.name, progress):
            staging.remove_leftovers(to, spec.name)
            version = _existing(order, to / spec.name)
            reused = version is not None
            if version is not None:
                progress.note(f"release: {spec.name} {version} exists with this content")
                _repoint(to / spec.name, spec.name, version)
            else:
                version = spec.version or f"{datetime.now(UTC):%Y-%m-%d}-{order.content[:8]}"
                with staging.building(to, spec.name) as folder:
                    _build(order, folder / version, {**collect(root), **(provenance or {})}, progress)
                    staging.appear(folder, to, spec.name, version)
            return _result(root, to / spec.name, version, reused=reused)
    except OSError as error:
        remedy = "Free some space and run again." if error.errno == errno.ENOSPC else ""
        raise InfrastructureError(f"cannot publish to {to}: {error}", remedy=remedy) from error


def _check(
    spec: ReleaseSpec,
    checkpoint: Path,
    verdict: Path,
    recipe_text: str,
    extras: Mapping[str, Path],
    records: Records | None,
    speculation: Mapping[str, Any] | None,
) -> _Order:
    if not spec.name:
        raise UsageError("a release needs a name", remedy="Set `release: {name: ...}` in the recipe.")
    try:
        text = verdict.read_bytes().decode()
    except FileNotFoundError:
        raise DataError(verdict, "no such file: nothing is released without a verdict") from None
    except UnicodeDecodeError:
        raise DataError(verdict, "not UTF-8 text") from None
    judged = read_accepted(verdict, text, records=records)
    measured = bound_digest({"bindings": judged.bindings})
    if measured is None:
        field = f"bindings.{CANDIDATE_DIGEST}"
        raise DataError(verdict, "does not say which checkpoint was measured", field=field, remedy=RERUN)
    for name, path in extras.items():
        if unsafe(name) or name.startswith(".") or name in (MANIFEST, CARD, RECIPE, VERDICT):
            raise UsageError(f"{name!r} cannot be the name of a further file in a release")
        if not path.is_file():
            raise DataError(path, f"no such file, and the release is to hold it as {name}")
    return _Order(
        spec=spec,
        checkpoint=checkpoint,
        sources=checkpoint_files(checkpoint),
        measured=measured,
        verdict=judged,
        verdict_text=text,
        computed_again=records is not None,
        recipe_text=recipe_text,
        extras=dict(extras),
        speculation=speculation,
    )


def _existing(order: _Order, home: Path) -> str | None:
    """The version that holds this content already, checked file by file; None when it is to be published."""
    wanted = order.spec.version
    names = [wanted] if wanted else sorted((p.name for p in home.glob("*") if not p.is_symlink()), reverse=True)
    for name in names:
        folder = home / name
        if name.startswith(".") or not folder.exists():
            continue
        try:
            content = read_manifest(folder).get("content")
        except DataError:
            content = None
        if content != order.content:
            if wanted:
                raise UsageError(
                    f"version {name} of {order.spec.name} exists with other content; a release is never overwritten",
                    remedy="Choose another `release.version`, or leave it out for one made from day and content.",
                )
            continue
        problems = verify_manifest(folder)
        if problems:
            raise InfrastructureError(
                f"the release {folder} was changed after it was published: {'; '.join(problems[:5])}",
                remedy=f"Move {folder} away and run again.",
            )
        return name
    return None


def _build(order: _Order, place: Path, provenance: Mapping[str, Any], progress: Progress) -> None:
    """Fill `place`; `DataError` when what was copied is not what was measured."""
    place.mkdir()
    taken = {name.casefold() for name in (MANIFEST, CARD, RECIPE, VERDICT, *order.extras)}
    files: dict[str, Entry] = {}
    mapping: dict[str, str] = {}
    total = sum(path.stat().st_size for path in order.sources.values())
    with progress.task("release: copy", total=total) as task:
        for name, source in order.sources.items():
            stored = name
            # A checkpoint may bring its own README.md or recipe.yaml; both are kept, and no two names differ only in
            # case, which some file systems cannot hold.
            while stored.casefold() in taken:
                stored = f"{ORIGINAL}/{stored}"
            taken.add(stored.casefold())
            files[stored] = copy_file(source, place / stored)
            mapping[name] = stored
            task.advance(files[stored].size)
    digest = checkpoint_digest({name: files[stored].sha256 for name, stored in mapping.items()})
    if digest != order.measured:
        raise DataError(
            order.checkpoint,
            f"is not the checkpoint that was measured: its digest is {digest}, the verdict was given for "
            f"{order.measured}",
            remedy="Run `sqtool quantize` again: it measures the checkpoint as it is now.",
        )
    for name, source in order.extras.items():
        files[name] = copy_file(source, place / name)
    files[RECIPE] = write_file(place / RECIPE, order.recipe_text)
    files[VERDICT] = write_file(place / VERDICT, order.verdict_text)
    card = model_card(
        name=order.spec.name,
        version=place.name,
        checkpoint=place,
        verdict=order.verdict,
        provenance=provenance,
        files=[RECIPE, VERDICT, *order.extras],
    )
    files[CARD] = write_file(place / CARD, card)
    manifest = {
        "schema": SCHEMA,
        "name": order.spec.name,
        "version": place.name,
        "created": datetime.now(UTC).isoformat(),
        "content": order.content,
        "checkpoint": {"digest": digest, "files": mapping},
        "recipe": {"file": RECIPE, "sha256": files[RECIPE].sha256},
        "verdict": {
            "file": VERDICT,
            "sha256": files[VERDICT].sha256,
            "outcome": order.verdict.outcome,
            "computed_again": order.computed_again,
        },
        "files": {name: asdict(entry) for name, entry in sorted(files.items())},
        "provenance": dict(provenance),
    }
    write_file(place / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _repoint(home: Path, name: str, version: str) -> None:
    """Let `latest` point to `version`, unless it points to a release that was made later."""
    latest = staging.latest_version(home)
    if latest is None:
        staging.point_latest(home, name, version)
        return
    try:
        newest = str(read_manifest(home / latest).get("created", ""))
    except DataError:
        newest = ""
    if latest != version and str(read_manifest(home / version)["created"]) >= newest:
        staging.point_latest(home, name, version)


def _result(root: Path, home: Path, version: str, *, reused: bool) -> dict[str, Any]:
    place = home / version
    manifest_text = (place / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(manifest_text)
    bindings = json.loads((place / VERDICT).read_text(encoding="utf-8"))["bindings"]

    def shown(path: Path) -> str:
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    return {
        "name": home.name,
        "version": version,
        "path": shown(place),
        "latest": shown(home / "latest"),
        "serve": shlex.join(["vllm", "serve", shown(place), *serve_flags(bindings)]),
        "checkpoint_digest": manifest["checkpoint"]["digest"],
        "manifest_sha256": sha256_text(manifest_text),
        "files": len(manifest["files"]) + 1,
        "bytes": sum(e["size"] for e in manifest["files"].values()) + len(manifest_text.encode()),
        "reused": reused,
    }
