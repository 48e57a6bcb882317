"""Breaks runs in every way that a machine can, and prints what was survived: `python -m benchmarks.reliability.faults`.

Real `sqtool` processes over a random model, with a double of vLLM that answers at once (tests/faults). After each fault
nothing that is half made may count as finished, no process and no port may be left, nothing may be released without a
PASS; then the same command runs again undisturbed and has to give what an undisturbed run gives (what that means, byte
by byte, stands in tests/faults/checks.py). At least 200 kills at the default scale. Exit code 1 when anything was not
survived. Needs root for the rows that mount a file system; for others they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.faults import damage, kills, surroundings
from tests.faults.lab import Lab, Row
from tests.faults.process import CHECKOUT

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
KILLS_WANTED = 200


def some(found: list[int], count: int) -> list[int]:
    """So many of them, evenly."""
    return found if len(found) <= count else [found[at * len(found) // count] for at in range(count)]


def boundary_calls(lab: Lab, name: str, state: str, count: int) -> Row:
    """Calls around the ends of stages."""
    moments = some(kills.boundaries(kills.calls(lab, name, state)), count)
    return kills.at_calls(lab, name, state, moments, "calls at the end of each stage")


def other_calls(lab: Lab, name: str, state: str, rng: random.Random, count: int) -> Row:
    """Any calls."""
    total = len(kills.calls(lab, name, state))
    moments = sorted(rng.sample(range(1, total + 1), min(count, total)))
    return kills.at_calls(lab, name, state, moments, "calls that change the disk")


Maker = Callable[..., Row]


def faults(n: Callable[[int], int]) -> Iterator[Maker]:
    """The rows of the table, as functions of a lab and a random generator. `n` scales how often each is tried."""
    yield lambda lab, _: boundary_calls(lab, "lean", "lean", n(24))
    yield lambda lab, rng: other_calls(lab, "lean", "lean", rng, n(40))
    yield lambda lab, _: boundary_calls(lab, "good", "measured", n(8))
    yield lambda lab, rng: other_calls(lab, "lean", "shared", rng, n(8))
    yield lambda lab, _: kills.at_stages(lab, kills.STAGES if n(7) >= 7 else ("evaluate", "release"))
    yield lambda lab, rng: kills.at_random(lab, "lean", "shared", rng, n(15), 5)
    yield lambda lab, rng: kills.at_random(lab, "good", "fresh", rng, n(2), 5)
    yield lambda lab, rng: kills.at_random(lab, "refused", "shared", rng, n(5), 4)
    yield lambda lab, rng: kills.of_servers(lab, rng, n(10))
    yield lambda lab, rng: kills.of_servers(lab, rng, n(2), stubborn=True)
    yield lambda lab, rng: kills.of_part(lab, "engine", "kill -9 of vLLM's engine process", rng, n(4))
    yield lambda lab, rng: kills.of_part(lab, "guard", "kill -9 of a server's guard", rng, n(5))
    yield lambda lab, rng: kills.of_worker(lab, rng, n(5), whom="worker")
    yield lambda lab, rng: kills.of_worker(lab, rng, n(5), whom="sqtool")
    yield lambda lab, rng: surroundings.two_recipes(lab, rng, n(2))
    yield lambda lab, _: surroundings.two_at_once(lab, "lean", "shared")
    yield lambda lab, rng: surroundings.full_disk(lab, rng, n(6))
    for error, where in (("ENOSPC", "from some call on"), ("EIO", "one call fails"), ("EROFS", "from some call on")):
        yield partial(failing, error, where, n(4))
    yield lambda lab, _: surroundings.read_only(lab, ("fresh", "lean"))
    yield lambda lab, _: surroundings.clock(lab, DAYS[: n(4)], MOMENTS[: n(4)], "lean", "lean")
    yield lambda lab, _: damage.of_times(lab, (1e9, 4e9)[: n(2)])
    yield partial(damaged, "damaged cache", "files of artifacts/cache", "artifacts/cache/**/*", (0, 4), n(9))
    yield partial(damaged, "damaged run", "files of finished stages", "artifacts/runs/lean/*/**/*", (0,), n(9))
    candidate = "artifacts/runs/lean/quantize/checkpoint/*.safetensors"
    yield partial(damaged, "corrupted safetensors", "the candidate", candidate, (0,), n(3))
    yield partial(damaged, "corrupted safetensors", "the model", "model/*.safetensors", (2, 4), n(2), "shared")
    yield lambda lab, _: surroundings.out_of_memory(lab, (150, 400, 700, 1500)[: n(4)], "shared")
    yield lambda lab, rng: surroundings.signals(lab, rng, n(5), [INT], 0, "Ctrl-C")
    yield lambda lab, rng: surroundings.signals(lab, rng, n(6), [INT, INT], 0.4, "Ctrl-C twice")
    yield lambda lab, rng: surroundings.signals(lab, rng, n(3), [TERM], 0, "SIGTERM")
    yield lambda lab, rng: surroundings.signals(lab, rng, n(2), [HUP], 0, "SIGHUP (the terminal is closed)")
    yield lambda lab, _: surroundings.closed_screen(lab, "lean", "lean")


DAYS, MOMENTS = (-400, 4000, -1, 1), (3, 20, 30, 40)


def failing(error: str, where: str, count: int, lab: Lab, rng: random.Random) -> Row:
    """Calls of the operating system that fail."""
    moments = sorted(rng.sample(range(1, 60), count))
    times = 1 if error == "EIO" else 10**6
    return surroundings.failing_calls(lab, error, where, moments, "lean", "lean", times)


def damaged(fault: str, where: str, pattern: str, allowed: tuple[int, ...], most: int, *rest: Any) -> Row:
    """Damaged files; `rest` is the state to start from, if it is another one, then lab and random generator."""
    *state, lab, rng = rest
    harms = (damage.cut, damage.zero) if state else (damage.cut, damage.flip, damage.zero)
    return damage.of_files(lab, fault, where, [pattern], harms, rng, allowed, most, *state)


def run(lab: Lab, todo: Queue[tuple[int, Maker]], seed: int, done: dict[int, Row]) -> None:
    """Take rows from the queue until it is empty."""
    while True:
        try:
            number, maker = todo.get_nowait()
        except Empty:
            return
        done[number] = maker(lab, random.Random(f"{seed} {number}"))


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | where | tried | survived | exit codes seen |", "| --- | --- | ---: | ---: | --- |"]
    for row in rows:
        codes = ", ".join(f"{code} ({count})" for code, count in sorted(row.codes.items(), key=str))
        tried = row.not_tried and f"not tried: {row.not_tried}"
        numbers = f"{tried or row.tries} | {row.survived} | {codes}"
        lines.append(f"| {row.fault} | {row.where} | {numbers} |")
    tries, survived, killed = (sum(getattr(row, key) for row in rows) for key in ("tries", "survived", "kills"))
    lines.append(f"| **all** | {killed} kills in all | {tries} | {survived} | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of tries; 1 makes at least 200 kills")
    parser.add_argument("--only", default="", help="only rows whose number (from 1) is in this list: 1,5,6")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once")
    options = parser.parse_args()
    started = time.monotonic()

    def told(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    only = {int(number) for number in options.only.split(",") if number}
    todo: Queue[tuple[int, Maker]] = Queue()
    for numbered in enumerate(faults(lambda count: max(1, round(count * options.scale))), 1):
        if not only or numbered[0] in only:
            todo.put(numbered)
    done: dict[int, Row] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as place, ExitStack() as open_labs:
        labs = [open_labs.enter_context(Lab.make(Path(place) / "0", told=told))]
        labs += [open_labs.enter_context(labs[0].copy(Path(place) / f"{n}")) for n in range(1, options.jobs)]
        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(run, lab, todo, options.seed, done) for lab in labs]:
                future.result()
    rows = [done[number] for number in sorted(done)]
    print(table(rows))
    problems = [f"{row.fault}, {row.where}: {problem}" for row in rows for problem in row.problems]
    print("".join(f"\nNOT SURVIVED: {problem}" for problem in problems))
    killed = sum(row.kills for row in rows)
    tries, seconds = sum(row.tries for row in rows), time.monotonic() - started
    print(f"{killed} kills, {tries} tries, {seconds:.0f} s, seed {options.seed}")
    return 1 if problems or (killed < KILLS_WANTED and options.scale >= 1 and not only) else 0


if __name__ == "__main__":
    assert (CHECKOUT / "sqtool").is_dir()
    sys.exit(main())
