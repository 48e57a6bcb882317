"""A signed release with one file changed: whatever was changed, `sqtool verify` with the key must say so and go on."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from benchmarks.reliability.fuzzing.trees import change, damaged
from sqtool.errors import SqtoolError

MANIFEST, SIGNATURE = "MANIFEST.json", "model.sig"
NAMED = ("extra", "a\nb", "\x1b[2J", "x" * 255, ".hidden", "é", "evidence/evaluate/records/x.jsonl", "deep/er/file")


@dataclass(frozen=True)
class Release:
    """A good release, what is in its files, and the public key that it is signed for."""

    folder: Path
    key: Path
    files: dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One file's new bytes; `fitted`: the manifest's hash of it was changed as well."""

    name: str
    data: bytes
    fitted: bool


def release(root: Path) -> Release:
    """Publish the release below `root`, with the real gate and the real publishing."""
    from benchmarks.reliability.tampered import make_world

    world = make_world(root)
    files = {p.relative_to(world.good).as_posix(): p.read_bytes() for p in world.good.rglob("*") if p.is_file()}
    return Release(world.good, world.key.with_name(world.key.name + ".pub"), files)


def cases(good: Release) -> Any:
    """One file changed in its JSON or its bytes, or a file more."""
    trees: dict[str, Any] = {}
    for name, data in good.files.items():
        if name.endswith(".json") or name == SIGNATURE:
            trees[name] = json.loads(data)
    documents = sorted(trees)

    @st.composite
    def one(draw: Any) -> Case:
        kind = draw(st.sampled_from(("tree", "tree", "tree", "lines", "bytes", "bytes", "new")))
        fitted = draw(st.booleans())
        if kind == "new":
            return Case(draw(st.sampled_from(NAMED)), bytes(draw(st.sampled_from((b"", b"x", b"{}")))), fitted)
        if kind == "tree":
            name = draw(st.sampled_from(documents))
            tree = copy.deepcopy(trees[name])
            for _ in range(draw(st.integers(1, 2))):
                change(draw, tree)
            return Case(name, _json(tree), fitted)
        name = draw(st.sampled_from(sorted(good.files)))
        if kind == "lines" and name.endswith(".jsonl"):
            lines = good.files[name].splitlines(keepends=True)
            at = draw(st.integers(0, len(lines) - 1))
            row = json.loads(lines[at])
            change(draw, row)
            lines[at] = _json(row) + b"\n"
            return Case(name, b"".join(lines), fitted)
        return Case(name, damaged(draw, good.files[name]), fitted)

    return one()


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:  # an int of thousands of digits
        return b'{"a": ' + b"9" * 5000 + b"}"


def attempt(case: Case, good: Release) -> Ending:
    """Check the changed release with the key and without, then put it right again."""
    from sqtool.cli.verify import rules_of
    from sqtool.release.check import check_release
    from sqtool.release.signing import Trust

    path = good.folder / case.name
    manifest = good.folder / MANIFEST
    made = [p for p in path.parents if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(case.data)
        if case.fitted and case.name not in (MANIFEST, SIGNATURE):
            value = json.loads(good.files[MANIFEST])
            entry = {"sha256": hashlib.sha256(case.data).hexdigest(), "size": len(case.data)}
            value["files"][case.name] = {**value["files"].get(case.name, {}), **entry}
            manifest.write_text(json.dumps(value))
        found = check_release(good.folder, trust=Trust(good.key), rules_of=rules_of)
        check_release(good.folder, rules_of=rules_of)
    except SqtoolError as error:
        return refusal(error, "verify")
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return escaped(error, "verify")
    finally:
        manifest.write_bytes(good.files[MANIFEST])
        if case.name in good.files:
            path.write_bytes(good.files[case.name])
        else:
            path.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
    if not found.ok:
        return Ending("verify: not verified")
    # Its own bytes are the one thing that a signature does not cover: spaces in it change nothing.
    same = case.name == SIGNATURE or good.files.get(case.name) == case.data
    return Ending(ACCEPTED, "" if same else f"{case.name} was changed, and nothing was noticed")
