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
from sqtool.release import history, staging
from sqtool.release.attestation import write_attestation
from sqtool.release.bom import BOM, ml_bom
from sqtool.release.card import model_card, serve_flags
from sqtool.release.evidence import EVIDENCE, RESULT_FILE, check_copied, evidence_files, found_differences
from sqtool.release.manifest import (
    MANIFEST,
    ORIGINAL,
    SCHEMA,
    UNLISTED,
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
from sqtool.release.signing import Signer, sign_folder, signer_of
from sqtool.release.spec import ReleaseSpec
from sqtool.release.verdict import CANDIDATE_DIGEST, RERUN, Records, bound_digest, check_rules, read_accepted

if TYPE_CHECKING:
    from sqtool.gate.verdict import Verdict

CARD, RECIPE, VERDICT = "README.md", "RECIPE.yaml", "verdict.json"
OWN = (MANIFEST, CARD, RECIPE, VERDICT, BOM, *UNLISTED)
"""Names that a release gives to its own files."""


@dataclass(frozen=True)
class _Order:
    """Everything that a publication is made of, checked as far as that goes before copying."""

    spec: ReleaseSpec
    checkpoint: Path
    sources: dict[str, Path]
    measured: str
    verdict: Verdict
    verdict_text: str
    records: Records | None
    recipe_text: str
    extras: dict[str, Path]
    signer: Signer | None
    speculation: Mapping[str, Any] | None

    @property
    def content(self) -> str:
        """Digest of what makes two publications the same: checkpoint, recipe, verdict, who signs, and whether
        speculation is approved (the card says so)."""
        parts: list[Any] = [self.measured, sha256_text(self.recipe_text), sha256_text(self.verdict_text)]
        if self.signer:
            parts.append({"signer": self.signer.identity})
        if self.speculation:
            parts.append({"speculation": self.speculation})
        return sha256_text(canonical_json(parts))


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
    rules: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Publish `checkpoint` as `<spec.to>/<spec.name>/<version>/` and point `<spec.to>/<spec.name>/latest` to it.

    A destination that is no folder gets a copy of the release that is built in the project, and the upload is done only
    when its hashes were read back.

    `verdict` is the gate's verdict.json; its bindings must hold, under `candidate_digest`, the `digest_folder` of the
    checkpoint that was measured. `extras` (name in the release -> file, such as report.md and speculate.json) go in
    too. `provenance` (model, seed, serve_flags, anything JSON-able) goes into MANIFEST.json, over what is found out
    here: versions, hardware, git commit. `records` are the (baseline, candidate, control) records that the verdict
    rests on; when given, the verdict is computed again and must be the same text. `rules` is the recipe's gate section
    as understood; when given, it must be what the verdict was judged by.

    Publishing the same checkpoint, recipe and verdict again finds the release that exists (`reused`), with the extras
    of its first publication; `latest` then moves only if it does not point to a newer one.

    Returns name, version, path and latest (relative to `root` where below it), serve (the command that serves it as
    it was measured), checkpoint_digest, manifest_sha256, files, bytes, reused, signed, and `uploaded` (its URL) where
    it went elsewhere. Raises `RegressedError` or
    `InconclusiveError` for a verdict that does not allow it; `DataError` when verdict and checkpoint do not belong
    together or either was tampered with; `UsageError` when the version exists with other content;
    `InfrastructureError` when the disk is full or an existing release is damaged.
    """
    signer = signer_of(spec.sign, root)
    if signer is None:
        progress.note("release: not signed (`sqtool keygen` makes a key, `release: {sign: {key: PATH}}` uses it)")
    speculation = (provenance or {}).get("speculation")
    order = _check(spec, checkpoint, verdict, recipe_text, extras or {}, records, rules, signer, speculation)
    to = root / spec.folder
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
                    facts = {**collect(root), **(provenance or {})}
                    _build(order, folder / version, history.next_sequence(to / spec.name), facts, progress)
                    staging.appear(folder, to, spec.name, version)
            result = _result(root, to / spec.name, version, reused=reused)
            if spec.elsewhere is not None:
                from sqtool.release.upload import upload

                result["uploaded"] = upload(spec, to / spec.name / version, progress)
            return result
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
    rules: Mapping[str, Any] | None,
    signer: Signer | None,
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
    if rules is not None:
        check_rules(verdict, judged, rules)
    measured = bound_digest({"bindings": judged.bindings})
    if measured is None:
        field = f"bindings.{CANDIDATE_DIGEST}"
        raise DataError(verdict, "does not say which checkpoint was measured", field=field, remedy=RERUN)
    for name, path in extras.items():
        if unsafe(name) or name.startswith((".", f"{EVIDENCE}/")) or name in OWN:
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
        records=records,
        recipe_text=recipe_text,
        extras=dict(extras),
        signer=signer,
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
        if content is None and not wanted and name.endswith(f"-{order.content[:8]}"):
            raise InfrastructureError(
                f"the release {folder} has no readable {MANIFEST} any more; a release is never overwritten",
                remedy=f"Move {folder} away and run again.",
            )
        if content != order.content:
            if wanted:
                other = "Choose another `release.version`, or leave it out for one made from day and content."
                raise UsageError(
                    f"version {name} of {order.spec.name} exists with other content; a release is never overwritten",
                    remedy=other if content is not None else f"Move {folder} away if it is a damaged release. {other}",
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


def _build(order: _Order, place: Path, sequence: int, provenance: Mapping[str, Any], progress: Progress) -> None:
    """Fill `place`; `DataError` when what was copied is not what was measured."""
    place.mkdir()
    files, mapping = _copy_checkpoint(order, place, progress)
    digest = checkpoint_digest({name: files[stored].sha256 for name, stored in mapping.items()})
    if digest != order.measured:
        raise DataError(
            order.checkpoint,
            f"is not the checkpoint that was measured: its digest is {digest}, the verdict was given for "
            f"{order.measured}",
            remedy="`sqtool quantize RECIPE --force quantize` makes it again, `--force evaluate` measures it as it is "
            "(without them a run takes a weight file that kept its size for the one that it knows).",
        )
    weights = {stored: files[stored] for stored in mapping.values()}
    for name, source in order.extras.items():
        files[name] = copy_file(source, place / name)
    evidence = _copy_evidence(order, place)
    files |= evidence
    files[RECIPE] = write_file(place / RECIPE, order.recipe_text)
    files[VERDICT] = write_file(place / VERDICT, order.verdict_text)
    name, created = order.spec.name, datetime.now(UTC).replace(microsecond=0).isoformat()
    bom = ml_bom(
        name=name,
        version=place.name,
        created=created,
        content=order.content,
        files=weights,
        digest=digest,
        config=_config(place),
        verdict=order.verdict,
        provenance=provenance,
    )
    files[BOM] = write_file(place / BOM, bom)
    card = model_card(
        name=name,
        version=place.name,
        checkpoint=place,
        verdict=order.verdict,
        provenance=provenance,
        files=[RECIPE, VERDICT, BOM, *order.extras, *([f"{EVIDENCE}/"] if evidence else [])],
        signed=order.signer is not None,
    )
    files[CARD] = write_file(place / CARD, card)
    manifest = {
        "schema": SCHEMA,
        "name": name,
        "version": place.name,
        "sequence": sequence,
        "created": created,
        "content": order.content,
        "checkpoint": {"digest": digest, "files": mapping},
        "digests": {
            **provenance.get("digests", {}),
            "checkpoint": digest,
            "recipe": files[RECIPE].sha256,
            "verdict": files[VERDICT].sha256,
        },
        "recipe": {"file": RECIPE, "sha256": files[RECIPE].sha256},
        "verdict": {
            "file": VERDICT,
            "sha256": files[VERDICT].sha256,
            "outcome": order.verdict.outcome,
            "computed_again": order.records is not None,
            "evidence": bool(evidence),
        },
        "signing": order.signer.identity if order.signer else None,
        "files": {name: asdict(entry) for name, entry in sorted(files.items())},
        "provenance": {key: value for key, value in provenance.items() if key != "digests"},
    }
    write_file(place / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if order.signer is not None:
        with progress.task("release: sign"):
            write_attestation(place, manifest, json.loads(order.verdict_text), order.signer)
            sign_folder(place, order.signer)  # last, because it covers everything


def _copy_checkpoint(order: _Order, place: Path, progress: Progress) -> tuple[dict[str, Entry], dict[str, str]]:
    """Copy the checkpoint; what was copied (by name in the release), and that name of each of its files."""
    taken = {name.casefold() for name in (*OWN, *order.extras)}
    files: dict[str, Entry] = {}
    mapping: dict[str, str] = {}
    total = sum(path.stat().st_size for path in order.sources.values())
    with progress.task("release: copy", total=total) as task:
        for name, source in order.sources.items():
            stored = name
            # A checkpoint may bring its own README.md or recipe.yaml; both are kept, and no two names differ only in
            # case, which some file systems cannot hold.
            while stored.casefold() in taken or stored.casefold().startswith(f"{EVIDENCE}/"):
                stored = f"{ORIGINAL}/{stored}"
            taken.add(stored.casefold())
            files[stored] = copy_file(source, place / stored)
            mapping[name] = stored
            task.advance(files[stored].size)
    return files, mapping


def _copy_evidence(order: _Order, place: Path) -> dict[str, Entry]:
    """Copy the records that the verdict rests on, unless the recipe keeps them back."""
    if order.records is None or not order.spec.evidence:
        return {}
    found = {name: copy_file(source, place / name) for name, source in evidence_files(order.records).items()}
    check_copied(order.records[1], order.verdict, {name: entry.sha256 for name, entry in found.items()})
    found[RESULT_FILE] = write_file(place / RESULT_FILE, found_differences(order.records, order.verdict))
    return found


def _config(place: Path) -> dict[str, Any]:
    """The checkpoint's config.json; empty when it has none."""
    try:
        value = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _repoint(home: Path, name: str, version: str) -> None:
    """Let `latest` point to `version`, unless a later release has it, or a rollback took it away. A pointer that is
    gone is put back to where it was."""
    latest = staging.latest_version(home)
    if latest is None:
        staging.point_latest(home, name, history.current(home) or version)
    elif (
        latest != version
        and version not in history.withdrawn(home)
        and history.sequence_of(home / version) > history.sequence_of(home / latest)
    ):
        staging.point_latest(home, name, version)


def _result(root: Path, home: Path, version: str, *, reused: bool) -> dict[str, Any]:
    place = home / version
    manifest_text = (place / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(manifest_text)
    bindings = json.loads((place / VERDICT).read_text(encoding="utf-8"))["bindings"]
    files = [path for path in place.rglob("*") if path.is_file()]

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
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "reused": reused,
        "signed": manifest["signing"] is not None,
    }
