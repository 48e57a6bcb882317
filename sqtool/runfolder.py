"""The folder of one run: its names, its lock, and the state that commands and the report read.

artifacts/runs/<name>/
    recipe.yaml, recipe.json      as written; as understood, with every default
    calibrate/ quantize/ ...      one folder a finished stage, each with a result.json
    failed/<stage>/               logs and reports that a failed stage left
    run.json                      machine-readable state: stages, digests, seconds, exit code
    report.md  report.html  run.log
artifacts/cache/                  shared by all runs: baselines, file digests, timings
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, InfrastructureError, UsageError, did_you_mean
from sqtool.files import (
    TEMPORARY,
    canonical_json,
    fsync_dir,
    read_json,
    remove_temporaries,
    sha256_file,
    sha256_text,
    write_json,
)

RUNS = Path("artifacts/runs")
CACHE = Path("artifacts/cache")
RESULT = "result.json"
FAILED = "failed"
BUILDING, REPLACED = ".tmp", ".old"
KEPT_SUFFIXES = (".log", ".json", ".txt", ".md")
KEPT_BYTES = 16 * 1024 * 1024
KEPT_PART = ".part"
"""Ending of work that a later attempt can go on from; kept whatever its size."""
LOCK_POLL_SECONDS = 0.5
FILES, CHECK = "files", "check"
"""Keys of result.json: what `contents` says of the folder, and a hash of everything else in result.json."""
HASHED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @classmethod
    def of(cls, root: Path, name: str) -> RunFolder:
        """The folder of the run called `name`; it need not exist."""
        return cls(root / RUNS / name)

    @classmethod
    def find(cls, root: Path, given: str) -> RunFolder:
        """An existing run by name or path; `UsageError` with a suggestion when there is none."""
        for path in (root / RUNS / given, Path(given)):
            if (path / "run.json").is_file():
                return cls(path.resolve())
        stem = Path(given).stem
        if (root / RUNS / stem / "run.json").is_file() and given.endswith((".yaml", ".yml")):
            return cls(root / RUNS / stem)
        runs = root / RUNS
        known = [p.name for p in runs.iterdir() if (p / "run.json").is_file()] if runs.is_dir() else []
        suggestion = did_you_mean(stem, known)
        remedy = suggestion[:1].upper() + suggestion[1:] if known else "`sqtool quantize RECIPE` makes one."
        raise UsageError(f"no such run: {given}", remedy=remedy)

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def recipe_text(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def recipe_json(self) -> Path:
        return self.path / "recipe.json"

    def stage(self, name: str) -> Path:
        return self.path / name

    def failed(self, name: str) -> Path:
        return self.path / FAILED / name

    def state(self) -> dict[str, Any]:
        """The content of run.json."""
        value = read_json(self.run_json)
        if not isinstance(value, dict):
            raise DataError(self.run_json, "expected a JSON object")
        return value

    def finished(self, state: Mapping[str, Any]) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Folder and summary of each stage that this run finished, by name; `state` is what `state()` returns.

        A folder whose digest is not the one in run.json belongs to an earlier recipe and does not count. A run that
        was copied elsewhere (a CI job hands its artifacts to the next) is read where it lies now.
        """
        found = {}
        for record in state["stages"]:
            if record["state"] not in ("done", "cached") or not record["folder"]:
                continue
            for place in (self.path / record["name"], *(root / record["folder"] for root in self._roots(state))):
                result = read_result(place)
                if result is not None and result.get("digest") == record["digest"]:
                    summary = result.get("summary")
                    found[record["name"]] = place, summary if isinstance(summary, dict) else {}
                    break
        return found

    def project(self, state: Mapping[str, Any]) -> Path:
        """The project root that this run belongs to now, which need not be the one where it was made."""
        return self._roots(state)[0]

    def _roots(self, state: Mapping[str, Any]) -> list[Path]:
        """Where the project root may be: above this folder if it is in its usual place, else where the run was made."""
        beside = [self.path.parents[2]] if self.path.parts[-3:-1] == RUNS.parts else []
        return [*beside, Path(state["root"])]


def read_result(folder: Path) -> dict[str, Any] | None:
    """The `result.json` of a finished stage folder, or None when the stage is not finished (or the file is broken)."""
    try:
        value = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def contents(folder: Path, *, whole: bool = False) -> dict[str, str]:
    """What is in a stage folder beside its result.json: hex sha256 of each file by relative name; of a link, where it
    points to.

    Of a file above `HASHED_BYTES` it is the size, unless `whole`: weights are hashed anyway before they are measured,
    and once more while they are released.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file() and name != RESULT and not TEMPORARY.fullmatch(path.name):
            size = path.stat().st_size
            found[name] = sha256_file(path) if whole or size <= HASHED_BYTES else f"{size} bytes"
    return found


def listed(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """`result` with what is in the folder, and a hash of all that, for `damage` to hold against it later."""
    value = {**result, FILES: contents(folder)}
    return {**value, CHECK: sha256_text(canonical_json(value))}


def damage(folder: Path, result: Mapping[str, Any]) -> str:
    """What is not as the stage left it, in words: result.json, or the first such file; empty when everything is."""
    if CHECK not in result:
        return ""  # made by a sqtool that kept no list
    value = {key: item for key, item in result.items() if key != CHECK}
    if sha256_text(canonical_json(value)) != result[CHECK]:
        return f"{RESULT} was changed"
    then, now = result[FILES], contents(folder)
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            how = "is gone" if name not in now else "was added" if name not in then else "was changed"
            return f"{name} {how}"
    return ""


def begin(folder: Path) -> Path:
    """An empty `<folder>.tmp` to build in."""
    building = folder.with_name(folder.name + BUILDING)
    _remove(building)
    building.mkdir(parents=True)
    return building


def commit(folder: Path, result: dict[str, Any]) -> None:
    """Put `<folder>.tmp` in the place of `folder`, then write result.json, whose existence means done.

    The old folder goes away only when the new one is complete; a crash in between leaves a folder without
    result.json, which counts as not done.
    """
    building = folder.with_name(folder.name + BUILDING)
    replaced = folder.with_name(folder.name + REPLACED)
    _sync_tree(building)
    (building / RESULT).unlink(missing_ok=True)  # only the pipeline says that a stage is done
    _remove(replaced)
    if folder.exists() or folder.is_symlink():
        folder.rename(replaced)
    building.rename(folder)
    fsync_dir(folder.parent)
    write_json(folder / RESULT, result)
    _remove(replaced)


def discard(folder: Path, keep: Path | None = None) -> None:
    """Remove `<folder>.tmp`; with `keep`, first move its logs, small reports and parts there."""
    building = folder.with_name(folder.name + BUILDING)
    if keep is not None and building.is_dir():
        _remove(keep)
        for path in sorted(p for p in building.rglob("*") if p.is_file() and not p.is_symlink()):
            report = path.suffix in KEPT_SUFFIXES and path.stat().st_size <= KEPT_BYTES
            if report or path.suffix == KEPT_PART:
                target = keep / path.relative_to(building)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
    _remove(building)


def sweep(folder: Path) -> list[str]:
    """Remove what a killed run left in `folder` (call it under the lock), but for logs and parts, which go to
    `failed/`; the names that were removed."""
    if not folder.is_dir():
        return []
    remove_temporaries(folder)
    left = [p for p in folder.iterdir() if p.name.endswith((BUILDING, REPLACED)) and p.is_dir()]
    for path in left:
        if path.name.endswith(BUILDING):
            name = path.name.removesuffix(BUILDING)
            discard(folder / name, keep=folder / FAILED / name)
        _remove(path)
    return sorted(p.name for p in left)


def remove_stage(folder: Path) -> None:
    """Remove a finished stage: result.json first, so that a crash in between cannot leave half of it as done."""
    (folder / RESULT).unlink(missing_ok=True)
    _remove(folder)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        elif path.is_dir() and not path.is_symlink():
            fsync_dir(path)
    fsync_dir(folder)


@contextmanager
def locked(path: Path, *, what: str, wait: bool, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock file `path`; who holds it stands in `<path>.owner.json`.

    With `wait` this waits (and calls `waiting` once with a sentence that says for whom); otherwise a lock that is
    held raises `InfrastructureError` naming the owner. A killed owner holds nothing: the kernel frees its lock.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    owner = path.with_name(path.name + ".owner.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = f"{what} is in use by {_owner(owner)}"
        if not wait:
            remedy = "Wait for it to end (--wait does), or stop it."
            raise InfrastructureError(message, remedy=remedy) from None
        waiting(f"{message}; waiting")
        lock.acquire(poll_interval=LOCK_POLL_SECONDS)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": started})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return f"process {value['pid']} on {value['host']}, since {value['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
