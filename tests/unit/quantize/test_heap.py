"""Memory that is freed and asked for again stays with the process only inside."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quantize.backends import heap

PROGRAM = """
import resource
from quantize.backends.heap import kept_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        block = bytearray(40 << 20)  # larger than what glibc learns to keep by itself
        block[::4096] = bytes(len(block) // 4096)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first = faults()
with kept_heap():
    faults()
    inside = faults()
print(first, inside, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_faults_are_inside_no_more() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, inside, after = map(int, done.stdout.split())
    assert before > 10_000
    assert inside < before / 20
    assert after > before / 2


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: SimpleNamespace())
    with heap.kept_heap():
        pass


def test_an_older_glibc_takes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses sizes beyond half of a thread's heap."""
    calls: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter != heap.M_MMAP_THRESHOLD or value <= 1 << 25)

    libc = SimpleNamespace(mallopt=mallopt, malloc_trim=lambda _: 1)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: libc)
    with heap.kept_heap():
        assert calls == [(-3, heap.LARGEST), (-3, heap.USUAL), (-1, heap.KEPT)]
