"""`sqtool verify` on good releases, on tampered ones, and on what is no release."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability import tampered
from sqtool.errors import UsageError
from sqtool.files import write_json
from sqtool.release import attestation
from sqtool.release.check import check_release
from sqtool.release.manifest import ATTESTATION, MANIFEST, SIGNATURE
from sqtool.release.signing import Trust, sign_folder, signer_of
from sqtool.release.spec import SignSpec

from .conftest import Case, check, make_case, messages

ROOT = Path(__file__).parents[3]
NOTICED_BY = {
    "two shards swapped": "files",
    "a shard of another checkpoint, hashes made to fit": "files",
    "verdict edited, hashes made to fit": "verdict",
    "verdict and records of an older release replayed": "files",
    "margin in the recipe widened after the evaluation": "rules",
    "one line of the records edited, hashes made to fit": "verdict",
    "records, verdict and hashes forged consistently": "",
    "time of the release set back": "bom",
    "model card cut before its limits, hashes made to fit": "",
    "a shard replaced by a link to the same bytes": "files",
    "a shard exchanged, signature and attestation removed": "files",
    "signed again with another key": "",
}
"""The first check that notices each tampering without the publisher's key; "" where only the key tells."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tampered.World:
    return tampered.make_world(tmp_path_factory.mktemp("world"))


def test_the_good_release_verifies(world: tampered.World) -> None:
    found = check(world.good, world.key, require_signature=True)
    assert (messages(found), found.notes) == ([], [])
    assert (found.ok, found.outcome, found.signature, found.name, found.version) == (
        True,
        "PASS",
        "valid",
        "tiny",
        "v2",
    )


@pytest.mark.parametrize("name", tampered.TAMPERINGS)
def test_every_tampering_is_caught(world: tampered.World, tmp_path: Path, name: str) -> None:
    copy = tampered.tampered(world, name, tmp_path / "copy")
    assert "signature" in {finding.check for finding in check(copy, world.key).findings}
    without = check(copy)
    assert (without.findings[0].check if without.findings else "") == NOTICED_BY[name], messages(without)


def test_an_unsigned_release_is_allowed_and_says_so(case: Case) -> None:
    found = check(case.published())
    assert found.ok
    assert found.signature == "none"
    assert any("not signed" in note for note in found.notes)


def test_an_unsigned_release_fails_where_a_signature_is_asked_for(case: Case, key: Path) -> None:
    place = case.published()
    assert messages(check(place, key)) == ["signature: model.sig: missing; the release is not signed"]
    assert messages(check(place, require_signature=True)) == messages(check(place, key))


def test_a_signature_is_not_checked_without_a_key(case: Case, key: Path) -> None:
    found = check(case.published(key=key))
    assert (found.ok, found.signature) == (True, "not checked")


def test_another_key(case: Case, key: Path, other_key: Path) -> None:
    found = check(case.published(key=key), other_key)
    assert messages(found) == [
        "attestation: attestation.intoto.json: its signature does not verify with this key",
        "signature: model.sig: was made with another key",
        "signature: MANIFEST.json: names another signer than this key's",
    ]


@pytest.mark.parametrize("name", [SIGNATURE, ATTESTATION])
@pytest.mark.parametrize("text", ["", "{}", "[]", '{"payload": 1}', "\ud800"])
def test_signature_files_that_are_garbage(case: Case, key: Path, name: str, text: str) -> None:
    place = case.published(key=key)
    (place / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not check(place, key).ok


@pytest.mark.parametrize("name", [SIGNATURE, ATTESTATION])
def test_signature_files_that_were_removed(case: Case, key: Path, name: str) -> None:
    place = case.published(key=key)
    (place / name).unlink()
    assert any(f"{name}: missing" in message for message in messages(check(place)))


def test_attestation_of_another_release(case: Case, key: Path) -> None:
    first, second = case.published(key=key), case.published(key=key, spec={"version": "v2"})
    shutil.copyfile(first / ATTESTATION, second / ATTESTATION)
    (second / SIGNATURE).unlink()
    signer = signer_of(SignSpec(key=str(key)), case.root)
    assert signer is not None
    sign_folder(second, signer)
    assert messages(check(second, key)) == [
        "attestation: attestation.intoto.json: does not speak of these files (predicate, subject differ)"
    ]


def test_attestation_is_an_in_toto_statement(case: Case, key: Path) -> None:
    place = case.published(key=key)
    manifest = json.loads((place / MANIFEST).read_text())
    verdict = json.loads((place / "verdict.json").read_text())
    made = attestation.statement(place, manifest, verdict)
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert [subject["name"] for subject in made["subject"]] == ["checkpoint", MANIFEST, "verdict.json"]
    assert made["predicateType"] == attestation.PREDICATE_TYPE
    assert made["predicate"]["outcome"] == "PASS"
    assert made["predicate"]["records"]["candidate"]["recall"] == verdict["inputs"]["candidate"]["recall"]["sha256"]


def test_inconclusive_that_its_recipe_accepted(tmp_path: Path) -> None:
    case = make_case(tmp_path, wrong=3, items=60, gate={"inconclusive": "allow"})
    case.recipe_text = case.recipe_text.replace("0.02}}", "0.02}, inconclusive: allow}")
    place = case.published()
    (finding,) = check(place).findings
    assert "is INCONCLUSIVE" in finding.message
    assert check(place, allow_inconclusive=True).ok


def test_records_kept_back(case: Case) -> None:
    place = case.published(spec={"evidence": False})
    assert not (place / "evidence").exists()
    found = check(place)
    assert found.ok
    assert any("not computed again" in note for note in found.notes)
    assert check(place, records=case.records).notes != found.notes


def test_evidence_removed_with_the_manifest_made_to_fit(case: Case) -> None:
    place = case.published()
    shutil.rmtree(place / "evidence")
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"] = {n: e for n, e in manifest["files"].items() if not n.startswith("evidence/")}
    write_json(place / MANIFEST, manifest)
    assert messages(check(place)) == ["verdict: evidence: missing, and the manifest says that it is there"]


def test_recipe_that_is_none(case: Case) -> None:
    case.recipe_text = "methods: [\n"
    (finding,) = check(case.published()).findings
    assert finding.check == "rules"


def test_what_git_and_the_hub_leave_is_no_part(case: Case, key: Path) -> None:
    place = case.published(key=key)
    (place / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for folder in (".git", ".cache/huggingface"):
        (place / folder).mkdir(parents=True)
        (place / folder / "x").write_text("x")
    assert check(place, key).ok
    (place / ".cache" / "module.py").write_text("x")
    assert not check(place, key).ok


def test_no_release(tmp_path: Path, case: Case, key: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        check_release(tmp_path / "gone")
    home = tmp_path / "home"
    (home / "v1").mkdir(parents=True)
    (home / "v1" / MANIFEST).touch()
    (home / "latest").symlink_to("v1")
    with pytest.raises(UsageError, match=r"no MANIFEST\.json") as raised:
        check_release(home)
    assert raised.value.remedy == f"Did you mean {home / 'latest'}?"
    with pytest.raises(UsageError, match=r"no MANIFEST\.json"):
        check_release(case.checkpoint)
    with pytest.raises(UsageError, match="it is a private key"):
        check_release(case.published(), trust=Trust(key))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "sqtool.manifest/2", "files": {}}'])
def test_broken_manifest(case: Case, text: str) -> None:
    place = case.published()
    (place / MANIFEST).write_text(text)
    found = check(place)
    assert not found.ok
    assert all(finding.check == "files" for finding in found.findings)


@pytest.mark.parametrize("field", ["provenance", "digests", "signing", "verdict", "recipe", "name", "created"])
@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_manifest_fields_of_other_types_are_findings_not_tracebacks(
    case: Case, key: Path, field: str, value: Any
) -> None:
    place = case.published(key=key)
    manifest = json.loads((place / MANIFEST).read_text())
    manifest[field] = value
    write_json(place / MANIFEST, manifest)
    assert not check(place, key).ok


@pytest.mark.parametrize("part", ["verdict", "recipe"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "gone", "."])
def test_nothing_outside_the_release_is_read(case: Case, part: str, name: str) -> None:
    place = case.published()
    manifest = json.loads((place / MANIFEST).read_text())
    manifest[part]["file"] = name
    manifest["files"].setdefault(name, {"sha256": "0", "size": 0})
    write_json(place / MANIFEST, manifest)
    found = check(place)
    assert not found.ok
    assert not any("root:" in message for message in messages(found))


def test_torch_is_not_imported(case: Case, key: Path) -> None:
    """Neither by what signs, nor by what writes the card and the bill of materials."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom sqtool.release import attestation, bom, card, publish, upload\n"
        "from sqtool.release.check import check_release\nfrom sqtool.release.signing import Trust\n"
        "import cyclonedx.output.json, huggingface_hub, fsspec, model_signing.signing, sigstore.sign\n"
        f"found = check_release(Path({str(case.published(key=key))!r}), trust=Trust(Path({str(key) + '.pub'!r})))\n"
        "sys.exit(str(found.findings) if found.findings else int('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_are_never_followed_out(case: Case, tmp_path: Path) -> None:
    place = case.published()
    (place / "evidence" / "control").symlink_to(tmp_path / "nowhere")
    assert any("evidence/control: is a link" in message for message in messages(check(place)))
