"""What this machine's processor offers."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that the scheduler gives this process (taskset, cpusets), where the system says so; else those there are.
    A container's CPU quota, which limits time and not cores, is not looked at."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine's processor as Linux names them (avx2, avx512f, amx_bf16, ...)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def multiplies_bf16() -> bool:
    """Whether this machine's processor has instructions for products of bf16 (x86: AVX-512 or AMX; Arm: BF16)."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
