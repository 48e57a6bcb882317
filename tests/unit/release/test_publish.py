"""What a publication makes, and that it makes it once."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError, InconclusiveError, InfrastructureError, RegressedError, UsageError
from sqtool.files import digest_folder, sha256_file
from sqtool.release import publish as publish_module
from sqtool.release import staging
from sqtool.release.manifest import MANIFEST, verify_manifest

from .conftest import RECIPE, Case, make_case


def test_release_holds_checkpoint_verdict_recipe_card_and_manifest(case: Case, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("# Report\n")
    result = case.publish(extras={"report.md": report})
    place = case.root / result["path"]
    assert place == case.releases / "awq4" / "v1"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "extra/part.bin"):
        assert (place / name).read_bytes() == (case.checkpoint / name).read_bytes()
    assert (place / "RECIPE.yaml").read_text() == RECIPE
    assert (place / "verdict.json").read_bytes() == case.verdict.read_bytes()
    assert (place / "report.md").read_text() == "# Report\n"
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["checkpoint"]["digest"] == digest_folder(case.checkpoint) == result["checkpoint_digest"]
    assert manifest["verdict"]["outcome"] == "PASS"
    assert manifest["provenance"]["seed"] == 0
    assert manifest["provenance"]["versions"]["sqtool"]
    assert manifest["provenance"]["hardware"]["cores"] >= 1
    files = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert files - {MANIFEST} == set(manifest["files"])
    assert all(sha256_file(place / n) == e["sha256"] for n, e in manifest["files"].items())
    assert verify_manifest(place) == []
    assert result["files"] == len(files)
    assert result["bytes"] == sum((place / n).stat().st_size for n in files)
    assert result["manifest_sha256"] == sha256_file(place / MANIFEST)
    assert case.latest() == "v1"
    assert not case.hidden()


def test_names_that_differ_only_in_case_are_kept_apart(case: Case) -> None:
    place = case.root / case.publish()["path"]
    assert (place / "original" / "recipe.yaml").read_text() == "from: llm-compressor\n"
    names = [p.relative_to(place).as_posix().casefold() for p in place.rglob("*")]
    assert len(set(names)) == len(names)


def test_a_release_can_be_published_again_under_another_name(case: Case, tmp_path: Path) -> None:
    # A released folder taken as `quantize: {checkpoint: ...}` brings its own README.md, verdict.json and MANIFEST.json.
    first = case.root / case.publish()["path"]
    value = json.loads(case.verdict.read_text())
    value["bindings"]["candidate_digest"] = digest_folder(first)
    case.verdict.write_text(json.dumps(value))
    second = case.root / case.publish(checkpoint=first, spec={"name": "again"})["path"]
    assert verify_manifest(second) == []
    assert (second / "original" / "verdict.json").is_file()
    assert (second / "original" / "original" / "recipe.yaml").is_file() or (second / "original/recipe.yaml").is_file()


def test_publishing_the_same_again_reuses_the_release(case: Case) -> None:
    first = case.publish()
    before = {p: p.stat().st_mtime_ns for p in (case.root / first["path"]).rglob("*")}
    second = case.publish()
    assert (first["reused"], second["reused"]) == (False, True)
    assert {**first, "reused": True} == second
    assert {p: p.stat().st_mtime_ns for p in (case.root / first["path"]).rglob("*")} == before


def test_default_version_is_the_day_and_a_digest_and_is_found_again(case: Case) -> None:
    first = case.publish(spec={"version": None})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-[0-9a-f]{8}", first["version"])
    # On another day the same content is still the same release.
    place = case.root / first["path"]
    older = place.with_name("2001-01-01-" + first["version"][-8:])
    place.rename(older)
    second = case.publish(spec={"version": None})
    assert second["version"] == older.name
    assert second["reused"]
    assert case.latest() == older.name


def test_other_content_gets_another_default_version_and_latest_moves(case: Case) -> None:
    first = case.publish(spec={"version": None})
    case.recipe_text = RECIPE + "seed: 1\n"
    second = case.publish(spec={"version": None})
    assert first["version"] != second["version"]
    assert case.latest() == second["version"]
    # Finding an older release again does not move the pointer back.
    case.recipe_text = RECIPE
    assert case.publish(spec={"version": None})["version"] == first["version"]
    assert case.latest() == second["version"]


def test_a_version_is_never_overwritten(case: Case) -> None:
    place = case.root / case.publish()["path"]
    before = (place / MANIFEST).read_bytes()
    case.recipe_text = RECIPE + "seed: 1\n"
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish()
    assert (place / MANIFEST).read_bytes() == before
    assert not case.hidden()


def test_a_folder_of_other_origin_is_never_overwritten(case: Case) -> None:
    foreign = case.releases / "awq4" / "v1"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish()
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]


def test_a_release_that_was_changed_is_not_reused(case: Case) -> None:
    place = case.root / case.publish()["path"]
    (place / "config.json").write_text("{}")
    with pytest.raises(InfrastructureError, match=r"config\.json: changed"):
        case.publish()


@pytest.mark.parametrize(
    ("wrong", "items", "error"), [(80, 400, RegressedError), (3, 60, InconclusiveError)], ids=["regressed", "unsure"]
)
def test_nothing_appears_without_a_pass(tmp_path: Path, wrong: int, items: int, error: type[Exception]) -> None:
    case = make_case(tmp_path, wrong=wrong, items=items)
    with pytest.raises(error, match="nothing is released"):
        case.publish()
    assert not case.releases.exists()


def test_inconclusive_is_released_where_the_recipe_allows_it_and_the_card_says_so(tmp_path: Path) -> None:
    case = make_case(tmp_path, wrong=3, items=60, gate={"inconclusive": "allow"})
    card = (case.root / case.publish()["path"] / "README.md").read_text()
    assert "**INCONCLUSIVE**" in card
    assert "could not exclude" in card


def test_missing_verdict(case: Case) -> None:
    case.verdict.unlink()
    with pytest.raises(DataError, match="nothing is released without a verdict"):
        case.publish()


def test_name_is_needed(case: Case) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        case.publish(spec={"name": ""})


@pytest.mark.parametrize("name", ["../x", "/etc/x", ".hidden", "README.md", "a/../b", "MANIFEST.json"])
def test_bad_names_of_extras(case: Case, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        case.publish(extras={name: case.verdict})
    assert not case.releases.exists()


def test_missing_extra(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        case.publish(extras={"report.md": tmp_path / "none.md"})


def test_full_disk_leaves_nothing_and_says_so(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish_module, "write_file", full)
    with pytest.raises(InfrastructureError, match="No space left") as caught:
        case.publish()
    assert "Free some space" in caught.value.remedy
    assert case.visible() == []
    assert not case.hidden()


def test_cancelled_publication_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging, "appear", cancel)
    with pytest.raises(KeyboardInterrupt):
        case.publish()
    assert case.visible() == []
    assert not case.hidden()


def test_absolute_destination(case: Case, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    result = case.publish(spec={"to": elsewhere}, root=tmp_path / "project")
    assert Path(result["path"]) == elsewhere / "awq4" / "v1"
    assert verify_manifest(elsewhere / "awq4" / "v1") == []


def test_folders_can_be_read_by_others(case: Case) -> None:
    umask = os.umask(0o022)
    try:
        place = case.root / case.publish()["path"]
    finally:
        os.umask(umask)
    for folder in (place, place.parent, place / "extra"):
        assert folder.stat().st_mode & 0o777 == 0o755
    assert (place / "config.json").stat().st_mode & 0o777 == 0o644
