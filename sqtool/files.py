"""Writing files so that a reader sees the old content or the new one, never half; and hashing them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqtool.errors import DataError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of the files that `write_text` makes before it renames them; a killed process leaves them behind."""
WRITE_AGAIN = "Write or fetch the file again."
ONE_OBJECT = "Each line must be one JSON object."
NOT_PLAIN = "not JSON that can be read: nested too deeply, or a number of thousands of digits"


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable (a rename is only durable after this)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, durably."""
    # Not mkstemp: that makes files which only their owner may read, and reports and manifests are for others too.
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, path)
        fsync_dir(path.parent)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def remove_temporaries(folder: Path, *, older_than: float = 0.0) -> list[str]:
    """Remove what processes that were killed in `write_text` left in `folder`; their names.

    Where others may be writing at this moment, `older_than` (seconds) keeps what could be theirs.
    """
    now, gone = time.time(), []
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            try:
                if now - path.stat().st_mtime >= older_than:
                    path.unlink()
                    gone.append(path.name)
            except FileNotFoundError:  # its writer has just renamed it
                continue
    return sorted(gone)


def shown_place(path: Path, root: Path) -> str:
    """A path for files that others will read: relative to `root` where it is below it, else its last name alone."""
    if path.is_relative_to(root) and ".." not in path.parts:
        return path.relative_to(root).as_posix()
    found, home = path.resolve(), root.resolve()
    return found.relative_to(home).as_posix() if found.is_relative_to(home) else path.name


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN. Digests are taken over it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by readable JSON in one step. NaN and infinity are errors, as the JSON standard says."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; a `DataError` that names the line when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(path, "no such file", remedy="Check the path.") from None
    except json.JSONDecodeError as error:
        raise DataError(path, f"not JSON: {error.msg}", line=error.lineno, remedy=WRITE_AGAIN) from None
    except UnicodeDecodeError:
        raise DataError(path, "not UTF-8 text", remedy=WRITE_AGAIN) from None
    except (RecursionError, ValueError):
        raise DataError(path, NOT_PLAIN, remedy=WRITE_AGAIN) from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}", remedy="Name a readable file.") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(1-based line number, object) for each non-empty line of a JSONL file; a `DataError` names a bad line."""
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(path, f"not JSON: {error.msg}", line=number, remedy=ONE_OBJECT) from None
                except (RecursionError, ValueError):
                    raise DataError(path, NOT_PLAIN, line=number, remedy=ONE_OBJECT) from None
                if not isinstance(value, dict):
                    message = f"expected a JSON object, found {type(value).__name__}"
                    raise DataError(path, message, line=number, remedy=ONE_OBJECT)
                yield number, value
    except FileNotFoundError:
        raise DataError(path, "no such file", remedy="Check the path; it is relative to the project root.") from None
    except UnicodeDecodeError:
        raise DataError(path, "not UTF-8 text", remedy="Save the file as UTF-8.") from None


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_folder(folder: Path) -> str:
    """Hex sha256 over the names and contents of all regular files below `folder`, in sorted order.

    Symbolic links are followed (a hub cache is made of them); hidden files and folders are left out.
    """
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        total.update(f"{name}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()
