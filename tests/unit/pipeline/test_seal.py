"""The integrity record of shared folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import InfrastructureError
from sqtool.pipeline import seal

KEY, OTHER = b"k" * 32, b"o" * 32
RESULT = {"stage": "baseline", "digest": "d", "summary": {"items": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "baseline-0123456789ab"
    (place / "records").mkdir(parents=True)
    (place / "records" / "recall.jsonl").write_text('{"id": 1, "scores": {"m": 0}}\n{"id": 2, "scores": {"m": 1}}\n')
    (place / "result.json").write_text("whatever: the record is not over itself")
    return place


def refused(folder: Path, result: dict[str, Any], key: bytes | None, told: str) -> None:
    with pytest.raises(InfrastructureError, match=told) as caught:
        seal.check(folder, result, key)
    assert "--force baseline" in caught.value.remedy
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("key", [None, KEY])
def test_untouched(folder: Path, key: bytes | None) -> None:
    seal.check(folder, seal.sealed(folder, RESULT, key), key)


@pytest.mark.parametrize("key", [None, KEY])
def test_one_line_of_the_records_edited(folder: Path, key: bytes | None) -> None:
    result = seal.sealed(folder, RESULT, key)
    path = folder / "records" / "recall.jsonl"
    path.write_text(path.read_text().replace('"m": 0', '"m": 1'))
    refused(folder, result, key, r"records/recall\.jsonl was changed since it was measured")


def test_added_removed_and_linked(folder: Path, tmp_path: Path) -> None:
    result = seal.sealed(folder, RESULT, None)
    (folder / "new").write_text("x")
    refused(folder, result, None, "new was added")
    (folder / "new").unlink()
    path = folder / "records" / "recall.jsonl"
    path.rename(tmp_path / "same")
    refused(folder, result, None, r"recall\.jsonl is gone")
    path.symlink_to(tmp_path / "same")
    refused(folder, result, None, r"recall\.jsonl was changed")


@pytest.mark.parametrize("key", [None, KEY])
def test_result_edited(folder: Path, key: bytes | None) -> None:
    result = seal.sealed(folder, RESULT, key)
    refused(folder, {**result, "summary": {"items": 3}}, key, r"result\.json was changed")


def test_records_and_hashes_edited_without_the_key(folder: Path) -> None:
    sealed = seal.sealed(folder, RESULT, KEY)
    (folder / "records" / "recall.jsonl").write_text("{}\n")
    forged = seal.sealed(folder, RESULT, None)
    refused(folder, {**sealed, "files": forged["files"]}, KEY, "was not signed with the key")
    refused(folder, forged, KEY, "is not signed, and SQTOOL_CACHE_KEY is set")
    refused(folder, seal.sealed(folder, RESULT, OTHER), KEY, "was not signed with the key")


@pytest.mark.parametrize("missing", ["files", "seal"])
def test_no_record(folder: Path, missing: str) -> None:
    result = seal.sealed(folder, RESULT, None)
    del result[missing]
    refused(folder, result, None, "has no")


def test_signed_by_somebody_and_no_key_here(folder: Path) -> None:
    """Its files are still held against their hashes."""
    result = seal.sealed(folder, RESULT, KEY)
    seal.check(folder, result, None)
    (folder / "new").write_text("x")
    refused(folder, result, None, "new was added")


def test_key() -> None:
    assert seal.key_of({}) is None
    assert seal.key_of({seal.KEY_VARIABLE: "k" * 32}) == KEY
    with pytest.raises(InfrastructureError, match="at least 16"):
        seal.key_of({seal.KEY_VARIABLE: "short"})
