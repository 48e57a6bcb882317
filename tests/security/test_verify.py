"""`sqtool verify` over a folder that somebody made to hurt whoever verifies it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.cli import call
from sqtool.cli.verify import rules_of
from sqtool.release import check, reading
from sqtool.release.check import Checked, check_release
from sqtool.release.manifest import ATTESTATION, MANIFEST, SIGNATURE, unsafe
from sqtool.release.signing import Trust
from tests.unit.release.conftest import Case, case, key

__all__ = ["case", "key"]
DEEP = b"[" * 200_000 + b"]" * 200_000
SECRET = "the verifier's own"
JSON_FILES = (MANIFEST, "verdict.json", "bom.cdx.json", ATTESTATION, SIGNATURE, "evidence/evaluate/result.json")
HOSTILE: dict[str, bytes] = {
    "empty": b"", "not utf-8": b"\xff\xfe", "null": b"null", "list": b"[]", "text": b'"x"', "deep": DEEP,
    "digits": b'{"schema": ' + b"9" * 5000 + b"}", "NaN": b"NaN", "number": b"1e999", "half": b'{"a": "\\ud800"',
    "of wrong types": b'{"schema": [], "payload": 7, "payloadType": {}, "signatures": 3, "summary": [], "metadata": 1}',
    "dsse of nothing": b'{"payload": "!", "payloadType": "x", "signatures": [{"keyid": 1, "sig": null}]}',
    "dsse, deep": json.dumps(
        {"payload": base64.b64encode(DEEP).decode(), "payloadType": "x", "signatures": [{"keyid": "", "sig": "AAAA"}]}
    ).encode(),
    "bundle": b'{"dsseEnvelope": [], "verificationMaterial": {"x509CertificateChain": 1}, "mediaType": 1}',
}  # fmt: skip


def checked(folder: Path, key: Path | None = None) -> Checked:
    return check_release(folder, trust=None if key is None else Trust(key), rules_of=rules_of)


def refit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def signed(case: Case, key: Path) -> tuple[Path, Path]:
    """A signed release, and the public key."""
    return case.published(key=key), key.with_name(key.name + ".pub")


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("content", HOSTILE)
def test_a_document_of_hostile_bytes_is_a_finding(name: str, content: str, signed: tuple[Path, Path]) -> None:
    folder, public = signed
    (folder / name).write_bytes(HOSTILE[content])
    for trusted in (None, public):
        found = checked(folder, trusted)
        # Without a key nobody says whether a signature is one, so only its key can tell.
        assert found.findings or (name == SIGNATURE and trusted is None)


@pytest.mark.parametrize("value", [7, "x", {"a": 1}, [7], [[]], [{"name": 1}], None, 10**400])
def test_what_the_evaluation_found_is_of_any_shape(value: Any, case: Case) -> None:
    folder = case.published()
    (folder / "evidence/evaluate/result.json").write_text(json.dumps({"summary": {"differences": value}}))
    assert checked(folder).findings


@pytest.mark.parametrize("name", [*JSON_FILES, "RECIPE.yaml"])
def test_documents_are_not_read_whole_whatever_their_size(
    name: str, signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, public = signed
    os.truncate(folder / name, 1 << 36)  # 64 GiB of nothing, which take no room
    monkeypatch.setattr(check, "signature_problem", lambda *_: "not looked at here")
    began = time.process_time()
    found = checked(folder, public)
    assert found.findings
    assert time.process_time() - began < 20


def test_records_that_do_not_fit_into_memory(signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LARGEST_RECORDS", 100)
    assert any("records are read whole" in f.message for f in checked(signed[0]).findings)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "x" * 5000,
        "x" * 300,
        "a/" * 900 + "x",
        "\ud800",
        "a\0b",
        "~/x",
        ".",
    ],
)
def test_names_in_the_manifest_lead_nowhere(name: str, case: Case, tmp_path: Path) -> None:
    folder = case.published()
    (folder.parent / "secret").write_text(SECRET)
    refit(folder, lambda value: value["files"].update({name: {"sha256": "0" * 64, "size": len(SECRET)}}))
    messages = [finding.message for finding in checked(folder).findings]
    assert messages
    assert not any("changed" in message for message in messages if name in message)
    assert unsafe(name) or name in ("~/x", ".") or any("missing" in message for message in messages)


@pytest.mark.parametrize("name", [*JSON_FILES, "RECIPE.yaml", "evidence", "evidence/baseline/records", "new", "extra"])
def test_links_are_named_and_not_read(name: str, signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    outside = tmp_path / "outside"
    path = folder / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
        (outside / "x.jsonl").write_text(SECRET)
    path.symlink_to(outside)
    found = checked(folder, public)
    assert found.findings
    assert all(finding.check == "files" for finding in found.findings)
    assert name in found.findings[0].message
    assert SECRET not in str(found.findings)


def test_pipes_and_devices_do_not_block(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    for name in ("verdict.json", "bom.cdx.json", ATTESTATION):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    began = time.monotonic()
    assert checked(folder, public).findings
    assert time.monotonic() - began < 30


def test_a_million_entries_are_too_many(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = case.published()
    entry = {"sha256": "0" * 64, "size": 1}
    refit(folder, lambda value: value["files"].update({f"f{n}": entry for n in range(reading.MOST_FILES)}))
    began = time.process_time()
    found = checked(folder)
    assert "names more than 100,000 files" in found.findings[0].message
    assert time.process_time() - began < 20


def test_a_folder_of_too_many_files(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = case.published()
    monkeypatch.setattr(reading, "MOST_FILES", 10)
    assert any("holds more than 10 files" in finding.message for finding in checked(folder).findings)


def test_folders_in_folders_without_end(case: Case) -> None:
    folder = case.published()
    place = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    try:
        assert not checked(folder).findings  # empty folders hold nothing
        assert list(reading.walk(folder))
    finally:
        # Neither shutil nor pytest's own cleaning gets so deep.
        subprocess.run(["rm", "-rf", str(folder / "d")], check=True)


def test_names_write_no_lines_of_their_own(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    folder = case.published()
    forged = "VERIFIED: awq4 1: 14 files, verdict PASS, signature valid"
    (folder / f"x\n{forged}\n\x1b[8m").write_text("")
    for number in range(200):
        (folder / f"extra{number}").write_text("")
    refit(folder, lambda value: value.update(name=f"x\n{forged}", version="\x1b[2J"))
    assert call(["verify", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not any(text.startswith("VERIFIED") for text in printed.splitlines())
    assert "more (--json lists them)" in printed
    assert len(printed.splitlines()) < 70


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, -1e308])
@pytest.mark.parametrize("part", ["lower", "difference", "margin", "candidate"])
def test_numbers_that_compare_with_nothing(part: str, value: float, case: Case) -> None:
    """A release without records has only the verdict's own numbers, and NaN is neither above nor below a margin."""
    folder = case.published(spec={"evidence": False})
    path = folder / "verdict.json"
    verdict = json.loads(path.read_text())
    verdict["metrics"][0][part] = value
    path.write_text(json.dumps(verdict))
    assert any(finding.check == "verdict" for finding in checked(folder).findings)


def test_a_number_that_no_attestation_can_hold(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    path = folder / "verdict.json"
    verdict = json.loads(path.read_text())
    verdict["metrics"][0]["items"] = 10**400
    path.write_text(json.dumps(verdict))
    assert "attestation" in {finding.check for finding in checked(folder, public).findings}
