"""Reading a release folder of which nothing is known yet: in bounded memory, and nothing outside of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_JSON = 64 * 1024 * 1024
"""Bytes of a document in a release: manifest, verdict, bill of materials, attestation, signature, recipe."""
LARGEST_RECORDS = 2 * 1024 * 1024 * 1024
"""Bytes of one task's records, which are read whole."""
MOST_FILES = 100_000
"""Files in a release; a checkpoint has some hundreds at most."""
TOO_DEEP = "is nested too deeply, or holds a number of thousands of digits"


class UnreadableError(ValueError):
    """Why a document is not read."""


def small_text(path: Path, most: int = LARGEST_JSON) -> str:
    """The UTF-8 text of a document. `UnreadableError` for a link, something that is no file, and one that is larger;
    `OSError` and `UnicodeDecodeError` as usual."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        data = handle.read(most + 1)  # not its size: that may change, and some files have none
    if len(data) > most:
        raise UnreadableError(f"is larger than {most >> 20} MiB")
    return data.decode()


def small_json(path: Path) -> Any:
    """The JSON value in a document; errors as `small_text`, and `ValueError` for what is no JSON."""
    return plain_json(small_text(path))


def plain_json(text: str | bytes) -> Any:
    """The JSON value in a text; `ValueError` for what is none or cannot be held."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (RecursionError, ValueError):
        raise UnreadableError(TOO_DEEP) from None


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative name, entry) of everything in a folder that is no folder itself, links to folders included: those are
    not followed. `UnreadableError` behind MOST_FILES entries. Needs no stack, however deep the folders are."""
    left, seen = [(str(folder), "")], 0
    while left:
        place, prefix = left.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                seen += 1
                if seen > MOST_FILES:
                    raise UnreadableError(f"holds more than {MOST_FILES:,} files")
                if entry.is_dir(follow_symlinks=False):
                    left.append((entry.path, f"{prefix}{entry.name}/"))
                else:
                    yield prefix + entry.name, entry
