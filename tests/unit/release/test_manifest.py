"""Hashes and the check of a release against its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.files import digest_folder, sha256_file
from sqtool.release.manifest import MANIFEST, checkpoint_digest, checkpoint_files, copy_file, unsafe, verify_manifest

from .conftest import Case

PARTS = st.text("aA.-0_~", min_size=1, max_size=3).filter(lambda part: part not in (".", ".."))


@pytest.fixture
def release(case: Case) -> Path:
    return case.root / case.publish()["path"]


def test_intact(release: Path) -> None:
    assert verify_manifest(release) == []


def test_each_difference_is_named(release: Path) -> None:
    (release / "config.json").write_text("{}")
    data = bytearray((release / "model.safetensors").read_bytes())
    data[100] ^= 1
    (release / "model.safetensors").write_bytes(data)
    (release / "tokenizer.json").unlink()
    (release / "extra" / "new.bin").write_bytes(b"x")
    (release / ".hidden").write_text("x")
    (release / "link").symlink_to("config.json")
    found = verify_manifest(release)
    assert [f.split(":")[0] for f in found] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        ".hidden",
        "extra/new.bin",
        "link",
    ]
    assert "size" in found[0]
    assert "sha256" in found[1]
    assert found[2].endswith("missing")
    assert found[3].endswith("extra")


def test_file_replaced_by_a_link_to_the_same_bytes(release: Path, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes((release / "config.json").read_bytes())
    (release / "config.json").unlink()
    (release / "config.json").symlink_to(tmp_path / "same")
    assert verify_manifest(release) == ["config.json: missing"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "sqtool.manifest/1", "files": {"a": 1}}'])
def test_broken_manifest(release: Path, text: str) -> None:
    (release / MANIFEST).write_text(text)
    assert len(verify_manifest(release)) == 1


def test_missing_manifest(tmp_path: Path) -> None:
    (found,) = verify_manifest(tmp_path)
    assert "no release" in found


def test_manifest_that_points_outside(release: Path) -> None:
    manifest = json.loads((release / MANIFEST).read_text())
    manifest["files"]["../secret"] = {"sha256": "0", "size": 1}
    (release / MANIFEST).write_text(json.dumps(manifest))
    assert any("outside" in p for p in verify_manifest(release))


def test_manifest_without_its_bindings(release: Path) -> None:
    manifest = json.loads((release / MANIFEST).read_text())
    del manifest["checkpoint"]
    (release / MANIFEST).write_text(json.dumps(manifest))
    assert any("incomplete" in p for p in verify_manifest(release))


@given(st.dictionaries(st.tuples(PARTS, PARTS), st.binary(max_size=4), min_size=1, max_size=6))
def test_checkpoint_digest_is_digest_folder(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, str], bytes]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "always").write_bytes(b"x")
    for (first, second), data in tree.items():
        (folder / f"d{first}").mkdir(exist_ok=True)
        (folder / f"d{first}" / second).write_bytes(data)
        (folder / f"d{first}.txt").write_bytes(data)
    hashes = {name: sha256_file(path) for name, path in checkpoint_files(folder).items()}
    assert checkpoint_digest(hashes) == digest_folder(folder)


def test_copy_tells_what_it_copied_and_never_overwrites(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"x" * 100_000)
    entry = copy_file(source, tmp_path / "deep" / "b")
    assert (entry.sha256, entry.size) == (sha256_file(source), 100_000)
    with pytest.raises(FileExistsError):
        copy_file(source, tmp_path / "deep" / "b")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("a", False),
        ("a/b.c", False),
        ("..", True),
        ("a/../b", True),
        ("/a", True),
        ("", True),
        ("a//b", True),
        ("./a", True),
        ("a\\b", True),
        ("a\0", True),
    ],
)
def test_unsafe(name: str, bad: bool) -> None:
    assert unsafe(name) is bad
