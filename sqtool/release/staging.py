"""How a release appears: built out of sight, renamed when whole, one publisher at a time.

    <to>/.<name>.lock                held while publishing (an operating-system lock: it ends with its process)
    <to>/.tmp~<name>~<random>/       the first release of a name is built here and becomes <to>/<name>/ in one rename
    <to>/<name>/.tmp~<name>~<...>/   a later one is built here and its version folder is renamed into <to>/<name>/
    <to>/<name>/<version>/           a release
    <to>/<name>/latest               a symbolic link to the newest version, replaced in one step, last

`~` cannot occur in a name, so the leftovers of one name are never taken for another's.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqtool.errors import InfrastructureError
from sqtool.files import fsync_dir
from sqtool.progress import Progress
from sqtool.release.spec import LATEST

LOCK_SECONDS = 600.0


@contextmanager
def alone(to: Path, name: str, progress: Progress, *, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a name; `InfrastructureError` when another process keeps it longer than `wait` seconds."""
    from filelock import FileLock, Timeout

    lock = FileLock(to / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"release: another process is publishing {name}, waiting")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise InfrastructureError(
                f"another process has been publishing {name} in {to} for {wait:.0f} s",
                remedy="Wait for it or end it, then run again.",
            ) from None
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(to: Path, name: str) -> None:
    """Delete what killed publications of this name left; only with its lock held."""
    for folder in (to, to / name):
        for left in folder.glob(f".tmp~{name}~*"):
            if left.is_symlink() or not left.is_dir():
                left.unlink()
            else:
                shutil.rmtree(left)


@contextmanager
def building(to: Path, name: str) -> Iterator[Path]:
    """A new hidden folder on the file system where the release will be; whatever is left of it is deleted."""
    home = to / name
    folder = (home if home.is_dir() else to) / f".tmp~{name}~{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folders(folder: Path) -> None:
    """Make the names in `folder` and below durable, innermost first."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            fsync_dir(path)
    fsync_dir(folder)


def appear(folder: Path, to: Path, name: str, version: str) -> None:
    """Let the finished `<folder>/<version>/` appear as `<to>/<name>/<version>/`, then point `latest` to it."""
    home = to / name
    sync_folders(folder / version)
    if home.is_dir():
        os.rename(folder / version, home / version)  # noqa: PTH104 - fails when the version exists and holds files
        fsync_dir(home)
        point_latest(home, name, version)
        return
    # The first release brings its parent along, so that no empty folder is ever seen.
    (folder / LATEST).symlink_to(version)
    fsync_dir(folder)
    os.rename(folder, home)  # noqa: PTH104
    fsync_dir(to)


def latest_version(home: Path) -> str | None:
    """The version that `latest` points to, if that exists."""
    link = home / LATEST
    if not link.is_symlink():
        return None
    version = os.readlink(link)  # noqa: PTH115 - the text of the link, not what it resolves to
    return version if (home / version).is_dir() and "/" not in version else None


def point_latest(home: Path, name: str, version: str) -> None:
    """Replace the pointer in one step."""
    fresh = home / f".tmp~{name}~{secrets.token_hex(8)}"
    fresh.symlink_to(version)
    try:
        os.replace(fresh, home / LATEST)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    fsync_dir(home)
