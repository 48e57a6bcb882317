"""What a machine can do to a run: no space, no permission, no memory, another time, signals, a closed screen."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.faults.lab import CASES, Lab, Row
from tests.faults.process import Sqtool

CANCELLED = (130, 0)
ABORTED = (4, 0, -6, -11, 127)
"""Native libraries abort or crash where they get no memory, and the dynamic loader gives up with 127 ("Inconsistency
detected by ld.so"); nobody can catch that."""


def can_mount() -> bool:
    """Whether this user may mount a file system."""
    return (
        os.geteuid() == 0 and subprocess.run(["mount", "--version"], capture_output=True, check=False).returncode == 0
    )


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of that size at `folder`, with what was in it where that has room."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "faults", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(lab: Lab, rng: random.Random, tries: int) -> Row:
    """artifacts/ is on a small disk, which becomes large enough for the next run."""
    row = Row("disk full", "a small file system, full at some point of the run")
    if not can_mount():
        row.not_tried = "needs to mount a tmpfs"
        return row
    folder = lab.project.root / "artifacts"
    for _ in range(tries):
        lab.project.restore("fresh")
        size = 4 * rng.randint(6, 450)
        with disk(folder, size), lab.trying(row, "lean", "fresh", f"{size} kB") as one:
            with one.disturbed(allowed=(4, 0)):
                pass
            remount(folder, "size=64m")
    lab.project.restore("fresh")
    return row


def failing_calls(lab: Lab, error: str, where: str, moments: Sequence[int], name: str, state: str, times: int) -> Row:
    """Calls of the operating system fail with this error, `times` in a row."""
    row = Row({"ENOSPC": "disk full", "EROFS": "read-only folder", "EIO": "disk error"}[error], where)
    for moment in moments:
        plan = {"errno": error, "at": moment, "times": times}
        with lab.trying(row, name, state, f"call {moment}") as one, one.disturbed(plan=plan, allowed=(4, 0)):
            pass
    return row


def read_only(lab: Lab, states: Sequence[str]) -> Row:
    """artifacts/ cannot be written, then it can."""
    row = Row("read-only folder", "artifacts/ on a read-only file system")
    if not can_mount():
        row.not_tried = "needs to mount a tmpfs"
        return row
    folder = lab.project.root / "artifacts"
    for state in states:
        lab.project.restore("fresh")
        with disk(folder, 65536), lab.trying(row, "lean", state, state) as one:
            remount(folder, "ro")
            with one.disturbed(allowed=(4,)):
                pass
            remount(folder, "rw")
    lab.project.restore("fresh")
    return row


def clock(lab: Lab, days: Iterable[float], moments: Iterable[int], name: str, state: str) -> Row:
    """The time of day jumps in the middle of a run."""
    row = Row("clock jump", "in the middle of a run")
    for day, moment in zip(days, moments, strict=True):
        plan = {"clock": 86400.0 * day, "at": moment}
        with (
            lab.trying(row, name, state, f"{day:+.0f} days at call {moment}") as one,
            one.disturbed(plan=plan, allowed=(0,)),
        ):
            pass
    return row


def out_of_memory(lab: Lab, megabytes: Iterable[int], state: str) -> Row:
    """An address space of so many megabytes."""
    row = Row("out of memory", "RLIMIT_AS of sqtool, " + ", ".join(f"{m}" for m in megabytes) + " MB")
    for size in megabytes:

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (size << 20, size << 20))

        with lab.trying(row, "lean", state, f"{size} MB") as one, one.disturbed(preexec=limit, allowed=ABORTED):
            pass
    return row


def signals(
    lab: Lab,
    rng: random.Random,
    tries: int,
    numbers: Sequence[int],
    gap: float,
    what: str,
    name: str = "good",
    states: Sequence[str] = ("measured", "measured", "fresh"),
) -> Row:
    """Signals to sqtool's process group, as a terminal or a CI system sends them; `gap` seconds between them."""
    row = Row(what, "random moments")
    for number in range(tries):
        state = states[number % len(states)]
        with lab.trying(row, name, state, f"{state} {number}") as one, one.disturbed(allowed=CANCELLED) as run:
            run.until_lines(rng.randint(2, lab.lines[f"{name} {state}"] - 2))
            alive = run.after(rng.uniform(0, 0.2))
            for sent in numbers:
                if alive:
                    os.killpg(run.process.pid, sent)
                    alive = run.after(rng.uniform(0, gap))
    return row


SCREENS = ("pipe", "pipe --json", "full", "full --json", "pipe for stderr", "full for stderr")


def closed_screen(lab: Lab, name: str, state: str, screens: Sequence[str] = SCREENS) -> Row:
    """Nobody reads what sqtool says."""
    row = Row("closed or full output", "stdout or stderr a pipe without a reader or a full device")
    for what in screens:
        with lab.trying(row, name, state, what) as one:
            if what.startswith("pipe"):
                reader, writer = os.pipe()
                os.close(reader)
            else:
                writer = os.open("/dev/full", os.O_WRONLY)
            more = ("--json",) if "json" in what else ()
            # A result that could not be said is a failure, progress that nobody sees is none.
            stream, allowed = ("stderr", (0,)) if "stderr" in what else ("stdout", (4,))
            with one.disturbed(*more, allowed=allowed, **{stream: writer}):
                pass
    return row


def two_at_once(lab: Lab, name: str, state: str) -> Row:
    """The same recipe twice: the second run names the first one's process and ends, or waits for it."""
    row = Row("two runs of one recipe", "the second without and with --wait")
    for more in ((), ("--wait",)):
        with (
            lab.trying(row, name, state, " ".join(more) or "no --wait") as one,
            one.disturbed(allowed=(0,), env={"FAULTS_PACE": "0.02"}) as first,
        ):
            assert first.until(": starting"), first.said
            with Sqtool(lab.project, *one.case.words, *more, zygote=lab.zygote) as second:
                code = second.end()
                row.codes[code] += 1
                if f"is in use by process {first.process.pid}" not in second.said:
                    one.problems.append(f"it does not say by whom the run is held: {second.said[-300:]}")
                if code != (0 if more else 4):
                    one.problems.append(f"the second run ended with {code}")
    return row


def two_recipes(lab: Lab, rng: random.Random, tries: int) -> Row:
    """Two recipes over one baseline at the same time, one of them killed: the other one goes on and makes it."""
    row = Row("two recipes over one baseline", "the one that makes it is killed, the other waits")
    for number in range(tries):
        with (
            lab.trying(row, "good", "fresh", f"try {number}") as one,
            Sqtool(lab.project, *CASES["refused"].words, env={"FAULTS_PACE": "0.02"}, zygote=lab.zygote) as other,
        ):
            assert other.until("baseline: starting"), other.said
            with one.disturbed(allowed=(0,)) as run:
                run.until("waiting")
                other.after(rng.uniform(0, 0.5))
                os.kill(other.process.pid, signal.SIGKILL)
                row.kills += 1
            other.end()
            one.problems += [f"the other one left: {left}" for left in other.leftovers()]
    return row
