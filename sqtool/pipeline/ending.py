"""What an exception that ends a run means: an error with an exit code and a remedy."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from sqtool.errors import CancelledError, InfrastructureError, SqtoolError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
DEVICE = (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
BUG = "This is a defect in sqtool or in a library under it; the traceback is in run.log."


def describe(error: SqtoolError) -> dict[str, Any]:
    """An error as JSON."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }


def cannot_write(folder: Path, error: OSError) -> InfrastructureError:
    """What an error of the file system in `folder` means."""
    if error.errno in NO_SPACE:
        return disk_full(error)
    return InfrastructureError(
        f"cannot write to {folder}: {error.strerror or error}",
        remedy="Make the folder writable, or use --root on another disk.",
    )


def disk_full(error: OSError) -> InfrastructureError:
    """No space left, or the user's quota is used up."""
    where = f" ({error.filename})" if error.filename else ""
    return InfrastructureError(
        f"the disk is full{where}", remedy="Free some space and run again; finished stages are kept."
    )


def as_sqtool_error(error: BaseException) -> SqtoolError:
    """The error with an exit code and a remedy that any exception means."""
    if isinstance(error, SqtoolError):
        return error
    if isinstance(error, KeyboardInterrupt):
        message = "finished stages stay, the one in progress was discarded"
        return CancelledError(message, remedy="Run the same command to go on from there.")
    if out_of_memory(error):
        return InfrastructureError(
            "out of memory", remedy="Lower quantize.batch_size or calibrate.max_seq_length, or use a larger machine."
        )
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return disk_full(error)
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename:
        return cannot_write(Path(error.filename), error)
    if isinstance(error, OSError) and error.errno == errno.EROFS:  # of an open file: Linux does that to a failing disk
        return InfrastructureError(
            f"a file system that is written to became read-only: {error.strerror}",
            remedy="The system's log (`dmesg`) says why; finished stages are kept, run again when it is writable.",
        )
    if isinstance(error, OSError) and error.errno in DEVICE:
        where = f" ({error.filename})" if error.filename else ""
        return InfrastructureError(
            f"the disk failed{where}: {error.strerror}",
            remedy="The system's log (`dmesg`) says why; finished stages are kept, run again when it works.",
        )
    if isinstance(error, OSError):
        return InfrastructureError(f"{error.filename or 'operating system'}: {error.strerror or error}", remedy=BUG)
    if type(error).__name__ == "OutOfMemoryError":  # torch.cuda's, without importing torch
        return InfrastructureError(
            "the accelerator is out of memory", remedy="Lower quantize.batch_size, or use a device with more memory."
        )
    text = str(error).strip().splitlines()
    return InfrastructureError(f"{type(error).__name__}: {text[0] if text else 'no message'}", remedy=BUG)


def out_of_memory(error: BaseException) -> bool:
    """Python's own error, and what a library says that could not be loaded or could not allocate for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("failed to map segment", "cannot allocate memory", "can't allocate memory")
    if isinstance(error, ImportError | RuntimeError):
        return any(word in str(error).lower() for word in words)
    return isinstance(error, MemoryError)
