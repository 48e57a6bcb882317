from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.errors import InfrastructureError, UsageError
from sqtool.runfolder import RESULT, RunFolder, begin, commit, damage, discard, listed, locked, read_result, sweep


def test_commit_replaces_whole_and_says_done_last(tmp_path: Path) -> None:
    folder = tmp_path / "quantize"
    for text in ("one", "two"):
        out = begin(folder)
        (out / "a").write_text(text)
        (out / RESULT).write_text("a stage cannot call itself done")
        commit(folder, {"digest": text})
        assert (folder / "a").read_text() == text
        assert read_result(folder) == {"digest": text}
        assert [p.name for p in tmp_path.iterdir()] == ["quantize"]


def test_a_crash_between_rename_and_result_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "quantize"
    begin(folder)
    commit(folder, {"digest": "one"})
    begin(folder)

    def crash(*_: object) -> None:
        raise RuntimeError("power")

    monkeypatch.setattr("sqtool.runfolder.write_json", crash)
    with pytest.raises(RuntimeError):
        commit(folder, {"digest": "two"})
    assert read_result(folder) is None
    assert sweep(tmp_path) == ["quantize.old"]


def test_discard_keeps_logs_and_small_reports(tmp_path: Path) -> None:
    out = begin(tmp_path / "evaluate")
    (out / "deep").mkdir()
    (out / "deep/server.log").write_text("log")
    (out / "weights.safetensors").write_text("x")
    (out / "secret").symlink_to("/etc/passwd")
    discard(tmp_path / "evaluate", keep=tmp_path / "failed/evaluate")
    kept = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert kept == ["failed/evaluate/deep/server.log"]


def test_sweep_leaves_finished_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate.tmp").mkdir()
    (tmp_path / "x.tmp").write_text("a file is not ours")
    assert sweep(tmp_path) == ["gate.tmp"]
    assert sweep(tmp_path / "nowhere") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gate", "x.tmp"]


def test_sweep_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".run.json.0123abcd").write_text("half")
    assert sweep(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_large_files_are_told_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqtool.runfolder.HASHED_BYTES", 4)
    (tmp_path / "small").write_text("abcd")
    (tmp_path / "large").write_text("abcde")
    (tmp_path / "link").symlink_to("large")
    result = listed(tmp_path, {"digest": "one"})
    assert result["files"]["large"] == "5 bytes"
    assert result["files"]["link"] == "link to large"
    assert len(result["files"]["small"]) == 64
    assert damage(tmp_path, result) == ""
    assert damage(tmp_path, {**result, "digest": "two"}) == "result.json was changed"
    (tmp_path / "large").write_text("abcd")
    assert damage(tmp_path, result) == "large was changed"
    assert damage(tmp_path, {"digest": "of an older sqtool"}) == ""


def test_a_lock_names_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with locked(path, what="run x", wait=False):
        with (
            pytest.raises(InfrastructureError, match="run x is in use by process"),
            locked(path, what="run x", wait=False),
        ):
            pass
        (tmp_path / "run.lock.owner.json").write_text("{")
        with (
            pytest.raises(InfrastructureError, match="in use by another process"),
            locked(path, what="run x", wait=False),
        ):
            pass
    with locked(path, what="run x", wait=False):
        pass
    assert not (tmp_path / "run.lock.owner.json").exists()


def test_find(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        RunFolder.find(tmp_path, "awq4")
    assert "sqtool quantize" in caught.value.remedy
    folder = RunFolder.of(tmp_path, "awq4")
    folder.path.mkdir(parents=True)
    folder.run_json.write_text("{}")
    for given in ("awq4", "recipes/awq4.yaml", str(folder.path)):
        assert RunFolder.find(tmp_path, given) == folder
    with pytest.raises(UsageError) as caught:
        RunFolder.find(tmp_path, "awk4")
    assert caught.value.remedy == "Did you mean 'awq4'?"
