"""Damage to what a run left: cut short, a bit flipped, times of change in the past and in the future."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.faults.lab import Lab, Row

Harm = Callable[[Path, random.Random], None]


def cut(path: Path, rng: random.Random) -> None:
    """As after a power cut: the end is missing."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path: Path, rng: random.Random) -> None:
    """One bit is another one; size and time of change are as before."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def zero(path: Path, _rng: random.Random) -> None:
    """As some file systems leave a file after a power cut: its length, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


def files(folder: Path, *patterns: str) -> list[Path]:
    """Files below a folder, logs left out."""
    found = {p for pattern in patterns for p in folder.glob(pattern)}
    return sorted(p for p in found if p.is_file() and p.suffix not in (".log", ".lock") and p.stat().st_size)


def of_files(
    lab: Lab,
    fault: str,
    where: str,
    patterns: Iterable[str],
    harms: Iterable[Harm],
    rng: random.Random,
    allowed: tuple[int, ...],
    most: int = 1000,
    state: str = "lean",
) -> Row:
    """Damage each of the files below the project that fit, one try each; the next run mends it or says what is wrong.

    Where the run refuses to go on, the file is put back as it was before the run is repeated.
    """
    row = Row(fault, where)
    lab.project.restore(state)
    found = [p.relative_to(lab.project.root) for p in files(lab.project.root, *patterns)]
    pairs = [(name, harm) for name in found for harm in harms]
    for name, harm in rng.sample(pairs, min(most, len(pairs))):
        with lab.trying(row, "lean", state, f"{harm.__name__} {name}") as one:
            path = lab.project.root / name
            kept, times = path.read_bytes(), path.stat()
            harm(path, rng)
            with one.disturbed(allowed=allowed) as run:
                if run.end() != 0:
                    path.write_bytes(kept)
                    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return row


def of_times(lab: Lab, seconds: Iterable[float]) -> Row:
    """Every file that a run left claims to be from another time."""
    row = Row("clock jump", "times of change of all files of a run")
    for moment in seconds:
        for name, state in (("lean", "lean"), ("good", "done")):
            with lab.trying(row, name, state, f"{state} at {moment:.0f}") as one:
                for path in (lab.project.root / "artifacts").rglob("*"):
                    os.utime(path, (moment, moment), follow_symlinks=False)
                with one.disturbed(allowed=(0,)):
                    pass
    return row
