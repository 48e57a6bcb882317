from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sqtool.pipeline.digest as digest
from sqtool.errors import DataError
from sqtool.files import digest_folder
from sqtool.pipeline.digest import FileDigests, code_digest, digest_of, tool_version, what_changed

OLD = time.time() - 3600


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/x", ".hidden"):
        (folder / name).write_text(name)
        os.utime(folder / name, (OLD, OLD))
    return folder


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    real = digest.sha256_file

    def counted(path: Path) -> str:
        reads.append(path.name)
        return real(path)

    monkeypatch.setattr(digest, "sha256_file", counted)
    return reads


def test_equals_digest_folder_and_reads_each_file_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    store = tmp_path / "cache/digests.json"
    first = FileDigests(store)
    assert first.folder(model) == digest_folder(model)
    assert sorted(reads) == ["config.json", "model.safetensors", "x"]
    first.save()
    reads.clear()
    second = FileDigests(store)
    assert second.folder(model) == digest_folder(model)
    assert reads == []


def test_a_changed_file_is_read_again_even_with_its_old_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "digests.json"
    first = FileDigests(store)
    before = first.folder(model)
    first.save()
    path = model / "model.safetensors"
    replacement = model / "new"
    replacement.write_text("MODEL.SAFETENSORS")  # as long as before, and given the old time: only the inode differs
    os.utime(replacement, (OLD, OLD))
    replacement.replace(path)
    assert FileDigests(store).folder(model) != before


def test_a_file_changed_just_now_is_not_remembered(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    now = model / "config.json"
    os.utime(now)
    first = FileDigests(store)
    first.folder(model)
    first.save()
    assert "model.safetensors" in store.read_text()
    assert "config.json" not in store.read_text()


def test_a_broken_memory_only_costs_time(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    for text in ("{", "[]", '{"format": 1}', '{"format": 99, "files": {}}'):
        store.write_text(text)
        assert FileDigests(store).folder(model) == digest_folder(model)


def test_files_that_are_gone_are_forgotten(model: Path, tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    first = FileDigests(store)
    first.folder(model)
    first.save()
    (model / "sub/x").unlink()
    second = FileDigests(store)
    (model / "other").write_text("o")
    os.utime(model / "other", (OLD, OLD))
    second.folder(model)
    second.save()
    assert "sub/x" not in store.read_text()


def test_unreadable_is_a_data_error(tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "d.json")
    with pytest.raises(DataError, match="cannot be read"):
        digests.file(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"):
        digests.folder(tmp_path / "empty")


def test_code_is_hashed_without_import() -> None:
    name = "sqtool.speculate"
    loaded = name in sys.modules
    assert code_digest(name) == code_digest(name)
    assert (name in sys.modules) == loaded
    assert code_digest("sqtool.files") != code_digest("sqtool.errors")
    with pytest.raises(ModuleNotFoundError):
        code_digest("sqtool.nothing_here")


def test_versions() -> None:
    assert tool_version("pydantic") != "absent"
    assert tool_version("no-such-distribution") == "absent"


def test_a_digest_needs_every_part() -> None:
    parts: dict[str, Any] = {"seed": 0, "sections": {"a": {"x": 1, "y": [1.5]}}}
    assert digest_of(parts) == digest_of({"sections": {"a": {"y": [1.5], "x": 1}}, "seed": 0})
    assert digest_of(parts) != digest_of({**parts, "seed": 1})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"seed": 0}, {"seed": 1}, "seed changed"),
        (
            {"sections": {"gate": {"metrics": {"a.b": {"max_drop": 0.1}}, "alpha": 0.05}}},
            {"sections": {"gate": {"metrics": {"a.b": {"max_drop": 0.2}}, "alpha": 0.05}}},
            "recipe: gate.metrics.a.b.max_drop changed",
        ),
        ({"sections": {"g": {"a": 1, "b": 1}}}, {"sections": {"g": {"a": 2, "b": 2}}}, "recipe: g changed"),
        ({"tools": {"vllm": "0.31"}}, {"tools": {"vllm": "0.32"}}, "vllm 0.31 -> 0.32"),
        ({"needs": {"quantize": "a"}}, {"needs": {}}, "quantize was added or left out"),
        ({"data": {"x": "1"}, "code": {"evals": "1"}}, {"data": {"x": "2"}, "code": {"evals": "2"}},
         "code of evals changed; data changed: x"),
        ({}, {}, "made by another version of sqtool"),
    ],
)  # fmt: skip
def test_what_changed(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    assert what_changed(old, new) == words
