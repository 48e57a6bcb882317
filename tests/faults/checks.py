"""What must hold after a fault, and what "the same result" means.

**Whole.** A stage folder with a readable result.json, of the run or of the cache, is exactly what an undisturbed run
made. **Nobody left.** No process that carries the run's mark, no port that one of them listened on. **No release** but
a whole one (each file as MANIFEST.json says) whose verdict is PASS. **Clean end.** An exit code of the documented ones
(or the signal that was sent), no traceback on the screen.

**The same result**: every file of every stage folder, of the shared ones and of the release has the same bytes, but for
what a clock or a random number put in: the keys `CLOCK` of JSON files, what the speculation stage measures (`KEPT` says
what is compared of its files), logs, the card's table of the arms, and in MANIFEST.json the hashes of files with times.
verdict.json, records and checkpoints are compared byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sqtool.files import TEMPORARY
from sqtool.release.manifest import verify_manifest
from tests.faults.project import Project

STAGES = ("calibrate", "quantize", "evaluate", "gate", "speculate", "approve", "release")
SMALL, AROUND = 1 << 18, 60
CLOCK = frozenset(
    "build built_from started seconds start_seconds created peak_rss_bytes "
    # How often it had to ask, and what it found there, depends on what was disturbed; the answers do not.
    "resumed retried reused "
    # Of a release: its manifest has the time.
    "manifest_sha256 bytes "
    # Of its bill of materials.
    "timestamp serialNumber".split()
)
ANSWER = (
    "id", "kind", "load", "round", "block", "error", "text", "tool_calls", "finish_reason", "prompt_tokens",
    "completion_tokens", "accepted", "score",
)  # fmt: skip
KEPT: dict[str, tuple[str, ...]] = {
    "plan.json": ("seed", "arms", "loads", "rounds", "per_request_acceptance", "single_kind_blocks"),
    "arm.json": ("name", "target", "model", "speculative_config", "complete"),
    "probe.json": ("sent", "cancelled"),
    "speculate.json": ("schema", "method", "speculative_config", "seed", "traffic", "loads", "agreement"),
    "speculation_verdict.json": ("schema", "approved", "gate", "method", "pairs", "arms", "rules", "reasons"),
}
"""Of these files the rest is measured with a clock, or is advice on what was: how long, how much memory, in which
order of chance. What was asked, answered and judged is here."""
BLOCK = ("load", "round", "block", "kind")
TIMED = ("speculate.json", "speculation_verdict.json", "bom.cdx.json", "README.md")
"""Files of a release that hold times, so that their hashes differ; each is compared as a file."""
DAY = re.compile(r"\d{4}-\d\d-\d\d-(?=[0-9a-f]{8})")
"""A default version begins with the day of the release."""
EXIT_CODES = (0, 1, 2, 3, 4, 130)
HALF = (".tmp", ".old")

Snapshot = dict[str, dict[str, str]]
"""Digest of each file by name, by folder."""


def snapshot(project: Project, run: str) -> Snapshot:
    """Every finished folder of a run, of the cache and of its releases; unfinished ones are absent."""
    found: Snapshot = {}
    places = [project.run(run) / name for name in STAGES]
    if project.cache.is_dir():
        places += sorted(p for p in project.cache.iterdir() if p.is_dir() and p.suffix not in HALF)
    for folder in places:
        if _finished(folder):
            found[folder.relative_to(project.root).as_posix()] = _files(folder)
    home = project.releases / run
    for folder in sorted(p for p in home.glob("*") if p.is_dir() and not p.is_symlink() and p.name[0] != "."):
        found[DAY.sub("DAY-", f"release {folder.name}")] = _files(folder)
    return found


def _finished(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / "result.json").read_text()), dict)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> dict[str, str]:
    """By name: the content of small text files, so that a difference can be shown, and the hash of others."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".log":
            data = _content(path)
            small = path.suffix in (".json", ".jsonl", ".md") and len(data) <= SMALL
            digest = hashlib.sha256(data).hexdigest()
            found[path.relative_to(folder).as_posix()] = data.decode("latin-1") if small else digest
    return found


def _first_difference(mine: str, theirs: str) -> str:
    place = next(
        (at for at, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
    )
    begin = max(0, place - AROUND)
    return f"...{mine[begin : place + AROUND]!r} instead of ...{theirs[begin : place + AROUND]!r}"


def _content(path: Path) -> bytes:
    """The bytes that have to be equal."""
    data = path.read_bytes()
    if path.suffix == ".safetensors" or path.name == "verdict.json":
        return data
    if path.name in ("requests.jsonl", "blocks.jsonl"):
        keys = ANSWER if path.name == "requests.jsonl" else BLOCK
        rows = [json.loads(line) for line in data.splitlines()]
        return json.dumps(sorted(json.dumps([row.get(key) for key in keys]) for row in rows)).encode()
    if path.name == "README.md":  # the card's table of the arms
        data = re.sub(rb"(?s)## The four arms.*?(?=\n## )", b"", data)
    if path.suffix != ".json":
        return DAY.sub("DAY-", data.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    try:
        value = json.loads(data)
    except ValueError:
        return data
    if path.name == "result.json":
        # Hashes of the files that are compared here one by one, times and all.
        value.pop("files", None)
        value.pop("check", None)
        value.pop("seal", None)
        if value.get("stage") in ("speculate", "approve"):
            value.pop("summary", None)  # of the file that is compared beside it
    if path.name in KEPT:
        value = {key: value.get(key) for key in KEPT[path.name]}
    if path.name == "MANIFEST.json":
        for name in TIMED:
            value["files"].pop(name, None)
        value["provenance"].pop("git", None)
    return DAY.sub("DAY-", json.dumps(_timeless(value), sort_keys=True)).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in CLOCK}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def differences(now: Snapshot, reference: Snapshot, *, whole: bool) -> list[str]:
    """Where `now` is not the reference; unless `whole`, folders that are missing do not count."""
    found = []
    for folder in sorted(now.keys() | (reference.keys() if whole else set())):
        mine, theirs = now.get(folder), reference.get(folder)
        if mine is None or theirs is None:
            found.append(f"{folder}: {'missing' if mine is None else 'not in the undisturbed run'}")
            continue
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                what = "missing" if name not in mine else "extra" if name not in theirs else "differs"
                if what == "differs":
                    what += ": " + _first_difference(mine[name], theirs[name])
                found.append(f"{folder}/{name}: {what}")
    return found


def release_problems(project: Project, run: str) -> list[str]:
    """What is wrong with the releases that can be seen: not whole, or without a PASS."""
    found = []
    if not project.releases.is_dir():
        return []
    for home in sorted(p for p in project.releases.iterdir() if not p.name.startswith(".")):
        seen = [p for p in home.iterdir() if not p.name.startswith(".")]
        if not seen:
            found.append(f"the folder {home.name} of releases is empty")
        for place in seen:
            if place.is_symlink():
                found += [] if place.resolve().is_dir() else [f"{place.name} points to nothing"]
                continue
            found += [f"release {place.name}: {problem}" for problem in verify_manifest(place)]
            try:
                outcome = json.loads((place / "verdict.json").read_text())["outcome"]
            except (OSError, ValueError, KeyError) as error:
                found.append(f"release {place.name} has no verdict: {error}")
                continue
            if outcome != "PASS":
                found.append(f"released, and the verdict is {outcome}")
    if run == "refused" and (project.releases / run).exists():
        found.append("a release of a run that must be refused")
    return found


def litter(project: Project, run: str) -> list[str]:
    """What a finished run leaves that it should not: folders half built, temporary files.

    Temporary files in the cache are let be for an hour: another run may be writing them.
    """
    found = [
        path
        for place in (project.run(run), project.cache, project.releases)
        for path in place.rglob("*")
        if path.suffix in HALF
        or path.name.startswith((".tmp~", ".worker-"))
        or (place != project.cache and TEMPORARY.fullmatch(path.name))
    ]
    return [f"left over: {p.relative_to(project.root)}" for p in found]


def screen_problems(code: int | None, said: str, allowed: tuple[int, ...]) -> list[str]:
    """An exit code that was not to be, or a traceback."""
    found = [] if code in allowed else [f"exit code {code}, expected one of {', '.join(map(str, allowed))}"]
    if "Traceback" in said or "This is a defect" in said:
        found.append(f"a traceback on the screen: {said[-600:]}")
    return found


def state_problems(project: Project, run: str, outcome: str, code: int) -> list[str]:
    """What run.json says of the last run, against how it ended."""
    try:
        state = json.loads((project.run(run) / "run.json").read_text())
    except (OSError, ValueError) as error:
        return [f"run.json: {error}"]
    said = state["outcome"], state["exit_code"]
    return [] if said == (outcome, code) else [f"run.json says {said}, it ended as {(outcome, code)}"]
