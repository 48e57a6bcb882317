"""Checking a release folder, as `sqtool verify` does: its bytes, its verdict, its bill of materials, its signatures.

Nothing in the folder is trusted: the verdict is computed again from the records that lie in it, by the rules of the
recipe that lies in it. Without a key that only shows damage and clumsy forgery, for whoever can write everything can
write something consistent; the signature is what binds all of it to somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, InconclusiveError, RegressedError, SqtoolError, UsageError
from sqtool.release.attestation import attestation_problems
from sqtool.release.bom import bom_problems
from sqtool.release.evidence import EVIDENCE, evidence_in
from sqtool.release.manifest import (
    ATTESTATION,
    MANIFEST,
    SIGNATURE,
    UNLISTED,
    fetched,
    read_manifest,
    unsafe,
    verify_manifest,
)
from sqtool.release.reading import LARGEST_JSON, LARGEST_RECORDS, UnreadableError, small_json, small_text, walk
from sqtool.release.signing import Trust, fingerprint, public_key, signature_problem
from sqtool.release.spec import LATEST
from sqtool.release.verdict import Records, check_rules, read_accepted
from sqtool.runfolder import RESULT

SHOWN = 20
RulesOf = Callable[[str], Mapping[str, Any]]
"""From a recipe's text, its gate section with every default; raises SqtoolError for a text that is no recipe."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `check` found it: files, verdict, rules, bom, signature or attestation."""

    check: str
    message: str


@dataclass
class Checked:
    """What was looked at and what was found. `notes` say what could not be told, and are no faults."""

    folder: Path
    name: str = ""
    version: str = ""
    outcome: str = ""
    signature: str = "none"
    """`none`, `not checked` (nobody said whom to trust), `valid` or `invalid`."""
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def check_release(
    folder: Path,
    *,
    trust: Trust | None = None,
    require_signature: bool = False,
    rules_of: RulesOf | None = None,
    records: Records | None = None,
    allow_inconclusive: bool = False,
) -> Checked:
    """Check everything there is to check; findings come in the order of the checks.

    `trust` says whose signature counts, and asks for one. `require_signature` without it only asks that there be one.
    `records` take the place of the release's own. Raises `UsageError` when the folder is no release at all, or the key
    is none; `InfrastructureError` when a keyless signature is to be checked without a network.
    """
    if trust is not None and trust.key is not None:
        public_key(trust.key)
    if not folder.is_dir():
        raise UsageError(
            f"no such folder: {folder}",
            remedy="Give it a release's folder; `sqtool releases list` says which there are here, and `sqtool releases "
            "verify NAME` checks one by its name.",
        )
    if not (folder / MANIFEST).is_file():
        inside = folder / LATEST if (folder / LATEST / MANIFEST).is_file() else None
        raise UsageError(
            f"{folder} is no release: it has no {MANIFEST}",
            remedy=f"Did you mean {inside}?" if inside else "Give it the folder of one version of a release.",
        )
    found = Checked(folder)
    linked = _linked(folder)
    if linked:
        # Everything below reads by name: behind a link it would read, and quote, files of whoever verifies.
        found.findings = [Finding("files", f"{name}: is a link; nothing else was read") for name in linked]
        return found
    found.findings += [Finding("files", problem) for problem in verify_manifest(folder)]
    try:
        manifest = read_manifest(folder)
        verdict_file = str(manifest["verdict"]["file"])
        recipe_file = str(manifest["recipe"]["file"])
        if not {verdict_file, recipe_file} <= set(manifest["files"]) or unsafe(verdict_file) or unsafe(recipe_file):
            raise KeyError("verdict and recipe must be among the files")
    except (DataError, KeyError, TypeError):
        # verify_manifest has said why; nothing else can be read.
        found.findings = found.findings or [
            Finding("files", f"{MANIFEST}: names no verdict and recipe among its files")
        ]
        return found
    found.name, found.version = str(manifest.get("name", "")), str(manifest.get("version", ""))
    found.files = len(manifest["files"]) + 1 + sum((folder / name).is_file() for name in UNLISTED)
    _check_verdict(found, manifest, verdict_file, recipe_file, rules_of, records, allow_inconclusive)
    found.findings += [Finding("bom", problem) for problem in bom_problems(folder, manifest)]
    _check_signatures(found, manifest, verdict_file, trust, require_signature)
    return found


def _check_verdict(
    found: Checked,
    manifest: Mapping[str, Any],
    verdict_file: str,
    recipe_file: str,
    rules_of: RulesOf | None,
    records: Records | None,
    allow_inconclusive: bool,
) -> None:
    """The verdict is a PASS, follows from the records, and was given by the rules of the recipe."""
    folder = found.folder
    path = folder / verdict_file
    evidence = records or evidence_in(folder)
    if evidence is None:
        found.notes.append("the release holds no records, so its verdict was not computed again; --run RUN does")
        if manifest["verdict"].get("evidence"):
            found.findings.append(Finding("verdict", "evidence: missing, and the manifest says that it is there"))
    try:
        if evidence is not None and records is None:
            _check_sizes(evidence)
        verdict = read_accepted(path, small_text(path), records=evidence)
    except (RegressedError, InconclusiveError, DataError) as error:
        found.findings.append(Finding("verdict", _relative(error.message, folder)))
        return
    except (OSError, ValueError) as error:
        found.findings.append(Finding("verdict", f"{verdict_file}: cannot be read ({error})"))
        return
    found.outcome = verdict.outcome
    if verdict.outcome != "PASS" and not allow_inconclusive:
        found.findings.append(
            Finding(
                "verdict", f"{verdict_file}: is {verdict.outcome}, which its recipe accepted (--allow-inconclusive)"
            )
        )
    if manifest["verdict"].get("outcome") != verdict.outcome:
        said = manifest["verdict"].get("outcome")
        found.findings.append(Finding("verdict", f"{MANIFEST}: says {said}, the verdict says {verdict.outcome}"))
    if rules_of is None:
        return
    try:
        check_rules(path, verdict, rules_of(small_text(folder / recipe_file).removeprefix("\ufeff")))
    except SqtoolError as error:
        found.findings.append(Finding("rules", _relative(error.message, folder)))
    except (OSError, ValueError) as error:
        found.findings.append(Finding("rules", f"{recipe_file}: cannot be read ({error})"))


def _check_signatures(
    found: Checked, manifest: dict[str, Any], verdict_file: str, trust: Trust | None, required: bool
) -> None:
    folder = found.folder
    signing = manifest.get("signing")
    present = [name for name in (SIGNATURE, ATTESTATION) if (folder / name).is_file()]
    if not present and not signing:
        if trust is not None or required:
            found.findings.append(Finding("signature", f"{SIGNATURE}: missing; the release is not signed"))
        else:
            found.notes.append("the release is not signed: its hashes show damage, not who made it")
        return
    found.findings += [
        Finding("signature", f"{name}: missing, and the manifest says that the release is signed")
        for name in (SIGNATURE, ATTESTATION)
        if name not in present
    ]
    if ATTESTATION in present:
        try:
            verdict = small_json(folder / verdict_file)
            problems = attestation_problems(folder, manifest, verdict, trust)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            problems = [f"{ATTESTATION}: cannot be compared with the release ({type(error).__name__}: {error})"]
        found.findings += [Finding("attestation", problem) for problem in problems]
    if SIGNATURE not in present:
        found.signature = "invalid"
        return
    if trust is None:
        found.signature = "not checked"
        found.notes.append("the signature was not checked: --key PUBLIC_KEY says whose counts")
        return
    problem = signature_problem(folder, trust)
    found.signature = "invalid" if problem else "valid"
    if problem:
        found.findings.append(Finding("signature", problem))
    claimed = signing.get("public_key_sha256") if isinstance(signing, dict) else None
    if trust.key is not None and claimed != fingerprint(public_key(trust.key)):
        found.findings.append(Finding("signature", f"{MANIFEST}: names another signer than this key's"))


def _linked(folder: Path) -> list[str]:
    """Links to folders, and links in the place of documents and records. Another file that is a link only counts as
    missing: weights are read by `verify_manifest`, which follows none."""
    try:
        entries = list(walk(folder))
    except (UnreadableError, OSError):
        return []  # verify_manifest says so, and then nothing else is read either
    found = []
    documents = (MANIFEST, *UNLISTED)
    for name, entry in entries:
        if not entry.is_symlink() or fetched(name):
            continue
        weights = name.endswith(".safetensors") and not name.startswith(EVIDENCE + "/")
        if name in documents or not weights or entry.is_dir():
            found.append(name)
    return sorted(found)[:SHOWN]


def _check_sizes(evidence: Records) -> None:
    """`DataError` for records, or what was found beside them, that would fill the memory."""
    for side in evidence:
        beside = side.parent / RESULT if side is not None else None
        if beside is not None and beside.is_file() and beside.stat().st_size > LARGEST_JSON:
            raise DataError(beside, f"larger than {LARGEST_JSON >> 20} MiB")
        for path in side.glob("*.jsonl") if side is not None else ():
            if path.stat().st_size > LARGEST_RECORDS:
                raise DataError(path, f"larger than {LARGEST_RECORDS >> 30} GiB, and records are read whole")


def _relative(message: str, folder: Path) -> str:
    return message.replace(f"{folder}/", "")
