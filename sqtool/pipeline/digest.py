"""What a stage's result depends on, as named parts and as one digest.

The parts are kept in result.json, so that `plan` can say which of them changed. Folders are hashed file by file; a
file whose path, size and time of change are known from earlier is not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import canonical_json, sha256_file, sha256_text, write_json

FORMAT = 1
SETTLED_SECONDS = 2.0
"""A file changed within the last moments could change again without a new time of change; it is read every time."""
SOURCE_SUFFIXES = (".py", ".j2", ".json")


class FileDigests:
    """sha256 of files, remembered in one JSON file between runs by (path, size, time of change in ns)."""

    def __init__(self, store: Path, *, largest: int | None = None) -> None:
        """`largest`: a file of more bytes that is not remembered is not read; size and time of change stand for it, as
        `unread:...`. Nothing finished here can depend on such a file: it would be remembered."""
        self._store = store
        self._largest = largest
        self.unread: set[Path] = set()
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            value = json.loads(store.read_text(encoding="utf-8"))
            if isinstance(value, dict) and value.get("format") == FORMAT:
                self._known = value["files"]
        except (OSError, ValueError, KeyError):
            pass  # a lost or broken memory only costs time

    @property
    def reads_large(self) -> bool:
        """Are files read whatever their size?"""
        return self._largest is None

    def file(self, path: Path) -> str:
        """Hex sha256 of the file's bytes; `DataError` when it cannot be read."""
        try:
            real = path.resolve(strict=True)
            state = real.stat()
            key, stamp = str(real), [state.st_size, state.st_mtime_ns, state.st_ino]
            known = self._known.get(key)
            if known is not None and known[:3] == stamp:
                return str(known[3])
            if self._largest is not None and state.st_size > self._largest:
                self.unread.add(path)
                return f"unread:{state.st_size}:{state.st_mtime_ns}"
            digest = sha256_file(real)
        except OSError as error:
            raise DataError(path, f"cannot be read: {error.strerror or error}") from None
        if time.time() - state.st_mtime > SETTLED_SECONDS:
            self._known[key] = [*stamp, digest]
            self._changed = True
        return digest

    def folder(self, folder: Path) -> str:
        """What `sqtool.files.digest_folder` gives: names and contents of all files, hidden ones left out."""
        total = hashlib.sha256()
        found = 0
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if any(part.startswith(".") for part in name.split("/")):
                continue
            total.update(f"{name}\0{self.file(path)}\n".encode())
            found += 1
        if not found:
            raise DataError(folder, "no files in this folder")
        return total.hexdigest()

    def save(self) -> None:
        """Keep what was learnt; entries of files that are gone are dropped."""
        if not self._changed:
            return
        self._store.parent.mkdir(parents=True, exist_ok=True)
        self._known = {path: entry for path, entry in self._known.items() if os.path.lexists(path)}
        write_json(self._store, {"format": FORMAT, "files": self._known})
        self._changed = False


@cache
def code_digest(package: str) -> str:
    """sha256 over the source of an import package or module, found without importing it."""
    spec = util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(package)
    if spec.submodule_search_locations:
        bases = [Path(place) for place in spec.submodule_search_locations]
        files = [(p.relative_to(b).as_posix(), p) for b in bases for p in b.rglob("*") if p.suffix in SOURCE_SUFFIXES]
    else:
        assert spec.origin is not None
        files = [("", Path(spec.origin))]
    return sha256_text("".join(f"{name}\0{sha256_file(path)}\n" for name, path in sorted(files)))


@cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, `absent` without one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def digest_of(parts: Mapping[str, Any]) -> str:
    """The one digest of all parts."""
    return sha256_text(canonical_json({"format": FORMAT, **parts}))


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, which parts differ: `section quantize.methods; data traffic.jsonl; code of evals`."""
    words: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            keys = sorted(k for k in set(before) | set(after) if before.get(k) != after.get(k))
            words += [_word(name, key, before.get(key), after.get(key)) for key in keys]
        else:
            words.append(f"{name} changed")
    return "; ".join(words) or "made by another version of sqtool"


def _word(part: str, key: str, before: Any, after: Any) -> str:
    if part == "sections":
        return f"recipe: {_path(key, before, after)} changed"
    if part == "needs":
        return f"{key} runs again" if after is not None and before is not None else f"{key} was added or left out"
    if part == "data":
        return f"data changed: {key}"
    if part == "code":
        return f"code of {key} changed"
    if part == "tools":
        return f"{key} {before or 'absent'} -> {after or 'absent'}"
    if part == "content":
        return f"content of the {key} changed"
    return f"{part} {key} changed"


def _path(prefix: str, before: Any, after: Any) -> str:
    """The dotted name of the one key that differs, as deep as it is one."""
    while isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        if len(keys) != 1:
            break
        prefix = f"{prefix}.{keys[0]}"
        before, after = before.get(keys[0]), after.get(keys[0])
    return prefix
