"""Host memory that calibration frees and asks for again. Import it anywhere: no torch.

A batch on a CPU makes and drops tensors of some megabytes by the thousand. glibc returns such memory to the kernel as
soon as it is free and gets it back empty, one page fault for every 4 KiB that is then touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
KEPT, LARGEST = 1 << 30, 1 << 28
"""Inside: bytes of free memory at the heap's end that stay, and the size from which memory is mapped on its own, as
weights of an embedding still are."""
USUAL = 1 << 25
"""After it: what glibc's own adaption of the second comes to, and half of what it makes of the first."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Inside, memory that is freed stays with the process; after it what is free goes back. Without glibc: nothing."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST):
        libc.mallopt(M_MMAP_THRESHOLD, USUAL)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, USUAL)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * USUAL)
        libc.malloc_trim(0)
