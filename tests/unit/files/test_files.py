"""Files are replaced whole or not at all, and digests see what they should."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.files import (
    canonical_json,
    digest_folder,
    read_json,
    read_jsonl,
    remove_temporaries,
    write_json,
    write_text,
)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    write_json(path, {"x": 2})
    assert read_json(path) == {"x": 2}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mine = [".run.json.0123abcd", ".run.lock.owner.json.00000000"]
    for name in (*mine, ".run.json.0123abcdef", ".hidden", "run.json.0123abcd"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".folder.0123abcd").mkdir()
    old = tmp_path / ".old.json.0123abcd"
    old.write_text("half")
    os.utime(old, (1e9, 1e9))
    assert remove_temporaries(tmp_path, older_than=3600) == [old.name]
    assert remove_temporaries(tmp_path) == mine
    assert remove_temporaries(tmp_path / "nowhere") == []
    assert len(list(tmp_path.iterdir())) == 4


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "report.md", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "report.md").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_bad_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert caught.value.line == 3
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match="expected a JSON object"):
        list(read_jsonl(path))


def test_canonical_json_is_independent_of_order() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json(json.loads('{"a": [1, 2], "b": 1}'))


def test_digest_of_a_folder_follows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("1")
    first = digest_folder(tmp_path / "m")
    (tmp_path / "m" / ".hidden").write_text("x")
    assert digest_folder(tmp_path / "m") == first
    (tmp_path / "m" / "a").write_text("2")
    second = digest_folder(tmp_path / "m")
    (tmp_path / "m" / "a").rename(tmp_path / "m" / "b")
    assert len({first, second, digest_folder(tmp_path / "m")}) == 3
