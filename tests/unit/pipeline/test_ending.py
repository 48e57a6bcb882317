"""What ends a run has an exit code and a remedy that fits, and only a defect of ours is called one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sqtool.errors import EngineError
from sqtool.pipeline.ending import BUG, as_sqtool_error, cannot_write


@pytest.mark.parametrize(
    ("error", "words", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "the disk is full (/x)", "Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full", "Free some space"),
        (OSError(errno.EIO, "Input/output error"), "the disk failed: Input/output error", "dmesg"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "cannot write to /x", "writable"),
        (OSError(errno.EROFS, "Read-only file system"), "became read-only", "dmesg"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "cannot write to /x", "writable"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory", "larger machine"),
        (MemoryError(), "out of memory", "larger machine"),
        (ImportError("a.so: failed to map segment from shared object"), "out of memory", "larger machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", "larger machine"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ", BUG),
        (ImportError("no such module"), "ImportError: no such module", BUG),
        (OSError(errno.EINVAL, "Invalid argument", "/x"), "/x: Invalid argument", BUG),
    ],
)
def test_meaning(error: Exception, words: str, remedy: str) -> None:
    meant = as_sqtool_error(error)
    assert meant.exit_code == 4
    assert words in meant.message
    assert remedy in meant.remedy


def test_cancelled_and_our_own() -> None:
    assert as_sqtool_error(KeyboardInterrupt()).exit_code == 130
    own = EngineError("died")
    assert as_sqtool_error(own) is own


def test_a_folder_on_a_full_disk() -> None:
    assert "the disk is full" in cannot_write(Path("/x"), OSError(errno.ENOSPC, "No space left on device")).message
