"""Sending a finished release elsewhere: any file system that fsspec knows, or a Hugging Face repository.

Nothing counts as uploaded before it was read back: every file's sha256 is compared with MANIFEST.json as it lies at the
destination, and only then the destination's own pointer (`latest`, or the repository's main branch) moves. An upload
that was interrupted is made again by the next run; a version that is there with other content is never touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqtool.errors import InfrastructureError, SqtoolError, UsageError
from sqtool.progress import Progress
from sqtool.release.manifest import CHUNK, MANIFEST, Entry, read_manifest
from sqtool.release.spec import HUB, LATEST, ReleaseSpec

BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
"""Protocols of fsspec whose first folder is a bucket or container: one that belongs to an account."""
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "LocalTokenNotFoundError")
CREDENTIALS = "set credentials that may write there (docs/releases.md, Elsewhere)"


def upload(spec: ReleaseSpec, place: Path, progress: Progress) -> str:
    """Send the release in `place` to `spec.to`; the URL where it lies then.

    Raises `UsageError` when the destination has this version with other content or is no place to write to, and
    `InfrastructureError` when it cannot be reached or does not give back what it was given. The local release stays.
    """
    assert spec.elsewhere is not None
    entries = release_entries(place)
    with _explained(spec.elsewhere, place):
        if spec.elsewhere.startswith(HUB):
            from sqtool.release.upload_hub import to_hub

            return to_hub(spec.elsewhere.removeprefix(HUB), place, entries, progress, private=spec.private)
        return to_filesystem(spec.elsewhere, place, entries, progress)


def release_entries(place: Path) -> dict[str, Entry]:
    """Relative name -> sha256 and size, of every file in a release: the manifest's, and what is not listed there."""
    listed = {name: Entry(e["sha256"], e["size"]) for name, e in read_manifest(place)["files"].items()}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_file() and name not in listed:
            with path.open("rb") as handle:
                listed[name] = Entry(hashlib.file_digest(handle, "sha256").hexdigest(), path.stat().st_size)
    return listed


@contextmanager
def _explained(url: str, place: Path) -> Iterator[None]:
    """Any failure of a remote file system, as one error that says that the local release is whole."""
    try:
        yield
    except SqtoolError:
        raise
    except ImportError as error:
        raise UsageError(
            f"release.to: {url} needs a package that is not installed: {error}",
            remedy="Install what fsspec names for this protocol (s3fs, gcsfs, adlfs, ...).",
        ) from None
    except Exception as error:
        first = " ".join(str(error).split()) or type(error).__name__
        needs = f"{CREDENTIALS}; then " if _denied(error) else ""
        raise InfrastructureError(
            f"the release {place} could not be uploaded to {url}: {first}",
            remedy=f"It is whole where it is; {needs}run the same command again to upload it.",
        ) from error


def _denied(error: Exception) -> bool:
    """No credentials, or some that may not do this. By name, because botocore is there only with s3fs."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in NO_CREDENTIALS


def to_filesystem(url: str, place: Path, entries: dict[str, Entry], progress: Progress) -> str:
    """Send a release to `<url>/<name>/<version>/` and write its version into `<url>/<name>/latest`.

    The claim `<url>/<name>/.<version>.claim`, made only where there is none, holds the manifest's digest: a second
    publisher of the same version with other content stops there. MANIFEST.json goes last; a folder without it is an
    upload that did not end.
    """
    from fsspec.core import url_to_fs

    try:
        fs, base = url_to_fs(url)
    except ValueError as error:
        raise UsageError(f"release.to: {url}: {error}") from None
    name, version = place.parent.name, place.name
    home = f"{str(base).rstrip('/')}/{name}"
    target, claim, pointer = f"{home}/{version}", f"{home}/.{version}.claim", f"{home}/{LATEST}"
    shown = f"{url.rstrip('/')}/{name}/{version}"
    wanted = entries[MANIFEST].sha256
    fs.invalidate_cache()
    claimed = not fs.exists(f"{target}/{MANIFEST}")
    if claimed:
        _check_bucket(fs, url, str(base))
        fs.makedirs(target, exist_ok=True)
        _claim(fs, claim, wanted, shown)
    # Looked for once more under the claim: another publisher may have ended, and removed its claim, in between.
    if fs.exists(f"{target}/{MANIFEST}"):
        if _read(fs, f"{target}/{MANIFEST}").sha256 != wanted:
            if claimed:
                fs.rm_file(claim)
            raise UsageError(
                f"{shown} exists with other content; a release is never overwritten",
                remedy="Choose another `release.version`, or leave it out for one made from day and content.",
            )
        _compare(fs, target, entries, shown, progress)
        unfinished = fs.exists(claim)
        if unfinished or not fs.exists(pointer):
            _point(fs, pointer, version)
        if unfinished:
            fs.rm_file(claim)
        return shown
    names = [n for n in entries if n != MANIFEST]
    with progress.task("release: upload", total=sum(e.size for e in entries.values())) as task:
        for file in [*names, MANIFEST]:
            if file == MANIFEST:
                _compare(fs, target, {n: entries[n] for n in names}, shown, progress)
                _own(fs, claim, wanted, shown)
            fs.makedirs(f"{target}/{file}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(place / file), f"{target}/{file}")
            task.advance(entries[file].size)
    _compare(fs, target, {MANIFEST: entries[MANIFEST]}, shown, progress)
    _point(fs, pointer, version)
    fs.rm_file(claim)
    return shown


def _check_bucket(fs: Any, url: str, base: str) -> None:
    """`UsageError` when the bucket is not there: makedirs of most object stores' clients would make one, of any
    misspelt name, with the account's defaults for who may read it."""
    bucket = base.lstrip("/").partition("/")[0]
    if url.partition("://")[0] in BUCKETS and not fs.exists(bucket):
        raise UsageError(
            f"release.to: {url}: there is no bucket {bucket!r}, or these credentials do not see it",
            remedy="Make the bucket first, or correct the name; none is made here.",
        )


def _claim(fs: Any, claim: str, wanted: str, shown: str) -> None:
    """Write the claim where there is none. Somebody else's ends this upload."""
    try:
        fs.pipe_file(claim, wanted.encode(), mode="create")
    except OSError:
        # A claim that is there is a FileExistsError by fsspec's contract. s3fs tells it by a detail of AWS's answer,
        # and raises another OSError where an S3-compatible store does not give it.
        fs.invalidate_cache()
        if not fs.exists(claim):
            raise
    _own(fs, claim, wanted, shown)


def _own(fs: Any, claim: str, wanted: str, shown: str) -> None:
    """The claim is read back, because a store that does not know the condition overwrites what is there."""
    fs.invalidate_cache()
    if fs.cat_file(claim).decode(errors="replace") != wanted:
        raise UsageError(
            f"{shown} is being uploaded by somebody else, with other content",
            remedy=f"Choose another `release.version`; if that upload was given up, remove {claim}.",
        ) from None


def _point(fs: Any, pointer: str, version: str) -> None:
    fs.pipe_file(pointer, f"{version}\n".encode())
    fs.invalidate_cache()
    found = fs.cat_file(pointer).decode(errors="replace").strip()
    if found != version:
        raise InfrastructureError(f"{pointer} says {found!r} after {version!r} was written to it")


def _compare(fs: Any, target: str, entries: dict[str, Entry], shown: str, progress: Progress) -> None:
    """Read every file back; `InfrastructureError` for the first that is not what was sent."""
    fs.invalidate_cache()
    with progress.task("release: read back", total=sum(e.size for e in entries.values())) as task:
        for name, entry in entries.items():
            try:
                found = _read(fs, f"{target}/{name}")
            except FileNotFoundError:
                found = Entry("nothing", 0)
            if found != entry:
                raise InfrastructureError(
                    f"{shown}/{name} is not what was sent: sha256 {found.sha256}, {found.size} bytes, instead of "
                    f"{entry.sha256}, {entry.size} bytes",
                    remedy="Run the same command again; if this stays, the destination is broken.",
                )
            task.advance(entry.size)


def _read(fs: Any, path: str) -> Entry:
    total, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            total.update(chunk)
            size += len(chunk)
    return Entry(total.hexdigest(), size)
