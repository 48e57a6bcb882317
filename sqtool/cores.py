"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that the scheduler gives this process (taskset, cpusets), where the system says so; else those there are.
    A container's CPU quota, which limits time and not cores, is not looked at."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
