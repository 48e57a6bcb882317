"""The files of a release: copied with their hashes taken on the way, listed in MANIFEST.json, checked against it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sqtool.errors import DataError
from sqtool.release.reading import MOST_FILES, UnreadableError, small_json, walk

SCHEMA = "sqtool.manifest/2"
MANIFEST = "MANIFEST.json"
ORIGINAL = "original"
CHUNK = 8 << 20
SIGNATURE, ATTESTATION = "model.sig", "attestation.intoto.json"
LONGEST, LONGEST_PART = 1024, 255
"""Characters of a relative file name, bytes of each part; a file system has no room for more."""
UNLISTED = (SIGNATURE, ATTESTATION)
"""Files of a signed release that speak of the manifest, and so are not in it."""
FETCHED = (".git", ".gitattributes", ".cache/huggingface")
"""What git and huggingface_hub put beside the files that they fetch: no loader reads it, no signature covers it."""


@dataclass(frozen=True)
class Entry:
    """One file's content: hex sha256 and size in bytes."""

    sha256: str
    size: int


def copy_file(source: Path, target: Path) -> Entry:
    """Copy a file's bytes, durably, and tell what was copied.

    Read once: what is hashed is what was written, so a source that changes meanwhile cannot slip through.
    """
    total, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            total.update(chunk)
            size += len(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return Entry(total.hexdigest(), size)


def write_file(target: Path, text: str) -> Entry:
    """Write a new text file durably, and tell what was written."""
    data = text.encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as writer:
        writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return Entry(hashlib.sha256(data).hexdigest(), len(data))


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Relative name -> file, of everything in a checkpoint that is published: what `digest_folder` covers.

    Hidden files are no part of it. Raises `DataError` for a link that leaves the checkpoint (the blobs of a hub
    cache excepted), a linked folder, and anything that is no regular file: none of these was measured.
    """
    base = folder.resolve()
    if not base.is_dir():
        raise DataError(folder, "no such checkpoint folder")
    allowed = [base]
    if base.parent.name == "snapshots":  # a hub cache: snapshots/<commit>/<file> links to blobs/<hash>
        allowed.append(base.parent.parent / "blobs")
    found: dict[str, Path] = {}
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if path.is_symlink():
            real = path.resolve()
            if not any(real.is_relative_to(place) for place in allowed):
                raise DataError(folder, f"is a link that leaves the checkpoint (to {real})", field=name)
            if not real.is_file():
                raise DataError(folder, "is a link to something that is no file", field=name)
        elif path.is_dir():
            continue
        elif not path.is_file():
            raise DataError(folder, "is no regular file", field=name)
        found[name] = path
    if not found:
        raise DataError(folder, "the checkpoint folder is empty")
    return found


def checkpoint_digest(hashes: Mapping[str, str]) -> str:
    """What `sqtool.files.digest_folder` gives for a folder with these files (relative name -> hex sha256)."""
    total = hashlib.sha256()
    for name in sorted(hashes, key=PurePosixPath):
        total.update(f"{name}\0{hashes[name]}\n".encode())
    return total.hexdigest()


def unsafe(name: str) -> bool:
    """Whether a relative file name would leave its folder or is not in its plain form."""
    try:
        if len(name) > LONGEST or any(len(part.encode()) > LONGEST_PART for part in name.split("/")):
            return True
    except UnicodeEncodeError:  # half a surrogate pair: no file has such a name
        return True
    path = PurePosixPath(name)
    return not name or path.is_absolute() or ".." in path.parts or str(path) != name or "\0" in name or "\\" in name


def fetched(name: str) -> bool:
    """Whether a file is one that git or huggingface_hub put beside those that they fetched."""
    return any(name == place or name.startswith(place + "/") for place in FETCHED)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A release's MANIFEST.json; `DataError` when it is missing or is none."""
    path = folder / MANIFEST
    try:
        value = small_json(path)
    except FileNotFoundError:
        raise DataError(path, "no such file: the folder is no release") from None
    except UnreadableError as error:
        raise DataError(path, str(error)) from None
    except ValueError as error:
        raise DataError(path, f"not JSON: {error}") from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(path, f"is no manifest of schema {SCHEMA}", field="schema")
    files = value.get("files")
    well_formed = isinstance(files, dict) and all(
        isinstance(e, dict) and isinstance(e.get("sha256"), str) and isinstance(e.get("size"), int)
        for e in files.values()
    )
    if not well_formed or not isinstance(files, dict):
        raise DataError(path, "must map each file to its sha256 and size", field="files")
    if len(files) > MOST_FILES:
        raise DataError(path, f"names more than {MOST_FILES:,} files", field="files")
    return value


def verify_manifest(folder: Path, *, hashes: bool = True) -> list[str]:
    """Every difference between a release folder and its MANIFEST.json, one sentence each; empty when it is intact.

    Each file that changed, is missing or is extra; hidden files and links count as extra, but for what git and
    huggingface_hub put beside a download. The checkpoint's digest is taken anew over its files, so a manifest that was
    rewritten to fit other weights differs from the verdict. Links are not followed, whatever they are links to.
    Without `hashes` only names and sizes are compared, which reads no file but the manifest.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return [error.message]
    problems: list[str] = []
    listed: dict[str, dict[str, Any]] = manifest["files"]
    try:
        present = dict(walk(folder))
    except (UnreadableError, OSError) as error:
        return [f"{folder.name}: the folder cannot be checked: {error}"]
    actual: dict[str, str] = {}
    for name, entry in sorted(listed.items()):
        if unsafe(name):
            problems.append(f"{name!r}: the manifest names a file outside the release")
            continue
        there = present.get(name)  # found without following a link, its folders included
        if there is None or not there.is_file(follow_symlinks=False):
            problems.append(f"{name}: missing")
            continue
        size = there.stat(follow_symlinks=False).st_size
        if size != entry["size"]:
            problems.append(f"{name}: changed (size {size}, was {entry['size']})")
            continue
        if not hashes:
            continue
        try:
            with (folder / name).open("rb") as handle:
                actual[name] = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{name}: cannot be read ({error.strerror or error})")
            continue
        if actual[name] != entry["sha256"]:
            problems.append(f"{name}: changed (sha256 {actual[name]}, was {entry['sha256']})")
    allowed = {MANIFEST, *(UNLISTED if manifest.get("signing") else ())}
    extra = (name for name in sorted(present) if name not in allowed and name not in listed and not fetched(name))
    problems += [f"{name}: extra" for name in extra]
    if hashes and not problems:
        problems = _verify_bindings(manifest, folder, actual)
    return problems


def _verify_bindings(manifest: dict[str, Any], folder: Path, actual: dict[str, str]) -> list[str]:
    """Whether verdict, checkpoint and manifest still speak of the same bytes."""
    from sqtool.release.verdict import bound_digest

    try:
        mapping: dict[str, str] = manifest["checkpoint"]["files"]
        digest = checkpoint_digest({original: actual[stored] for original, stored in mapping.items()})
        recorded = manifest["checkpoint"]["digest"]
        verdict = small_json(folder / manifest["verdict"]["file"])
        bound = bound_digest(verdict)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        return [f"{MANIFEST}: incomplete ({type(error).__name__}: {error})"]
    problems = []
    if digest != recorded:
        problems.append(f"{MANIFEST}: the checkpoint's digest is {digest}, the manifest says {recorded}")
    if digest != bound:
        problems.append(f"{manifest['verdict']['file']}: was given for the checkpoint {bound}, this one is {digest}")
    return problems
